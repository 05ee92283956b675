package simnet

import (
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/stall"
)

// stalled is for how long a processor must have stood still between a SYN-ACK and the ACK that
// followed it, so that the ACK counts as caused by the stall: half of the 200 ms for which the
// kernel holds the ACK back.
const stalled = 100 * time.Millisecond

// WatchStalls makes ACKs leave out the ACKs that the host sent because the machine stood still
// (see package stall). It does nothing where this process lacks the privilege for it.
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
			t.Logf("ACKs caused by stalls of the machine are not left out: %s", beating.Output())
			return true
		}
		if hearts.HaveBeatenSince(0) {
			w.hearts = hearts
			return true
		}
		return false
	})
}

// A timedACK is an ACK that this host has sent. Its times are since the record began.
type timedACK struct {
	Segment
	synack time.Duration // when the SYN-ACK of the same handshake arrived
	at     time.Duration
}

// withoutStalls returns the ACKs that were not caused by a stall.
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
		w.t.Logf("left out %d ACKs that were sent because the machine stood still", stalls)
	}
	return own
}
