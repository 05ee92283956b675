package shaker

import "testing"

// running returns the number of slots in use.
func (s *slots) running() int { return len(s.all) - len(s.free) }

// FuzzSlots compares slots with a model: a map from every ticket that was ever given out to the task
// that it names, or to nil if that task has ended.
func FuzzSlots(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 2, 1, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var s slots
		names := make(map[ticket]task)
		var running []*slot
		most := 0
		for _, step := range steps {
			if step%3 > 0 || len(running) == 0 {
				taken := s.take(&holdUp{})
				if _, given := names[taken.ticket]; given {
					t.Fatalf("take returned ticket %+v, want a new one: it was given out before", taken.ticket)
				}
				names[taken.ticket] = taken.task
				running = append(running, taken)
			} else {
				i := int(step) % len(running)
				names[running[i].ticket] = nil
				s.put(running[i])
				running = append(running[:i], running[i+1:]...)
			}
			most = max(most, len(running))
			if len(s.all) > most {
				t.Fatalf("there are %d slots, want as many as were in use at once: %d", len(s.all), most)
			}
			for _, free := range s.free {
				if free.task != nil {
					t.Fatalf("the free slot %+v keeps its task, want none", free.ticket)
				}
			}
			if s.running() != len(running) {
				t.Fatalf("%d slots are in use, want %d", s.running(), len(running))
			}
			for given, want := range names {
				var got task
				if found := s.find(given); found != nil {
					got = found.task
				}
				if got != want {
					t.Fatalf("find(%+v) = task %v, want %v", given, got, want)
				}
			}
		}
		for _, never := range []ticket{
			{index: -1, generation: 0},
			{index: int32(len(s.all)), generation: 0},
			{index: 0, generation: -1},
		} {
			if found := s.find(never); found != nil {
				t.Errorf("find(%+v) = %+v, want nil: this ticket was never given out", never, found)
			}
		}
	})
}
