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

// A thousand callers come where there is room for few of them. Those who find none are told
// so, the others of their target, and when they are through there is as much room as before.
func TestExhaustion(t *testing.T) {
	const callers = 1000
	target4, target6 := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")
	for _, c := range []struct {
		name        string
		target      netip.AddrPort
		errno       unix.Errno
		descriptors uint64 // that the process may have
		ports       int    // that the host has
	}{
		{"descriptors", target4, unix.EMFILE, 256, 20_000},
		{"descriptors, IPv6", target6, unix.EMFILE, 256, 20_000},
		{"local ports", target4, unix.EADDRNOTAVAIL, 1200, 50},
		{"local ports, IPv6", target6, unix.EADDRNOTAVAIL, 1200, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.NeedDescriptors(t, 1200)
			exhausted := make(chan struct{})
			simnet.NewWire(t, func(s simnet.Segment) [][]byte {
				if !s.SYN {
					return nil
				}
				<-exhausted // no SYN is answered before somebody has found no room
				return [][]byte{s.SYNACK()}
			}, "192.0.2.0/24", "2001:db8::/32")
			s, l := startOne(t)
			kernel.Sysctl(t, "net.ipv4.ip_local_port_range", fmt.Sprintf("40000 %d", 40_000+c.ports-1))
			close(hold(l).release) // from here on the loop has all it needs
			descriptors, goroutines := lab.Descriptors(t), runtime.NumGoroutine()
			room := min(int(c.descriptors)-descriptors, c.ports)

			lab.WithDescriptors(t, c.descriptors, func() {
				tell := sync.OnceFunc(func() { close(exhausted) })
				defer tell()
				open := shakeAtOnce(t, s, c.target, callers, func(err error) bool {
					tell()
					return err == nil || errors.Is(err, c.errno)
				})
				if open < room || open == callers {
					t.Errorf("%d of %d are open, there is room for %d", open, callers, room)
				}
				// There is room again when the last of them has returned.
				open = shakeAtOnce(t, s, c.target, room, func(err error) bool { return err == nil })
				if open != room {
					t.Errorf("afterwards %d are open, there is room for %d", open, room)
				}
			})
			if n := lab.Descriptors(t); n != descriptors {
				t.Errorf("%d descriptors before, %d after", descriptors, n)
			}
			h := hold(l)
			if n := l.slots.running(); n != 1 { // the holdUp
				t.Errorf("%d slots are in use, want 1", n)
			}
			if n := len(l.deadlines); n != 0 {
				t.Errorf("%d deadlines outlive their handshakes", n)
			}
			close(h.release)
			lab.Eventually(t, "the callers' goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
		})
	}
}

// shakeAtOnce lets so many callers come at once and returns for how many the target is
// open. There may be no other result, and no error but those that may be.
func shakeAtOnce(t *testing.T, s *Shaker, target netip.AddrPort, callers int, mayBe func(error) bool) (open int) {
	t.Helper()
	var opened atomic.Int64
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			r, err := s.Shake(context.Background(), target, &Options{Timeout: time.Minute})
			if !mayBe(err) || err == nil && r.Outcome != Open || err != nil && r != (Result{}) {
				t.Errorf("%+v, %v", r, err)
			} else if err == nil {
				opened.Add(1)
			}
		})
	}
	group.Wait()
	return int(opened.Load())
}
