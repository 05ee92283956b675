package shaker

import (
	"testing"
	"time"
)

// FuzzDeadlines compares deadlines with a model: a map from the slots to their times.
func FuzzDeadlines(f *testing.F) {
	f.Add([]byte{0, 9, 1, 5, 2, 7, 0, 1, 1, 8, 2, 0, 0, 200})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var d deadlines
		var s slots
		for i := range int32(8) {
			s.seat(ticket{index: i}, nil)
		}
		want := make(map[*slot]time.Duration)
		for ; len(steps) >= 2; steps = steps[2:] {
			slot, due := s[steps[0]%8], time.Duration(steps[1])
			d.set(slot, due)
			if want[slot] = due; due == 0 {
				delete(want, slot)
			}
			if len(d) != len(want) {
				t.Fatalf("there are %d deadlines, want %d", len(d), len(want))
			}
			var soonest time.Duration
			for _, due := range want {
				if soonest == 0 || due < soonest {
					soonest = due
				}
			}
			if next, ok := d.next(); next != soonest || ok != (len(want) > 0) {
				t.Fatalf("next() = %v, %t, want %v, %t", next, ok, soonest, len(want) > 0)
			}
			for slot, due := range want {
				if d[slot.position].of != slot || slot.due != due {
					t.Fatalf("slot %d is at %d and due at %v, want %v", slot.index, slot.position, slot.due, due)
				}
			}
		}
	})
}
