package shaker

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/capture"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// host4 and host6 are the host of a kernel.Chain.
var (
	host4 = netip.MustParseAddr("10.77.4.2")
	host6 = netip.MustParseAddr("fd77:4::2")
)

// A tap records the segments at a node of a chain.
type tap struct {
	chain *kernel.Chain
	node  int
	*capture.Capture
}

// newTap records what passes an interface of a node. The peer is an address at the other end of the link.
func newTap(t *testing.T, chain *kernel.Chain, node int, device, peer string) *tap {
	t.Helper()
	p := &tap{chain: chain, node: node}
	chain.In(node, func() error {
		p.Capture = capture.Interface(t, device, netip.MustParseAddr(peer))
		return nil
	})
	return p
}

// syns returns how many whole SYNs and how many with a wrong checksum have passed since the last call, by their source.
func (p *tap) syns() (whole, damaged map[netip.AddrPort]int) {
	whole, damaged = make(map[netip.AddrPort]int), make(map[netip.AddrPort]int)
	p.chain.In(p.node, func() error {
		for _, s := range p.Segments() {
			switch {
			case !s.SYN || s.ACK:
			case s.Damaged():
				damaged[s.Src]++
			default:
				whole[s.Src]++
			}
		}
		return nil
	})
	return whole, damaged
}

// Kernels between this host and the target balance flows between two routers, by ports or by the IPv6 flow label. The
// path is the one that the handshake took, for each port. The target sees one whole SYN of the handshake and one of the
// trace.
func TestTraceOfBalancedFlows(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const flows = 24
	for _, c := range []struct {
		name, policy string
		host         netip.Addr
		routers      [2]string // the second router on the path
		sockets      bool      // the control
	}{
		{name: "by ports/IPv4", policy: "1", host: host4, routers: [2]string{"10.77.2.2", "10.77.6.2"}},
		{name: "by ports/IPv6", policy: "1", host: host6, routers: [2]string{"fd77:2::2", "fd77:6::2"}},
		{name: "by flow label", policy: "0", host: host6, routers: [2]string{"fd77:2::2", "fd77:6::2"}},
		{name: "by flow label/sockets", policy: "0", host: host6, routers: [2]string{"fd77:2::2", "fd77:6::2"},
			sockets: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := kernel.NewChain(t)
			chain.Fork(c.policy)
			fork := newTap(t, chain, 5, "to1", "10.77.6.1")
			end := newTap(t, chain, 4, "to3", "10.77.4.1")
			s := start(t)
			if !c.sockets {
				s = startWithoutSockets(t)
			}
			target := netip.AddrPortFrom(c.host, 80)
			var taken [2]int // how many flows take each router
			wrong, unseen := 0, 0
			for range flows {
				fork.syns()
				r := mustShake(t, s, target)
				through, _ := fork.syns()
				router := through[r.Local]
				if r.Outcome != Open || router > 1 {
					t.Fatalf("Shake(%v) = %+v, with %d SYNs through node 5, want Open, with one or none",
						target, r, router)
				}
				taken[router]++
				path, err := s.Trace(t.Context(), r, nil)
				if err != nil || len(path.Hops) != 4 || path.Reached != 4 {
					t.Fatalf("Trace to %v = %s, error %v, want 4 hops", target, sketch(path), err)
				}
				if path.Hops[1].From.String() != c.routers[router] {
					wrong++
				}
				whole, damaged := fork.syns()
				if passed := whole[r.Local] + damaged[r.Local]; !c.sockets && (passed > 0) != (router == 1) {
					t.Errorf("%d SYNs of the trace from %v passed node 5, and %d of the handshake",
						passed, r.Local, router)
				}
				whole, damaged = end.syns()
				if late := s.Strays().Late; !c.sockets && (whole[r.Local] < 2 || whole[r.Local] > 2+int(late)) {
					t.Errorf("the target got %d whole SYNs from %v, want 2, and one more for each of %d late answers",
						whole[r.Local], r.Local, late)
				}
				unseen += damaged[r.Local]
			}
			if taken[0] == 0 || taken[1] == 0 {
				t.Fatalf("%v flows took the routers %v, want some for each", taken, c.routers)
			}
			if (unseen > 0) == c.sockets {
				t.Errorf("%d SYNs with wrong checksums arrived at the target, want some only without sockets", unseen)
			}
			if (wrong > 0) != c.sockets {
				t.Errorf("%d of %d paths show a router that the handshake did not pass, want some only with sockets",
					wrong, flows)
			}
		})
	}
}

// The path of a flow that gets no answer is exact, too.
func TestTraceOfBalancedBlackholes(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	chain.Fork("1")
	nft := lab.Program(t, "nft", "nftables")
	chain.Run(4, nft, "table inet lab { chain input { type filter hook input priority 0; tcp dport 82 drop; }; }")
	fork := newTap(t, chain, 5, "to1", "10.77.6.1")
	s := startWithoutSockets(t)
	var group sync.WaitGroup
	results, paths := make([]Result, 16), make([]Path, 16)
	target := netip.AddrPortFrom(host4, 82)
	for i := range results {
		group.Go(func() {
			var err error
			results[i], err = inTime(func() (Result, error) {
				return s.Shake(context.Background(), target, &Options{Timeout: 500 * time.Millisecond})
			})
			if err != nil {
				t.Errorf("Shake(%v): error %v", target, err)
			}
		})
	}
	group.Wait()
	through, _ := fork.syns()
	for i, r := range results {
		group.Go(func() {
			var err error
			paths[i], err = s.Trace(context.Background(), r, &TraceOptions{Timeout: time.Minute})
			if err != nil {
				t.Errorf("Trace to %v: error %v", target, err)
			}
		})
	}
	group.Wait()
	whole, damaged := fork.syns()
	forked := 0
	for i, r := range results {
		want := "1 10.77.1.2 ttl_exceeded, 2 10.77.2.2 ttl_exceeded, 3 10.77.3.2 ttl_exceeded; reached 0"
		if through[r.Local] > 0 {
			forked++
			want = "1 10.77.1.2 ttl_exceeded, 2 10.77.6.2 ttl_exceeded, 3 10.77.3.2 ttl_exceeded; reached 0"
		}
		if got := sketch(paths[i]); got != want || !paths[i].SameFlow || r.Outcome != Timeout {
			t.Errorf("Trace after %v from %v = %s, SameFlow %t, want timeout, %s, true", r.Outcome, r.Local, got,
				paths[i].SameFlow, want)
		}
		if passed := whole[r.Local] + damaged[r.Local]; (passed > 0) != (through[r.Local] > 0) {
			t.Errorf("%d SYNs of the trace from %v passed node 5, and %d of the handshake",
				passed, r.Local, through[r.Local])
		}
	}
	if forked == 0 || forked == len(results) {
		t.Errorf("%d of %d flows passed node 5, want some, and not all", forked, len(results))
	}
}

// What kernels, routes and firewalls on the path do to SYNs gives the same path with sockets and without.
func TestTraceThroughKernels(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	nft := lab.Program(t, "nft", "nftables")
	for n := range 3 {
		chain.Route(n, "10.77.96.0/19", fmt.Sprintf("10.77.%d.2", n+1), unix.RTN_UNICAST)
	}
	chain.Route(3, "10.77.100.0/24", "", unix.RTN_BLACKHOLE)
	chain.Route(3, "10.77.103.0/24", "10.77.3.1", unix.RTN_UNICAST) // and node 2 sends it back
	end := newTap(t, chain, 4, "to3", "10.77.4.1")
	const (
		only4 = "1 10.77.1.2 ttl_exceeded, 2 10.77.2.2 ttl_exceeded"
		only6 = "1 fd77:1::2 ttl_exceeded, 2 fd77:2::2 ttl_exceeded"
		open4 = only4 + ", 3 10.77.3.2 ttl_exceeded, 4 10.77.4.2 open; reached 4"
		open6 = only6 + ", 3 fd77:3::2 ttl_exceeded, 4 fd77:4::2 open; reached 4"

		in  = "type filter hook prerouting priority 0"
		fwd = "type filter hook forward priority 0"
		out = "type filter hook output priority 0"
	)
	for _, c := range []struct {
		name   string
		rule   string // of the second router
		target string
		want   string
		whole  int  // SYNs of a trace that the target gets; only without sockets, and if any do
		none   bool // no SYN with a wrong checksum gets there
	}{
		{name: "open", target: "10.77.4.2:80", want: open4, whole: 1},
		{name: "open", target: "[fd77:4::2]:80", want: open6, whole: 1},
		{name: "closed", target: "10.77.4.2:81", whole: 1,
			want: only4 + ", 3 10.77.3.2 ttl_exceeded, 4 10.77.4.2 refused; reached 4"},
		{name: "a firewall drops what is invalid, before it is routed", rule: in + "; ct state invalid drop",
			target: "10.77.4.2:80", want: open4, whole: 1, none: true},
		{name: "a firewall drops what is invalid, before it is routed", rule: in + "; ct state invalid drop",
			target: "[fd77:4::2]:80", want: open6, whole: 1, none: true},
		{name: "a firewall drops what is invalid", rule: fwd + "; ct state invalid drop",
			target: "10.77.4.2:80", want: open4, whole: 1, none: true},
		{name: "a firewall rejects what is invalid", rule: fwd + "; ct state invalid reject with tcp reset",
			target: "10.77.4.2:80", want: open4, whole: 1, none: true},
		{name: "a stateful firewall", rule: fwd + "; policy drop; ct state established,related accept; " +
			"tcp dport 80 ct state new accept", target: "10.77.4.2:80", want: open4, whole: 1, none: true},
		{name: "a silent router", rule: out + "; icmp type time-exceeded drop", target: "10.77.4.2:80", whole: 1,
			want: "1 10.77.1.2 ttl_exceeded, 2 *, 3 10.77.3.2 ttl_exceeded, 4 10.77.4.2 open; reached 4"},
		{name: "a router drops the SYN", rule: fwd + "; tcp flags syn / syn,ack drop", target: "10.77.4.2:80",
			want: only4 + "; reached 0"},
		{name: "a router resets the SYN", rule: fwd + "; tcp flags syn / syn,ack reject with tcp reset",
			target: "[fd77:4::2]:80", want: only6 + ", 3 fd77:4::2 refused; reached 3"},
		{name: "a router rejects the SYN",
			rule:   fwd + "; tcp flags syn / syn,ack reject with icmp type admin-prohibited",
			target: "10.77.4.2:80", want: only4 + ", 3 10.77.2.2 admin_prohibited; reached 0"},
		{name: "a blackhole", target: "10.77.100.1:80", want: only4 + "; reached 0"},
		{name: "a loop", target: "10.77.103.1:80", want: only4 + ", 3 10.77.3.2 ttl_exceeded, " +
			"4 10.77.2.2 ttl_exceeded, 5 10.77.3.2 ttl_exceeded, 6 10.77.2.2 ttl_exceeded; reached 0"},
		{name: "no reply to this host's ARP", target: "10.77.1.9:80", want: "; reached 0"},
	} {
		target := netip.MustParseAddrPort(c.target)
		t.Run(c.name+"/"+c.target, func(t *testing.T) {
			if c.rule != "" {
				chain.Run(2, nft, "table inet lab { chain lab { "+c.rule+"; }; }")
				defer chain.Run(2, nft, "delete table inet lab")
			}
			traces(t, func(t *testing.T, config *Config, s *Shaker) {
				r, err := inTime(func() (Result, error) {
					return s.Shake(t.Context(), target, &Options{Timeout: 900 * time.Millisecond})
				})
				if err != nil {
					t.Fatalf("Shake(%v): error %v", target, err)
				}
				if config != nil && r.Outcome == Open {
					r.RTT = 100 * time.Millisecond // all SYNs leave before the trace ends, also if this host is busy
				}
				end.syns()
				path, err := s.Trace(t.Context(), r, &TraceOptions{Timeout: time.Minute})
				if got := sketch(path); err != nil || got != c.want {
					t.Errorf("Trace after %v = %s, error %v, want %s", r.Outcome, got, err, c.want)
				}
				whole, damaged := end.syns()
				if config == nil {
					return
				}
				most := c.whole + int(s.Strays().Late) // a late answer lets the trace send another SYN
				if whole[r.Local] < c.whole || whole[r.Local] > most ||
					(damaged[r.Local] > 0) != (c.whole > 0 && !c.none) {
					t.Errorf("the target got %d whole SYNs and %d with wrong checksums, "+
						"want %d, and some if nothing drops them", whole[r.Local], damaged[r.Local], c.whole)
				}
				if len(path.Hops) > 0 && !path.SameFlow {
					t.Errorf("SameFlow is false, want true")
				}
			})
		})
	}
}
