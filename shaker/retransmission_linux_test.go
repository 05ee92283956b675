package shaker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// The times at which Linux sends a SYN, in seconds after the first one. (From Linux 6.18's tcp_timer.c;
// TestTimesOfRetransmissions compares the first of them.)
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
