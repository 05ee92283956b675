package shaker

import (
	"encoding/binary"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// Tasks with which the tests drive a loop, or look into it.

// A holdUp is a task that stops the loop, as an overloaded host does: the loop closes held, and does
// nothing until the test closes release.
type holdUp struct {
	slot          *slot
	held, release chan struct{}
}

// hold stops the loop and returns when it has stopped.
func hold(l *loop) *holdUp {
	h := &holdUp{held: make(chan struct{}), release: make(chan struct{})}
	go l.submit(h, 0) // in a goroutine, because submit may take the turn itself
	<-h.held
	return h
}

func (h *holdUp) seat(s *slot) { h.slot = s }
func (h *holdUp) start(l *loop) {
	close(h.held)
	<-h.release
	l.finish(h.slot)
}
func (h *holdUp) ready(*loop, uint32)  {}
func (h *holdUp) expire(*loop)         {}
func (h *holdUp) abandon(*loop, error) {}
func (h *holdUp) wake(l *loop)         { l.woke() }

// A flagTask is a task on an eventfd. It is ready when set has written to the eventfd.
type flagTask struct {
	slot    *slot
	fd      int
	events  int
	woken   bool
	onReady func(*loop)
}

func newFlagTask(t *testing.T) *flagTask {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	return &flagTask{fd: fd}
}

func (f *flagTask) set() { unix.Write(f.fd, binary.NativeEndian.AppendUint64(nil, 1)) }

func (f *flagTask) end(l *loop) {
	closeDescriptor(f.fd)
	l.finish(f.slot)
	f.slot = nil
}

func (f *flagTask) seat(s *slot)  { f.slot = s }
func (f *flagTask) start(l *loop) { l.watch(f.slot, f.fd, unix.EPOLLIN) }
func (f *flagTask) ready(l *loop, _ uint32) {
	f.events++
	if f.onReady != nil {
		f.onReady(l)
	}
}
func (f *flagTask) expire(*loop) {}
func (f *flagTask) abandon(l *loop, _ error) {
	if f.slot != nil {
		f.end(l)
	}
}
func (f *flagTask) wake(l *loop) { f.woken = true; l.woke() }

// A startTask is a task that calls a function when it is started, and ends.
type startTask struct {
	flagTask
	started func()
}

func (s *startTask) start(l *loop) {
	s.started()
	s.end(l)
}

// An endingTask is a task that does nothing until it ends, by its deadline or because it is abandoned.
type endingTask struct {
	flagTask
	ended func(*loop)
}

func (e *endingTask) start(*loop) {}
func (e *endingTask) expire(l *loop) {
	e.ended(l)
	l.finish(e.slot)
	e.slot = nil
}
func (e *endingTask) abandon(l *loop, _ error) {
	if e.slot != nil {
		e.expire(l)
	}
}

// A sleepingTask is a task whose waiter, once woken, does not get to run.
type sleepingTask struct {
	endingTask
	woken *atomic.Int32
}

func (s *sleepingTask) wake(*loop) { s.woken.Add(1) }

// awaitLoop waits until a condition on what callers have handed to the loop is true.
func awaitLoop(t *testing.T, l *loop, what string, is func() bool) {
	t.Helper()
	lab.Eventually(t, what, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return is()
	})
}
