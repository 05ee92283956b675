package shaker

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The times at which Linux sends a SYN, in seconds after the first one. (From Linux 6.18's tcp_timer.c;
// TestRetransmissionsOfBothEngines compares the first of them.)
func TestRetransmission(t *testing.T) {
	for _, c := range []struct {
		retransmission
		want []int // and then the end of the last wait
	}{
		{retransmission: retransmission{retries: 1}, want: []int{0, 1, 3}},
		{retransmission: retransmission{retries: 6}, want: []int{0, 1, 3, 7, 15, 31, 63, 127}},
		{retransmission: retransmission{retries: 9}, want: []int{0, 1, 3, 7, 15, 31, 63, 127, 247, 367, 487}},
		{retransmission: retransmission{retries: 6, linear: 4}, want: []int{0, 1, 2, 3, 4, 5, 7, 11, 19, 35, 67, 131}},
		{retransmission: retransmission{retries: 1, linear: 1}, want: []int{0, 1, 2, 4}},
		{retransmission: retransmission{}, want: []int{0, 1}},
	} {
		times := []int{0}
		at := time.Duration(0)
		for syns := 1; syns < 100; syns++ {
			wait, again := c.after(syns)
			at += wait
			times = append(times, int(at/time.Second))
			if !again {
				break
			}
		}
		if !slices.Equal(times, c.want) {
			t.Errorf("%d retries and %d linear timeouts: SYNs and the end at %v, want %v", c.retries, c.linear, times,
				c.want)
		}
	}
	if wait, again := (retransmission{retries: 127, linear: 255}).after(382); wait != longestRTO || !again {
		t.Errorf("after 382 SYNs: wait %v, again %t, want %v, true", wait, again, longestRTO)
	}
}

// The schedule is that of the network namespace.
func TestRetransmissionOfTheNamespace(t *testing.T) {
	for _, want := range []retransmission{{retries: 2, linear: 0}, {retries: 5, linear: 3}} {
		kernel.Sysctl(t, "net.ipv4.tcp_syn_retries", fmt.Sprint(want.retries))
		kernel.Sysctl(t, "net.ipv4.tcp_syn_linear_timeouts", fmt.Sprint(want.linear))
		if got := newRetransmission(); got != want {
			t.Errorf("newRetransmission() = %+v, want %+v as the kernel's parameters", got, want)
		}
	}
}

// Without sockets, SYNs are sent as often as the kernel sends them, and a handshake ends when the kernel would give up.
func TestRetransmissionsOfBothEngines(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	for i, c := range []struct {
		retransmission
		timeout time.Duration
		syns    int
		ends    time.Duration // 0: with the timeout
	}{
		{retransmission: retransmission{retries: 1}, timeout: 20 * time.Second, syns: 2, ends: 3 * time.Second},
		{retransmission: retransmission{retries: 6}, timeout: 2500 * time.Millisecond, syns: 2},
		{retransmission: retransmission{retries: 6, linear: 1}, timeout: 2500 * time.Millisecond, syns: 3},
	} {
		kernel.Sysctl(t, "net.ipv4.tcp_syn_retries", fmt.Sprint(c.retries))
		kernel.Sysctl(t, "net.ipv4.tcp_syn_linear_timeouts", fmt.Sprint(c.linear))
		var both sync.WaitGroup
		for name, config := range map[string]*Config{"socket": nil, "raw": withoutSockets} {
			both.Go(func() {
				s, err := New(config)
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				target := netip.AddrPortFrom(target4.Addr(), uint16(len(name)*100+i))
				r, err := s.Shake(t.Context(), target, &Options{Timeout: c.timeout})
				want := c.timeout * 3 / 4 // see TestIsTimeout
				if c.ends > 0 {
					want = c.ends - 2*jiffy // the kernel's timers count jiffies
				}
				sent := 0
				for range wire.SentTo(target) {
					sent++
				}
				if err != nil || r.Outcome != Timeout || r.SYNs != c.syns || sent != c.syns || r.Waited < want ||
					c.ends > 0 && r.Waited >= c.timeout {
					t.Errorf("%s, %+v: Shake(%v, timeout %v) = %+v, error %v, "+
						"want Timeout after %v and %d SYNs; %d were sent",
						name, c.retransmission, target, c.timeout, r, err, want, c.syns, sent)
				}
			})
		}
		both.Wait()
	}
}
