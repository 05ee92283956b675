package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A thousand callers arrive, and there are descriptors or local ports for only a few of them. These get
// a verdict, and the others get an error. Afterwards everything is free again.
func TestExhaustion(t *testing.T) {
	const callers = 1000
	target4, target6 := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")
	for _, c := range []struct {
		name        string
		target      netip.AddrPort
		errno       unix.Errno
		descriptors uint64 // limit of open descriptors of the process
		ports       int    // number of local ports
	}{
		{name: "descriptors", target: target4, errno: unix.EMFILE, descriptors: 256, ports: 20_000},
		{name: "descriptors, IPv6", target: target6, errno: unix.EMFILE, descriptors: 256, ports: 20_000},
		{name: "local ports", target: target4, errno: unix.EADDRNOTAVAIL, descriptors: 1200, ports: 50},
		{name: "local ports, IPv6", target: target6, errno: unix.EADDRNOTAVAIL, descriptors: 1200, ports: 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.NeedDescriptors(t, 1200)
			exhausted := make(chan struct{})
			simnet.NewWire(t, func(s simnet.Segment) [][]byte {
				if !s.SYN {
					return nil
				}
				<-exhausted // answer no SYN before a caller has got an error
				return [][]byte{s.SYNACK()}
			}, "192.0.2.0/24", "2001:db8::/32")
			s, l := startOne(t)
			kernel.Sysctl(t, "net.ipv4.ip_local_port_range", fmt.Sprintf("40000 %d", 40_000+c.ports-1))
			close(hold(l).release) // from here on the loop holds all its descriptors
			descriptors, goroutines := lab.Descriptors(t), runtime.NumGoroutine()
			room := min(int(c.descriptors)-descriptors, c.ports)

			lab.WithDescriptors(t, c.descriptors, func() {
				answer := sync.OnceFunc(func() { close(exhausted) })
				defer answer()
				open := shakeAtOnce(t, s, c.target, callers, func(err error) bool {
					answer()
					return err == nil || errors.Is(err, c.errno)
				})
				if open < room || open == callers {
					t.Errorf("%d of %d handshakes are open, want at least %d and not all", open, callers, room)
				}
				// When the last of them has returned, everything is free again.
				open = shakeAtOnce(t, s, c.target, room, func(err error) bool { return err == nil })
				if open != room {
					t.Errorf("%d of %d handshakes afterwards are open, want all", open, room)
				}
			})
			if n := lab.Descriptors(t); n != descriptors {
				t.Errorf("%d descriptors afterwards, want %d as before", n, descriptors)
			}
			h := hold(l)
			if n := running(l); n != 1 { // of the holdUp
				t.Errorf("%d slots are in use afterwards, want 1", n)
			}
			if n := len(l.deadlines); n != 0 {
				t.Errorf("%d deadlines are left afterwards, want 0", n)
			}
			close(h.release)
			lab.Eventually(t, "the callers' goroutines end", func() bool {
				return runtime.NumGoroutine() <= goroutines
			})
		})
	}
}

// shakeAtOnce lets callers shake hands with the target concurrently, and returns how many get the
// verdict Open. Any other verdict fails the test, and so does an error for which allowed is false.
func shakeAtOnce(
	t *testing.T, s *Shaker, target netip.AddrPort, callers int, allowed func(error) bool,
) (open int) {
	t.Helper()
	var opened atomic.Int64
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			r, err := s.Shake(context.Background(), target, &Options{Timeout: time.Minute})
			if !allowed(err) || err == nil && r.Outcome != Open || err != nil && r != (Result{}) {
				t.Errorf("Shake(%v) = %+v, error %v, want Open or an allowed error", target, r, err)
			} else if err == nil {
				opened.Add(1)
			}
		})
	}
	group.Wait()
	return int(opened.Load())
}
