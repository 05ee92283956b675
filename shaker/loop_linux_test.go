package shaker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
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
		l.submit(&endingTask{ended: func() { ended.Add(1) }}, interactive, l.clock()+after)
	}
	submit(time.Hour)
	submit(5 * time.Millisecond)
	lab.Eventually(t, "the sooner deadline has passed", func() bool { return ended.Load() == 1 })
}

// Invariant 6. A task that goes on after its time has come is called once, unless it sets another time.
func TestDueOnce(t *testing.T) {
	_, l := startOne(t)
	task := &recordingTask{}
	l.submit(task, interactive, 1)
	for range 3 {
		close(hold(l).release) // a turn
	}
	h := hold(l)
	defer close(h.release)
	if want := []eventKind{eventDue, eventStart}; !slices.Equal(task.events, want) {
		t.Errorf("the task was called with the events %v, want %v", task.events, want)
	}
}

// A recordingTask goes on until the loop ends, and records how it was called.
type recordingTask struct {
	events []eventKind
	on     func(*loop, ticket, event)
}

func (r *recordingTask) handle(l *loop, own ticket, e event) {
	r.events = append(r.events, e.kind)
	if r.on != nil {
		r.on(l, own, e)
	}
	if e.kind == eventClosing {
		l.finish(own, nil)
	}
}

// The last time that a task has set counts, be it sooner or later than the previous one, or never.
func TestSetDueAgain(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name string
		set  []time.Duration // one after the other, after now; 0 is never
		want bool            // whether the task is due after 20 ms
	}{
		{name: "once", set: []time.Duration{20 * ms}, want: true},
		{name: "sooner", set: []time.Duration{time.Hour, 20 * ms}, want: true},
		{name: "later", set: []time.Duration{20 * ms, time.Hour}},
		{name: "never", set: []time.Duration{20 * ms, 0}},
		{name: "never, and again", set: []time.Duration{20 * ms, 0, 20 * ms}, want: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, l := startOne(t)
			task := &recordingTask{}
			task.on = func(l *loop, own ticket, e event) {
				if e.kind != eventStart {
					return
				}
				now := l.clock()
				for _, after := range c.set {
					at := now + after
					if after == 0 {
						at = 0
					}
					l.setDue(own, at)
				}
			}
			l.submit(task, interactive, 0)
			after := make(chan struct{}) // is closed after the task had to be due
			l.submit(&endingTask{ended: func() { close(after) }}, interactive, l.clock()+40*ms)
			<-after
			h := hold(l)
			defer close(h.release)
			if got := slices.Contains(task.events, eventDue); got != c.want {
				t.Errorf("the task was called with the events %v, want %v among them: %t",
					task.events, eventDue, c.want)
			}
		})
	}
}

// Invariant 4. More tasks are told something at once than the loop calls in a turn. It takes further turns for the
// rest.
func TestAllMessagesArrive(t *testing.T) {
	_, l := startOne(t)
	const tasks = 5 * toldPerTurn
	var ended atomic.Int32
	var all []ticket
	for range tasks {
		own, err := l.submit(&endingTask{ended: func() { ended.Add(1) }}, interactive, 0)
		if err != nil {
			t.Fatalf("submit: error %v, want none", err)
		}
		all = append(all, own)
	}
	h := hold(l)
	for _, own := range all {
		l.tell(own, nil)
	}
	close(h.release)
	lab.Eventually(t, "all tasks have ended", func() bool { return ended.Load() == tasks })
}

// A message for a task that has ended does not get to the task that has its slot now.
func TestMessageToAnEndedTask(t *testing.T) {
	_, l := startOne(t)
	close(hold(l).release)
	close(hold(l).release) // a turn after the first one has ended: its ticket is given out again
	tasks := make(map[int32]*recordingTask)
	var all []ticket
	for range 10 {
		task := &recordingTask{}
		own, err := l.submit(task, interactive, 0)
		if err != nil {
			t.Fatalf("submit: error %v, want none", err)
		}
		tasks[own.index] = task
		all = append(all, own)
	}
	if !slices.ContainsFunc(all, func(own ticket) bool { return own.generation > 0 }) {
		t.Fatalf("the test did not provoke its case: the tickets are %+v, want one whose slot had a task before", all)
	}
	for _, own := range all {
		l.tell(ticket{index: own.index, generation: own.generation - 1}, "for the previous task")
		l.tell(own, "for this task")
	}
	close(hold(l).release)
	h := hold(l)
	defer close(h.release)
	for _, own := range all {
		got := slices.Sorted(slices.Values(tasks[own.index].events)) // the message may come before the start
		if want := []eventKind{eventStart, eventTold}; !slices.Equal(got, want) {
			t.Errorf("task %+v was called with the events %v, want %v", own, got, want)
		}
	}
}

// Tasks with a waiting caller are started first, however many background tasks were handed over before. Those are
// started in their order, when no other task waits.
func TestInteractiveTasksFirst(t *testing.T) {
	_, l := startOne(t)
	const tasks = 3 * startsPerTurn
	var order []string
	submit := func(name string, u urgency) {
		l.submit(startTask(func() { order = append(order, name) }), u, 0)
	}
	var want []string
	h := hold(l)
	for i := range tasks {
		submit(fmt.Sprint("background ", i), background)
	}
	for i := range tasks {
		submit(fmt.Sprint("interactive ", i), interactive)
		want = append(want, fmt.Sprint("interactive ", i))
	}
	for i := range tasks {
		want = append(want, fmt.Sprint("background ", i))
	}
	close(h.release)
	done := make(chan struct{})
	l.submit(startTask(func() { close(done) }), background, 0)
	<-done
	if !slices.Equal(order, want) {
		t.Errorf("the tasks were started in the order\n%q, want\n%q", order, want)
	}
}

// A caller whose task has ended runs before the loop starts the next tasks in the background, even if there is only one
// processor for both. At most one of them is started before the loop yields, and another one if the Go scheduler takes
// the loop first, as it does at every 61st decision.
func TestWokenCallersRunBeforeBackgroundTasks(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, c := range []struct {
		name   string
		endsAt eventKind
	}{
		{name: "its start", endsAt: eventStart},
		{name: "a message", endsAt: eventTold},
	} {
		_, l := startOne(t)
		caller := &wakingTask{endsAt: c.endsAt, woken: make(chan struct{}, 1)}
		h := hold(l)
		own, _ := l.submit(caller, interactive, 0)
		if c.endsAt == eventTold {
			close(h.release)
			h = hold(l) // the task has been started
		}
		var started atomic.Int32
		done := make(chan struct{})
		const tasks = 10 * startsPerTurn
		for range tasks {
			l.submit(startTask(func() {
				if started.Add(1) == tasks {
					close(done)
				}
			}), background, 0)
		}
		if c.endsAt == eventTold {
			l.tell(own, "end")
		}
		close(h.release)
		<-caller.woken
		l.woke()
		if n := started.Load(); n > 2 {
			t.Errorf("end at %s: %d background tasks were started before its caller ran, want 2 at most", c.name, n)
		}
		<-done // the others are started afterwards
	}
}

// Descriptors that are ready all the time do not keep the loop from starting tasks, even if there are more of them
// than one epoll_wait returns.
func TestReadyDescriptorsDoNotStopStarts(t *testing.T) {
	for _, c := range []struct {
		name  string
		ready func(*flagTask, *loop)
	}{
		{name: "they stay ready", ready: func(*flagTask, *loop) {}},
		{name: "they get ready again and again", ready: func(f *flagTask, _ *loop) { f.set() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, l := startOne(t)
			for range 2 * eventsPerTurn {
				flag := newFlagTask(t)
				flag.set()
				flag.onReady = func(l *loop) { c.ready(flag, l) }
				l.submit(flag, interactive, 0)
			}
			var started atomic.Bool
			go l.submit(startTask(func() { started.Store(true) }), interactive, 0)
			lab.Eventually(t, "the task is started although descriptors are ready", started.Load)
		})
	}
}

// A descriptor is reported once each time that it gets ready, and at once if it is watched for another event.
func TestWatchAgain(t *testing.T) {
	_, l := startOne(t)
	flag := newFlagTask(t)
	handled := make(chan uint32, 10)
	task := &recordingTask{}
	task.on = func(l *loop, own ticket, e event) {
		var err error
		switch e.kind {
		case eventStart:
			err = l.watch(own, flag.fd, unix.EPOLLIN)
		case eventTold:
			err = l.watch(own, flag.fd, e.message.(uint32))
		case eventReady:
			handled <- e.ready
		case eventClosing:
			closeDescriptor(flag.fd)
		}
		if err != nil {
			t.Errorf("watch: error %v, want none", err)
		}
	}
	own, _ := l.submit(task, interactive, 0)
	for i := range 3 {
		flag.set()
		if got := <-handled; got != unix.EPOLLIN {
			t.Errorf("event %d is %#x, want EPOLLIN", i, got)
		}
	}
	l.tell(own, uint32(unix.EPOLLOUT))
	if got := <-handled; got != unix.EPOLLOUT {
		t.Errorf("the event after watching for EPOLLOUT is %#x, want EPOLLOUT", got)
	}
	flag.set() // EPOLLIN, and it is writable as before
	close(hold(l).release)
	close(hold(l).release)
	if n := len(handled); n > 1 || n == 1 && <-handled != unix.EPOLLOUT {
		t.Errorf("%d events after that, want no EPOLLIN: the descriptor is not watched for it any more", n)
	}
}

// No wake-up is lost: each event is set only when the previous one has been handled, while callers take turns. One
// that was lost would stop the count.
func TestNoLostWakeUps(t *testing.T) {
	_, l := startOne(t)
	events := int64(200_000)
	if *lab.Soak >= time.Minute {
		events = 10_000_000
	} else if lab.Race || testing.Short() {
		events /= 10
	}
	const flags = 4
	var handled atomic.Int64
	var group sync.WaitGroup
	for range flags {
		flag := newFlagTask(t)
		again := make(chan struct{}, 1)
		flag.onReady = func(*loop) { again <- struct{}{} }
		l.submit(flag, interactive, 0)
		group.Go(func() {
			for handled.Add(1) <= events {
				flag.set()
				<-again
			}
		})
	}
	over := make(chan struct{})
	var callers sync.WaitGroup
	callers.Go(func() { // it takes turns, and so competes with the loop's goroutine for events
		for {
			select {
			case <-over:
				return
			default:
				done := make(chan struct{})
				l.submit(startTask(func() { close(done) }), interactive, 0)
				<-done
			}
		}
	})
	for last := int64(0); last < events; last = handled.Load() {
		lab.Eventually(t, fmt.Sprintf("event %d is handled", last+1), func() bool { return handled.Load() > last })
	}
	group.Wait()
	close(over)
	callers.Wait()
}

// Tasks that take little time start together: a turn for each of them would cost an epoll_wait for each.
func TestManyStartsPerTurn(t *testing.T) {
	_, l := startOne(t)
	lab.Eventually(t, "a turn starts as many tasks as it may", func() bool { // a stall of the machine ends it early
		turns := make(chan time.Duration, startsPerTurn)
		h := hold(l)
		for range startsPerTurn {
			l.submit(startTask(func() { turns <- l.now }), interactive, 0)
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
		own, _ := l.submit(&endingTask{ended: func() {}}, interactive, l.clock()+time.Hour)
		l.tell(own, context.Canceled)
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
		if s.of != nil {
			t.Fatal("the loop keeps a deadline of a task that has ended, want none")
		}
	}
	for _, m := range l.messages[:cap(l.messages)] {
		if m.text != nil {
			t.Fatalf("the loop keeps the message %v that it has taken over, want none", m.text)
		}
	}
	for _, s := range l.slots {
		if _, ended := s.task.(*endingTask); ended {
			t.Fatal("the loop keeps a task that has ended in its slot, want none")
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

// A namedTask compares its ticket with the one that submitAs has stored.
type namedTask struct {
	named ticket
	same  bool
}

func (n *namedTask) handle(l *loop, own ticket, e event) {
	n.same = n.named == own
	l.finish(own, nil)
}

// The ticket is stored before the loop calls the task: what the task does may make another goroutine use the ticket.
func TestSubmitAs(t *testing.T) {
	_, l := startOne(t)
	for range 3 {
		task := &namedTask{named: ticket{index: -1}}
		if err := l.submitAs(&task.named, task, interactive, 0); err != nil {
			t.Fatal(err)
		}
		stopped := hold(l) // now the task has been called
		if !task.same {
			t.Error("the stored ticket is not that of the task when the loop calls it")
		}
		close(stopped.release)
	}
}
