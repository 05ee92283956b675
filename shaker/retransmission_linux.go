package shaker

import (
	"fmt"
	"os"
	"time"
)

// A retransmission says when a SYN is sent again: as the kernel does for its own sockets (tcp(7)). After a second the
// SYN is sent again, linear times with a second in between, and then with twice the time after each SYN.
type retransmission struct {
	retries int // net.ipv4.tcp_syn_retries
	linear  int // net.ipv4.tcp_syn_linear_timeouts; 0 before Linux 6.5
}

const (
	initialRTO = time.Second       // RFC 6298, section 2
	longestRTO = 120 * time.Second // TCP_RTO_MAX of Linux
)

// newRetransmission returns the schedule of the thread's network namespace.
func newRetransmission() retransmission {
	r := retransmission{retries: 6}
	for name, value := range map[string]*int{
		"tcp_syn_retries":         &r.retries,
		"tcp_syn_linear_timeouts": &r.linear,
	} {
		// A kernel that does not have the second one does not have the linear part either.
		if text, err := os.ReadFile("/proc/sys/net/ipv4/" + name); err == nil {
			fmt.Sscan(string(text), value)
		}
	}
	return r
}

// after returns how long to wait for the answer to a SYN that was sent the given number of times, and whether it is
// sent once more then.
func (r retransmission) after(syns int) (wait time.Duration, again bool) {
	wait = initialRTO
	for i := r.linear + 1; i < syns && wait < longestRTO; i++ {
		wait *= 2
	}
	return min(wait, longestRTO), syns <= r.retries+r.linear
}
