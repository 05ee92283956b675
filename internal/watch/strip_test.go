package watch

import (
	"testing"
	"time"
	"unsafe"
)

// A strip forgets what is older than its slots, and nothing else, however rarely it is used.
func TestStrip(t *testing.T) {
	var s strip
	const second = moment(time.Second)
	s.add(2*second, Tally{Failed: 1})
	s.add(4*second, Tally{Completed: 2})
	s.add(5*second, Tally{Completed: 3})
	s.add(299*second, Tally{Skipped: 4})
	for _, c := range []struct {
		now  moment
		want map[int]Slot // by index, oldest first
	}{
		{
			now:  299 * second,
			want: map[int]Slot{0: {Completed: 2, Failed: 1}, 1: {Completed: 3}, 59: {Skipped: 4}},
		},
		{now: 300 * second, want: map[int]Slot{0: {Completed: 3}, 58: {Skipped: 4}}},
		{now: 599 * second, want: nil},
		{now: 24 * 3600 * second, want: nil},
	} {
		copied := s.clone() // read forgets
		got := copied.read(c.now)
		for i, slot := range got {
			if slot != c.want[i] {
				t.Errorf("after %v, slot %d is %+v, want %+v", time.Duration(c.now), i, slot, c.want[i])
			}
		}
	}
	copied := s.clone()
	if got := copied.read(594 * second)[0]; got != (Slot{Skipped: 4}) {
		t.Errorf("the last time that a slot is there, it is %+v, want 4 skipped", got)
	}
}

// clone returns a copy that shares no memory with the strip.
func (s strip) clone() strip {
	if s.troubles != nil {
		s.troubles = new(*s.troubles)
	}
	return s
}

// A count stops at its maximum instead of starting again at 0.
func TestStripOverflow(t *testing.T) {
	var s strip
	for range 300 {
		s.add(0, Tally{Completed: 1})
	}
	s.add(0, Tally{Skipped: 1 << 40})
	if got, want := s.read(0)[slots-1], (Slot{Completed: 255, Skipped: 255}); got != want {
		t.Errorf("a slot with 300 handshakes and 2^40 skipped ones is %+v, want %+v", got, want)
	}
}

// 100,000 watched targets have a strip each. It is small as long as all handshakes succeed, and again five minutes
// after the last one that did not.
func TestStripSize(t *testing.T) {
	const most, second = 72, moment(time.Second)
	if got := unsafe.Sizeof(strip{}); got > most {
		t.Errorf("a strip takes %d bytes, want at most %d", got, most)
	}
	var s strip
	for _, c := range []struct {
		now      moment
		add      Tally
		troubles bool
	}{
		{now: 0, add: Tally{Completed: 1}, troubles: false},
		{now: second, add: Tally{Completed: 1, Failed: 1}, troubles: true},
		{now: 299 * second, add: Tally{Completed: 1}, troubles: true},
		{now: 300 * second, add: Tally{Completed: 1}, troubles: false},
	} {
		s.add(c.now, c.add)
		if got := s.troubles != nil; got != c.troubles {
			t.Errorf("after %v: memory for failures: %t, want %t", time.Duration(c.now), got, c.troubles)
		}
	}
}
