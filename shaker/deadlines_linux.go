package shaker

import (
	"container/heap"
	"time"
)

// deadlines is a heap of the slots that have a deadline, the soonest first. The loop removes a task
// from it as soon as the task ends, so that no deadline outlives its task.
type deadlines []*slot

func (d *deadlines) add(s *slot)    { heap.Push(d, s) }
func (d *deadlines) remove(s *slot) { heap.Remove(d, s.position) }

// next returns the soonest deadline. ok is false if there is none.
func (d deadlines) next() (deadline time.Duration, ok bool) {
	if len(d) == 0 {
		return 0, false
	}
	return d[0].deadline, true
}

// The methods of heap.Interface.

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline < d[j].deadline }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].position, d[j].position = i, j
}

func (d *deadlines) Push(x any) {
	s := x.(*slot)
	s.position = len(*d)
	*d = append(*d, s)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	s := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	s.position = -1
	return s
}
