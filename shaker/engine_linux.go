package shaker

import (
	"context"
	"fmt"
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

	// withholdACK is true except in a test's control case.
	withholdACK bool
}

func newEngine() (*engine, error) { return newEngineOf(runtime.GOMAXPROCS(0)) }

func newEngineOf(loops int) (*engine, error) {
	in, err := newNamespace()
	if err != nil {
		return nil, err
	}
	e := &engine{in: in, withholdACK: true}
	for range loops {
		l, err := newLoop(in)
		if err != nil {
			e.close()
			return nil, err
		}
		e.loops = append(e.loops, l)
	}
	return e, nil
}

func (e *engine) close() {
	for _, l := range e.loops {
		l.close()
	}
	e.in.close()
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

// shake runs one handshake on a loop and waits until it has ended. The scope is the interface index
// of the target's IPv6 zone. called is when Shake was called. A zero deadline means none.
func (e *engine) shake(
	ctx context.Context, target netip.AddrPort, scope uint32, options *Options, called, deadline time.Time,
) (Result, error) {
	sourceScope, err := e.scopeID(options.Source.Unmap().Zone())
	if err != nil {
		return Result{}, fmt.Errorf("source %v: %w", options.Source, err)
	}
	source, _ := options.rawSource(sourceScope)
	h, ok := e.idle.Get().(*handshake)
	if !ok {
		h = newHandshake()
	}
	h.withholdACK = e.withholdACK
	h.aim(target, scope)
	h.options, h.source = *options, source // a copy, so that the caller's stay on its stack

	l := e.loops[e.next.Add(1)%uint32(len(e.loops))]
	h.called = l.onClock(called)
	h.deadline = 0
	if !deadline.IsZero() {
		h.deadline = max(1, h.called+deadline.Sub(called))
	}
	own, err := l.submit(h, interactive, h.deadline)
	if err != nil {
		return Result{}, err
	}
	select {
	case <-h.done:
	case <-ctx.Done():
		l.tell(own, ctx.Err())
		<-h.done
	}
	l.woke()
	result, err := h.result, h.err
	e.idle.Put(h)
	return result, err
}
