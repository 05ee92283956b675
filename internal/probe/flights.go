package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// How probes share flows.
//
// A port can have one handshake with an address at a time. Several probes with the same module may need the same flows
// at the same time: those of two Prometheus servers, or of two names that have the same address. They share a flight:
// the handshakes of all flows with one address, and the trace of their paths, which uses the same ports afterwards. The
// first probe performs the handshakes, and the others get the same results. Each has its own name resolution.
//
// The handshakes end with the earliest deadline of the probes that share them, so that each of them is answered in
// time. Each verdict then rests on at least as much time as the shortest timeout of these probes needs.

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
	begun  time.Time
	ctx    *endable // of the handshakes

	// Guarded by the mutex of the flights
	users   int           // probes that take part
	end     time.Time     // the deadline of the handshakes
	until   time.Time     // when the probe with this deadline ends
	timeout time.Duration // of that probe

	gone   chan struct{} // closed when no probe takes part any more
	landed chan struct{} // closed when the handshakes have ended, and what follows is known

	start   time.Time // of the probe that has performed the handshakes
	verdict Verdict
	err     error

	tracing chan struct{} // holds a value while the paths are being traced
	traced  *Report       // with the path, nil if it is not known; guarded by tracing
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

// shakeFlows performs a handshake with an address for each flow of the module, or shares those of another probe. The
// verdict is the worst one.
func (r *running) shakeFlows(ctx context.Context, addr netip.Addr, v *Verdict) error {
	peer := netip.AddrPortFrom(addr, r.Port)
	if r.known != nil {
		if flows, err := r.known(peer); err != nil || flows != nil {
			if err == nil {
				*v = r.VerdictOf(flows)
			}
			return err
		}
	}
	ports, err := r.prober.FlowPorts(&r.Module)
	if err != nil {
		return err
	}
	for {
		f, own, err := r.board(ctx, newFlightKey(peer, ports, &r.Module))
		if err != nil {
			return err
		}
		if own {
			go r.fly(f, addr, ports)
		}
		if err := r.land(ctx, f); err != nil {
			return err
		}
		if !own && f.isAboutOther() {
			r.leave(f)
			continue
		}
		if f.err == nil {
			*v = r.sharedVerdict(f)
		}
		return f.err
	}
}

// board lets the probe take part in the flight with the key. own reports whether it has to perform the handshakes. If
// there is a flight that it cannot share, it waits until that is gone.
func (r *running) board(ctx context.Context, key flightKey) (f *flight, own bool, err error) {
	all := &r.prober.flights
	for {
		all.mu.Lock()
		f = all.all[key]
		switch {
		case f == nil:
			if err = r.admitFlows(); err == nil {
				f = all.add(key, &r.Module)
				f.start, f.end, f.until, f.timeout = r.Start, r.deadline(), r.Start.Add(r.Timeout), r.Timeout
				r.flights = append(r.flights, f)
			}
			all.mu.Unlock()
			return f, true, err
		case f.users > 0 && f.isFor(&r.Module) && time.Since(f.begun) <= r.Module.Timeout: // not too old
			f.users++
			r.flights = append(r.flights, f)
			all.mu.Unlock()
			return f, false, nil
		}
		all.mu.Unlock()
		if err := waitUntil(ctx, r.deadline(), f.gone); err != nil {
			return nil, false, fmt.Errorf("shake %v: another probe uses port %d and those after it for this "+
				"address: %w", key.peer, key.port, err)
		}
	}
}

// isFor reports whether a probe with the module can share the flight. A flight that only traces has no verdict.
func (f *flight) isFor(m *config.Module) bool {
	return !f.start.IsZero() && reflect.DeepEqual(f.module, *m)
}

// add adds a flight in which one probe takes part. Its caller holds mu.
func (all *flights) add(key flightKey, m *config.Module) *flight {
	f := &flight{
		key: key, module: *m, begun: time.Now(), ctx: newEndable(), users: 1,
		gone: make(chan struct{}), landed: make(chan struct{}), tracing: make(chan struct{}, 1),
	}
	if all.all == nil {
		all.all = make(map[flightKey]*flight)
	}
	all.all[key] = f
	return f
}

// leave ends the part of a probe in a flight. The last one ends the handshakes if they are still running, and waits
// until the ports are free.
func (all *flights) leave(f *flight) {
	all.mu.Lock()
	f.users--
	last := f.users == 0
	all.mu.Unlock()
	if !last {
		return
	}
	f.ctx.end(context.Canceled)
	<-f.landed
	all.mu.Lock()
	all.remove(f)
	all.mu.Unlock()
	close(f.gone)
}

// remove lets no other probe take part. Its caller holds mu.
func (all *flights) remove(f *flight) {
	if all.all[f.key] == f {
		delete(all.all, f.key)
	}
}

// leave ends the probe's part in a flight.
func (r *running) leave(f *flight) {
	all := &r.prober.flights
	all.mu.Lock()
	i := slices.Index(r.flights, f)
	r.flights = slices.Delete(r.flights, i, i+1)
	all.mu.Unlock()
	all.leave(f)
}

// flightOf returns the flight with an address in which the probe takes part, nil if there is none.
func (r *running) flightOf(peer netip.AddrPort) *flight {
	for _, f := range r.flights {
		if f.key.peer == peer {
			return f
		}
	}
	return nil
}

// leaveAll ends the probe's part in all flights.
func (r *running) leaveAll() {
	for _, f := range r.flights {
		r.prober.flights.leave(f)
	}
	r.flights = nil
}

// admitFlows counts the flows of an address as in flight, except one that is counted already.
func (r *running) admitFlows() error {
	n := int64(r.Module.TCP.Flows)
	if most := int64(r.prober.options.MaxInFlight); 0 < most && most < n {
		return fmt.Errorf("%w: the module has %d flows", ErrInFlight, n)
	}
	if !r.prober.admit(n - 1) {
		return r.prober.errInFlight()
	}
	return nil
}

// fly performs the handshakes of a flight.
func (r *running) fly(f *flight, addr netip.Addr, ports shaker.PortRange) {
	f.err = r.performFlows(f.ctx, addr, ports, &f.verdict)
	r.prober.release(int64(r.Module.TCP.Flows) - 1)
	if f.err != nil || f.isAboutOther() {
		all := &r.prober.flights
		all.mu.Lock()
		all.remove(f)
		all.mu.Unlock()
	}
	close(f.landed)
}

// isAboutOther reports whether the result of a flight is about the probe that has performed the handshakes: its name
// resolution, or something else, left too little time for them.
func (f *flight) isAboutOther() bool {
	return errors.Is(f.err, shaker.ErrUnsent) ||
		slices.ContainsFunc(f.verdict.Flows, func(flow Flow) bool { return flow.Err != nil })
}

// land waits for the handshakes of a flight. If their deadline is later than that of the probe, they end with that of
// the probe, provided that they then had as much time as those of the probe would need.
func (r *running) land(ctx context.Context, f *flight) error {
	end := r.deadline()
	all := &r.prober.flights
	all.mu.Lock()
	sooner := end.Before(f.end) && !f.hasLanded()
	enough := end.Sub(f.begun) >= needed(r.budget())
	if sooner && enough {
		f.end, f.until, f.timeout = end, r.Start.Add(r.Timeout), r.Timeout
		time.AfterFunc(time.Until(end), func() { f.ctx.end(context.DeadlineExceeded) })
	}
	all.mu.Unlock()
	if sooner && !enough {
		err := waitUntil(ctx, end, f.landed)
		if errors.Is(err, shaker.ErrUnsent) {
			return fmt.Errorf("shake %v: %w", f.key.peer, err)
		}
		return err
	}
	select {
	case <-f.landed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *flight) hasLanded() bool {
	select {
	case <-f.landed:
		return true
	default:
		return false
	}
}

// waitUntil waits until a channel is closed. It returns [shaker.ErrUnsent] if the end comes before.
func waitUntil(ctx context.Context, end time.Time, closed <-chan struct{}) error {
	timer := time.NewTimer(time.Until(end))
	defer timer.Stop()
	select {
	case <-closed:
		return nil
	case <-timer.C:
		return shaker.ErrUnsent
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sharedVerdict returns the verdict of a flight as that of this probe.
func (r *running) sharedVerdict(f *flight) Verdict {
	v := f.verdict
	v.Flows = slices.Clone(v.Flows)
	later := f.start.Sub(r.Start)
	v.At = max(0, v.At+later)
	for i := range v.Flows {
		v.Flows[i].At = max(0, v.Flows[i].At+later)
	}
	return v
}

// shareTimeout makes the timeout of the report the one that applied to the handshakes.
func (r *running) shareTimeout() {
	all := &r.prober.flights
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, f := range r.flights {
		if f.timeout < r.Timeout {
			shortened := *r.Request
			shortened.Timeout = f.timeout
			r.Request = &shortened
		}
	}
}

// traceFlight traces the path of a report of a module with flows. Probes that trace the same flows at the same time
// share the path. f is the flight of the report, nil if there is none.
func (p *Prober) traceFlight(ctx context.Context, r *Report, f *flight, deadline time.Time) {
	if f == nil {
		ports, err := p.FlowPorts(&r.Module)
		if err != nil {
			r.PathErr = fmt.Errorf("not traced: %w", err)
			return
		}
		f = p.flights.forTrace(newFlightKey(r.Handshake.Peer, ports, &r.Module), &r.Module)
		defer p.flights.leave(f)
	}
	waiting := ctx
	if r.onFlow == nil {
		var cancel context.CancelFunc
		waiting, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	select {
	case <-f.landed:
	case <-waiting.Done():
		r.PathErr = errPortsBusy
		return
	}
	select {
	case f.tracing <- struct{}{}:
	case <-waiting.Done():
		r.PathErr = errPortsBusy
		return
	}
	defer func() { <-f.tracing }()
	if t := f.traced; t != nil && r.onHop == nil && r.onFlow == nil && reflect.DeepEqual(f.module, r.Module) {
		r.Path, r.Parting = t.Path, t.Parting
		return
	}
	if sooner := p.flights.untilOf(f); time.Now().Before(sooner) && sooner.Before(deadline) {
		deadline = sooner // so that the other probes, which wait for the path, get it in time
	}
	r.trace(ctx, p, deadline)
	if r.PathErr == nil {
		f.traced = r
	}
}

func (all *flights) untilOf(f *flight) time.Time {
	all.mu.Lock()
	defer all.mu.Unlock()
	return f.until
}

// errPortsBusy means that other handshakes had the ports of the flows for too long.
var errPortsBusy = errors.New("not traced: other probes of the same address use the ports of the flows")

// forTrace returns the flight with the key, or a new one without handshakes, and lets the caller take part.
func (all *flights) forTrace(key flightKey, m *config.Module) *flight {
	all.mu.Lock()
	defer all.mu.Unlock()
	if f := all.all[key]; f != nil && f.users > 0 {
		f.users++
		return f
	}
	f := all.add(key, m)
	close(f.landed)
	return f
}
