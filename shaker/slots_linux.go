package shaker

import "time"

// A task is what the event loop drives. All its methods are called by the loop
// alone. A task ends by calling loop.finish, once.
type task interface {
	// seat tells the task its slot. It is called first.
	seat(*slot)
	// start does the task's first system calls.
	start(*loop)
	// ready handles events of the descriptor that the task has watched.
	ready(l *loop, events uint32)
	// expire handles the passing of the task's deadline.
	expire(*loop)
	// abandon ends the task because of err: its caller is gone, or the loop
	// is closing. It does nothing if the task has ended.
	abandon(l *loop, err error)
	// wake tells whoever waits for the task that it has ended. Who waited calls
	// loop.woke as soon as it runs.
	wake(*loop)
}

// A ticket names a task for as long as it lives. It is what the loop hands to the
// kernel as epoll data, and what it keeps in its own queue: once the task has
// ended, the ticket's generation is over and the ticket names nobody, whoever uses
// its slot, or its descriptor's number, by then.
type ticket struct {
	index, generation int32
}

// A slot holds a running task.
type slot struct {
	ticket
	task     task          // nil while the slot is free
	deadline time.Duration // on the loop's clock; 0 if there is none
	position int           // in deadlines; -1 if it is not in there
}

// slots are the running tasks by index. The zero value is empty.
type slots struct {
	all  []*slot
	free []*slot
}

// take gives the task a slot and with it a ticket that no other task had.
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

// find returns the slot that the ticket was given with, nil if its task has ended.
func (s *slots) find(t ticket) *slot {
	if t.index < 0 || int(t.index) >= len(s.all) {
		return nil
	}
	found := s.all[t.index]
	if found.generation != t.generation || found.task == nil {
		return nil
	}
	return found
}

// put frees the slot and ends its ticket.
func (s *slots) put(done *slot) {
	done.task = nil
	done.generation++
	s.free = append(s.free, done)
}
