package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// How probes share flows.
//
// A port can have one handshake with an address at a time. Several probes with the same module may need the same flows
// at the same time: those of two Prometheus servers, or of two names that have the same address. They share a flight:
// the handshakes of all flows with one address, and the trace of their paths, which uses the same ports afterwards.
//
// The handshakes of a flight are performed in rounds. A round ends with the earliest deadline of the probes that take
// part, so that each of them is answered in time. Each probe has its own name resolution and judges the results on its
// own: that a flow is silent is a verdict only if it was silent for as long as this probe needs. A probe to which a
// round was too short, because another one has a shorter timeout, waits until the others have left the flight. Then
// there is another round, of the flows without a reply, and the times without a reply add up. No other probe ends that
// round too early for those that have waited for it: one with a shorter timeout leaves while the round goes on.

// flights are those in which at least one probe takes part.
type flights struct {
	mu  sync.Mutex
	all map[flightKey]*flight
}

// A flightKey is what two handshakes cannot have in common. Modules have ports of their own.
type flightKey struct {
	peer   netip.AddrPort
	port   uint16     // of the first flow
	source netip.Addr // of the module, as is the interface
	device string
}

func newFlightKey(peer netip.AddrPort, ports shaker.PortRange, m *config.Module) flightKey {
	return flightKey{peer: peer, port: ports.First, source: m.TCP.SourceIPAddress, device: m.TCP.Interface}
}

type flight struct {
	key    flightKey
	module config.Module
	begun  time.Time // the first round

	// Guarded by the mutex of the flights
	seats   []*seat
	flows   []flownFlow   // nil if the flight only traces
	fault   error         // why this host could not perform one of the flows in the last round
	changed chan struct{} // closed and replaced when anything here has changed

	// The round
	flying bool        // it is running
	ctx    *endable    // of the handshakes
	sent   time.Time   // when the last flow has begun
	limit  *seat       // whose deadline the round does not exceed
	first  *seat       // whose deadline is the end of the round
	timer  *time.Timer // ends it

	tracing chan struct{} // holds a value while the paths are being traced
	traced  *Report       // with the path, nil if it is not known; guarded by tracing
}

// A flownFlow is the handshakes from one port.
type flownFlow struct {
	port         uint16
	begun, ended time.Time     // of the last handshake; ended is zero while it is running
	result       shaker.Result // of the last handshake that has one, zero if there is none
	silent       time.Duration // how much time all handshakes of the rounds that have ended had without a reply
	err          error         // why the last handshake has no result
	inUse        error         // that another handshake had the port at first, nil if none did
}

// A seat is the part of a probe in a flight.
type seat struct {
	flight   *flight
	start    time.Time // of the probe, as if it had not waited for the traces of others
	came     time.Time // when the probe needed the flight
	deadline time.Time // of the handshakes; zero if the seat is for a trace
	needed   time.Duration
	timeout  time.Duration // of the probe
	applied  time.Duration // timeout of the probe that has ended the handshakes for this one; 0 if none has

	// Guarded by the mutex of the flights
	waiting bool // for another round
	again   bool // has waited for one, so that others do not shorten it
}

// An endable is a context that end ends.
type endable struct {
	context.Context
	once sync.Once
	done chan struct{}
	err  error
}

func newEndable() *endable { return &endable{Context: context.Background(), done: make(chan struct{})} }

func (e *endable) end(err error) { e.once.Do(func() { e.err = err; close(e.done) }) }

// Done implements [context.Context].
func (e *endable) Done() <-chan struct{} { return e.done }

// Err implements [context.Context].
func (e *endable) Err() error {
	select {
	case <-e.done:
		return e.err
	default:
		return nil
	}
}

// board lets the probe take part in the flight with the key, or begins it. If there is a flight that it cannot share,
// it waits until that is gone.
func (r *running) board(ctx context.Context, s *seat, key flightKey) error {
	all := &r.prober.flights
	for {
		all.mu.Lock()
		f := all.all[key]
		if f == nil || r.canShare(f) {
			err := r.take(s, f, key)
			all.mu.Unlock()
			return err
		}
		all.mu.Unlock()
		waiting, cancel := ctx, context.CancelFunc(func() {})
		if r.onFlow == nil { // traces of all flows have no time limit, and neither has the wait for them
			waiting, cancel = context.WithDeadlineCause(ctx, s.deadline, shaker.ErrUnsent)
		}
		begun := time.Now()
		err := all.await(waiting, f, func() bool { return all.all[key] != f || r.canShare(f) })
		cancel()
		if err != nil {
			return fmt.Errorf("shake %v: another probe uses port %d and those after it for this address: %w",
				key.peer, key.port, err)
		}
		if waited := time.Since(begun); r.onFlow != nil {
			s.start, s.came, s.deadline = s.start.Add(waited), s.came.Add(waited), s.deadline.Add(waited)
		}
	}
}

// canShare reports whether a probe can take part in a flight: it has the same module, and no result that is too old.
// Its caller holds mu.
func (r *running) canShare(f *flight) bool {
	return len(f.seats) > 0 && f.flows != nil && f.fault == nil && reflect.DeepEqual(f.module, r.Module) &&
		(f.flying || time.Since(f.begun) <= r.Module.Timeout)
}

// take takes a seat in a flight, or in a new one if it is nil. Its caller holds mu.
func (r *running) take(s *seat, f *flight, key flightKey) error {
	all := &r.prober.flights
	switch {
	case f == nil:
		f = all.add(key, &r.Module)
		for i := range r.Module.TCP.Flows {
			f.flows = append(f.flows, flownFlow{port: key.port + uint16(i)})
		}
		f.add(s)
		if err := r.prober.begin(f); err != nil {
			delete(all.all, key)
			return err
		}
	case f.flying:
		f.add(s)
		f.schedule()
	default:
		s.waiting = !f.isEnough(s, 0) || slices.ContainsFunc(f.seats, func(other *seat) bool { return other.waiting })
		s.again = s.waiting
		f.add(s)
	}
	r.seats = append(r.seats, s)
	return nil
}

// add adds a flight in which no probe takes part yet. Its caller holds mu.
func (all *flights) add(key flightKey, m *config.Module) *flight {
	f := &flight{
		key: key, module: *m, begun: time.Now(), changed: make(chan struct{}), tracing: make(chan struct{}, 1),
	}
	if all.all == nil {
		all.all = make(map[flightKey]*flight)
	}
	all.all[key] = f
	return f
}

// The callers of the following methods of a flight hold the mutex of the flights.

// add adds a seat.
func (f *flight) add(s *seat) {
	s.flight = f
	f.seats = append(f.seats, s)
}

// change wakes all callers of await.
func (f *flight) change() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// isEnough reports whether a probe would have a verdict if the flows without one were silent for some more time.
func (f *flight) isEnough(s *seat, more time.Duration) bool {
	for i := range f.flows { // they are large
		if flow := &f.flows[i]; flow.isUndecided() && flow.silent+more < s.needed {
			return false
		}
	}
	return true
}

// hasReply reports whether a handshake has a result other than silence.
func (f *flownFlow) hasReply() bool {
	return f.result.Outcome != 0 && f.result.Outcome != shaker.Timeout
}

// isSilentFor reports whether the flow has been silent for so long.
func (f *flownFlow) isSilentFor(d time.Duration) bool {
	silent := f.silent
	if f.ended.IsZero() {
		silent += time.Since(f.begun)
	}
	return f.result.Outcome == shaker.Timeout && silent >= d
}

// isUndecided reports whether another handshake may have another result.
func (f *flownFlow) isUndecided() bool { return !f.hasReply() && !errors.Is(f.err, syscall.EADDRINUSE) }

// end returns when the round ends.
func (f *flight) end() time.Time { return f.first.deadline }

// schedule sets the end of the round to the earliest deadline of a probe that is enough for this probe, and for those
// that have waited for the round.
func (f *flight) schedule() {
	f.first = f.limit
	for _, s := range f.seats {
		tooEarly := func(other *seat) bool {
			return (other == s || other.again) && !f.isEnough(other, s.deadline.Sub(f.sent))
		}
		if !s.deadline.IsZero() && s.deadline.Before(f.end()) && !slices.ContainsFunc(f.seats, tooEarly) {
			f.first = s
		}
	}
	f.timer.Reset(time.Until(f.end()))
	f.change()
}

// hasTime reports whether a probe would have a verdict if handshakes began a little later.
func (f *flight) hasTime(s *seat) bool {
	left := time.Until(s.deadline) - busyWait
	return left > 0 && f.isEnough(s, left)
}

// begin begins a round of the flows that are undecided, for all seats. Its caller holds the mutex of the flights.
func (p *Prober) begin(f *flight) error {
	n := int64(len(f.flows))
	if most := int64(p.options.MaxInFlight); 0 < most && most < n {
		return fmt.Errorf("%w: the module has %d flows, the limit is %d: want fewer flows, or a higher limit",
			ErrInFlight, n, most)
	}
	if !p.admit(n - 1) { // one is counted already
		return p.errInFlight()
	}
	ctx := newEndable()
	f.ctx, f.flying, f.sent, f.fault = ctx, true, time.Now(), nil
	f.limit = slices.MaxFunc(f.seats, func(a, b *seat) int { return a.deadline.Compare(b.deadline) })
	for _, s := range f.seats {
		s.waiting = false
	}
	var shaking sync.WaitGroup
	var flown []*flownFlow
	for i := range f.flows {
		if flow := &f.flows[i]; flow.isUndecided() {
			*flow = flownFlow{port: flow.port, begun: f.sent, result: flow.result, silent: flow.silent}
			flown = append(flown, flow)
			shaking.Go(func() {
				for p.shakeFlow(ctx, f, flow) {
					select {
					case <-time.After(busyWait):
					case <-ctx.Done():
						return
					}
				}
			})
		}
	}
	f.timer = time.AfterFunc(time.Until(f.limit.deadline), func() { ctx.end(context.DeadlineExceeded) })
	f.schedule()
	go func() {
		shaking.Wait()
		p.release(n - 1)
		p.flights.mu.Lock()
		defer p.flights.mu.Unlock()
		f.land(flown)
	}()
	return nil
}

// land notes that the round of some flows has ended.
func (f *flight) land(flown []*flownFlow) {
	for _, flow := range flown {
		if flow.err == nil && flow.result.Outcome == shaker.Timeout {
			// Time after the end does not count: this host was late then, and perhaps before that as well.
			flow.silent += max(0, min(flow.ended.Sub(flow.begun), f.end().Sub(flow.begun)))
		}
	}
	f.timer.Stop()
	f.flying = false
	f.change()
}

// busyWait is how long a flight waits before it tries again to use a port that another handshake with the address has.
const busyWait = 20 * time.Millisecond

// shakeFlow performs the handshake of a flow. Another process may have a handshake with the address from the same port,
// such as the command line while an exporter is running. again reports whether the flight waits for the port: as long
// as the handshake would still have the time that one of the probes needs.
func (p *Prober) shakeFlow(ctx *endable, f *flight, flow *flownFlow) (again bool) {
	mu := &p.flights.mu
	mu.Lock()
	defer mu.Unlock()
	flow.begun, flow.ended, flow.err = time.Now(), time.Time{}, nil // after the wait for the mutex
	f.sent = flow.begun
	if flow.inUse != nil {
		f.schedule() // probes may be too late now to end the round
	}
	options := f.module.Options()
	options.Timeout, options.SourcePort = max(1, f.limit.deadline.Sub(flow.begun)), flow.port
	mu.Unlock()
	result, err := p.options.Shaker.Shake(ctx, f.key.peer, &options)
	err = withoutVersion(&result, f.key.peer, err)
	mu.Lock()
	flow.ended = time.Now()
	switch {
	case err == nil:
		flow.result = result
		return false
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		err = errPortBusy(&f.module, err)
		flow.inUse = err
		again = slices.ContainsFunc(f.seats, f.hasTime)
	}
	flow.err = err
	if !again && f.fault == nil && ctx.Err() == nil && !errors.Is(err, syscall.EADDRINUSE) {
		f.fault = fmt.Errorf("flow from port %d: %w", flow.port, err)
		ctx.end(context.Canceled) // the others are not enough for a verdict
	}
	return again
}

// awaitEnd waits for the end of the round in which a probe takes part, or if that does not come by the deadline of the
// probe, until then. It returns the results so far. gone is the reason if the caller of the probe is gone.
func (all *flights) awaitEnd(ctx context.Context, s *seat) (flows []flownFlow, fault, gone error) {
	f := s.flight
	wake := time.AfterFunc(time.Until(s.deadline), func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		f.change()
	})
	defer wake.Stop()
	gone = all.await(ctx, f, func() bool {
		late := !time.Now().Before(s.deadline)
		if f.flying {
			return late && s.deadline.Before(f.end())
		}
		return late || !s.waiting
	})
	all.mu.Lock()
	defer all.mu.Unlock()
	s.waiting = false // a probe that traces its path now is not to be disturbed
	if !f.flying && !s.again {
		s.applied = f.first.timeout
	}
	return slices.Clone(f.flows), f.fault, gone
}

// await waits until a condition about a flight is true. It calls isTrue with mu, and again after each change of the
// flight.
func (all *flights) await(ctx context.Context, f *flight, isTrue func() bool) error {
	for {
		all.mu.Lock()
		done, changed := isTrue(), f.changed
		all.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// flyAgain lets a probe wait for another round. It reports whether the probe still has enough time for one.
func (p *Prober) flyAgain(s *seat) bool {
	p.flights.mu.Lock()
	defer p.flights.mu.Unlock()
	f := s.flight
	if f.flying || !f.hasTime(s) {
		return false
	}
	s.waiting, s.again, s.applied = true, true, 0
	p.beginNext(f)
	return true
}

// beginNext begins another round if all seats wait for it. Its caller holds the mutex of the flights.
func (p *Prober) beginNext(f *flight) {
	if f.flying || slices.ContainsFunc(f.seats, func(s *seat) bool { return !s.waiting }) {
		return
	}
	if err := p.begin(f); err != nil {
		f.fault = err
		for _, s := range f.seats {
			s.waiting = false
		}
		f.change()
	}
}

// leave ends the part of a probe in a flight. The last one ends the handshakes if they are still running, and waits
// until the ports are free.
func (p *Prober) leave(s *seat) {
	all, f := &p.flights, s.flight
	all.mu.Lock()
	f.seats = slices.DeleteFunc(f.seats, func(other *seat) bool { return other == s })
	last := len(f.seats) == 0
	switch {
	case last && f.flying:
		f.ctx.end(context.Canceled)
	case f.flying:
		f.schedule()
	case !last:
		p.beginNext(f)
	}
	all.mu.Unlock()
	if !last {
		return
	}
	all.await(context.Background(), f, func() bool { return !f.flying })
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.all[f.key] == f {
		delete(all.all, f.key)
	}
	f.change()
}

// leaveAll ends the probe's part in all flights.
func (r *running) leaveAll() {
	for _, s := range r.seats {
		r.prober.leave(s)
	}
	r.seats = nil
}
