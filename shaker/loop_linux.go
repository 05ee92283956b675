package shaker

import (
	"encoding/binary"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startsPerLook bounds how many tasks the loop starts, each with a SYN, before
	// it looks for answers again. A start takes some tens of µs, so that an answer
	// waits for about 1 ms of the 200 ms for which the kernel holds the last ACK back.
	startsPerLook = 32

	// endsPerLook likewise bounds how many tasks the loop ends because their deadlines
	// have passed, and how many because they were abandoned.
	endsPerLook = 64

	// wakesAhead bounds how many waiters are woken and have not run yet. If thousands
	// were woken at once, the loop might have to wait for its next turn on a processor
	// until they have all had theirs.
	wakesAhead = 32

	// eventsPerLook bounds how many events one epoll_wait returns. A full look is
	// followed by another one before anything is started.
	eventsPerLook = 256

	// wakeIndex is the index of the ticket of the loop's own eventfd.
	wakeIndex = -1
)

// A loop is the one owner of every descriptor in it: its tasks open, use and close
// them on the loop's goroutine, which has an OS thread to itself. Other goroutines
// hand tasks over and wait. Nothing in here knows TCP; that is the tasks' part.
type loop struct {
	epoll int
	bell  int       // an eventfd, written to wake the loop
	epoch time.Time // zero of the loop's clock

	stopped chan struct{} // closed when run has returned

	// mu guards what goroutines hand to the loop. It is held to move pointers,
	// and for the system call of ringing the bell.
	mu       sync.Mutex
	arrivals []arrival
	aborts   []abort
	asleep   bool  // the loop waits or is about to: whoever hands it something rings
	ended    error // why the loop takes nothing any more; nil while it does

	ahead   atomic.Int32 // waiters that were woken and have not run yet
	backlog atomic.Bool  // there are more to be woken than may be

	// What follows belongs to the goroutine of run.

	now       time.Duration // when the last epoll_wait returned
	slots     slots
	deadlines deadlines
	queue     []ticket // tasks that have not been started, first come first
	queueHead int      // index in queue of the first of them
	abandoned []abort  // tasks to be ended, first come first
	finished  []task   // tasks that have ended and whose waiters sleep yet, first come first

	spareArrivals []arrival // what arrivals was before it was last taken, to be used again
}

type arrival struct {
	task     task
	deadline time.Duration // on the loop's clock; 0 if there is none
}

type abort struct {
	task task
	err  error
}

// newLoop opens a loop and starts its goroutine.
func newLoop() (*loop, error) {
	l := &loop{epoch: time.Now(), stopped: make(chan struct{})}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if l.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(l.epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	// Edge-triggered, so that nobody needs to read the bell's counter back to 0.
	err = epollAdd(l.epoll, l.bell, unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: wakeIndex})
	if err != nil {
		unix.Close(l.epoll)
		unix.Close(l.bell)
		return nil, err
	}
	go l.run()
	return l, nil
}

// clock returns the time on the loop's clock. It is never 0.
func (l *loop) clock() time.Duration { return time.Since(l.epoch) + 1 }

// on returns the time t on the loop's clock: at least 1, so that 0 can mean none.
func (l *loop) on(t time.Time) time.Duration { return max(1, t.Sub(l.epoch)) }

// submit hands a task to the loop. The task's wake will be called once, unless there
// is an error: ErrClosed, or that of the system call which ended the loop.
func (l *loop) submit(t task, deadline time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended != nil {
		return l.ended
	}
	l.arrivals = append(l.arrivals, arrival{task: t, deadline: deadline})
	l.ring()
	return nil
}

// abandon makes the loop end a task that was submitted. It does nothing to a task
// that has ended, which must therefore not be submitted again.
func (l *loop) abandon(t task, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended != nil {
		return // and by that every task ends
	}
	l.aborts = append(l.aborts, abort{task: t, err: err})
	l.ring()
}

// woke is what a waiter that was woken calls first.
func (l *loop) woke() {
	if l.ahead.Add(-1) == wakesAhead/2 && l.backlog.Load() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.ended == nil {
			l.ring()
		}
	}
}

// close ends every task with ErrClosed and returns when the loop is gone.
func (l *loop) close() error {
	l.mu.Lock()
	if l.ended == nil {
		l.ended = ErrClosed
		l.ring()
	}
	l.mu.Unlock()
	<-l.stopped
	return nil
}

// ring wakes the loop if it sleeps. Its caller holds mu: that keeps the bell's
// descriptor open, because the loop closes it only when ended is set.
func (l *loop) ring() {
	if l.asleep {
		l.asleep = false
		unix.Write(l.bell, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

// run is the loop: look, answer, and only then start what has arrived.
func (l *loop) run() {
	// A thread of its own, which ends with the goroutine: the loop is not moved from
	// one to another while SYN-ACKs wait. No test can tell, only BenchmarkBeside.
	runtime.LockOSThread()
	defer close(l.stopped)

	var events [eventsPerLook]unix.EpollEvent
	for {
		n, err := l.wait(events[:])
		if err != nil {
			l.shut(err)
			return
		}
		l.now = l.clock()
		for i := range n {
			l.dispatch(&events[i])
		}
		if err := l.receive(); err != nil {
			l.shut(err)
			return
		}
		l.expire()
		l.abort()
		// Waiters are woken when every socket that can be closed is closed, but
		// before the next SYNs, so that they work while the loop does.
		l.wake(wakesAhead)
		if n < len(events) {
			l.start()
		}
		l.wake(wakesAhead)
	}
}

// wait returns the events that are there, and sleeps only if there are none and
// nothing else is to be done.
func (l *loop) wait(events []unix.EpollEvent) (n int, err error) {
	n, err = epollLook(l.epoll, events)
	if n > 0 || err != nil {
		return n, err
	}
	if milliseconds := l.patience(); milliseconds != 0 {
		return epollSleep(l.epoll, events, milliseconds)
	}
	return 0, nil
}

// patience returns for how many milliseconds the loop may sleep; -1 is for ever.
func (l *loop) patience() int {
	if l.queueHead < len(l.queue) || len(l.abandoned) > 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.arrivals) > 0 || len(l.aborts) > 0 || l.ended != nil {
		return 0
	}
	if len(l.finished) > 0 && l.ahead.Load() <= wakesAhead/2 {
		return 0 // else one of those who are woken will ring
	}
	l.asleep = true
	deadline, ok := l.deadlines.next()
	if !ok {
		return -1
	}
	// Rounded up: waking before the deadline would only mean to sleep again.
	left := max(0, deadline-l.clock())
	return int(min((left+time.Millisecond-1)/time.Millisecond, math.MaxInt32))
}

// dispatch gives an event to the task that it is for. An event that outlived its
// task, because the task ended after epoll_wait had collected the event, is dropped.
func (l *loop) dispatch(event *unix.EpollEvent) {
	if event.Fd == wakeIndex {
		return
	}
	if s := l.slots.find(ticket{event.Fd, event.Pad}); s != nil {
		s.task.ready(l, event.Events)
	}
}

// expire ends tasks whose deadline has passed, at most endsPerLook.
func (l *loop) expire() {
	for range endsPerLook {
		deadline, ok := l.deadlines.next()
		if !ok || deadline > l.now {
			return
		}
		s := l.deadlines[0]
		l.deadlines.remove(s)
		s.task.expire(l)
	}
}

// abort ends tasks that were abandoned, at most endsPerLook.
func (l *loop) abort() {
	n := min(endsPerLook, len(l.abandoned))
	for _, a := range l.abandoned[:n] {
		a.task.abandon(l, a.err)
	}
	l.abandoned = slices.Delete(l.abandoned, 0, n)
}

// receive takes what other goroutines have handed over. New tasks are queued, with their
// deadlines running. The error is that for which the loop is to end.
func (l *loop) receive() error {
	l.mu.Lock()
	arrivals := l.arrivals
	l.arrivals = l.spareArrivals[:0]
	l.abandoned = append(l.abandoned, l.aborts...)
	clear(l.aborts)
	l.aborts = l.aborts[:0]
	l.asleep = false
	ended := l.ended
	l.mu.Unlock()

	for _, a := range arrivals {
		s := l.slots.take(a.task)
		if a.deadline != 0 {
			s.deadline = a.deadline
			l.deadlines.add(s)
		}
		a.task.seat(s)
		l.queue = append(l.queue, s.ticket)
	}
	clear(arrivals)
	l.spareArrivals = arrivals
	return ended
}

// start starts queued tasks, at most startsPerLook.
func (l *loop) start() {
	for range min(startsPerLook, len(l.queue)-l.queueHead) {
		next := l.queue[l.queueHead]
		l.queueHead++
		if s := l.slots.find(next); s != nil { // else it was abandoned or has expired
			s.task.start(l)
		}
	}
	// Move the rest to the front once that is less than what has gone.
	if rest := l.queue[l.queueHead:]; len(rest) < l.queueHead {
		l.queue, l.queueHead = l.queue[:copy(l.queue, rest)], 0
	}
}

// watch asks for the events of a task's descriptor. Closing the descriptor ends that.
func (l *loop) watch(s *slot, fd int, events uint32) error {
	return epollAdd(l.epoll, fd, unix.EpollEvent{Events: events, Fd: s.index, Pad: s.generation})
}

// finish ends a task, which has closed its descriptor. Its waiter is woken later.
func (l *loop) finish(s *slot) {
	if s.position >= 0 {
		l.deadlines.remove(s)
	}
	l.finished = append(l.finished, s.task)
	l.slots.put(s)
}

// wake wakes waiters of tasks that have ended, until there are limit who have not run yet.
func (l *loop) wake(limit int32) {
	n := 0
	for n < len(l.finished) && l.ahead.Load() < limit {
		l.ahead.Add(1)
		l.finished[n].wake(l)
		n++
	}
	l.finished = slices.Delete(l.finished, 0, n)
	l.backlog.Store(len(l.finished) > 0)
}

// shut ends every task because of err and closes the loop's own descriptors.
func (l *loop) shut(err error) {
	l.mu.Lock()
	l.ended = err
	l.mu.Unlock()
	l.receive() // what arrived before that
	for _, s := range l.slots.all {
		if s.task != nil {
			s.task.abandon(l, err)
		}
	}
	l.wake(math.MaxInt32)
	unix.Close(l.bell)
	unix.Close(l.epoll)
}
