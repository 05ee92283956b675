package shaker

import (
	"errors"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
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
)

// A loop is the one owner of every descriptor in it: its tasks open, use and close
// them in the loop's turns, of which there is never more than one at a time. Whoever
// hands a task over while nobody drives the loop takes a turn at once, so that the SYN
// waits for no other goroutine. The loop's own goroutine takes all other turns. Nothing
// in here knows TCP; that is the tasks' part.
type loop struct {
	epoll  int             // a descriptor that does not block
	file   *os.File        // of it, by which the Go runtime waits for events
	events syscall.RawConn // of that
	epoch  time.Time       // zero of the loop's clock

	stopped chan struct{} // closed when run has returned

	// mu guards what goroutines hand to the loop, and who drives it. It is held to
	// move pointers, and to set the alarm.
	mu       sync.Mutex
	arrivals []arrival
	aborts   []abort
	ended    error         // why the loop takes nothing any more; nil while it does
	driven   bool          // somebody takes turns, and will see what is handed over
	left     sync.Cond     // of mu; told when a caller has left off driving
	alarm    time.Duration // when the loop's goroutine is to wake up; 0 is never

	ahead atomic.Int32 // waiters that were woken and have not run yet

	// What follows belongs to whoever drives.

	found     [eventsPerLook]unix.EpollEvent
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
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("fcntl", err)
	}
	l := &loop{
		epoll:   epoll,
		file:    os.NewFile(uintptr(epoll), "epoll"),
		epoch:   time.Now(),
		stopped: make(chan struct{}),
		driven:  true, // by run
	}
	l.left.L = &l.mu
	if l.events, err = l.file.SyscallConn(); err == nil {
		err = l.file.SetReadDeadline(time.Time{}) // fails if the runtime cannot wait for it
	}
	if err != nil {
		l.file.Close()
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
	l.drive()
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
	l.drive()
}

// woke is what a waiter that was woken calls first.
func (l *loop) woke() { l.ahead.Add(-1) }

// close ends every task with ErrClosed and returns when the loop is gone.
func (l *loop) close() {
	l.mu.Lock()
	if l.ended == nil {
		l.ended = ErrClosed
		l.ring()
	}
	l.mu.Unlock()
	<-l.stopped
}

// drive takes a turn, unless somebody drives the loop already. Its caller holds mu, and
// has handed something over: if the turn fails, it is still there, and the loop's
// goroutine will come to know.
func (l *loop) drive() {
	if l.driven {
		return
	}
	l.driven = true
	l.mu.Unlock()
	l.turn()
	l.mu.Lock()
	l.leave()
}

// leave leaves off driving. What is left is for the loop's goroutine, now or when the
// next deadline passes. Its caller holds mu.
func (l *loop) leave() {
	l.driven = false
	if l.busy() || len(l.finished) > 0 {
		l.ring()
	} else if deadline, ok := l.deadlines.next(); ok && (l.alarm == 0 || deadline < l.alarm) {
		l.setAlarm(deadline)
	}
	l.left.Signal()
}

// busy tells whether there is something to do at once. Its caller holds mu.
func (l *loop) busy() bool {
	return len(l.arrivals) > 0 || len(l.aborts) > 0 || l.ended != nil ||
		l.queueHead < len(l.queue) || len(l.abandoned) > 0 ||
		len(l.finished) > 0 && l.ahead.Load() <= wakesAhead/2
}

// ring wakes the loop's goroutine, unless somebody drives the loop. Its caller holds mu.
func (l *loop) ring() {
	if !l.driven {
		l.setAlarm(1)
	}
}

// setAlarm sets when the loop's goroutine wakes up; 0 is never. An alarm that is sooner
// than the next deadline does no harm, so that not every deadline needs its own. Its
// caller holds mu.
func (l *loop) setAlarm(alarm time.Duration) {
	if alarm == l.alarm {
		return
	}
	l.alarm = alarm
	if alarm == 0 {
		l.file.SetReadDeadline(time.Time{})
	} else {
		l.file.SetReadDeadline(l.epoch.Add(alarm))
	}
}

// run takes turns while there is something to do, and sleeps while there is not.
func (l *loop) run() {
	defer close(l.stopped)
	var err error
	for err == nil {
		if err = l.turn(); err == nil {
			err = l.sleep()
		}
	}
	l.shut(err)
}

// sleep leaves the loop to callers until there is an event, or the alarm goes off.
func (l *loop) sleep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy() {
		return nil
	}
	if len(l.finished) > 0 {
		// As many are ahead as may be: let them run, and look again. Asleep, the
		// loop might have to wait behind all of them.
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
		return nil
	}
	l.leave()
	l.mu.Unlock()
	err := l.events.Read(anyEvent)
	l.mu.Lock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.setAlarm(0)
		err = nil
	}
	for l.driven {
		l.left.Wait()
	}
	l.driven = true
	return err
}

// anyEvent tells whether a turn would find an event, or an error.
func anyEvent(epoll uintptr) bool {
	var event [1]unix.EpollEvent
	n, err := epollLook(int(epoll), event[:])
	return n > 0 || err != nil
}

// turn is what the loop does again and again: look, answer, and only then start what has
// arrived. The error is that for which the loop is to end.
func (l *loop) turn() error {
	n, err := epollLook(l.epoll, l.found[:])
	if err != nil {
		return err
	}
	l.now = l.clock()
	for i := range n {
		l.dispatch(&l.found[i])
	}
	if err := l.receive(); err != nil {
		return err
	}
	l.expire()
	l.abort()
	// Waiters are woken when every socket that can be closed is closed, but
	// before the next SYNs, so that they work while the loop does.
	l.wake(wakesAhead)
	if n < len(l.found) {
		l.start()
	}
	l.wake(wakesAhead)
	return nil
}

// dispatch gives an event to the task that it is for. An event that outlived its
// task, because the task ended after epoll_wait had collected the event, is dropped.
func (l *loop) dispatch(event *unix.EpollEvent) {
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
}

// shut ends every task because of err and closes the loop's own descriptor.
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
	l.file.Close()
}
