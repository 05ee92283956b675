package shaker

import (
	"sync/atomic"
	"time"
)

const (
	// resetSamples is how many handshakes of a wire are followed up at the same time.
	resetSamples = 512

	// followUp is how long a handshake is followed up at least. Hosts send a SYN-ACK again after 1 s, some after 3 s.
	followUp = 4 * time.Second

	// repeats is how long after a SYN-ACK another one is not just a duplicate that the network has made, or one that
	// was sent before the RST arrived.
	repeats = 500 * time.Millisecond
)

// resets checks whether the kernel's RSTs arrive, by samples of the handshakes that a SYN-ACK has ended. A target that
// gets no RST sends its SYN-ACK again.
type resets struct {
	samples [resetSamples]resetSample
	count   *resetCount
}

type resetSample struct {
	sequence uint32
	at       time.Duration // when the SYN-ACK arrived, on the loop's clock
	missing  bool
}

type resetCount struct{ checked, missing atomic.Uint64 }

// follow follows up the handshake with a sequence number, whose SYN-ACK arrived at a time, if there is room.
func (r *resets) follow(sequence uint32, at time.Duration) {
	s := &r.samples[sequence%resetSamples]
	if s.at == 0 || at-s.at > followUp {
		*s = resetSample{sequence: sequence, at: at}
		r.count.checked.Add(1)
	}
}

// again notes that another SYN-ACK to the SYN with a sequence number arrived at a time.
func (r *resets) again(sequence uint32, at time.Duration) {
	s := &r.samples[sequence%resetSamples]
	if s.at != 0 && s.sequence == sequence && at-s.at >= repeats && !s.missing {
		s.missing = true
		r.count.missing.Add(1)
	}
}
