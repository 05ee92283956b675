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

// A strip counts the handshakes of the last five minutes. Each watched target has one, so a strip has memory for
// failures only while there are some. No timer moves it: its caller passes the present moment. A strip is not safe for
// concurrent use.
type strip struct {
	newest    int32        // the number of the newest slot
	completed [slots]uint8 // of the slot n at n % slots
	troubles  *[slots]Slot // the other counts, at the same places; nil if all of them are 0
}

// move makes the slot of a moment the newest one, and forgets those that are too old.
func (s *strip) move(now moment) {
	number := int32(time.Duration(now) / slotLength)
	if number <= s.newest {
		return
	}
	for n := max(s.newest, number-slots) + 1; n <= number; n++ {
		s.completed[n%slots] = 0
		if s.troubles != nil {
			s.troubles[n%slots] = Slot{}
		}
	}
	s.newest = number
	if s.troubles != nil && *s.troubles == ([slots]Slot{}) {
		s.troubles = nil
	}
}

// add adds handshakes to the slot of a moment, which is the newest one from then on.
func (s *strip) add(now moment, t Tally) {
	s.move(now)
	i := s.newest % slots
	increase(&s.completed[i], t.Completed)
	if t.Failed+t.Lost+t.Skipped == 0 {
		return
	}
	if s.troubles == nil {
		s.troubles = new([slots]Slot)
	}
	increase(&s.troubles[i].Failed, t.Failed)
	increase(&s.troubles[i].Lost, t.Lost)
	increase(&s.troubles[i].Skipped, t.Skipped)
}

// read returns the slots up to the given moment, oldest first.
func (s *strip) read(now moment) (all [slots]Slot) {
	s.move(now)
	for i := range all {
		from := (s.newest + 1 + int32(i)) % slots
		if s.troubles != nil {
			all[i] = s.troubles[from]
		}
		all[i].Completed = s.completed[from]
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
