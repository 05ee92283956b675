// How the engine works on Linux.
//
// An engine (engine_linux.go) has one epoll loop per processor. A loop owns its sockets from
// socket(2) to close(2): no other code uses their descriptors. The loop drives tasks, and calls them
// with events (events_linux.go). A handshake (handshake_linux.go) is a task, and this file knows
// nothing about TCP. A caller hands its task to a loop under a mutex, and waits on a channel until the
// task has ended.
//
// Each task sits in a slot and is named by a ticket, which is valid for one task only
// (slots_linux.go). Callers use the ticket to tell the task something. The loop also gives it to epoll
// instead of the descriptor's number. Whatever outlives the task, be it an event or a message, carries
// a ticket that is no longer valid, and is dropped.
//
// The loop works in turns, and at most one goroutine takes turns at a time: it drives the loop. In
// a turn the loop
//
//  1. collects events (epoll_wait(2) without waiting) and handles all of them: this is when a
//     SYN-ACK is answered with an RST,
//  2. takes what callers have handed over,
//  3. handles times that have come (deadlines_linux.go) and messages, such as that a caller has
//     given up,
//  4. lets tasks read that have something to read: held connections (hold_linux.go),
//  5. wakes callers whose tasks have ended,
//  6. starts new tasks, those with a waiting caller first: this is when a SYN is sent.
//
// Steps 3 to 6 handle a few dozen tasks at most, and step 6 takes 1 ms or one task at most. So however
// many there are, the loop soon looks for SYN-ACKs again, within the 200 ms for which the kernel
// withholds the final ACK. Events go first, but they cannot stop the rest for good: descriptors are
// watched edge-triggered, so that one that stays ready gives no further event, and after some thousand
// events in a row the loop takes all steps once.
//
// A caller that finds the loop undriven takes a turn itself, so that its SYN is sent at once and no
// thread has to wake up for it. It opens no socket unless its thread is in the network namespace of
// the loop (netns_linux.go). Callers take the loops in turns, but pass over one that is driven if the
// next one is not. The loop's own goroutine takes all other turns. Between turns it sleeps in the Go
// runtime's poller, because an epoll descriptor can itself be polled. It wakes up when there is an
// event or when the alarm goes off. The alarm is set to the next deadline, or to now if a caller has
// left work behind.
//
// A loop that gives up its processor may have to queue behind thousands of runnable goroutines
// while the kernel's 200 ms pass. The loop avoids that in three ways: its system calls bypass the
// Go scheduler (syscall_linux.go), it wakes only a few callers ahead, and it does not sleep before
// the woken callers have run.
//
// A caller that was woken may be runnable on the loop's processor only. If the loop has nothing left but
// tasks to start in the background, it lets the caller run, and others drive it meanwhile.

package shaker

import (
	"errors"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startsPerTurn limits how many tasks the loop starts, each with a SYN, before it looks
	// for events again. A start takes some tens of µs, so a SYN-ACK waits for about 1 ms of
	// the 200 ms for which the kernel withholds the final ACK.
	startsPerTurn = 32

	// startingPerTurn is the time after which the loop starts no more tasks in a turn. While many
	// local ports are in use, the kernel searches for a free one for up to 12 ms.
	startingPerTurn = time.Millisecond

	// duePerTurn limits how many times the loop handles in a turn, and toldPerTurn how many messages.
	duePerTurn  = 64
	toldPerTurn = 64

	// readsPerTurn limits how many tasks read in a turn, each of them as much as fits into loop.data: so data of
	// a peer takes some tens of µs of a turn.
	readsPerTurn = 16

	// wakesAhead limits how many waiters are woken and have not run yet. If the loop woke
	// thousands at once, they might all run before the loop gets a processor again.
	wakesAhead = 32

	// eventsPerTurn limits how many events one epoll_wait returns. If it returns that many,
	// there may be more, and the loop starts no tasks in that turn, for turnsWithoutStarts turns in
	// a row at most.
	eventsPerTurn      = 256
	turnsWithoutStarts = 16
)

// A loop owns every descriptor of its tasks: the tasks open, use and close them in the loop's
// turns. The comment at the top of this file explains how it works.
type loop struct {
	epoll  int             // a nonblocking epoll descriptor
	file   *os.File        // the same descriptor, known to the Go runtime's poller
	poller syscall.RawConn // of file, to wait for events
	epoch  time.Time       // zero of the loop's clock
	cookie uint64          // of the namespace in which the loop opens sockets; 0 if it is not known

	stopped chan struct{} // closed when run has returned

	// mu guards what callers hand to the loop, and the state of driving. It is held only to
	// move pointers and to set the alarm.
	mu       sync.Mutex
	tickets  tickets // that no task has
	arrivals []arrival
	messages []message
	ended    error         // why the loop takes no more tasks; nil while it does
	driven   bool          // a goroutine takes turns, and will see what is handed over
	left     sync.Cond     // on mu; signalled when a caller has stopped driving
	alarm    time.Duration // when the loop's goroutine has to wake up; 0 is never

	ahead   atomic.Int32 // waiters that were woken and have not run yet
	callers atomic.Int32 // interactive tasks among arrivals

	// Only the goroutine that drives the loop uses the fields below.

	found     [eventsPerTurn]unix.EpollEvent
	now       time.Duration // when the last epoll_wait returned
	inside    bool          // the thread of this turn is in the loop's namespace
	elsewhere bool          // it is in another one: this turn cannot start tasks
	crowded   int           // turns in a row that found eventsPerTurn events
	slots     slots
	deadlines deadlines
	freed     []ticket         // of tasks that have ended
	waiting   [2]queue[ticket] // tasks to be started, by urgency
	unread    queue[message]   // messages to be handled
	readers   queue[ticket]    // tasks that have something to read
	finished  queue[waiter]    // of ended tasks; they have not been woken

	// The next turn reuses the memory of what callers have handed over in the previous one.
	spareArrivals []arrival

	// Of Repetitions: ticks for reuse, results that are not in the mailbox yet, and the mailbox.
	idle    []*tick
	outbox  []Repeated
	results *mailbox[Repeated]

	// Of Connections: events that are not in the mailbox yet, and the mailbox.
	happened []happening
	events   *mailbox[happening]
	backlog  *atomic.Int64 // of the engine

	wire *wire // sends SYNs without a socket; nil if the loop does not

	// Scratch memory of the task that is called.
	info    unix.TCPInfo
	control [192]byte
	data    [4096]byte
}

// An urgency is the order in which tasks are started. Tasks of the same urgency are started in the order
// in which they were handed over.
type urgency uint8

const (
	interactive urgency = iota // a caller waits for the task
	background                 // started only if no interactive task waits to be started
)

type arrival struct {
	ticket  ticket
	task    task
	urgency urgency
	due     time.Duration // on the loop's clock; 0 is never
}

type message struct {
	to   ticket
	text any
}

// newLoop opens a loop and starts its goroutine. The loop opens its sockets in the namespace. Its clock begins at the
// epoch. If it has a wire, it closes it in the end.
func newLoop(in *namespace, epoch time.Time, w *wire) (*loop, error) {
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
		epoch:   epoch,
		cookie:  in.cookie,
		stopped: make(chan struct{}),
		driven:  true, // by run, from the start
		wire:    w,
	}
	l.left.L = &l.mu
	if l.poller, err = l.file.SyscallConn(); err == nil {
		err = l.file.SetReadDeadline(time.Time{}) // fails if the runtime cannot poll it
	}
	if err != nil {
		l.file.Close()
		return nil, err
	}
	entered := make(chan error)
	in.start(func(err error) {
		entered <- err
		if err == nil {
			l.run()
		}
	})
	if err := <-entered; err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// clock returns the time on the loop's clock. It is never 0.
func (l *loop) clock() time.Duration { return time.Since(l.epoch) + 1 }

// onClock converts t to the loop's clock.
func (l *loop) onClock(t time.Time) time.Duration { return t.Sub(l.epoch) + 1 }

// submit hands a task to the loop, which will call it with eventStart, and with eventDue when that time has
// come; a due of 0 is never. If the loop takes no more tasks, the error is ErrClosed or the error of the
// system call that ended the loop.
func (l *loop) submit(t task, u urgency, due time.Duration) (own ticket, err error) {
	err = l.submitAs(&own, t, u, due)
	return own, err
}

// submitAs is like submit, but stores the task's ticket before it calls the task.
func (l *loop) submitAs(named *ticket, t task, u urgency, due time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended != nil {
		return l.ended
	}
	own := l.tickets.take()
	*named = own
	l.arrivals = append(l.arrivals, arrival{ticket: own, task: t, urgency: u, due: due})
	if u == interactive {
		l.callers.Add(1)
	}
	l.drive()
	return nil
}

// tell makes the loop call a submitted task with a message. If the task has ended, the message is dropped, and told so
// if it is a refusable.
func (l *loop) tell(to ticket, text any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages = append(l.messages, message{to: to, text: text})
	l.drive()
}

// A woken waiter calls woke before it does anything else.
func (l *loop) woke() { l.ahead.Add(-1) }

// close calls every task with eventClosing and ErrClosed, and returns when the loop's goroutine has ended.
func (l *loop) close() {
	l.mu.Lock()
	l.ended = ErrClosed
	l.ring()
	l.mu.Unlock()
	<-l.stopped
}

// drive takes a turn, unless another goroutine drives the loop. Its caller holds mu, and has handed
// a task or a message over. The error of the turn can be ignored: if the turn fails, what was handed
// over stays queued, and the loop's goroutine sees the error on its own turn.
func (l *loop) drive() {
	if l.driven {
		return
	}
	if l.cookie == 0 {
		l.ring() // there is no way to know whether this thread is in the loop's namespace
		return
	}
	l.driven = true
	l.mu.Unlock()
	l.turn(false)
	l.mu.Lock()
	l.leave()
}

// leave stops driving and hands the remaining work to the loop's goroutine, which wakes up now or
// at the next deadline. Its caller holds mu.
func (l *loop) leave() {
	l.driven = false
	if l.wire != nil {
		l.wire.arm(l)
	}
	if l.busy() || l.finished.len() > 0 {
		l.ring()
	} else if deadline, ok := l.deadlines.next(); ok && (l.alarm == 0 || deadline < l.alarm) {
		l.setAlarm(deadline)
	}
	l.left.Signal()
}

// busy reports whether there is work for another turn now. Its caller holds mu.
func (l *loop) busy() bool {
	return len(l.arrivals) > 0 || len(l.messages) > 0 || l.ended != nil ||
		l.waiting[interactive].len() > 0 || l.waiting[background].len() > 0 || l.unread.len() > 0 ||
		l.readers.len() > 0 || l.wire != nil && l.wire.unheard ||
		l.finished.len() > 0 && l.ahead.Load() <= wakesAhead/2
}

// isFree reports whether no goroutine drives the loop.
func (l *loop) isFree() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.driven
}

// ring wakes the loop's goroutine, unless a goroutine drives the loop. Its caller holds mu.
func (l *loop) ring() {
	if !l.driven {
		l.setAlarm(1)
	}
}

// setAlarm sets the time at which the loop's goroutine wakes up; 0 is never. An alarm sooner than
// the next deadline is harmless, so the alarm need not be moved when a deadline is removed. Its
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

// run is the loop's goroutine: it takes turns while there is work, and sleeps otherwise.
func (l *loop) run() {
	defer close(l.stopped)
	var err error
	for err == nil {
		if err = l.turn(true); err == nil {
			err = l.sleep()
		}
	}
	l.shut(err)
}

// sleep lets callers drive the loop until there is an event or the alarm goes off.
func (l *loop) sleep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy() {
		if l.ahead.Load() > 0 && l.mayYield() {
			l.yield()
		}
		return nil
	}
	if l.finished.len() > 0 {
		// The limit of wakesAhead is reached. Let the woken waiters run, and look for
		// events again. If the loop slept instead, it might have to queue behind all
		// of them for a processor.
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
		return nil
	}
	l.leave()
	l.mu.Unlock()
	err := l.poller.Read(anyEvent)
	l.mu.Lock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.setAlarm(0)
		err = nil
	}
	l.driveAgain()
	return err
}

// mayYield reports whether nothing but tasks to be started in the background keeps the loop busy. Otherwise it does not
// give up its processor: with many callers, all of them would run before it. Its caller holds mu.
func (l *loop) mayYield() bool {
	return l.waiting[background].len() > 0 && l.waiting[interactive].len() == 0 && l.finished.len() == 0 &&
		len(l.arrivals) == 0 && len(l.messages) == 0 && l.unread.len() == 0 && l.ended == nil
}

// yield lets goroutines run that wait for this one's processor. Meanwhile callers can drive the loop. Its caller is the
// loop's goroutine, drives the loop and holds mu.
func (l *loop) yield() {
	l.driven = false
	l.mu.Unlock()
	runtime.Gosched()
	l.mu.Lock()
	l.driveAgain()
}

// driveAgain waits until no caller drives the loop, and lets the loop's goroutine drive it. Its caller holds mu.
func (l *loop) driveAgain() {
	for l.driven {
		l.left.Wait()
	}
	l.driven = true
}

// anyEvent reports whether a turn would find an event or an error. It leaves the events to the turn: epoll_wait(2)
// would report an edge-triggered event only to the first one who asks.
func anyEvent(epoll uintptr) bool { return isReadable(int(epoll)) }

// turn handles all events, and only then everything else. inside reports whether the calling thread is known
// to be in the loop's namespace. An error means that the loop has to end because of it.
func (l *loop) turn(inside bool) error {
	l.inside, l.elsewhere = inside, false
	n, err := epollLook(l.epoll, l.found[:])
	if err != nil {
		return err
	}
	l.now = l.clock()
	for _, found := range l.found[:n] {
		l.call(ticket{found.Fd, found.Pad}, event{kind: eventReady, ready: found.Events})
	}
	if err := l.receive(); err != nil {
		return err
	}
	if l.wire != nil {
		l.wire.receive(l)
	}
	l.passTimes()
	l.passMessages()
	l.read()
	// Waiters are woken after every socket that can be closed is closed, but before the next
	// SYNs are sent, so that the waiters can run in parallel with the loop.
	l.wake(wakesAhead)
	if n < len(l.found) || l.crowded >= turnsWithoutStarts {
		l.crowded = 0
		l.start()
		if l.wire != nil {
			l.wire.receive(l) // a target on this host has answered already
		}
	} else {
		l.crowded++
	}
	l.wake(wakesAhead)
	l.deliverResults()
	l.deliverEvents()
	return nil
}

// call calls a task with an event. It drops the event if the task has ended.
func (l *loop) call(to ticket, e event) {
	if s := l.slots.find(to); s != nil {
		s.task.handle(l, to, e)
	}
}

// receive takes over what callers have handed to the loop: it seats new tasks and queues messages. An error
// means that the loop has to end because of it.
func (l *loop) receive() error {
	l.mu.Lock()
	arrivals := l.arrivals
	l.arrivals = l.spareArrivals[:0]
	l.callers.Store(0)
	l.unread.add(l.messages...)
	clear(l.messages)
	l.messages = l.messages[:0]
	l.tickets.put(l.freed...)
	l.freed = l.freed[:0]
	ended := l.ended
	l.mu.Unlock()

	for _, a := range arrivals {
		l.seat(a)
	}
	clear(arrivals)
	l.spareArrivals = arrivals
	return ended
}

// seat gives a new task its slot, and queues it to be started.
func (l *loop) seat(a arrival) {
	l.slots.seat(a.ticket, a.task)
	l.setDue(a.ticket, a.due)
	l.waiting[a.urgency].add(a.ticket)
}

// passTimes calls tasks whose time has come, at most duePerTurn.
func (l *loop) passTimes() {
	for range duePerTurn {
		next, ok := l.deadlines.next()
		if !ok || next > l.now {
			return
		}
		s := l.deadlines[0].of
		l.deadlines.set(s, 0)
		s.task.handle(l, s.ticket, event{kind: eventDue})
	}
}

// passMessages calls tasks with their messages, at most toldPerTurn.
func (l *loop) passMessages() {
	for range min(toldPerTurn, l.unread.len()) {
		m := l.unread.first()
		l.unread.drop()
		if s := l.slots.find(m.to); s != nil {
			s.task.handle(l, m.to, event{kind: eventTold, message: m.text})
		} else if r, ok := m.text.(refusable); ok {
			r.refuse()
		}
	}
}

// read calls tasks that have something to read, at most readsPerTurn, in turns.
func (l *loop) read() {
	for range min(readsPerTurn, l.readers.len()) {
		next := l.readers.first()
		l.readers.drop()
		l.call(next, event{kind: eventRead})
	}
}

// start starts queued tasks of one urgency, at most startsPerTurn, until startingPerTurn has passed or, if they are
// background tasks, until there is an interactive one, or a waiter that was woken and has not run yet. So a caller
// waits for one start in the background at most, and if its task ends at once, it is woken before the next one.
func (l *loop) start() {
	u := interactive
	if l.waiting[u].len() == 0 {
		u = background
	}
	next := &l.waiting[u]
	if next.len() == 0 {
		return
	}
	end := l.clock() + startingPerTurn
	for range min(startsPerTurn, next.len()) {
		l.elsewhere = false // another task of this turn may have set it
		l.call(next.first(), event{kind: eventStart})
		if l.elsewhere {
			return // the loop's goroutine starts it
		}
		next.drop()
		if l.clock() >= end || u == background && (l.callers.Load() > 0 || l.ahead.Load() > 0) {
			return
		}
	}
}

// What tasks call.

// errElsewhere is returned by loop.socket if the thread is in another network namespace than the loop.
var errElsewhere = errors.New("the thread is in another network namespace")

// socket opens a socket in the loop's namespace.
func (l *loop) socket(family, kind, protocol int) (fd int, err error) {
	fd, err = socket(family, kind, protocol)
	if err != nil || l.inside {
		return fd, err
	}
	if socketCookie(fd) != l.cookie {
		closeDescriptor(fd)
		l.elsewhere = true
		return -1, errElsewhere
	}
	l.inside = true
	return fd, nil
}

// watch makes the loop call the task with the events of a descriptor, each time that one of them begins
// (EPOLLET in epoll(7)). A descriptor that is watched already is watched for other events from now on. In both
// cases an event that has begun before is reported, too. EPOLLERR and EPOLLHUP are always reported. Closing the
// descriptor ends it.
func (l *loop) watch(own ticket, fd int, events uint32) error {
	e := unix.EpollEvent{Events: events | unix.EPOLLET, Fd: own.index, Pad: own.generation}
	errno := epollControl(l.epoll, unix.EPOLL_CTL_ADD, fd, &e)
	if errno == unix.EEXIST {
		errno = epollControl(l.epoll, unix.EPOLL_CTL_MOD, fd, &e)
	}
	return check("epoll_ctl", errno)
}

// setDue sets the time on the loop's clock at which the loop calls the task with eventDue. It replaces the
// time that was set before; 0 is never.
func (l *loop) setDue(own ticket, at time.Duration) { l.deadlines.set(l.slots.find(own), at) }

// readLater makes the loop call the task with eventRead, in this turn or a later one. The loop does so once for each
// call.
func (l *loop) readLater(own ticket) { l.readers.add(own) }

// finish ends a task that has closed its descriptors. The waiter, if there is one, is woken later in the turn or in
// a later turn.
func (l *loop) finish(own ticket, w waiter) {
	s := l.slots.find(own)
	l.deadlines.set(s, 0)
	l.freed = append(l.freed, l.slots.vacate(s))
	if w != nil {
		l.finished.add(w)
	}
}

// wake wakes waiters of ended tasks until limit of them have been woken and have not run yet.
func (l *loop) wake(limit int32) {
	for l.finished.len() > 0 && l.ahead.Load() < limit {
		l.ahead.Add(1)
		l.finished.first().wake(l)
		l.finished.drop()
	}
}

// shut ends every task because of err and closes the loop's own descriptor.
func (l *loop) shut(err error) {
	l.mu.Lock()
	l.ended = err
	l.mu.Unlock()
	l.receive() // tasks that arrived before
	for _, s := range l.slots {
		if s.task != nil {
			s.task.handle(l, s.ticket, event{kind: eventClosing, err: err})
		}
	}
	l.deliverEvents()
	l.wake(math.MaxInt32)
	if l.wire != nil {
		l.wire.close()
	}
	l.file.Close()
}
