package shaker

import "time"

// A ticket names a running task. The loop uses it as epoll data and in its own queue. When the task
// ends, the generation of its slot changes, and the ticket becomes invalid, even if a new task uses
// the same slot or the same descriptor number by then.
type ticket struct {
	index, generation int32
}

// A slot holds a running task.
type slot struct {
	ticket
	task     task          // nil while the slot is free
	deadline time.Duration // on the loop's clock; 0 is none
	position int           // index in deadlines; -1 if it is not in there
}

// slots holds the running tasks by index. The zero value is empty.
type slots struct {
	all  []*slot
	free []*slot
}

// take gives the task a slot, and with it a ticket that no other task has had.
func (s *slots) take(t task) *slot {
	if last := len(s.free) - 1; last >= 0 {
		taken := s.free[last]
		s.free = s.free[:last]
		taken.task = t
		return taken
	}
	taken := &slot{ticket: ticket{index: int32(len(s.all))}, task: t, position: -1}
	s.all = append(s.all, taken)
	return taken
}

// find returns the slot of the ticket's task, nil if that task has ended.
func (s *slots) find(t ticket) *slot {
	if t.index < 0 || int(t.index) >= len(s.all) {
		return nil
	}
	found := s.all[t.index]
	if found.generation != t.generation {
		return nil
	}
	return found
}

// put frees the slot and invalidates its ticket. No ticket with the next generation exists until the slot is taken.
func (s *slots) put(done *slot) {
	done.task = nil
	done.generation++
	s.free = append(s.free, done)
}
