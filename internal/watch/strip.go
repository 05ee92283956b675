package watch

import (
	"math"
	"time"
)

const (
	slots      = 60
	slotLength = 5 * time.Second

	// lastMinute is the number of slots that cover the last minute. The newest one is still going on, so that they
	// cover up to one slot more.
	lastMinute = int(time.Minute/slotLength) + 1
)

// A Slot counts the handshakes with a target that ended in the same few seconds. A count stops at 255: at the shortest
// interval there are 50 handshakes in a slot.
type Slot struct {
	Completed uint8 // with any result
	Failed    uint8 // of Completed: with a result that is not valid
	Lost      uint8 // of Completed: a SYN got no reply, although the module expects one
	Skipped   uint8 // not performed, or not counted, because of this host
}

// A strip counts the handshakes of the last five minutes. It takes 248 bytes and has no pointers, because each watched
// target has one. No timer moves it: whoever reads or writes it says what time it is. A strip is not safe for
// concurrent use.
type strip struct {
	newest int64       // the number of the newest slot
	ring   [slots]Slot // the slot n is at n % slots
}

// at returns the slot of a time, which is the newest one from then on. The time counts from a fixed moment, on a clock
// that cannot be set.
func (s *strip) at(now time.Duration) *Slot {
	number := int64(now / slotLength)
	for n := max(s.newest, number-slots) + 1; n <= number; n++ {
		s.ring[n%slots] = Slot{}
	}
	s.newest = max(s.newest, number)
	return &s.ring[s.newest%slots]
}

// read returns the slots up to the given time, oldest first.
func (s *strip) read(now time.Duration) (all [slots]Slot) {
	s.at(now)
	for i := range all {
		all[i] = s.ring[(s.newest+1+int64(i))%slots]
	}
	return all
}

// increase adds n to a count.
func increase(count *uint8, n uint64) {
	*count = uint8(min(uint64(*count)+n, math.MaxUint8))
}

// A Tally is a number of handshakes, by the same criteria as in a [Slot].
type Tally struct{ Completed, Failed, Lost, Skipped uint64 }

// TallyOf returns the sum of slots.
func TallyOf(slots []Slot) (t Tally) {
	for _, s := range slots {
		t.Completed += uint64(s.Completed)
		t.Failed += uint64(s.Failed)
		t.Lost += uint64(s.Lost)
		t.Skipped += uint64(s.Skipped)
	}
	return t
}
