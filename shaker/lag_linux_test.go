package shaker

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The process is stopped for half a second before the SYN-ACK arrives. ResetLag includes this time, although
// the process sees the SYN-ACK only when it goes on.
func TestResetLagOfAStoppedProcess(t *testing.T) {
	const insideEnv = "SHAKER_TEST_STOPPED"
	if os.Getenv(insideEnv) != "" {
		r := mustShake(t, start(t), target4)
		fmt.Printf("result %d %t %t %d\n", r.ResetLag, r.ACKSent, r.ACKWithheld, r.SYNs)
		return
	}
	for _, lost := range []int{0, 1} { // SYNs: after a retransmission, the RTT says nothing
		t.Run(fmt.Sprintf("%d SYNs lost", lost), func(t *testing.T) {
			const stopped = 500 * time.Millisecond
			result, trace := resultOfStopped(t, stopped, lost, insideEnv+"=1")
			var lag time.Duration
			var sent, withheld bool
			var sentSYNs int
			fmt.Sscan(result, (*int64)(&lag), &sent, &withheld, &sentSYNs)
			if lag < stopped-2*jiffy || !sent || withheld || sentSYNs < lost+1 {
				t.Errorf("ResetLag %v, ACKSent %t, ACKWithheld %t, %d SYNs, "+
					"want %v or more, true, false, %d or more:\n%s", lag, sent, withheld, sentSYNs,
					stopped-2*jiffy, lost+1, trace())
			}
		})
	}
}

// What the kernel's clocks show counts if it is more than what the loop saw. All times are in ms after
// the call of connect(2).
func TestResetLag(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name              string
		out, seen, closed time.Duration
		info              unix.TCPInfo
		want              time.Duration
	}{
		{name: "no clock of the kernel", seen: 30, closed: 31, want: 1},
		{name: "RTT", seen: 530, closed: 531, info: unix.TCPInfo{Rtt: 20_000}, want: 511},
		{name: "RTT after a retransmission", seen: 530, closed: 531,
			info: unix.TCPInfo{Rtt: 20_000, Total_retrans: 1}, want: 1},
		{name: "stopped in connect(2)", out: 529, seen: 530, closed: 531,
			info: unix.TCPInfo{Rtt: 20_000, Last_ack_recv: 500}, want: 490},
		{name: "RTT longer than the handshake", seen: 30, closed: 31, info: unix.TCPInfo{Rtt: 40_000}, want: 1},
		{name: "age", seen: 530, closed: 531, info: unix.TCPInfo{Last_ack_recv: 500}, want: 490},
		{name: "age of one tick", seen: 30, closed: 31, info: unix.TCPInfo{Last_ack_recv: 4}, want: 1},
		{name: "age that was never set", seen: 30, closed: 31, info: unix.TCPInfo{Last_ack_recv: 1 << 31}, want: 31},
		{name: "pause after TCP_INFO", seen: 30, closed: 280, info: unix.TCPInfo{Rtt: 30_000}, want: 250},
	} {
		h := &handshake{sent: ms, out: c.out*ms + ms}
		if got := h.resetLag(&c.info, (1+c.seen)*ms, (1+c.closed)*ms); got != c.want*ms {
			t.Errorf("%s: resetLag = %v, want %v", c.name, got, c.want*ms)
		}
	}
}

// The process is delayed between TCP_INFO, which has not counted an ACK, and the RST. The kernel sends the ACK
// meanwhile: the result does not claim that it was withheld.
func TestDelayBeforeRST(t *testing.T) {
	_, l := startOne(t)
	var wire *simnet.Wire
	wire = simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			go func() {
				close(hold(l).release) // when it returns, connect(2) has returned
				wire.Send(s.SYNACK())
			}()
		}
		return nil
	}, "192.0.2.0/24")
	h := newHandshake()
	h.aim(target4, 0)
	l.submit(&delayedTask{handshake: h, delay: func() { wire.Await(2) }}, interactive, 0) // until the ACK was sent
	<-h.done
	if len(wire.ACKs()) == 0 {
		t.Fatal("the test did not provoke its case: no ACK was sent")
	}
	if r := h.result; h.err != nil || r.Outcome != Open || r.ACKWithheld {
		t.Errorf("Shake(%v) = %+v, error %v, want Open without ACKWithheld: an ACK was sent", target4, r, h.err)
	}
}

// A delayedTask is a handshake that is delayed after TCP_INFO.
type delayedTask struct {
	*handshake
	delay func()
}

func (d *delayedTask) handle(l *loop, own ticket, e event) {
	if e.kind != eventReady {
		d.handshake.handle(l, own, e)
		return
	}
	if err := tcpInfo(d.fd, &l.info); err != nil {
		d.fail(l, err)
		return
	}
	d.delay()
	d.conclude(l, 0, l.now)
}
