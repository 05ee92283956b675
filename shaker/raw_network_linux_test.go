package shaker

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A target that is unusual, or to which a route of this host forbids packets, has the same result without sockets.
func TestUnusualTargets(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	simnet.NewNetwork(t) // answers nothing
	listener, _ := listen(t, "[::]:0")
	open := listener.Port()
	peer := kernel.NewNamespace(t)
	peer.Link("near", "far")
	addAddress(t, "near", "198.18.4.1/24")
	addAddress(t, "near", "2001:2:4::1/64")
	addAddress(t, "near", "fe80::1/64")
	for prefix, kind := range map[string]int{
		"192.0.2.1/32": unix.RTN_BLACKHOLE, "2001:db8::1/128": unix.RTN_BLACKHOLE,
		"192.0.2.2/32": unix.RTN_UNREACHABLE, "2001:db8::2/128": unix.RTN_UNREACHABLE,
		"192.0.2.3/32": unix.RTN_PROHIBIT, "2001:db8::3/128": unix.RTN_PROHIBIT,
		"192.0.2.4/32": unix.RTN_THROW, "2001:db8::4/128": unix.RTN_THROW,
	} {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			t.Fatal(err)
		}
		route := &netlink.Route{Dst: dst, Type: kind}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatalf("route to %s: %v", prefix, err)
		}
		t.Cleanup(func() { netlink.RouteDel(route) })
	}
	sockets := start(t)
	withoutSocketsIn(t)
	raw := start(t)
	results := make(map[string]int)
	for _, address := range []string{
		"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "198.18.0.1", "::ffff:198.18.0.1", "2001:2::1",
		"0.0.0.0", "::", "::ffff:0.0.0.0", "0.0.0.1", "0.255.255.255", "fe80::1%near",
		"255.255.255.255", "198.18.4.255", "198.18.4.0", "127.255.255.255",
		"224.0.0.1", "239.255.255.255", "ff02::1%near", "ff05::1", "ff0e::1", "ff01::1",
		"240.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002::1", "fec0::1", "100::1",
		"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "::ffff:192.0.2.3",
		"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5",
	} {
		for _, port := range []uint16{open, 1} {
			target := netip.AddrPortFrom(netip.MustParseAddr(address), port)
			shake := func(s *Shaker) (Result, string) {
				r, err := inTime(func() (Result, error) {
					return s.Shake(t.Context(), target, &Options{Timeout: 50 * time.Millisecond})
				})
				if err != nil {
					return r, err.Error()
				}
				local := "no Local"
				if r.Local.IsValid() {
					local = "Local " + r.Local.Addr().String()
				}
				return withoutTimes(r), local
			}
			want, wantText := shake(sockets)
			if got, text := shake(raw); got != want || text != wantText {
				t.Errorf("without a socket, Shake(%v) =\n     %+v, %s\nwant %+v, %s", target, got, text, want, wantText)
			}
			results[want.Outcome.String()+" "+ErrnoName(want.Errno)]++
		}
	}
	t.Logf("%v", results)
	if len(results) < 7 {
		t.Errorf("the targets have the results %v, want 7 different ones or more", results)
	}
}

// Two links have a neighbour with the same link-local address: one is open, and the other one is not.
func TestZones(t *testing.T) {
	peer := kernel.NewNamespace(t)
	for _, n := range []string{"1", "2"} {
		peer.Link("near"+n, "far"+n)
		addAddress(t, "near"+n, "fe80::1/64")
		peer.In(func() { addAddress(t, "far"+n, "fe80::2/64") })
	}
	var target netip.AddrPort
	peer.In(func() { target, _ = listen(t, "[fe80::2%far1]:0") })
	eachEngine(t, func(t *testing.T) {
		s := start(t)
		var group sync.WaitGroup
		for range 20 {
			for zone, want := range map[string]Outcome{"near1": Open, "near2": Refused} {
				group.Go(func() {
					target := netip.AddrPortFrom(target.Addr().WithZone(zone), target.Port())
					r, err := s.Shake(t.Context(), target, &Options{Timeout: 5 * time.Second})
					if own := "fe80::1%" + zone; err != nil || r.Outcome != want || r.Local.Addr().String() != own {
						t.Errorf("Shake(%v) = %+v, error %v, want %v from %s", target, r, err, want, own)
					}
				})
			}
		}
		group.Wait()
	})
}

// A rule that chooses the route by the source also applies if the kernel has chosen the source. (Linux does so for
// IPv4.)
func TestRuleForTheSource(t *testing.T) {
	wire := openWire(t)
	peer := kernel.NewNamespace(t)
	peer.Link("near", "far") // leads nowhere
	near, err := netlink.LinkByName("near")
	if err != nil {
		t.Fatal(err)
	}
	const table = 1004
	rule := netlink.NewRule()
	rule.Src, rule.Table, rule.Family = single(netip.MustParseAddr("198.18.0.1")), table, netlink.FAMILY_V4
	if err := netlink.RuleAdd(rule); err != nil {
		lab.Skip(t, "needs policy routing: %v", err)
	}
	t.Cleanup(func() { netlink.RuleDel(rule) })
	route := &netlink.Route{LinkIndex: near.Attrs().Index, Dst: single(target4.Addr()), Table: table}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	eachEngine(t, func(t *testing.T) { mustTakeDetour(t, wire, target4, Options{}) })
}

// The firewall of this host, its routes for the way back, and its addresses for others have the same effect without
// sockets.
func TestOwnFirewall(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Need(t)
	target := kernel.NewNeighbour(t).Target
	const (
		input       = "chain input { type filter hook input priority 0; "
		output      = "chain output { type filter hook output priority 0; "
		prerouting  = "chain prerouting { type filter hook prerouting priority raw; "
		rawOutput   = "chain raw-output { type filter hook output priority raw; "
		postrouting = "chain postrouting { type nat hook postrouting priority srcnat; "
		natOutput   = "chain nat-output { type nat hook output priority -100; "
	)
	other := netip.MustParseAddrPort("198.18.2.77:8080") // no such neighbour
	for _, c := range []struct {
		name, chains string
		target       netip.AddrPort
		want         Outcome
	}{
		{name: "none", target: target, want: Open},
		{
			name:   "stateful",
			chains: input + "policy drop; ct state established,related accept; }",
			target: target, want: Open,
		},
		{
			name:   "drops invalid packets",
			chains: input + "ct state invalid drop; } " + output + "ct state invalid drop; }",
			target: target, want: Open,
		},
		{
			name:   "notrack",
			chains: prerouting + "notrack; } " + rawOutput + "notrack; } " + input + "ct state invalid drop; }",
			target: target, want: Open,
		},
		{name: "masquerades", chains: postrouting + "masquerade random; }", target: target, want: Open},
		{
			name:   "translates the target",
			chains: natOutput + "ip daddr 198.18.2.77 tcp dport 8080 dnat ip to 198.18.2.2:80; }",
			target: other, want: Open,
		},
		{
			name:   "rejects with an RST",
			chains: output + "tcp dport 80 reject with tcp reset; }",
			target: target, want: Refused,
		},
		{
			name:   "rejects with an ICMP error",
			chains: output + "tcp dport 80 reject with icmpx admin-prohibited; }",
			target: target, want: Prohibited,
		},
		// After the following ones, the neighbour has half-open connections with ports that will be used again.
		{name: "drops RSTs", chains: dropRSTs, target: target, want: Open},
		{
			name: "stateful without state",
			chains: prerouting + "notrack; } " + rawOutput + "notrack; } " +
				input + "policy drop; ct state established,related accept; }",
			target: target, want: Timeout,
		},
		{name: "drops all that arrives", chains: input + "policy drop; }", target: target, want: Timeout},
		{name: "rejects all that arrives", chains: input + "reject; }", target: target, want: Timeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			kernel.Firewall(t, c.chains)
			eachEngine(t, func(t *testing.T) {
				s, timeout := start(t), 5*time.Second
				if c.want == Timeout {
					timeout = 100 * time.Millisecond
				}
				for range 3 {
					r, err := inTime(func() (Result, error) {
						return s.Shake(t.Context(), c.target, &Options{Timeout: timeout})
					})
					if err != nil || r.Outcome != c.want {
						t.Errorf("with %s, Shake(%v) = %+v, error %v, want %v", c.chains, c.target, r, err, c.want)
					}
				}
			})
		})
	}
}

// The SYN leaves through one interface, and the SYN-ACK arrives through another: a strict filter of the reverse path
// drops it.
func TestReversePathFilter(t *testing.T) {
	peer := kernel.NewNamespace(t)
	for _, n := range []string{"1", "2"} {
		peer.Link("near"+n, "far"+n)
		addAddress(t, "near"+n, "198.18."+n+"1.1/24")
		peer.In(func() { addAddress(t, "far"+n, "198.18."+n+"1.2/24") })
	}
	addAddress(t, "lo", "198.18.10.1/32")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	route := func(to, via, source string) {
		t.Helper()
		must(netlink.RouteAdd(&netlink.Route{
			Dst: single(netip.MustParseAddr(to)), Gw: net.ParseIP(via), Src: net.ParseIP(source),
		}))
	}
	var target netip.AddrPort
	peer.In(func() {
		addAddress(t, "lo", "198.18.20.1/32")
		must(os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0))
		must(os.WriteFile("/proc/sys/net/ipv4/conf/far1/rp_filter", []byte("0"), 0))
		route("198.18.10.1", "198.18.21.1", "")
		target, _ = listen(t, "198.18.20.1:0")
	})
	route("198.18.20.1", "198.18.11.2", "198.18.10.1")
	kernel.Sysctl(t, "net.ipv4.conf.all.rp_filter", "0")
	for filter, want := range map[string]Outcome{"0": Open, "1": Timeout, "2": Open} {
		kernel.Sysctl(t, "net.ipv4.conf.near2.rp_filter", filter)
		eachEngine(t, func(t *testing.T) {
			s, timeout := start(t), 5*time.Second
			if want == Timeout {
				timeout = 300 * time.Millisecond
			}
			r, err := inTime(func() (Result, error) {
				return s.Shake(t.Context(), target, &Options{Timeout: timeout})
			})
			if err != nil || r.Outcome != want {
				t.Errorf("rp_filter %s: Shake(%v) = %+v, error %v, want %v", filter, target, r, err, want)
			}
		})
	}
}

// An answer arrives after the loop has received answers, and the loop finds it at the deadline.
func TestAnswerAtTheDeadline(t *testing.T) {
	withoutSocketsIn(t)
	needTimestamps(t)
	router := netip.MustParseAddr("198.51.100.7")
	for want, answer := range map[Outcome]func(syn simnet.Segment) []byte{
		Open:        simnet.Segment.SYNACK,
		Refused:     simnet.Segment.Refusal,
		Unreachable: func(syn simnet.Segment) []byte { return syn.ICMPError(router, 3, 1) },
	} {
		t.Run(want.String(), func(t *testing.T) {
			s, l := startOne(t)
			answers := make(chan []byte, 1)
			wire := simnet.NewWire(t, func(segment simnet.Segment) [][]byte {
				if segment.SYN {
					answers <- answer(segment)
				}
				return nil
			}, "192.0.2.0/24", "198.51.100.0/24")
			// On a busy machine, the answer may arrive too late for the deadline.
			r, err := inTime(func() (r Result, err error) {
				done := make(chan struct{})
				go func() {
					defer close(done)
					r, err = s.Shake(t.Context(), target4, &Options{Timeout: 5 * time.Second})
				}()
				late := <-answers
				l.submit(&endingTask{ended: func() {
					wire.Send(late)
					// A busy kernel delivers it later.
					received := []unix.PollFd{{Fd: int32(s.engine.wires[0].ears[0].fd), Events: unix.POLLIN}}
					if n, err := unix.Poll(received, 10_000); n == 0 {
						t.Errorf("poll(2) of the raw socket: %v, want an answer", err)
					}
					h := handshakes(l)[0]
					h.deadline = l.clock()
					l.now = h.deadline
					l.setDue(h.own, h.deadline)
				}}, interactive, 1)
				<-done
				return r, err
			})
			if err != nil || r.Outcome != want {
				t.Errorf("Shake(%v) = %+v, error %v, want %v", target4, r, err, want)
			}
		})
	}
}

// dropRSTs is a chain for kernel.Firewall.
const dropRSTs = "chain output { type filter hook output priority 0; tcp flags rst drop; }"

// If the firewall of this host drops the RSTs, the target sends its SYN-ACKs again, and Resets counts that. Without
// such a firewall, none are missing.
func TestMissingResets(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Need(t)
	target := kernel.NewNeighbour(t).Target
	closed := netip.AddrPortFrom(target.Addr(), 81)
	withoutSocketsIn(t)
	s, _ := startOne(t)
	shakeAll := func() {
		for range 20 {
			if r := mustShake(t, s, target); r.Outcome != Open {
				t.Errorf("Shake(%v) = %+v, want Open", target, r)
			}
		}
	}
	shakeAll()
	before := s.Resets()
	kernel.Firewall(t, dropRSTs)
	shakeAll()
	want := Resets{Checked: s.Resets().Checked, Missing: s.Resets().Checked - before.Checked}
	if before.Missing != 0 || before.Checked < 10 || want.Missing < 10 {
		t.Fatalf("Resets() = %+v before the firewall, and %+v after 20 more handshakes, want 10 to 20 more checked",
			before, s.Resets())
	}
	lab.Eventually(t, "the RSTs are missing", func() bool {
		if r := mustShake(t, s, closed); r.Outcome != Refused { // a handshake receives what has arrived before
			t.Fatalf("Shake(%v) = %+v, want Refused", closed, r)
		}
		return s.Resets().Missing >= want.Missing
	})
	if got := s.Resets(); got != want {
		t.Errorf("Resets() = %+v, want %+v: only the handshakes without an RST", got, want)
	}
}

// The network loses the RST of a handshake, so that the target still waits for its ACK. A handshake from the same port
// 50 ms later is not taken for a part of that connection, so that the target is not Refused. The target
// answers its SYN with an ACK of that connection, and then the SYN is sent again at once, as by the kernel.
func TestSamePortAfterALostRST(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Need(t)
	target := kernel.NewNeighbour(t).Target
	eachEngine(t, func(t *testing.T) {
		s := start(t)
		options := &Options{SourcePort: portsFor(t, s, 1).First, Timeout: 5 * time.Second}
		mustShake(t, s, target) // so that this host and the target know each other's addresses
		shake := func() (r Result) {
			t.Helper()
			r, err := s.Shake(t.Context(), target, options)
			if err != nil || r.Outcome != Open {
				t.Fatalf("Shake(%v from port %d) = %+v, error %v, want Open", target, options.SourcePort, r, err)
			}
			return r
		}
		const again = 900 * time.Millisecond // then the target sends its SYN-ACK again, and gets an RST
		for stalled := true; stalled; {
			remove := kernel.Firewall(t, dropRSTs)
			answered := time.Now()
			shake()
			remove()
			time.Sleep(50 * time.Millisecond)
			if r := shake(); time.Since(answered) < again && r.SYNs != 2 || r.Waited > again {
				t.Fatalf("Shake(%v from port %d), after a lost RST = %+v, want two SYNs in less than %v", target,
					options.SourcePort, r, again)
			} else {
				stalled = r.SYNs != 2
			}
		}
	})
}
