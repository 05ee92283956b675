package watch

import (
	"testing"
	"time"
	"unsafe"
)

// A strip forgets what is older than its slots, and nothing else, however rarely it is used.
func TestStrip(t *testing.T) {
	var s strip
	const second = time.Second
	increase(&s.at(2*second).Failed, 1)
	increase(&s.at(4*second).Completed, 2)
	increase(&s.at(5*second).Completed, 3)
	increase(&s.at(299*second).Skipped, 4)
	for _, c := range []struct {
		now  time.Duration
		want map[int]Slot // by index, oldest first
	}{
		{
			now:  299 * second,
			want: map[int]Slot{0: {Completed: 2, Failed: 1}, 1: {Completed: 3}, 59: {Skipped: 4}},
		},
		{now: 300 * second, want: map[int]Slot{0: {Completed: 3}, 58: {Skipped: 4}}},
		{now: 599 * second, want: nil},
		{now: 24 * time.Hour, want: nil},
	} {
		copied := s // read forgets
		got := copied.read(c.now)
		for i, slot := range got {
			if slot != c.want[i] {
				t.Errorf("after %v, slot %d is %+v, want %+v", c.now, i, slot, c.want[i])
			}
		}
	}
	copied := s
	if got := copied.read(594 * second)[0]; got != (Slot{Skipped: 4}) {
		t.Errorf("the last time that a slot is there, it is %+v, want 4 skipped", got)
	}
}

// A count stops at its maximum instead of starting again at 0.
func TestStripOverflow(t *testing.T) {
	var s strip
	for range 300 {
		increase(&s.at(0).Completed, 1)
	}
	increase(&s.at(0).Skipped, 1<<40)
	if got, want := s.read(0)[slots-1], (Slot{Completed: 255, Skipped: 255}); got != want {
		t.Errorf("a slot with 300 handshakes and 2^40 skipped ones is %+v, want %+v", got, want)
	}
}

// 100,000 watched targets have a strip each.
func TestStripSize(t *testing.T) {
	if got := unsafe.Sizeof(strip{}); got > 250 {
		t.Errorf("a strip takes %d bytes, want at most 250", got)
	}
}
