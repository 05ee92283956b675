package shaker

import (
	"container/heap"
	"time"
)

// deadlines is a heap of the slots whose task is due at some time, the soonest first. The loop removes a
// task from it as soon as the task ends, so that no time outlives its task.
type deadlines []deadline

// A deadline has its own copy of the time: to follow the pointers of a large heap takes longer than to compare.
type deadline struct {
	due time.Duration
	of  *slot
}

// set sets the time at which the slot's task is due; 0 is never.
func (d *deadlines) set(s *slot, due time.Duration) {
	s.due = due
	switch in := s.position >= 0; {
	case in && due == 0:
		heap.Remove(d, s.position)
	case in:
		(*d)[s.position].due = due
		heap.Fix(d, s.position)
	case due != 0:
		heap.Push(d, s)
	}
}

// next returns the soonest time. ok is false if there is none.
func (d deadlines) next() (due time.Duration, ok bool) {
	if len(d) == 0 {
		return 0, false
	}
	return d[0].due, true
}

// The methods of heap.Interface.

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].due < d[j].due }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].of.position, d[j].of.position = i, j
}

func (d *deadlines) Push(x any) {
	s := x.(*slot)
	s.position = len(*d)
	*d = append(*d, deadline{due: s.due, of: s})
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	s := (*d)[last].of
	(*d)[last] = deadline{}
	*d = (*d)[:last]
	s.position = -1
	return s
}
