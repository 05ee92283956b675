package shaker

import "time"

// A ticket names a task, from the moment when a caller hands it to the loop until it ends. Then the
// generation of its slot changes, and the ticket becomes invalid, even if a new task uses the same
// slot or the same descriptor number.
type ticket struct {
	index, generation int32
}

// tickets are those that no task has. The zero value has all of them.
type tickets struct {
	free []ticket
	used int32 // how many indices were ever used
}

// take returns a ticket that no other task has had.
func (t *tickets) take() ticket {
	if last := len(t.free) - 1; last >= 0 {
		taken := t.free[last]
		t.free = t.free[:last]
		return taken
	}
	t.used++
	return ticket{index: t.used - 1}
}

// put takes back tickets that slots.vacate has returned.
func (t *tickets) put(vacant ...ticket) { t.free = append(t.free, vacant...) }

// A slot holds a running task.
type slot struct {
	ticket
	task     task          // nil while the slot is vacant
	due      time.Duration // on the loop's clock; 0 is never
	position int           // index in deadlines; -1 if it is not in there
}

// slots holds the running tasks by the index of their tickets.
type slots []*slot

// seat gives a task the slot of its ticket.
func (s *slots) seat(t ticket, of task) {
	for int(t.index) >= len(*s) {
		*s = append(*s, &slot{ticket: ticket{index: int32(len(*s))}, position: -1})
	}
	(*s)[t.index].task = of
}

// find returns the slot of the ticket's task, nil if that task has ended.
func (s slots) find(t ticket) *slot {
	if t.index < 0 || int(t.index) >= len(s) {
		return nil
	}
	found := s[t.index]
	if found.generation != t.generation {
		return nil
	}
	return found
}

// vacate makes the ticket of the slot's task invalid, and returns the ticket for the next task of the slot.
func (s slots) vacate(done *slot) ticket {
	done.task = nil
	done.generation++
	return done.ticket
}
