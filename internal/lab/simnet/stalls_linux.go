package simnet

import (
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/stall"
)

// stalled is how long a processor must have stood still between a SYN-ACK and the ACK, so that the ACK counts
// as caused by the stall: half of the 200 ms for which the kernel withholds the ACK.
const stalled = 100 * time.Millisecond

// WatchStalls makes [Wire.ACKs] leave out the ACKs that the kernel sent because the machine stood still (see
// package stall). It does nothing if this process lacks the privilege for real-time threads.
func (w *Wire) WatchStalls() {
	t := w.t
	t.Helper()
	hearts, cmd, err := stall.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hearts.Close() })
	beating := process.Start(t, cmd)
	lab.Eventually(t, "every heart beats", func() bool {
		if beating.Ended() {
			t.Logf("cannot leave out ACKs that stalls of the machine caused: %s", beating.Output())
			return true
		}
		if hearts.HaveBeatenSince(0) {
			w.hearts = hearts
			return true
		}
		return false
	})
}

// A timedACK is an ACK that this machine has sent. The times are counted from the start of the record.
type timedACK struct {
	Segment
	synack time.Duration // when the SYN-ACK of the same handshake arrived
	at     time.Duration // when the ACK was sent
}

// withoutStalls returns the ACKs that no stall caused.
func (w *Wire) withoutStalls(acks []timedACK) []Segment {
	w.t.Helper()
	stoodStill := func(from, to time.Duration) time.Duration { return 0 }
	began := stall.Now() - time.Since(w.record.began)
	if w.hearts != nil && len(acks) > 0 {
		last := began + acks[len(acks)-1].at
		lab.Eventually(w.t, "every heart has beaten again", func() bool { return w.hearts.HaveBeatenSince(last) })
		stoodStill = w.hearts.StoodStill()
	}
	var own []Segment
	for _, a := range acks {
		if stoodStill(began+a.synack, began+a.at) < stalled {
			own = append(own, a.Segment)
		}
	}
	if stalls := len(acks) - len(own); stalls > 0 {
		w.t.Logf("left out %d ACKs that the kernel sent because the machine stood still", stalls)
	}
	return own
}
