package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Of the verdicts about several addresses, the worst one is that of the probe. Each of these is worse than those
// after it.
func TestWorse(t *testing.T) {
	slow := Verdict{Result: "open", Handshake: shaker.Result{Handshake: 2 * time.Second}}
	fast := Verdict{Result: "open", Handshake: shaker.Result{Handshake: time.Second}}
	refused := Verdict{Result: "refused"}
	fewFlows, manyFlows := slow, Verdict{Result: "refused"}
	fewFlows.Result, fewFlows.Flows = "timeout", []Flow{{Verdict: refused}, {Verdict: fast}, {Verdict: fast}}
	manyFlows.Flows = []Flow{{Verdict: refused}, {Verdict: refused}, {Verdict: fast}}
	for _, c := range []struct {
		valid []string
		order []Verdict
	}{
		{valid: []string{"open"}, order: []Verdict{manyFlows, fewFlows, slow}},
		{valid: []string{"open"}, order: []Verdict{refused, slow, fast}},
		{valid: []string{"refused"}, order: []Verdict{slow, fast, refused}},
		{valid: []string{"open", "refused"}, order: []Verdict{refused, slow, fast}},
		{valid: []string{"timeout"}, order: []Verdict{slow, fast, refused}},
	} {
		r := &Report{Request: &Request{}}
		r.Module.TCP.ValidResults = c.valid
		for i, a := range c.order {
			for j, b := range c.order {
				if got, want := r.worse(a, b), cmp.Compare(j, i); got != want {
					t.Errorf("with valid_results %v, worse(%+v, %+v) = %d, want %d", c.valid, a, b, got, want)
				}
			}
		}
	}
}

// A record has the measurements only if a SYN was sent, and a reason only if the result does not say it.
func TestRecord(t *testing.T) {
	local, peer := netip.MustParseAddrPort("198.51.100.9:40000"), netip.MustParseAddrPort("192.0.2.1:80")
	icmp := shaker.ICMP{From: netip.MustParseAddr("198.51.100.7"), Type: 3}
	measured := shaker.Result{Handshake: 3, RTT: 2, SYNs: 4, Peer: peer, ICMP: icmp}
	with := func(outcome shaker.Outcome, local netip.AddrPort) shaker.Result {
		r := measured
		r.Outcome, r.Local = outcome, local
		return r
	}
	start := time.Now()
	sent := history.Record{Time: start, Duration: 9, Handshake: 3, RTT: 2, Sent: true, SYNRetransmits: 3,
		Address: peer.Addr(), ICMP: icmp}
	unsent := history.Record{Time: start, Duration: 9, SYNRetransmits: -1, Address: peer.Addr(), ICMP: icmp}
	late := fmt.Errorf("lookup: %w", context.DeadlineExceeded)
	for _, c := range []struct {
		verdict Verdict
		reason  string
		want    history.Record
	}{
		{verdict: Verdict{Result: "open", Handshake: with(shaker.Open, local)}, want: sent},
		{verdict: Verdict{Result: "unreachable", Errno: "ENETUNREACH", Handshake: with(shaker.Unreachable, local)},
			want: sent},
		// On platforms other than Linux, the local address is not known.
		{verdict: Verdict{Result: "refused", Handshake: with(shaker.Refused, netip.AddrPort{})}, want: sent},
		{verdict: Verdict{Result: "timeout", Handshake: with(shaker.Timeout, netip.AddrPort{})}, want: sent},
		{verdict: Verdict{Result: "unreachable", Handshake: with(shaker.Unreachable, netip.AddrPort{})}, want: unsent},
		{verdict: Verdict{Result: config.DNSError, Err: errors.New("lame"),
			Handshake: with(0, netip.AddrPort{})}, reason: "lame", want: unsent},
		{verdict: Verdict{Result: config.DNSTimeout, Err: late, Handshake: with(0, netip.AddrPort{})}, want: unsent},
	} {
		r := &Report{Request: &Request{}, Start: start}
		r.Module.TCP.ValidResults = []string{"open"}
		c.verdict.At = 9
		r.Verdict = c.verdict
		c.want.Result, c.want.Errno, c.want.Reason = c.verdict.Result, c.verdict.Errno, c.reason
		c.want.Success = c.verdict.Result == "open"
		if got := r.Record(); got != c.want {
			t.Errorf("the record of %+v is\n     %+v\nwant %+v", c.verdict, got, c.want)
		}
	}
}

// A record has the flows of its verdict, and where their paths part if these are the flows that were traced.
func TestRecordOfFlows(t *testing.T) {
	shake := func(host string, port uint16, outcome shaker.Outcome) shaker.Result {
		return shaker.Result{
			Outcome: outcome,
			Local:   netip.AddrPortFrom(netip.MustParseAddr("198.51.100.9"), port),
			Peer:    netip.MustParseAddrPort(host),
		}
	}
	verdict := func(host string, second shaker.Outcome) Verdict {
		flows := []Flow{
			{Port: 20000, Verdict: Verdict{Result: "open", Handshake: shake(host, 20000, shaker.Open)}},
			{Port: 20002, Verdict: Verdict{Result: second.String(), Handshake: shake(host, 20002, second)}},
		}
		v := flows[1].Verdict
		v.Flows = flows
		return v
	}
	r := &Report{Request: &Request{}}
	r.Module.TCP.ValidResults = []string{"open"}
	r.Verdicts = []Verdict{verdict("192.0.2.1:80", shaker.Timeout), verdict("192.0.2.2:80", shaker.Open)}
	r.Verdict = r.Verdicts[0]
	r.Parting = &Parting{Shared: shaker.Hop{TTL: 1, From: netip.MustParseAddr("192.0.2.7")}}
	first, second := r.Records()[0].Flows, r.Records()[1].Flows
	got := fmt.Sprint(first.Len(), first.FailedPorts())
	if got != "2 [20002]" || !first.Traced || first.Shared.TTL != 1 {
		t.Errorf("the record of the traced address has the flows %+v, want 2, port 20002 failed, parting after hop 1",
			first)
	}
	if got = fmt.Sprint(second.Len(), second.FailedPorts()); got != "2 []" || second.Traced {
		t.Errorf("the record of the other address has the flows %+v, want 2, none failed, no parting", second)
	}
	if n := len(r.Handshakes(&r.Verdict)); n != 2 {
		t.Errorf("Handshakes of a verdict with 2 flows has %d records, want 2", n)
	}
	if records := r.Handshakes(&Verdict{Result: "open"}); len(records) != 1 || records[0].Flows != nil {
		t.Errorf("Handshakes of a verdict without flows = %+v, want one record without flows", records)
	}
}
