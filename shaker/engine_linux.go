package shaker

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// An engine is one event loop per processor, and a pool of handshakes for reuse.
type engine struct {
	loops []*loop
	in    *namespace    // in which all handshakes are performed
	next  atomic.Uint32 // counts handshakes, to distribute them over the loops
	idle  sync.Pool     // of *handshake

	results *outlet[Repeated]  // of Repetitions (repeat_linux.go)
	events  *outlet[happening] // of Connections (hold_linux.go)
	backlog atomic.Int64       // bytes of events that have not been passed on

	// withholdACK is true except in a test's control case.
	withholdACK bool
}

func newEngine() (*engine, error) { return newEngineOf(runtime.GOMAXPROCS(0)) }

func newEngineOf(loops int) (*engine, error) {
	in, err := newNamespace()
	if err != nil {
		return nil, err
	}
	e := &engine{
		in: in, withholdACK: true,
		results: newOutlet[Repeated](unreadResults), events: newOutlet[happening](math.MaxInt),
	}
	now := time.Now()
	for i := range loops {
		// The steps of the clocks begin at different times, so that no more loops than necessary are busy with
		// Repetitions at the same time.
		l, err := newLoop(in, now.Add(-offsetStep*time.Duration(i)/time.Duration(loops)))
		if err != nil {
			e.close()
			return nil, err
		}
		l.results, l.events, l.backlog = e.results.mailbox, e.events.mailbox, &e.backlog
		e.loops = append(e.loops, l)
	}
	return e, nil
}

func (e *engine) close() {
	for _, l := range e.loops {
		l.close()
	}
	e.results.close()
	e.events.close()
	e.in.close()
}

func (e *engine) nextLoop() *loop { return e.loops[e.next.Add(1)%uint32(len(e.loops))] }

// freeLoop returns the next loop, or the one after it if only that one is not driven: the caller can start its task on
// it at once.
func (e *engine) freeLoop() *loop {
	next := e.nextLoop()
	if next.isFree() {
		return next
	}
	if after := e.loops[(e.next.Load()+1)%uint32(len(e.loops))]; after.isFree() {
		return after
	}
	return next
}

// err returns why one of the loops has ended, nil if all of them run.
func (e *engine) err() error {
	for _, l := range e.loops {
		l.mu.Lock()
		err := l.ended
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// scopeID is the function scopeID, called in the engine's namespace.
func (e *engine) scopeID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	var scope uint32
	var err error
	if cannot := e.in.do(func() { scope, err = scopeID(zone) }); cannot != nil {
		return 0, cannot
	}
	return scope, err
}

// source returns the source of the options in the kernel's form, zeros if there is none.
func (e *engine) source(options *Options) (rawAddress, error) {
	scope, err := e.scopeID(options.Source.Unmap().Zone())
	if err != nil {
		return rawAddress{}, fmt.Errorf("source %v: %w", options.Source, err)
	}
	source, _ := options.rawSource(scope)
	return source, nil
}

// shake runs one handshake on a loop and waits until it has ended. The scope is the interface index
// of the target's IPv6 zone. called is when Shake was called. A zero deadline means none. The result is undefined
// if there is an error.
func (e *engine) shake(
	ctx context.Context, target netip.AddrPort, scope uint32, options *Options, called, deadline time.Time,
	result *Result,
) error {
	source, err := e.source(options)
	if err != nil {
		return err
	}
	h, ok := e.idle.Get().(*handshake)
	if !ok {
		h = newHandshake()
	}
	h.withholdACK = e.withholdACK
	h.aim(target, scope)
	h.options, h.source = *options, source // a copy, so that the caller's stay on its stack

	l := e.freeLoop()
	h.called = l.onClock(called)
	h.deadline = 0
	if !deadline.IsZero() {
		h.deadline = max(1, h.called+deadline.Sub(called))
	}
	own, err := l.submit(h, interactive, h.deadline)
	if err != nil {
		return err
	}
	select {
	case <-h.done:
	case <-ctx.Done():
		l.tell(own, ctx.Err())
		<-h.done
	}
	l.woke()
	*result = h.result
	err = h.err
	e.idle.Put(h)
	return err
}
