package shaker

import "testing"

// FuzzSlots compares tickets and slots with a model: a map from every ticket that was ever given out to the task
// that it names, or to nil if that task has not been seated yet or has ended.
func FuzzSlots(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 2, 1, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var unused tickets
		var s slots
		names := make(map[ticket]task)
		var given, running []ticket
		most := 0
		for _, step := range steps {
			switch i := int(step / 3); {
			case step%3 == 0:
				taken := unused.take()
				if _, before := names[taken]; before {
					t.Fatalf("take returned ticket %+v, want a new one: it was given out before", taken)
				}
				names[taken] = nil
				given = append(given, taken)
			case step%3 == 1 && len(given) > 0:
				i %= len(given)
				names[given[i]] = &holdUp{held: make(chan struct{})}
				s.seat(given[i], names[given[i]])
				running = append(running, given[i])
				given = append(given[:i], given[i+1:]...)
			case step%3 == 2 && len(running) > 0:
				i %= len(running)
				names[running[i]] = nil
				unused.put(s.vacate(s.find(running[i])))
				running = append(running[:i], running[i+1:]...)
			}
			most = max(most, len(given)+len(running))
			if len(s) > most {
				t.Fatalf("there are %d slots, want as many as there were tickets at once: %d", len(s), most)
			}
			for ticket, want := range names {
				var got task
				if found := s.find(ticket); found != nil {
					got = found.task
				}
				if got != want {
					t.Fatalf("find(%+v) = task %v, want %v", ticket, got, want)
				}
			}
		}
		for _, never := range []ticket{
			{index: -1, generation: 0},
			{index: int32(len(s)), generation: 0},
			{index: 0, generation: -1},
		} {
			if found := s.find(never); found != nil {
				t.Errorf("find(%+v) = %+v, want nil: this ticket was never given out", never, found)
			}
		}
	})
}
