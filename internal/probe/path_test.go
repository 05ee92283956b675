package probe

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A third of the timeout is reserved for the path, at most 2 s.
func TestTraceTime(t *testing.T) {
	for _, c := range []struct {
		path          string
		timeout, want time.Duration
	}{
		{path: config.Never, timeout: 6 * time.Second, want: 0},
		{path: config.OnFailure, timeout: 3 * time.Second, want: time.Second},
		{path: config.Always, timeout: 6 * time.Second, want: 2 * time.Second},
		{path: config.Always, timeout: time.Minute, want: 2 * time.Second},
	} {
		r := Request{Timeout: c.timeout}
		r.Module.TCP.Path = c.path
		if got := r.traceTime(); got != c.want {
			t.Errorf("traceTime() with path %s and timeout %v = %v, want %v", c.path, c.timeout, got, c.want)
		}
	}
}

// The path is traced if the module or the caller wants it, and a SYN was sent.
func TestWantsPath(t *testing.T) {
	local := netip.MustParseAddrPort("192.0.2.1:40000")
	for _, c := range []struct {
		path, result string
		local        netip.AddrPort
		want         bool
	}{
		{path: config.Never, result: "refused", local: local, want: false},
		{path: config.OnFailure, result: "refused", local: local, want: true},
		{path: config.OnFailure, result: "refused", want: false},
		{path: config.OnFailure, result: "open", local: local, want: false},
		{path: config.Always, result: "refused", local: local, want: true},
		{path: config.Always, result: "open", local: local, want: true},
		{path: config.Always, result: "open", want: false},
	} {
		r := &Report{Request: &Request{}, Verdict: Verdict{Result: c.result}}
		r.Module.TCP.Path, r.Module.TCP.ValidResults, r.Handshake.Local = c.path, []string{"open"}, c.local
		if got := r.wantsPath(); got != c.want {
			t.Errorf("wantsPath() with path %s, result %s, sent from %v = %t, want %t",
				c.path, c.result, c.local, got, c.want)
		}
		r.TracePath(func(shaker.Hop) {})
		if got := r.wantsPath(); got != c.local.IsValid() || r.onHop == nil {
			t.Errorf("wantsPath() after TracePath, sent from %v = %t, OnHop set: %t, want %t, true",
				c.local, got, r.onHop != nil, c.local.IsValid())
		}
	}
}

// A complete trace shows more than an incomplete one, and otherwise the one with more answers does.
func TestBetterTrace(t *testing.T) {
	hops := func(answers int) (hops []shaker.Hop) {
		for range answers {
			hops = append(hops, shaker.Hop{From: netip.MustParseAddr("192.0.2.1")})
		}
		return hops
	}
	ended := context.DeadlineExceeded
	for _, c := range []struct {
		name         string
		found, other FlowPath
		want         bool
	}{
		{name: "more answers", found: FlowPath{Hops: hops(3)}, other: FlowPath{Hops: hops(2)}, want: true},
		{name: "as many answers", found: FlowPath{Hops: hops(3)}, other: FlowPath{Hops: hops(3)}, want: false},
		{name: "complete", found: FlowPath{Hops: hops(2)}, other: FlowPath{Hops: hops(3), Err: ended}, want: true},
		{name: "incomplete", found: FlowPath{Hops: hops(3), Err: ended}, other: FlowPath{Hops: hops(2)}, want: false},
	} {
		if got := c.found.isBetter(&c.other); got != c.want {
			t.Errorf("isBetter, %s = %t, want %t", c.name, got, c.want)
		}
	}
}

// The path belongs to the address that was traced, and to no other one.
func TestPathTo(t *testing.T) {
	r := &Report{Path: &shaker.Path{}}
	r.Handshake.Peer = netip.MustParseAddrPort("192.0.2.1:80")
	if got := r.PathTo(r.Handshake.Peer.Addr()); got != r.Path {
		t.Errorf("PathTo(192.0.2.1) = %v, want the path", got)
	}
	if got := r.PathTo(netip.MustParseAddr("192.0.2.2")); got != nil {
		t.Errorf("PathTo(192.0.2.2) = %+v, want nil: the path to 192.0.2.1 was traced", got)
	}
}
