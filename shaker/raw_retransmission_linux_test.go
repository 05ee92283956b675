package shaker

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Without sockets, SYNs to silent targets are sent when the kernel sends those of sockets. If there is no deadline, the
// handshake ends when the kernel gives up.
func TestTimesOfRetransmissions(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	for _, c := range []struct {
		name            string
		retries, linear string
		timeout         time.Duration // 0 is none
		syns            int
	}{
		{name: "linear", retries: "6", linear: "4", timeout: 4500 * time.Millisecond, syns: 5},
		{name: "exponential, without a deadline", retries: "2", linear: "0", syns: 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			network := simnet.NewNetwork(t)
			kernel.Sysctl(t, "net.ipv4.tcp_syn_retries", c.retries)
			kernel.Sysctl(t, "net.ipv4.tcp_syn_linear_timeouts", c.linear)
			sockets := start(t)
			withoutSocketsIn(t)
			engines := map[*Shaker][]netip.AddrPort{start(t): nil, sockets: nil}
			var group sync.WaitGroup
			for s := range engines {
				for i := range 20 {
					target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
					if i%2 == 1 {
						target = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)}), 80)
					}
					if s == sockets {
						target = netip.AddrPortFrom(target.Addr(), 81)
					}
					engines[s] = append(engines[s], target)
					group.Go(func() {
						began := time.Now()
						r, err := s.Shake(context.Background(), target, &Options{Timeout: c.timeout})
						took := time.Since(began)
						if err != nil || r.Outcome != Timeout || r.SYNs != c.syns || took < c.timeout {
							t.Errorf("Shake(%v, timeout %v) = %+v, error %v, after %v, want Timeout with %d SYNs",
								target, c.timeout, r, err, took, c.syns)
						}
					})
				}
			}
			group.Wait()
			want := sentAfter(network, engines[sockets])
			delete(engines, sockets)
			for _, targets := range engines {
				for i, got := range sentAfter(network, targets) {
					difference := (got - want[i]).Abs()
					t.Logf("SYN %d: after %v, and with a socket after %v: %v", i+1, got, want[i], difference)
					// The kernel's timers are late by up to an eighth, and the machine may stand still. Another
					// schedule would differ by a second.
					if difference > 500*time.Millisecond {
						t.Errorf("SYN %d was sent after %v, want %v as with a socket", i+1, got, want[i])
					}
				}
			}
		})
	}
}

// sentAfter returns when the SYNs to targets were sent, after the first one to the same target: the least of all times.
func sentAfter(network *simnet.Network, targets []netip.AddrPort) (after []time.Duration) {
	for _, target := range targets {
		i, first := 0, time.Duration(0)
		for _, e := range network.Exchanges() {
			if e.SYN.Dst != target {
				continue
			}
			if i == 0 {
				first = e.At
			}
			if i == len(after) {
				after = append(after, e.At-first)
			}
			after[i] = min(after[i], e.At-first)
			i++
		}
	}
	return after
}
