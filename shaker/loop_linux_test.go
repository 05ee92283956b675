package shaker

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// Invariant 6. A deadline that is sooner than all others moves the alarm forward, although no event and no caller
// wakes the loop.
func TestSoonerDeadline(t *testing.T) {
	_, l := startOne(t)
	var ended atomic.Int32
	submit := func(after time.Duration) {
		// The caller takes the turn, and leaves the rest to the loop's goroutine.
		awaitLoop(t, l, "the loop's goroutine sleeps", func() bool { return !l.driven })
		l.submit(&endingTask{ended: func(*loop) { ended.Add(1) }}, l.clock()+after)
	}
	submit(time.Hour)
	submit(5 * time.Millisecond)
	lab.Eventually(t, "the sooner deadline has passed", func() bool { return ended.Load() == 1 })
}

// Invariant 6. A deadline passes once, even if the task does not end then.
func TestDeadlinePassesOnce(t *testing.T) {
	_, l := startOne(t)
	staying := &stayingTask{}
	l.submit(staying, 1)
	for range 3 {
		close(hold(l).release) // a turn
	}
	h := hold(l)
	defer close(h.release)
	if staying.expired != 1 {
		t.Errorf("the task was told %d times that its deadline had passed, want once", staying.expired)
	}
}

// A stayingTask is a task that goes on after its deadline, until it is abandoned.
type stayingTask struct {
	endingTask
	expired int
}

func (s *stayingTask) expire(*loop) { s.expired++ }
func (s *stayingTask) abandon(l *loop, _ error) {
	l.finish(s.slot)
}

// Invariant 4. More tasks are abandoned at once than the loop ends in a turn. It takes further turns for the rest.
func TestAllAbandonedTasksEnd(t *testing.T) {
	_, l := startOne(t)
	const tasks = 5 * endsPerTurn
	var ended atomic.Int32
	var all []*endingTask
	for range tasks {
		task := &endingTask{ended: func(*loop) { ended.Add(1) }}
		l.submit(task, 0)
		all = append(all, task)
	}
	h := hold(l) // when it returns, all are started
	for _, task := range all {
		l.abandon(task, context.Canceled)
	}
	close(h.release)
	lab.Eventually(t, "all abandoned tasks have ended", func() bool { return ended.Load() == tasks })
}

// Tasks that take little time start together: a turn for each of them would cost an epoll_wait for each.
func TestManyStartsPerTurn(t *testing.T) {
	_, l := startOne(t)
	lab.Eventually(t, "a turn starts as many tasks as it may", func() bool { // a stall of the machine ends it early
		turns := make(chan time.Duration, startsPerTurn)
		h := hold(l)
		for range startsPerTurn {
			l.submit(&startTask{flagTask: flagTask{fd: -1}, started: func() { turns <- l.now }}, 0)
		}
		close(h.release)
		first, last := <-turns, time.Duration(0)
		for range startsPerTurn - 1 {
			last = <-turns
		}
		return last == first
	})
}

// The loop keeps no task that has ended: its memory can be freed.
func TestEndedTasksAreNotKept(t *testing.T) {
	_, l := startOne(t)
	h := hold(l)
	for range 10 {
		task := &endingTask{ended: func(*loop) {}}
		l.submit(task, l.clock()+time.Hour)
		l.abandon(task, context.Canceled)
	}
	close(h.release)
	close(hold(l).release) // after its turn, they have ended
	h = hold(l)
	defer close(h.release)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, memory := range [][]arrival{l.arrivals, l.spareArrivals} {
		for _, a := range memory[:cap(memory)] {
			if _, ended := a.task.(*endingTask); ended {
				t.Fatal("the loop keeps a task as an arrival that it has taken over, want none")
			}
		}
	}
	for _, s := range l.deadlines[:cap(l.deadlines)] {
		if s != nil {
			t.Fatal("the loop keeps a deadline of a task that has ended, want none")
		}
	}
	for _, a := range l.aborts[:cap(l.aborts)] {
		if a.task != nil {
			t.Fatalf("the loop keeps a task of type %T as an abort that it has taken over, want none", a.task)
		}
	}
}

// If New fails, it has closed whatever it had opened before.
func TestNewWithoutDescriptors(t *testing.T) {
	lab.Need(t)
	descriptors := lab.Descriptors(t)
	failed := 0
	for n := 0; ; n++ {
		var s *Shaker
		var err error
		lab.WithDescriptors(t, uint64(n), func() { s, err = New(nil) })
		if err == nil {
			s.Close()
			break
		}
		failed++
		if !errors.Is(err, unix.EMFILE) || !errors.Is(err, ErrLocal) {
			t.Errorf("New with the limit of %d descriptors: error %v, want EMFILE", n, err)
		}
		if now := lab.Descriptors(t); now != descriptors {
			t.Errorf("with the limit of %d descriptors, New failed and left %d of them open, want none",
				n, now-descriptors)
		}
	}
	if failed == 0 {
		t.Error("New never failed, want an error without descriptors")
	}
}
