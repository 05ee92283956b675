package shaker

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// If a connection without keepalive has been idle for longer than the Idle of SetKeepAlive, a keepalive is sent at
// once, and not after another Idle.
func TestSetKeepAliveAtOnce(t *testing.T) {
	lab.Need(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the kernel accepts the connection, and answers keepalives
	s, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := mustHold(t, s, netip.MustParseAddrPort(l.Addr().String()), HoldOptions{})
	h.next(Established)
	const idle = 2 * time.Second
	lab.Eventually(t, "the connection has been idle", func() bool {
		return time.Since(h.mustState().LastAnswer) > idle
	})
	set := time.Now()
	if err := h.SetKeepAlive(KeepAlive{Idle: idle, Interval: idle, Count: 3}); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, "a keepalive was answered", func() bool {
		return h.mustState().LastAnswer.After(set.Add(-jiffy))
	})
	// The machine may stand still for some 100 ms. In the other order of options, it takes all of idle.
	if took := h.mustState().LastAnswer.Sub(set); took > idle*3/4 {
		t.Errorf("the keepalive was answered %v after SetKeepAlive, want at once", took)
	}
}
