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
type holdUp struct{ held, release chan struct{} }

// hold stops the loop and returns when it has stopped.
func hold(l *loop) *holdUp {
	h := &holdUp{held: make(chan struct{}), release: make(chan struct{})}
	go l.submit(h, interactive, 0) // in a goroutine, because submit may take the turn itself
	<-h.held
	return h
}

func (h *holdUp) handle(l *loop, own ticket, e event) {
	if e.kind == eventStart {
		close(h.held)
		<-h.release
	}
	l.finish(own, nil)
}

// running returns the number of tasks, of which one is a holdUp.
func running(l *loop) (tasks int) {
	for _, s := range l.slots {
		if s.task != nil {
			tasks++
		}
	}
	return tasks
}

// handshakes returns the handshakes of a stopped loop.
func handshakes(l *loop) (all []*handshake) {
	for _, s := range l.slots {
		if h, ok := s.task.(*handshake); ok {
			all = append(all, h)
		}
	}
	return all
}

// A flagTask is a task on an eventfd. It is ready when set has written to the eventfd.
type flagTask struct {
	own     ticket
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
	l.finish(f.own, f)
}

func (f *flagTask) handle(l *loop, own ticket, e event) {
	f.own = own
	switch e.kind {
	case eventStart:
		l.watch(own, f.fd, unix.EPOLLIN)
	case eventReady:
		f.events++
		if f.onReady != nil {
			f.onReady(l)
		}
	case eventClosing:
		f.end(l)
	}
}

func (f *flagTask) wake(l *loop) { f.woken = true; l.woke() }

// A startTask calls a function when it is started, and ends.
type startTask func()

func (s startTask) handle(l *loop, own ticket, e event) {
	if e.kind == eventStart {
		s()
	}
	l.finish(own, nil)
}

// An endingTask does nothing until its time has come, or a caller tells it something. Then it calls ended, and ends.
type endingTask struct {
	ended  func()
	waiter waiter
}

func (t *endingTask) handle(l *loop, own ticket, e event) {
	if e.kind != eventStart {
		t.ended()
		l.finish(own, t.waiter)
	}
}

// A wakingTask ends at an event of a kind, and wakes the caller that receives from woken.
type wakingTask struct {
	endsAt eventKind
	woken  chan struct{} // has room for one value
}

func (t *wakingTask) handle(l *loop, own ticket, e event) {
	if e.kind == t.endsAt {
		l.finish(own, t)
	}
}

func (t *wakingTask) wake(*loop) { t.woken <- struct{}{} }

// A sleeper is a waiter that, once woken, does not get to run. It counts how many are.
type sleeper struct{ woken *atomic.Int32 }

func (s sleeper) wake(*loop) { s.woken.Add(1) }

// awaitLoop waits until a condition on what callers have handed to the loop is true.
func awaitLoop(t *testing.T, l *loop, what string, is func() bool) {
	t.Helper()
	lab.Eventually(t, what, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return is()
	})
}
