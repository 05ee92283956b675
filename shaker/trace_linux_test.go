package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
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

func TestTrace(t *testing.T) {
	network := simnet.NewNetwork(t)
	s := start(t)
	for _, c := range []struct {
		name    string
		lay     func(target string) *simnet.Host
		targets []string
		timeout time.Duration // of the handshake
		options TraceOptions
		want    []string // for each target, in the form of sketch
		reach   int      // SYNs that get as far as the target, or to where it would be; -1 for any number
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
			reach:   1 + hopsAtOnce},
		{name: "SYNs are dropped behind routers that do not reply",
			lay: func(target string) *simnet.Host {
				return network.At(target).Behind("198.51.100.1", "", "198.51.100.3", "", "198.51.100.5")
			},
			targets: []string{"192.0.2.5"},
			timeout: 50 * time.Millisecond,
			want: []string{"1 198.51.100.1 ttl_exceeded, 2 *, 3 198.51.100.3 ttl_exceeded, 4 *, " +
				"5 198.51.100.5 ttl_exceeded; reached 0"},
			reach: 13}, // of the hops 3 to 10 and 11 to 18
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
				r, err := s.Shake(t.Context(), target, &Options{Timeout: c.timeout})
				if err != nil {
					t.Fatalf("Shake(%v): error %v, want a verdict", target, err)
				}
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
				reach, port := 0, r.Local.Port()
				for _, segment := range slices.Collect(network.SentTo(target))[before:] {
					switch {
					case segment.SYN && int(segment.TTL) > host.Distance():
						reach++
					case !segment.SYN && (!segment.RST || segment.ACK && !segment.RST):
						t.Errorf("%v was sent, want only SYNs and RSTs", segment)
					}
					if segment.Src.Port() != port && c.timeout == 0 {
						t.Errorf("%v was sent, want the flow of the handshake from port %d", segment, port)
					}
				}
				if reach != c.reach && c.reach >= 0 {
					t.Errorf("%d SYNs got as far as the target, want %d\n%s",
						reach, c.reach, network.Trace(target.Addr()))
				}
			})
		}
	}
}

// The reply of the second router takes longer than the reply of the third. Each hop still gets its own
// latency.
func TestTraceAsymmetricReplies(t *testing.T) {
	const slow = 20 * time.Millisecond
	routers := []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"}
	var wire atomic.Pointer[simnet.Wire]
	wire.Store(simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		switch {
		case !s.SYN:
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
	s := start(t)
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

// Trace returns errors for invalid options and local errors, and an empty path if no SYN was sent.
func TestTraceWithoutPath(t *testing.T) {
	openWire(t)
	s := start(t)
	r := mustShake(t, s, target4)
	const want = "trace 192.0.2.1:80: MaxHops is 256, want 1 to 255"
	if _, err := s.Trace(t.Context(), r, &TraceOptions{MaxHops: 256}); err == nil || err.Error() != want {
		t.Errorf("Trace with 256 hops: error %v, want %s", err, want)
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
