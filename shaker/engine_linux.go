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

	wires []*wire // of the first loops; none if SYNs are sent through sockets
	stray strays
	reset resetCount

	// withholdACK is true except in a test's control case.
	withholdACK bool
}

func newEngine(raw *Raw) (*engine, error) { return newEngineOf(runtime.GOMAXPROCS(0), raw) }

func newEngineOf(loops int, raw *Raw) (*engine, error) {
	in, err := newNamespace()
	if err != nil {
		return nil, err
	}
	e := &engine{
		in: in, withholdACK: true,
		results: newOutlet[Repeated](unreadResults), events: newOutlet[happening](math.MaxInt),
	}
	if raw != nil {
		if e.wires, err = newWires(raw, min(loops, wires), &e.stray, &e.reset); err != nil {
			in.close()
			return nil, fmt.Errorf("SYNs without a socket: %w", err)
		}
	}
	now := time.Now()
	for i := range loops {
		var w *wire
		if i < len(e.wires) {
			w = e.wires[i]
		}
		// The steps of the clocks begin at different times, so that no more loops than necessary are busy with
		// Repetitions at the same time.
		l, err := newLoop(in, now.Add(-offsetStep*time.Duration(i)/time.Duration(loops)), w)
		if err != nil {
			e.close()
			return nil, err
		}
		l.results, l.events, l.backlog = e.results.mailbox, e.events.mailbox, &e.backlog
		e.loops = append(e.loops, l)
		if w != nil {
			if _, err := l.submit(&w.ways, interactive, 0); err != nil {
				e.close()
				return nil, err
			}
		}
	}
	return e, nil
}

func (e *engine) close() {
	for _, l := range e.loops {
		l.close()
	}
	for _, w := range e.wires[min(len(e.loops), len(e.wires)):] {
		w.close() // no loop has it
	}
	e.results.close()
	e.events.close()
	e.in.close()
}

// nextLoop returns the next loop for a task that uses a socket, or the next one with a wire.
func (e *engine) nextLoop(raw bool) *loop {
	able := e.able(raw)
	return able[e.next.Add(1)%uint32(len(able))]
}

// able returns the loops for tasks that use sockets, or those with wires.
func (e *engine) able(raw bool) []*loop {
	if raw {
		return e.loops[:len(e.wires)]
	}
	return e.loops
}

// freeLoop returns the next loop, or the one after it if only that one is not driven: the caller can start its task on
// it at once. Of loops with wires it returns the first one that is not driven, so that the others may stay unused.
func (e *engine) freeLoop(raw bool) *loop {
	if raw && e.loops[0].isFree() {
		return e.loops[0]
	}
	next, able := e.nextLoop(raw), e.able(raw)
	if next.isFree() {
		return next
	}
	if after := able[(e.next.Load()+1)%uint32(len(able))]; after.isFree() {
		return after
	}
	return next
}

// isRaw reports whether handshakes with the options send SYNs without a socket.
func (e *engine) isRaw(o *Options) bool {
	return len(e.wires) > 0 && !o.FIN && o.SourcePorts == (PortRange{}) &&
		(o.SourcePort == 0 || e.ports().has(o.SourcePort))
}

// ports returns the ports of SYNs without a socket.
func (e *engine) ports() PortRange {
	if len(e.wires) == 0 {
		return PortRange{}
	}
	first := e.wires[0].first
	return PortRange{first, first + uint16(len(e.wires))*portsPerWire - 1}
}

func (e *engine) strays() Strays {
	return Strays{
		Late: e.stray.late.Load(), Forged: e.stray.forged.Load(),
		Foreign: e.stray.foreign.Load(), Lost: e.stray.lost.Load(),
	}
}

func (e *engine) resets() Resets {
	return Resets{Checked: e.reset.checked.Load(), Missing: e.reset.missing.Load()}
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

	raw := e.isRaw(options)
	l := e.freeLoop(raw)
	if raw {
		if options.SourcePort != 0 {
			l = e.loops[(options.SourcePort-e.wires[0].first)/portsPerWire]
		}
		h.raw.wire, h.raw.damaged = l.wire, options.damaged
	}
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
