package shaker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// sketch formats a path in one line: for each hop the TTL, the sender of the reply, and the reply.
func sketch(p Path) string {
	var hops []string
	for _, h := range p.Hops {
		answer := h.ICMP.String()
		switch {
		case !h.From.IsValid():
			hops = append(hops, fmt.Sprintf("%d *", h.TTL))
			continue
		case !h.ICMP.From.IsValid():
			answer = h.Outcome.String()
		}
		hops = append(hops, fmt.Sprintf("%d %v %s", h.TTL, h.From, answer))
	}
	return fmt.Sprintf("%s; reached %d", strings.Join(hops, ", "), p.Reached)
}

// traces calls test for a Shaker that uses sockets, and for one that does not.
func traces(t *testing.T, test func(t *testing.T, config *Config, s *Shaker)) {
	lab.Need(t)
	for _, engine := range []struct {
		name   string
		config *Config
	}{{name: "socket"}, {name: "raw", config: withoutSockets}} {
		t.Run(engine.name, func(t *testing.T) {
			s, err := New(engine.config)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			test(t, engine.config, s)
		})
	}
}

func TestTrace(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	traces(t, testTrace)
}

func testTrace(t *testing.T, config *Config, s *Shaker) {
	network := simnet.NewNetwork(t)
	raw := config != nil
	for _, c := range []struct {
		name    string
		lay     func(target string) *simnet.Host
		targets []string
		timeout time.Duration // of the handshake
		options TraceOptions
		want    []string // for each target, in the form of sketch
		reach   int      // SYNs that get as far as the target, or to where it would be; -1 for any number
		raw     int      // the same of whole ones, without sockets; 0 is reach
	}{
		{name: "open behind three routers",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.SYNACK()).Behind("198.51.100.1", "10.0.0.1", "198.51.100.3")
			},
			targets: []string{"192.0.2.1"},
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 10.0.0.1 ttl_exceeded, " +
				"3 198.51.100.3 ttl_exceeded, 4 192.0.2.1 open; reached 4"},
			reach: 1},
		{name: "IPv6",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.SYNACK()).Behind("2001:db8:ffff::1", "fd00::2")
			},
			targets: []string{"2001:db8::1"},
			want:    []string{"1 2001:db8:ffff::1 ttl_exceeded, 2 fd00::2 ttl_exceeded, 3 2001:db8::1 open; reached 3"},
			reach:   1},
		{name: "a neighbour",
			lay:     func(target string) *simnet.Host { return network.At(target, simnet.SYNACK()) },
			targets: []string{"192.0.2.2", "2001:db8::2"},
			want:    []string{"1 192.0.2.2 open; reached 1", "1 2001:db8::2 open; reached 1"},
			reach:   1},
		{name: "routers that do not reply",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.SYNACK()).Behind("198.51.100.1", "", "", "198.51.100.4")
			},
			targets: []string{"192.0.2.3"},
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 *, 3 *, 4 198.51.100.4 ttl_exceeded, " +
				"5 192.0.2.3 open; reached 5"},
			reach: 1},
		{name: "SYNs are dropped behind the second router",
			lay: func(target string) *simnet.Host {
				return network.At(target).Behind("198.51.100.1", "198.51.100.2")
			},
			targets: []string{"192.0.2.4"},
			timeout: 50 * time.Millisecond,
			want:    []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded; reached 0"},
			reach:   1 + hopsAtOnce,
			raw:     hopsAtOnce},
		{name: "SYNs are dropped behind routers that do not reply",
			lay: func(target string) *simnet.Host {
				return network.At(target).Behind("198.51.100.1", "", "198.51.100.3", "", "198.51.100.5")
			},
			targets: []string{"192.0.2.5"},
			timeout: 50 * time.Millisecond,
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 *, 3 198.51.100.3 ttl_exceeded, 4 *, " +
				"5 198.51.100.5 ttl_exceeded; reached 0"},
			reach: 13, // of the hops 3 to 10 and 11 to 18
			raw:   hopsAtOnce},
		{name: "no replies at all",
			lay:     func(target string) *simnet.Host { return network.At(target).Behind("", "", "") },
			targets: []string{"192.0.2.6"},
			timeout: 50 * time.Millisecond,
			want:    []string{"; reached 0"},
			reach:   -1},
		{name: "the first router has no route",
			lay:     func(target string) *simnet.Host { return network.At(target, simnet.ICMP("198.51.100.1", 3, 0)) },
			targets: []string{"192.0.2.13"},
			want:    []string{"1 198.51.100.1 net_unreachable; reached 0"},
			reach:   1},
		{name: "a closed port",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.RST()).Behind("198.51.100.1", "198.51.100.2", "198.51.100.3")
			},
			targets: []string{"192.0.2.7"},
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, " +
				"3 198.51.100.3 ttl_exceeded, 4 192.0.2.7 refused; reached 4"},
			reach: 1},
		{name: "a firewall refuses in the target's name, two hops before it",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.RST()).Behind("198.51.100.1")
			},
			targets: []string{"192.0.2.8"},
			want:    []string{"1 198.51.100.1 ttl_exceeded, 2 192.0.2.8 refused; reached 2"},
			reach:   1},
		{name: "the last router has no route",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.ICMP("198.51.100.3", 3, 1)).Behind("198.51.100.1", "198.51.100.2")
			},
			targets: []string{"192.0.2.9"},
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, " +
				"3 198.51.100.3 host_unreachable; reached 0"},
			reach: 1},
		{name: "a router prohibits, IPv6",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.ICMP("2001:db8:ffff::3", 1, 1)).Behind("2001:db8:ffff::1")
			},
			targets: []string{"2001:db8::9"},
			want:    []string{"1 2001:db8:ffff::1 ttl_exceeded, 2 2001:db8:ffff::3 admin_prohibited; reached 0"},
			reach:   1},
		{name: "an ICMP error from the target itself",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.ICMP(target, 3, 3)).Behind("198.51.100.1")
			},
			targets: []string{"192.0.2.10"},
			want:    []string{"1 198.51.100.1 ttl_exceeded, 2 192.0.2.10 port_unreachable; reached 2"},
			reach:   1},
		{name: "a routing loop",
			lay: func(target string) *simnet.Host {
				return network.At(target).Behind(slices.Repeat([]string{"198.51.100.1", "198.51.100.2"}, 20)...)
			},
			targets: []string{"192.0.2.11"},
			timeout: 50 * time.Millisecond,
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, 3 198.51.100.1 ttl_exceeded, " +
				"4 198.51.100.2 ttl_exceeded, 5 198.51.100.1 ttl_exceeded; reached 0"},
			reach: 0},
		{name: "a routing loop that hides its routers",
			lay: func(target string) *simnet.Host {
				return network.At(target).Behind(slices.Repeat([]string{"198.51.100.1"}, 20)...)
			},
			targets: []string{"192.0.2.14"},
			timeout: 50 * time.Millisecond,
			options: TraceOptions{MaxHops: 7},
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.1 ttl_exceeded, 3 198.51.100.1 ttl_exceeded, " +
				"4 198.51.100.1 ttl_exceeded, 5 198.51.100.1 ttl_exceeded, 6 198.51.100.1 ttl_exceeded, " +
				"7 198.51.100.1 ttl_exceeded; reached 0"},
			reach: 0},
		{name: "a NAT rewrites the senders of ICMP errors",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2", "198.51.100.2",
					"", "198.51.100.2", "198.51.100.2")
			},
			targets: []string{"192.0.2.15"},
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, 3 198.51.100.2 ttl_exceeded, " +
				"4 *, 5 198.51.100.2 ttl_exceeded, 6 198.51.100.2 ttl_exceeded, 7 192.0.2.15 open; reached 7"},
			reach: 1},
		{name: "a NAT rewrites the senders of ICMP errors, and SYNs are dropped behind it",
			lay: func(target string) *simnet.Host {
				return network.At(target).Behind(slices.Repeat([]string{"198.51.100.2"}, 4)...)
			},
			targets: []string{"192.0.2.16"},
			timeout: 50 * time.Millisecond,
			want: []string{"1 198.51.100.2 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, 3 198.51.100.2 ttl_exceeded, " +
				"4 198.51.100.2 ttl_exceeded; reached 0"},
			reach: 1 + hopsAtOnce,
			raw:   hopsAtOnce},
		{name: "a NAT rewrites the senders of some ICMP errors, and SYNs are dropped behind it",
			lay: func(target string) *simnet.Host {
				return network.At(target).Behind("198.51.100.2", "", "198.51.100.2", "", "198.51.100.2", "",
					"198.51.100.2")
			},
			targets: []string{"192.0.2.18"},
			timeout: 50 * time.Millisecond,
			want: []string{"1 198.51.100.2 ttl_exceeded, 2 *, 3 198.51.100.2 ttl_exceeded, 4 *, " +
				"5 198.51.100.2 ttl_exceeded, 6 *, 7 198.51.100.2 ttl_exceeded; reached 0"},
			reach: 11, // of the hops 3 to 10 and 11 to 18
			raw:   hopsAtOnce},
		{name: "routers that reply by turns, and an open target behind them",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.SYNACK()).Behind(
					slices.Repeat([]string{"198.51.100.1", "198.51.100.2"}, 3)...)
			},
			targets: []string{"192.0.2.17"},
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, 3 198.51.100.1 ttl_exceeded, " +
				"4 198.51.100.2 ttl_exceeded, 5 198.51.100.1 ttl_exceeded, 6 198.51.100.2 ttl_exceeded, " +
				"7 192.0.2.17 open; reached 7"},
			reach: 1},
		{name: "MaxHops",
			lay: func(target string) *simnet.Host {
				return network.At(target, simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2", "198.51.100.3")
			},
			targets: []string{"192.0.2.12"},
			options: TraceOptions{MaxHops: 2},
			want:    []string{"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded; reached 0"},
			reach:   0},
	} {
		for i, text := range c.targets {
			target := netip.AddrPortFrom(netip.MustParseAddr(text), 80)
			t.Run(fmt.Sprintf("%s/%v", c.name, target.Addr()), func(t *testing.T) {
				host := c.lay(text)
				r := shakeFor(t, s, target, c.timeout)
				before := len(slices.Collect(network.SentTo(target)))
				var hops []Hop
				c.options.OnHop = func(h Hop) { hops = append(hops, h) }
				path, err := s.Trace(t.Context(), r, &c.options)
				if got := sketch(path); err != nil || got != c.want[i] {
					t.Errorf("Trace to %v = %s, error %v, want %s\n%s",
						target, got, err, c.want[i], network.Trace(target.Addr()))
				}
				for n, h := range path.Hops {
					if hops[n] != h {
						t.Errorf("OnHop %d was called with %+v, want %+v as in the path", n, hops[n], h)
					}
					if h.From.IsValid() != (h.RTT > 0) || h.RTT > time.Second {
						t.Errorf("hop %d is %+v, want an RTT of at most 1 s, and 0 only without a reply", n, h)
					}
				}
				reach, damaged, sameFlow := 0, 0, true
				for _, segment := range slices.Collect(network.SentTo(target))[before:] {
					switch {
					case segment.SYN && segment.Damaged():
						damaged++
					case segment.SYN && int(segment.TTL) > host.Distance():
						reach++
					case !segment.SYN && (!segment.RST || segment.ACK && !segment.RST):
						t.Errorf("%v was sent, want only SYNs and RSTs", segment)
					}
					if segment.Src != r.Local && (c.timeout == 0 || raw) {
						t.Errorf("%v was sent, want it sent from %v, like the handshake", segment, r.Local)
					}
					if i := int(segment.TTL) - 1; segment.SYN && i < len(path.Hops) {
						sameFlow = sameFlow && segment.Src == r.Local
						if path.Hops[i].Local != segment.Src {
							t.Errorf("hop %d is %+v, want the Local of %v", i, path.Hops[i], segment)
						}
					}
				}
				if path.SameFlow != sameFlow {
					t.Errorf("SameFlow is %t, want %t\n%s", path.SameFlow, sameFlow, network.Trace(target.Addr()))
				}
				want := c.reach
				if raw {
					want = cmp.Or(c.raw, c.reach)
				}
				if reach != want && want >= 0 {
					t.Errorf("%d whole SYNs got as far as the target, want %d\n%s",
						reach, want, network.Trace(target.Addr()))
				}
				// Routers limit how many ICMP errors they send: those for all hops at once would exhaust the limit.
				if want := raw && !r.ICMP.From.IsValid(); want != (damaged > 0) {
					t.Errorf("%d SYNs had a wrong checksum, want some: %t", damaged, want)
				}
			})
		}
	}
}

// The reply of the second router takes longer than the reply of the third. Each hop still gets its own
// latency.
func TestTraceAsymmetricReplies(t *testing.T) { traces(t, testAsymmetricReplies) }

func testAsymmetricReplies(t *testing.T, _ *Config, s *Shaker) {
	const slow = 20 * time.Millisecond
	routers := []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"}
	var wire atomic.Pointer[simnet.Wire]
	wire.Store(simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		switch {
		case !s.SYN:
			return nil
		case int(s.TTL) > len(routers) && s.Damaged():
			return nil
		case int(s.TTL) > len(routers):
			return [][]byte{s.SYNACK()}
		}
		answer := s.ICMPError(netip.MustParseAddr(routers[s.TTL-1]), 11, 0)
		if s.TTL == 2 {
			time.AfterFunc(slow, func() { wire.Load().Send(answer) })
			return nil
		}
		return [][]byte{answer}
	}, "192.0.2.0/24", "198.51.100.0/24"))
	path, err := s.Trace(t.Context(), mustShake(t, s, target4), nil)
	const want = "1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, 3 198.51.100.3 ttl_exceeded, " +
		"4 192.0.2.1 open; reached 4"
	if got := sketch(path); err != nil || got != want {
		t.Fatalf("Trace to %v = %s, error %v, want %s", target4, got, err, want)
	}
	if rtt := path.Hops[1].RTT; rtt < slow {
		t.Errorf("the RTT of the second hop is %v, want %v or more", rtt, slow)
	}
}

// All SYNs of a path have one local port: the port of the handshake, unless it is in use.
func TestTraceFromOnePort(t *testing.T) {
	const routers = 3
	for _, target := range []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:80"),
		netip.MustParseAddrPort("[2001:db8::1]:80"),
	} {
		for _, c := range []struct {
			name      string
			handshake Options
			// prepare changes what the trace meets after the handshake.
			prepare  func(t *testing.T, s *Shaker, network *simnet.Network, r Result)
			sameFlow bool
		}{
			{name: "no obstacle", sameFlow: true},
			{name: "the kernel ignores IP_LOCAL_PORT_RANGE", sameFlow: true,
				prepare: func(t *testing.T, _ *Shaker, _ *simnet.Network, _ Result) {
					// It does so outside of this range, and before Linux 6.3.
					kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "61001 62000")
				}},
			{name: "a socket towards another target has the port", sameFlow: true,
				prepare: func(t *testing.T, s *Shaker, network *simnet.Network, r Result) {
					port := r.Local.Port()
					options := Options{SourcePorts: PortRange{First: port, Last: port}}
					occupy(t, s, network, netip.AddrPortFrom(r.Peer.Addr(), 81), options)
				}},
			{name: "another trace has the port, and the kernel ignores IP_LOCAL_PORT_RANGE", sameFlow: true,
				prepare: func(t *testing.T, s *Shaker, network *simnet.Network, r Result) {
					options := Options{Source: r.Local.Addr(), SourcePort: r.Local.Port()}
					occupy(t, s, network, netip.AddrPortFrom(r.Peer.Addr(), 81), options)
					kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "61001 62000")
				}},
			{name: "a socket towards the target has the port", sameFlow: false,
				prepare: func(t *testing.T, s *Shaker, network *simnet.Network, r Result) {
					behindRouters(network, r.Peer, routers) // silent from now on
					port := r.Local.Port()
					occupy(t, s, network, r.Peer, Options{SourcePorts: PortRange{First: port, Last: port}})
				}},
			{name: "the handshake was closed by a FIN", handshake: Options{FIN: true}, sameFlow: false},
			{name: "the trace has the options of the handshake", sameFlow: true,
				handshake: Options{DSCP: 46, SourcePorts: PortRange{First: 40100, Last: 40199}}},
		} {
			t.Run(fmt.Sprintf("%s/%v", c.name, target.Addr()), func(t *testing.T) {
				network := simnet.NewNetwork(t)
				kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 60999")
				behindRouters(network, target, routers, simnet.SYNACK())
				s := start(t)
				c.handshake.Timeout = 5 * time.Second
				r, err := s.Shake(t.Context(), target, &c.handshake)
				if err != nil || r.Outcome != Open {
					t.Fatalf("Shake(%v) = %+v, error %v, want Open", target, r, err)
				}
				if c.prepare != nil {
					c.prepare(t, s, network, r)
				}
				before := len(slices.Collect(network.SentTo(target)))
				path, err := s.Trace(t.Context(), r, &TraceOptions{MaxHops: routers})
				if err != nil || len(path.Hops) != routers || path.SameFlow != c.sameFlow {
					t.Fatalf("Trace to %v from %v = %+v, error %v, want %d hops, SameFlow %t",
						target, r.Local, path, err, routers, c.sameFlow)
				}
				for _, segment := range slices.Collect(network.SentTo(target))[before:] {
					if !segment.SYN || segment.TTL > routers {
						continue // of the handshake, after its FIN
					}
					if from := path.Hops[0].Local; segment.Src != from || (from == r.Local) != c.sameFlow {
						t.Errorf("%v was sent, want it sent from one port, the port of the handshake (%v): %t",
							segment, r.Local, c.sameFlow)
					}
					if segment.TOS != c.handshake.DSCP<<2 {
						t.Errorf("%v was sent with TOS %#x, want %#x", segment, segment.TOS, c.handshake.DSCP<<2)
					}
				}
			})
		}
	}
}

// shakeFor shakes hands with a target that may be silent, again if this host was too slow to send the SYN.
func shakeFor(t *testing.T, s *Shaker, target netip.AddrPort, timeout time.Duration) Result {
	t.Helper()
	for {
		r, err := s.Shake(t.Context(), target, &Options{Timeout: timeout})
		switch {
		case err == nil:
			return r
		case !errors.Is(err, ErrUnsent):
			t.Fatalf("Shake(%v): error %v, want a verdict", target, err)
		}
	}
}

// behindRouters puts n routers, all with the same address, before a target that gives the answers.
func behindRouters(network *simnet.Network, target netip.AddrPort, n int, answers ...simnet.Answer) {
	router := "198.51.100.1"
	if target.Addr().Is6() {
		router = "2001:db8:ffff::1"
	}
	network.At(target.String(), answers...).Behind(slices.Repeat([]string{router}, n)...)
}

// occupy sends SYNs to a silent target until the test ends.
func occupy(t *testing.T, s *Shaker, network *simnet.Network, target netip.AddrPort, options Options) {
	t.Helper()
	before := synsTo(network, target)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	t.Cleanup(group.Wait)
	t.Cleanup(cancel)
	group.Go(func() { s.Shake(ctx, target, &options) })
	lab.Eventually(t, "a SYN to the silent target is sent", func() bool { return synsTo(network, target) > before })
}

// If a trace cannot go on, it returns the hops that it has found, and the reason.
func TestIncompleteTrace(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	traces(t, testIncompleteTrace)
}

func testIncompleteTrace(t *testing.T, config *Config, _ *Shaker) {
	network := simnet.NewNetwork(t)
	open, silent := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80")
	network.At("192.0.2.1", simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")
	network.At("192.0.2.2").Behind("198.51.100.1", "198.51.100.2", "", "198.51.100.4", "", "", "", "", "", "", "",
		"198.51.100.12")
	cause := errors.New("the program is too old")
	const hops1, hops2 = "1 198.51.100.1 ttl_exceeded; reached 0",
		"1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded; reached 0"
	withoutDescriptors := func(s *Shaker, cancel context.CancelCauseFunc) {
		var limit unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		if limit.Cur = 0; err == nil {
			err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
		}
		if err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct {
		name    string
		target  netip.AddrPort
		at      int // the hop after which it cannot go on
		happens func(s *Shaker, cancel context.CancelCauseFunc)
		timeout time.Duration // of the trace; the test waits until it has passed
		want    string
		is      []error
		isNot   []error
	}{
		{name: "no descriptor", target: open, at: 2, happens: withoutDescriptors,
			want: hops2, is: []error{unix.EMFILE, ErrLocal}},
		{name: "no descriptor for a group of hops", target: silent, at: 3, happens: withoutDescriptors,
			want: hops2, is: []error{unix.EMFILE, ErrLocal}},
		{name: "cancelled", target: open, at: 2,
			happens: func(_ *Shaker, cancel context.CancelCauseFunc) { cancel(cause) },
			want:    hops2, is: []error{context.Canceled, cause}, isNot: []error{ErrLocal}},
		{name: "cancelled before a group of hops", target: silent, at: 3,
			happens: func(_ *Shaker, cancel context.CancelCauseFunc) { cancel(cause) },
			want:    hops2, is: []error{context.Canceled, cause}, isNot: []error{ErrLocal}},
		{name: "closed", target: open, at: 1,
			happens: func(s *Shaker, _ context.CancelCauseFunc) { s.Close() },
			want:    hops1, is: []error{ErrClosed, ErrLocal}},
		{name: "the time is up", target: open, at: 2, timeout: time.Second,
			want: hops2, is: []error{context.DeadlineExceeded}, isNot: []error{ErrLocal, os.ErrDeadlineExceeded}},
		{name: "the time is up before a group of hops", target: silent, at: 3, timeout: time.Second,
			want: hops2, is: []error{context.DeadlineExceeded}, isNot: []error{ErrLocal, os.ErrDeadlineExceeded}},
	} {
		if config != nil && slices.Contains(c.is, error(unix.EMFILE)) {
			continue // it needs none
		}
		t.Run(c.name, func(t *testing.T) {
			s, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r := shakeFor(t, s, c.target, 50*time.Millisecond)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			over := time.Now().Add(c.timeout)
			var path Path
			lab.WithDescriptors(t, 1<<10, func() {
				path, err = s.Trace(ctx, r, &TraceOptions{
					Timeout: c.timeout,
					OnHop: func(hop Hop) {
						switch {
						case hop.TTL != c.at:
						case c.happens != nil:
							c.happens(s, cancel)
						default:
							time.Sleep(time.Until(over))
						}
					},
				})
			})
			// Without sockets, the replies of several hops may have arrived before Close.
			got := sketch(path)
			asWanted := got == c.want || config != nil && slices.Contains(c.is, ErrClosed) && len(path.Hops) >= c.at
			if !asWanted || err == nil {
				t.Errorf("Trace to %v = %s, error %v, want %s and an error", c.target, got, err, c.want)
			}
			for _, want := range c.is {
				if !errors.Is(err, want) {
					t.Errorf("Trace to %v: error %v, want one that wraps %v", c.target, err, want)
				}
			}
			for _, not := range c.isNot {
				if errors.Is(err, not) {
					t.Errorf("Trace to %v: error %v, want one that does not wrap %v", c.target, err, not)
				}
			}
		})
	}
}

// If the time is too short to be sure that hops are silent, the path does not end there.
func TestTraceWithoutTimeForSilence(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	traces(t, testWithoutTimeForSilence)
}

func testWithoutTimeForSilence(t *testing.T, _ *Config, s *Shaker) {
	network := simnet.NewNetwork(t)
	target := netip.MustParseAddrPort("192.0.2.1:80")
	network.At("192.0.2.1").Behind("", "", "")
	r := shakeFor(t, s, target, 50*time.Millisecond)
	for timeout, want := range map[time.Duration]error{
		defaultWait / 2:     context.DeadlineExceeded,
		defaultWait * 3 / 2: context.DeadlineExceeded,
		time.Hour:           nil,
	} {
		path, err := s.Trace(t.Context(), r, &TraceOptions{Timeout: timeout, MaxHops: 3})
		if !errors.Is(err, want) || len(path.Hops) != 0 {
			t.Errorf("Trace for %v = %+v, error %v, want no hops and error %v", timeout, path, err, want)
		}
	}
}

// The third of a second that a probe with a timeout of one second has for the path is enough to be sure that the hops
// behind the routers are silent, if these are near.
func TestTraceInAThirdOfASecond(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	traces(t, testInAThirdOfASecond)
}

func testInAThirdOfASecond(t *testing.T, _ *Config, s *Shaker) {
	network := simnet.NewNetwork(t)
	target := netip.MustParseAddrPort("192.0.2.1:80")
	network.At("192.0.2.1").Behind("198.51.100.1", "198.51.100.2")
	const want = "1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded; reached 0"
	lab.Eventually(t, "the path is "+want, func() bool { // unless the machine stalls meanwhile
		r := shakeFor(t, s, target, 50*time.Millisecond)
		path, err := s.Trace(t.Context(), r, &TraceOptions{Timeout: time.Second / 3})
		return err == nil && sketch(path) == want
	})
}

// Trace returns errors for invalid options and local errors, and an empty path if no SYN was sent.
func TestTraceWithoutPath(t *testing.T) {
	openWire(t)
	s := start(t)
	r := mustShake(t, s, target4)
	for want, options := range map[string]TraceOptions{
		"MaxHops is 256, want 1 to 255": {MaxHops: 256},
		"MaxHops is -1, want 1 to 255":  {MaxHops: -1},
		"negative timeout -1ns":         {Timeout: -1},
	} {
		_, err := s.Trace(t.Context(), r, &options)
		if want := "trace 192.0.2.1:80: " + want; !errors.Is(err, os.ErrInvalid) || err.Error() != want {
			t.Errorf("Trace with %+v: error %v, want %s", options, err, want)
		}
	}
	if path, err := s.Trace(t.Context(), r, &TraceOptions{MaxHops: 255}); err != nil || path.Reached != 1 {
		t.Errorf("Trace with 255 hops = %+v, error %v, want the target at hop 1", path, err)
	}
	byThisHost := r
	byThisHost.ICMP.Own = true
	if path, err := s.Trace(t.Context(), byThisHost, nil); err != nil || len(path.Hops) > 0 {
		t.Errorf("Trace after an ICMP error of this host = %+v, error %v, want no hops", path, err)
	}
	unreachable := mustShake(t, s, netip.MustParseAddrPort("203.0.113.1:80"))
	if path, err := s.Trace(t.Context(), unreachable, nil); err != nil || len(path.Hops) > 0 {
		t.Errorf("Trace without a route = %+v, error %v, want no hops", path, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Trace(ctx, r, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Trace with a cancelled context: error %v, want %v", err, context.Canceled)
	}
	lab.WithDescriptors(t, 0, func() {
		if _, err := s.Trace(t.Context(), r, nil); !errors.Is(err, unix.EMFILE) {
			t.Errorf("Trace without descriptors: error %v, want EMFILE", err)
		}
	})
	s.Close()
	if _, err := s.Trace(t.Context(), r, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Trace after Close: error %v, want %v", err, ErrClosed)
	}
}

// A hop has three times the longest latency so far to reply, within bounds.
func TestWaitForAHop(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		rtt, handshake time.Duration
		hops           []time.Duration
		want           time.Duration
	}{
		{want: 300 * ms},
		{hops: []time.Duration{0, 0}, want: 300 * ms},
		{rtt: 50 * ms, want: 150 * ms},
		{rtt: 50 * ms, handshake: 60 * ms, want: 180 * ms},
		{rtt: 60 * ms, handshake: 50 * ms, want: 180 * ms},
		{rtt: 50 * ms, hops: []time.Duration{40 * ms, 70 * ms, 0}, want: 210 * ms},
		{rtt: 90 * ms, hops: []time.Duration{40 * ms, 70 * ms}, want: 270 * ms},
		{rtt: ms, want: 100 * ms},
		{rtt: time.Second, want: 800 * ms},
	} {
		running := &trace{after: Result{RTT: c.rtt, Handshake: c.handshake}}
		for _, rtt := range c.hops {
			running.path.Hops = append(running.path.Hops, Hop{RTT: rtt})
		}
		if got := running.wait(); got != c.want {
			t.Errorf("after a handshake with RTT %v and %v, and hops with %v, wait() = %v, want %v",
				c.rtt, c.handshake, c.hops, got, c.want)
		}
	}
}

// A path ends at a reply that is not a TTL exceeded, and in a routing loop: a router has replied three times, and
// others in between, although the handshake got no reply. It has reached the target if the target's address sent
// that reply.
func TestEndOfThePath(t *testing.T) {
	target := netip.MustParseAddrPort("192.0.2.1:80")
	one, two := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	exceeded := func(from netip.Addr) Hop { return Hop{From: from, ICMP: ICMP{From: from, Type: 11}} }
	final := Hop{From: target.Addr(), Outcome: Open}
	silent := Hop{}
	loop := []Hop{exceeded(one), exceeded(two), exceeded(one), silent, exceeded(two), exceeded(one)}
	timeout := Result{Outcome: Timeout, Peer: target}
	for _, c := range []struct {
		name    string
		after   Result
		hops    []Hop
		done    bool // after the last hop; before it the path does not end
		reached bool
	}{
		{name: "a router", after: timeout, hops: []Hop{exceeded(one)}},
		{name: "no reply", after: timeout, hops: []Hop{silent}},
		{name: "the target", after: timeout, hops: []Hop{exceeded(one), final}, done: true, reached: true},
		{name: "a router that refuses", after: timeout,
			hops: []Hop{{From: one, ICMP: ICMP{From: one, Type: 3, Code: 13}}}, done: true},
		{name: "a router with the address of the target", after: timeout, hops: []Hop{exceeded(target.Addr())}},
		{name: "a loop", after: timeout, hops: loop, done: true},
		{name: "the same router, and silent ones in between", after: timeout,
			hops: []Hop{exceeded(one), silent, exceeded(one), silent, exceeded(one), exceeded(one)}},
		{name: "a loop of which a router refused", hops: loop, done: true,
			after: Result{Outcome: Refused, Peer: target, ICMP: ICMP{From: one, Type: 3, Code: 3}}},
		{name: "not a loop: Open", after: Result{Outcome: Open, Peer: target}, hops: loop},
		{name: "not a loop: Reset", after: Result{Outcome: Reset, Peer: target}, hops: loop},
		{name: "not a loop: Refused", after: Result{Outcome: Refused, Peer: target}, hops: loop},
	} {
		running := &trace{after: c.after}
		for i, hop := range c.hops {
			hop.TTL = i + 1
			if done, want := running.add(hop), c.done && i == len(c.hops)-1; done != want {
				t.Errorf("%s: the path ends at hop %d: %t, want %t", c.name, i+1, done, want)
			}
		}
		if reached := running.path.Reached == len(c.hops); reached != c.reached {
			t.Errorf("%s: the target was reached at hop %d, want the last one: %t",
				c.name, running.path.Reached, c.reached)
		}
	}
}

// A group of hops that are probed concurrently ends at MaxHops, and the path ends at the target within the group.
func TestGroupsOfHops(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	network := simnet.NewNetwork(t)
	s := start(t)
	for _, c := range []struct {
		target   string
		maxHops  int
		want     string
		farthest uint8 // greatest TTL of the SYNs
	}{
		{target: "192.0.2.1", maxHops: 30, farthest: 1 + hopsAtOnce,
			want: "1 *, 2 198.51.100.2 ttl_exceeded, 3 192.0.2.1 open; reached 3"},
		{target: "192.0.2.2", maxHops: 3, farthest: 3,
			want: "1 *, 2 198.51.100.2 ttl_exceeded, 3 192.0.2.2 open; reached 3"},
		{target: "192.0.2.3", maxHops: 2, farthest: 2, want: "1 *, 2 198.51.100.2 ttl_exceeded; reached 0"},
		{target: "192.0.2.4", maxHops: 1, farthest: 1, want: "; reached 0"},
	} {
		target := netip.AddrPortFrom(netip.MustParseAddr(c.target), 80)
		network.At(c.target) // silent
		r := shakeFor(t, s, target, 50*time.Millisecond)
		before := len(slices.Collect(network.SentTo(target)))
		network.At(c.target, simnet.SYNACK()).Behind("", "198.51.100.2")
		path, err := s.Trace(t.Context(), r, &TraceOptions{MaxHops: c.maxHops})
		if got := sketch(path); err != nil || got != c.want {
			t.Errorf("Trace to %v with %d hops = %s, error %v, want %s", target, c.maxHops, got, err, c.want)
		}
		farthest := uint8(0)
		for _, segment := range slices.Collect(network.SentTo(target))[before:] {
			if segment.SYN {
				farthest = max(farthest, segment.TTL)
			}
		}
		if farthest != c.farthest {
			t.Errorf("Trace to %v with %d hops sent SYNs with a TTL of up to %d, want %d",
				target, c.maxHops, farthest, c.farthest)
		}
	}
}
