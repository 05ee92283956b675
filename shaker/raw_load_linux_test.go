package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Without sockets, no verdict of a crowd is wrong and no ACK is sent, in as many probes as some seconds allow, on all
// processors and on one.
func TestCrowdWithoutSockets(t *testing.T) {
	withoutSocketsIn(t)
	for _, c := range []struct {
		processors, callers int
		rtt, during         time.Duration
	}{
		{
			processors: runtime.GOMAXPROCS(0), callers: manyCallers(10_000),
			rtt: 200 * time.Millisecond, during: 20 * time.Second,
		},
		{processors: 1, callers: manyCallers(1000), rtt: 60 * time.Millisecond, during: 3 * time.Second},
	} {
		if lab.Race || testing.Short() {
			c.during /= 5
		}
		t.Run(fmt.Sprintf("%d callers on %d processors", c.callers, c.processors), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(c.processors))
			crowd := newCrowd(t, c.rtt)
			for began := time.Now(); time.Since(began) < c.during; {
				if wrong := crowd.run(c.callers, crowd.verdicts.Load()+int64(2*c.callers)); wrong != nil {
					t.Fatal(wrong)
				}
			}
			t.Logf("%d probes, %d verdicts, %d of them open, %+v",
				crowd.probes.Load(), crowd.verdicts.Load(), crowd.open.Load(), crowd.shaker.Strays())
			assertNoACK(t, crowd.network.Wire)
		})
	}
}

// While addresses and routes of this host change a thousand times per second and more, every handshake gets its
// verdict, and sends its second SYN on the sockets with which it began.
func TestHandshakesDuringRouteChanges(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("10.0.0.0/8", simnet.SYNACK())
	network.At("10.1.0.0/16", simnet.SYNACK()).LosingSYNs(1)
	network.At("2001:db8::/32", simnet.SYNACK())
	device, err := netlink.LinkByName(network.Interface())
	if err != nil {
		t.Fatal(err)
	}
	address, _ := netlink.ParseAddr("198.51.100.1/32")
	withoutSocketsIn(t)
	s := start(t)
	const callers, wanted = 20, 3000
	changed := make(chan int)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		changes := 0
		for ; ctx.Err() == nil || changes < wanted; changes += 2 { // each of them adds or deletes a route, too
			if err := errors.Join(netlink.AddrAdd(device, address), netlink.AddrDel(device, address)); err != nil {
				t.Errorf("changing addresses: %v", err)
				break
			}
		}
		changed <- changes
	}()
	began := time.Now()
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			for n := 0; time.Since(began) < 3*time.Second; n++ {
				target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n % 50), byte(i), byte(n)}), 80)
				if n%3 == 0 {
					to := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i), 15: byte(n)})
					target = netip.AddrPortFrom(to, 80)
				}
				if r := mustShake(t, s, target); r.Outcome != Open {
					t.Errorf("Shake(%v) = %+v, want Open", target, r)
					return
				}
			}
		})
	}
	group.Wait()
	cancel()
	changes := <-changed
	t.Logf("%d changes of addresses, and as many of routes, in %v", changes, time.Since(began))
}

// More different options are in use than sockets are kept for. Each handshake can still send its second SYN.
func TestManyOptions(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("10.0.0.0/8", simnet.SYNACK()).LosingSYNs(1)
	withoutSocketsIn(t)
	s := start(t)
	var group sync.WaitGroup
	for i := range 4 * mostWays {
		group.Go(func() {
			target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
			r, err := s.Shake(t.Context(), target, &Options{Mark: uint32(1 + i), Timeout: 20 * time.Second})
			if err != nil || r.Outcome != Open || r.SYNs < 2 {
				t.Errorf("Shake(%v, mark %d) = %+v, error %v, want Open after 2 SYNs", target, 1+i, r, err)
			}
		})
	}
	group.Wait()
}

// A Shaker without sockets holds its descriptors from the first handshakes on, however these end, and Close frees them
// and its ports.
func TestRawLeavesNothingBehind(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24", "2001:db8::/32")
	withoutSocketsIn(t)
	open, _ := listen(t, "[::]:0")
	before, goroutines := lab.Descriptors(t), runtime.NumGoroutine()
	s, err := New(startConfig)
	if err != nil {
		t.Fatal(err)
	}
	targets := []netip.AddrPort{
		netip.AddrPortFrom(netip.IPv6Loopback(), open.Port()), netip.MustParseAddrPort("127.0.0.1:1"), target4, target6,
	}
	round := func() (descriptors int) {
		var group sync.WaitGroup
		for i := range 400 {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%20)*time.Millisecond)
				defer cancel()
				if i%3 == 0 {
					time.AfterFunc(time.Duration(i%10)*time.Millisecond, cancel)
				}
				target := netip.AddrPortFrom(targets[i%4].Addr(), targets[i%4].Port())
				s.Shake(ctx, target, nil)
			})
		}
		group.Wait()
		for _, l := range s.engine.loops {
			h := hold(l)
			if l.wire != nil && len(l.wire.flights) > 0 {
				t.Errorf("%d handshakes wait for an answer, want none", len(l.wire.flights))
			}
			if l.wire != nil {
				for _, y := range l.wire.ways.all {
					if y.flights != 0 {
						t.Errorf("a way has %d handshakes, want none", y.flights)
					}
				}
			}
			if n := len(l.deadlines); n != 0 {
				t.Errorf("%d deadlines are left, want 0", n)
			}
			close(h.release)
		}
		return lab.Descriptors(t)
	}
	round()
	first := round()
	for range 10 {
		if n := round(); n != first {
			t.Errorf("%d descriptors after more handshakes, want %d as before", n, first)
		}
	}
	silent := make(chan error)
	go func() {
		_, err := s.Shake(context.Background(), target4, nil)
		silent <- err
	}()
	ports := s.Ports()
	s.Close()
	if err := <-silent; !errors.Is(err, ErrClosed) {
		t.Errorf("Shake(%v) during Close: error %v, want %v", target4, err, ErrClosed)
	}
	if n := lab.Descriptors(t); n != before {
		t.Errorf("%d descriptors after Close, want %d", n, before)
	}
	lab.Eventually(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines })
	again, err := New(&Config{Raw: &Raw{Ports: ports}})
	if err != nil {
		t.Fatalf("New with the ports of a closed Shaker: error %v, want none", err)
	}
	again.Close()
}
