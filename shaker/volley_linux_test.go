package shaker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A longPath is a wire with a router for each TTL up to the target, which drops SYNs with a wrong checksum. Before it
// gives the first answer to a trace, it waits for some SYNs.
type longPath struct {
	wire    *simnet.Wire
	target  netip.AddrPort
	routers int
	hold    int // how many SYNs of the trace to wait for

	mu      sync.Mutex
	tracing bool
	syns    []tracingSYN
	held    [][]byte // answers
}

// A tracingSYN is a SYN of a trace.
type tracingSYN struct {
	TTL   uint8
	Whole bool // its checksum is right
}

func newLongPath(t *testing.T, target netip.AddrPort, routers, hold int) *longPath {
	p := &longPath{target: target, routers: routers, hold: hold}
	p.wire = simnet.NewWire(t, p.answer, "192.0.2.0/24", "2001:db8::/64")
	return p
}

func (p *longPath) router(ttl int) netip.Addr {
	if p.target.Addr().Is4() {
		return netip.AddrFrom4([4]byte{198, 51, 100, byte(ttl)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00::%x", ttl))
}

func (p *longPath) answer(s simnet.Segment) [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !s.SYN:
		return nil
	case !p.tracing:
		return [][]byte{s.SYNACK()}
	}
	p.syns = append(p.syns, tracingSYN{TTL: s.TTL, Whole: !s.Damaged()})
	switch timeExceeded := uint8(11); {
	case int(s.TTL) <= p.routers:
		if p.target.Addr().Is6() {
			timeExceeded = 3
		}
		p.held = append(p.held, s.ICMPError(p.router(int(s.TTL)), timeExceeded, 0))
	case !s.Damaged():
		p.held = append(p.held, s.SYNACK())
	}
	if len(p.syns) < p.hold {
		return nil
	}
	answers := p.held
	p.held = nil
	return answers
}

func (p *longPath) trace(t *testing.T, s *Shaker, maxHops int) Path {
	t.Helper()
	r := mustShake(t, s, p.target)
	r.RTT = 400 * time.Millisecond // so that the trace is patient, also while the machine stalls
	p.mu.Lock()
	p.tracing = true
	p.mu.Unlock()
	path, err := s.Trace(t.Context(), r, &TraceOptions{MaxHops: maxHops, Timeout: time.Minute})
	if err != nil {
		t.Fatalf("Trace to %v: error %v\n%s", p.target, err, p.wire.Trace(p.target.Addr()))
	}
	return path
}

// A trace without sockets takes one round trip for all routers, and one for the target. The path gives no answer
// before the SYNs of all hops are out.
func TestTraceInOneRoundTrip(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	for _, target := range []netip.AddrPort{target4, netip.MustParseAddrPort("[2001:db8::1]:80")} {
		for _, c := range []struct{ routers, maxHops int }{
			{routers: 12, maxHops: 30},
			{routers: 254, maxHops: 255},
			{routers: 255, maxHops: 255},
		} {
			t.Run(fmt.Sprintf("%v/%d routers", target.Addr(), c.routers), func(t *testing.T) {
				p := newLongPath(t, target, c.routers, c.maxHops)
				path := p.trace(t, startWithoutSockets(t), c.maxHops)
				p.check(t, path, c.maxHops)
				p.mu.Lock()
				defer p.mu.Unlock()
				ttls := make(map[uint8]int)
				for _, syn := range p.syns[:c.maxHops] {
					ttls[syn.TTL]++
					if syn.Whole {
						t.Errorf("a whole SYN with TTL %d is among the first %d", syn.TTL, c.maxHops)
					}
				}
				if len(ttls) != c.maxHops {
					t.Errorf("the first %d SYNs have %d different TTLs, want one of each", c.maxHops, len(ttls))
				}
				var want []tracingSYN // after the routers have replied
				if c.routers < c.maxHops {
					want = append(want, tracingSYN{TTL: uint8(c.routers) + 1, Whole: true})
				}
				if later := p.syns[c.maxHops:]; !slices.Equal(later, want) {
					t.Errorf("after the first %d SYNs, %+v were sent, want %+v", c.maxHops, later, want)
				}
			})
		}
	}
	// The control: with sockets, the answer for the first hop comes too late if it waits for another SYN.
	p := newLongPath(t, target4, 2, 2)
	r := mustShake(t, start(t), target4)
	p.mu.Lock()
	p.tracing = true
	p.mu.Unlock()
	path, err := start(t).Trace(t.Context(), r, &TraceOptions{MaxHops: 2})
	if err != nil || len(path.Hops) > 0 && path.Hops[0].From.IsValid() {
		t.Errorf("Trace with sockets = %s, error %v, want no reply of the first hop", sketch(path), err)
	}
}

// check compares a path with the routers.
func (p *longPath) check(t *testing.T, path Path, maxHops int) {
	t.Helper()
	hops, reached := p.routers, 0
	if hops < maxHops {
		hops++
		reached = hops
	}
	if len(path.Hops) != hops || path.Reached != reached || !path.SameFlow {
		t.Fatalf("the path has %d hops, reached %d, SameFlow %t, want %d, %d and true: %s",
			len(path.Hops), path.Reached, path.SameFlow, hops, reached, sketch(path))
	}
	for i, hop := range path.Hops {
		want := p.target.Addr()
		if i < p.routers {
			want = p.router(i + 1)
		}
		if hop.From != want || hop.TTL != i+1 || hop.RTT <= 0 {
			t.Errorf("hop %d is %+v, want a reply from %v", i+1, hop, want)
		}
	}
}

// What replies to a SYN with a wrong checksum otherwise than to a whole one does not mislead a trace.
func TestTraceWithWrongChecksums(t *testing.T) {
	const routers = "1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, "
	exceeded := func(s simnet.Segment) []byte {
		return s.ICMPError(netip.AddrFrom4([4]byte{198, 51, 100, s.TTL}), 11, 0)
	}
	for _, c := range []struct {
		name   string
		answer func(s simnet.Segment) []byte // to a SYN of the trace with a wrong checksum and a TTL of 2 or more
		whole  []byte                        // the TTLs of whole SYNs
	}{
		{name: "the second router drops it", whole: []byte{2, 3, 4},
			answer: func(simnet.Segment) []byte { return nil }},
		{name: "the second router rejects it", whole: []byte{2, 3, 4},
			answer: func(s simnet.Segment) []byte { return s.ICMPError(netip.MustParseAddr("198.51.100.2"), 3, 13) }},
		{name: "the second router resets it", whole: []byte{2, 3, 4},
			answer: func(s simnet.Segment) []byte { return s.Refusal() }},
		{name: "the target answers it", whole: nil,
			answer: func(s simnet.Segment) []byte {
				if s.TTL > 3 {
					return s.SYNACK()
				}
				return exceeded(s)
			}},
		{name: "the target resets it", whole: []byte{4},
			answer: func(s simnet.Segment) []byte {
				if s.TTL > 3 {
					return s.Refusal()
				}
				return exceeded(s)
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			wire := simnet.NewWire(t, func(s simnet.Segment) [][]byte {
				answer := []byte(nil)
				switch {
				case !s.SYN:
				case s.Damaged() && s.TTL >= 2:
					answer = c.answer(s)
				case s.TTL <= 3:
					answer = exceeded(s)
				default:
					answer = s.SYNACK()
				}
				if answer == nil {
					return nil
				}
				return [][]byte{answer}
			}, "192.0.2.0/24")
			s := startWithoutSockets(t)
			r := mustShake(t, s, target4)
			r.RTT = 200 * time.Millisecond // so that the trace is patient, also while the machine stalls
			wire.Forget()
			path, err := s.Trace(t.Context(), r, &TraceOptions{MaxHops: 10, Timeout: time.Minute})
			want := routers + "3 198.51.100.3 ttl_exceeded, 4 192.0.2.1 open; reached 4"
			if got := sketch(path); err != nil || got != want || !path.SameFlow {
				t.Errorf("Trace = %s, SameFlow %t, error %v, want %s, SameFlow true\n%s",
					got, path.SameFlow, err, want, wire.Trace(target4.Addr()))
			}
			var whole []byte
			for segment := range wire.SentTo(target4) {
				if segment.SYN && !segment.Damaged() {
					whole = append(whole, segment.TTL)
				}
			}
			if !slices.Equal(whole, c.whole) {
				t.Errorf("whole SYNs were sent with the TTLs %v, want %v", whole, c.whole)
			}
		})
	}
}

// Several callers may trace the path of one handshake at the same time, while other handshakes with the target run.
func TestTraceByManyCallers(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK()).Behind("198.51.100.1", "", "198.51.100.3")
	s := startWithoutSockets(t)
	r := mustShake(t, s, target4)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			path, err := s.Trace(context.Background(), r, &TraceOptions{Timeout: time.Minute})
			const want = "1 198.51.100.1 ttl_exceeded, 2 *, 3 198.51.100.3 ttl_exceeded, 4 192.0.2.1 open; reached 4"
			if got := sketch(path); err != nil || got != want || !path.SameFlow {
				t.Errorf("Trace = %s, SameFlow %t, error %v, want %s, SameFlow true", got, path.SameFlow, err, want)
			}
		})
		group.Go(func() {
			if other := mustShake(t, s, target4); other.Outcome != Open || other.Local == r.Local {
				t.Errorf("Shake = %+v, want open, and another port than that of the traces, %v", other, r.Local)
			}
		})
	}
	group.Wait()
}

// A handshake that used a socket is traced with sockets, also by a Shaker that needs none otherwise.
func TestTraceAfterSocket(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK()).Behind("198.51.100.1")
	ports := PortRange{First: 40100, Last: 40199}
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 60999")
	s := startWithoutSockets(t)
	r, err := s.Shake(t.Context(), target4, &Options{SourcePorts: ports, Timeout: 5 * time.Second})
	if err != nil || !ports.has(r.Local.Port()) {
		t.Fatalf("Shake = %+v, error %v, want a port of %v", r, err, ports)
	}
	path, err := s.Trace(t.Context(), r, nil)
	const want = "1 198.51.100.1 ttl_exceeded, 2 192.0.2.1 open; reached 2"
	if got := sketch(path); err != nil || got != want || !path.SameFlow {
		t.Errorf("Trace = %s, SameFlow %t, error %v, want %s, SameFlow true", got, path.SameFlow, err, want)
	}
	for segment := range network.SentTo(target4) {
		if segment.SYN && segment.Damaged() {
			t.Errorf("%v with a wrong checksum was sent, want none", segment)
		}
	}
}

// BenchmarkTrace compares traces with sockets and without. The replies take 20 ms, whoever sends them. It reports how
// many round trips a trace takes, how many SYNs it sends, and how many of them the target sees.
//
//	go test -run '^$' -bench 'Trace$' -benchtime 10x ./shaker
func BenchmarkTrace(b *testing.B) {
	lab.Need(b)
	const rtt = 20 * time.Millisecond
	for _, engine := range []struct {
		name   string
		config *Config
	}{{name: "socket"}, {name: "raw", config: withoutSockets}} {
		for _, routers := range []int{3, 12, 25} {
			b.Run(fmt.Sprintf("%s/%d routers", engine.name, routers), func(b *testing.B) {
				p := &longPath{target: target4, routers: routers, tracing: true}
				var syns, seen atomic.Int64
				p.wire = simnet.NewWire(b, func(s simnet.Segment) [][]byte {
					if s.SYN {
						syns.Add(1)
						if int(s.TTL) > routers && !s.Damaged() {
							seen.Add(1)
						}
					}
					answers := p.answer(s)
					time.AfterFunc(rtt, func() { p.wire.Send(answers...) })
					return nil
				}, "192.0.2.0/24")
				s, err := New(engine.config)
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				r := mustShake(b, s, target4)
				syns.Store(0)
				seen.Store(0)
				for b.Loop() {
					if path, err := s.Trace(b.Context(), r, nil); err != nil || path.Reached != routers+1 {
						b.Fatalf("Trace = %s, error %v, want the target at hop %d", sketch(path), err, routers+1)
					}
				}
				n := float64(b.N)
				b.ReportMetric(float64(b.Elapsed())/n/float64(rtt), "round-trips")
				b.ReportMetric(float64(syns.Load())/n, "SYNs")
				b.ReportMetric(float64(seen.Load())/n, "seen-by-target")
			})
		}
	}
}
