package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
// The handshakes end with the earliest deadline of the probes that share them, so that each of them is answered in
// time. Each probe has its own name resolution and judges the results on its own: that a flow is silent is a verdict
// only if it was silent for as long as this probe needs. If another probe with a shorter timeout has ended the
// handshakes before, the probe begins a second flight, keeps the replies of the first one, and adds up the times
// without a reply. No other probe shortens the second flight so that it would not be enough.

// flights are those in which at least one probe takes part.
type flights struct {
	mu  sync.Mutex
	all map[flightKey]*flight

	// claims are the seats that wait for the end of a flight to begin a second one. Otherwise, many short probes, one
	// after the other, could keep them from it.
	claims map[flightKey]*seat
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
	limit  time.Time // the deadline of the probe that has begun the flight
	ctx    *endable  // of the handshakes

	// Guarded by the mutex of the flights
	seats []*seat
	first *seat       // whose deadline is the end of the handshakes
	timer *time.Timer // ends them
	flows []flownFlow // nil if the flight only traces
	sent  time.Time   // when the last flow has begun
	fault error       // why this host could not perform one of the flows

	gone   chan struct{} // closed when no probe takes part any more
	landed chan struct{} // closed when the handshakes have ended

	tracing chan struct{} // holds a value while the paths are being traced
	traced  *Report       // with the path, nil if it is not known; guarded by tracing
}

// A flownFlow is the handshake from one port.
type flownFlow struct {
	port   uint16
	ended  time.Time // zero while the handshake is running
	result shaker.Result
	silent time.Duration // how much time the handshake had without a reply; 0 if there was one
	err    error         // why there is no result
	inUse  error         // that another handshake had the port at first, nil if none did
}

// A seat is the part of a probe in a flight.
type seat struct {
	flight   *flight
	start    time.Time // of the probe, as if it had not waited for the traces of others
	came     time.Time // when the probe needed the flight
	deadline time.Time // of the handshakes
	needed   time.Duration
	timeout  time.Duration // of the probe

	// ends reports whether the handshakes have to end by the deadline of this probe.
	ends bool

	// Of the flight that another probe has ended too early for this one
	again   bool
	replies map[uint16]Verdict       // by port
	silent  map[uint16]time.Duration // how long the other flows were silent
}

// leastSilent returns for how long each of the flows without a reply was silent in the first flight.
func (s *seat) leastSilent() time.Duration {
	if len(s.silent) == 0 {
		return 0
	}
	return slices.Min(slices.Collect(maps.Values(s.silent)))
}

// canEndAt reports whether handshakes that began at some time are enough for the probe if they end at another time.
func (s *seat) canEndAt(sent, end time.Time) bool { return s.leastSilent()+end.Sub(sent) >= s.needed }

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
// verdict is the worst one. It is undefined if there is an error.
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
	s := &seat{
		start: r.Start, came: time.Now(), deadline: r.deadline(), needed: needed(r.budget()), timeout: r.Timeout,
	}
	for {
		if err := r.board(ctx, s, newFlightKey(peer, ports, &r.Module)); err != nil {
			if r.blamesDNS(s, err, v) {
				v.Handshake, v.At = shaker.Result{Peer: peer}, time.Since(s.start)
				return nil
			}
			return err
		}
		r.countFlows(int(r.Module.TCP.Flows))
		if err := s.land(ctx); err != nil {
			flows, _ := r.prober.flights.resultsOf(s.flight)
			r.reportFlows(s, flows)
			return err
		}
		flows, fault := r.prober.flights.resultsOf(s.flight)
		err := r.judge(s, flows, fault, v)
		if err == nil {
			sent := slices.DeleteFunc(slices.Clone(v.Flows), func(f Flow) bool { return !sentSYN(&f.Handshake) })
			r.countFlows(len(sent) - int(r.Module.TCP.Flows))
			return nil
		}
		r.countFlows(-int(r.Module.TCP.Flows))
		again := r.afterFlight(s, flows)
		if s.again || !isTooLate(err) || time.Until(s.deadline)+again.leastSilent() < s.needed {
			r.countFlows(r.reportFlows(s, flows))
			return err
		}
		r.leave(s)
		s = again
	}
}

// countFlows counts handshakes whose SYN is sent.
func (r *running) countFlows(n int) {
	if r.sent != nil {
		r.sent.Add(int64(n))
	}
}

// isTooLate reports whether an error means that the handshakes might have had a verdict with more time.
func isTooLate(err error) bool {
	return errors.Is(err, shaker.ErrUnsent) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// afterFlight returns the seat for a second flight, which continues the first one.
func (r *running) afterFlight(s *seat, flows []flownFlow) *seat {
	again := &seat{
		start: s.start, came: s.came, deadline: s.deadline, needed: s.needed, timeout: s.timeout, again: true,
		replies: make(map[uint16]Verdict), silent: make(map[uint16]time.Duration),
	}
	for i := range flows {
		f := &flows[i]
		switch {
		case f.hasReply():
			var v Verdict
			r.judgeFlow(s, f, &v)
			again.replies[f.port] = v
		case errors.Is(f.err, syscall.EADDRINUSE):
		default:
			again.silent[f.port] = f.silent
		}
	}
	return again
}

// hasReply reports whether the handshake has a result other than silence.
func (f *flownFlow) hasReply() bool {
	return f.err == nil && !f.ended.IsZero() && f.result.Outcome != shaker.Timeout
}

// judge returns what the handshakes of a flight mean for the probe: the worst verdict of the flows. A flow whose port
// another program has is left out. If all are, or if this host could not perform one of the others, there is no
// verdict.
func (r *running) judge(s *seat, flows []flownFlow, fault error, v *Verdict) error {
	if fault != nil {
		return fault
	}
	var performed []Flow
	var inUse error
	var leftOut []uint16
	for i := range flows {
		flow := Flow{Port: flows[i].port}
		switch err := r.judgeFlow(s, &flows[i], &flow.Verdict); {
		case errors.Is(err, syscall.EADDRINUSE):
			inUse = err
			leftOut = append(leftOut, flow.Port)
		case err != nil:
			return fmt.Errorf("flow from port %d: %w", flow.Port, err)
		default:
			performed = append(performed, flow)
		}
	}
	r.prober.leftOut.set(newFlowSet(r.ModuleName, s.flight.key.peer.Addr()), leftOut)
	if performed == nil {
		return errPortsTaken(shaker.PortRange{First: flows[0].port, Last: flows[len(flows)-1].port}, inUse)
	}
	*v = r.VerdictOf(performed)
	v.LeftOut = leftOut
	return nil
}

// reportFlows reports the flows that have a result, if there are any, because the probe ends without a verdict. It
// returns how many of them have sent a SYN.
func (r *running) reportFlows(s *seat, flows []flownFlow) (sent int) {
	var performed []Flow
	for i := range flows {
		flow := Flow{Port: flows[i].port}
		if _, replied := s.replies[flow.Port]; !replied && flows[i].ended.IsZero() {
			continue
		}
		if r.judgeFlow(s, &flows[i], &flow.Verdict) == nil {
			performed = append(performed, flow)
			if sentSYN(&flow.Handshake) {
				sent++
			}
		}
	}
	if performed != nil {
		r.reportPart(r.VerdictOf(performed))
	}
	return sent
}

// judgeFlow returns what the handshake of a flow means for the probe, see [running.shakeOnce].
func (r *running) judgeFlow(s *seat, f *flownFlow, v *Verdict) error {
	if reply, ok := s.replies[f.port]; ok {
		*v = reply
		return nil
	}
	err := f.err
	if err == nil && !f.hasReply() && s.silent[f.port]+f.silent < s.needed {
		if err = f.inUse; err == nil {
			err = fmt.Errorf("shake %v: %w", s.flight.key.peer, shaker.ErrUnsent)
		}
	}
	v.Handshake, v.At = f.result, time.Since(s.start)
	if !f.ended.IsZero() {
		v.At = max(0, f.ended.Sub(s.start))
	}
	switch {
	case r.blamesDNS(s, err, v):
		v.Handshake.Peer = s.flight.key.peer
	case err != nil:
		return err
	default:
		v.Result = v.Handshake.Outcome.String()
		v.Errno = shaker.ErrnoName(v.Handshake.Errno)
	}
	return nil
}

// blamesDNS reports whether an error means that the probe came too late for the verdict that a flow is silent, because
// of name resolution.
func (r *running) blamesDNS(s *seat, err error, v *Verdict) bool {
	left := s.deadline.Sub(s.came)
	return left < s.needed && r.tookTooLong(err, left, v)
}

// board lets the probe take part in the flight with the key, or begins it. If there is a flight that it cannot share,
// it waits until that is gone.
func (r *running) board(ctx context.Context, s *seat, key flightKey) error {
	all := &r.prober.flights
	defer all.unclaim(s, key)
	for {
		all.mu.Lock()
		f, claim := all.all[key], all.claims[key]
		if f == nil && claim != nil && claim != s { // it begins at any moment
			all.mu.Unlock()
			if err := waitUntil(ctx, time.Now().Add(busyWait), nil); !errors.Is(err, shaker.ErrUnsent) {
				return err
			}
			continue
		}
		if f == nil {
			err := r.admitFlows()
			if err == nil {
				f = all.add(key, &r.Module)
				s.flight, s.ends = f, true
				f.begin(s, int(r.Module.TCP.Flows))
				r.seats = append(r.seats, s)
				go r.prober.fly(f)
			}
			all.mu.Unlock()
			return err
		}
		if r.canShare(f, s) {
			s.flight = f
			s.ends = s.canEndAt(f.sent, s.deadline) && !slices.ContainsFunc(f.seats, func(other *seat) bool {
				return other.again && !other.canEndAt(f.sent, s.deadline)
			})
			f.seats = append(f.seats, s)
			f.schedule()
			r.seats = append(r.seats, s)
			all.mu.Unlock()
			return nil
		}
		if s.again && claim == nil {
			all.claim(s, key)
		}
		all.mu.Unlock()
		if r.onFlow != nil { // traces of all flows have no time limit, and neither has the wait for them
			if err := s.waitFor(ctx, f.gone); err != nil {
				return err
			}
			continue
		}
		if err := waitUntil(ctx, s.deadline, f.gone); err != nil {
			return fmt.Errorf("shake %v: another probe uses port %d and those after it for this address: %w",
				key.peer, key.port, err)
		}
	}
}

// claim lets a seat begin the next flight with the key. Its caller holds mu.
func (all *flights) claim(s *seat, key flightKey) {
	if all.claims == nil {
		all.claims = make(map[flightKey]*seat)
	}
	all.claims[key] = s
}

// unclaim undoes claim.
func (all *flights) unclaim(s *seat, key flightKey) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.claims[key] == s {
		delete(all.claims, key)
	}
}

// waitFor waits until a channel is closed. The wait does not count against the timeout.
func (s *seat) waitFor(ctx context.Context, closed <-chan struct{}) error {
	begun := time.Now()
	select {
	case <-closed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	waited := time.Since(begun)
	s.start, s.came, s.deadline = s.start.Add(waited), s.came.Add(waited), s.deadline.Add(waited)
	return nil
}

// canShare reports whether a probe can take part in a flight: it has the same module, is not too old, and either has
// results that are enough for the probe, or will end late enough for one that flies again. Its caller holds mu.
func (r *running) canShare(f *flight, s *seat) bool {
	if len(f.seats) == 0 || f.flows == nil || !reflect.DeepEqual(f.module, r.Module) ||
		time.Since(f.begun) > r.Module.Timeout {
		return false
	}
	if !f.hasLanded() {
		return !s.again || s.canEndAt(f.sent, f.end())
	}
	if s.again { // perhaps it is the first one
		return false
	}
	joining := *s
	joining.flight = f
	var v Verdict
	return r.judge(&joining, f.flows, f.fault, &v) == nil &&
		!slices.ContainsFunc(v.Flows, func(flow Flow) bool { return flow.Err != nil })
}

// add adds a flight in which no probe takes part yet. Its caller holds mu.
func (all *flights) add(key flightKey, m *config.Module) *flight {
	f := &flight{
		key: key, module: *m, begun: time.Now(), ctx: newEndable(),
		gone: make(chan struct{}), landed: make(chan struct{}), tracing: make(chan struct{}, 1),
	}
	if all.all == nil {
		all.all = make(map[flightKey]*flight)
	}
	all.all[key] = f
	return f
}

// begin prepares the handshakes for the first probe. Its caller holds the mutex of the flights.
func (f *flight) begin(s *seat, flows int) {
	f.limit, f.sent = s.deadline, f.begun
	f.seats, f.first = []*seat{s}, s
	f.flows = make([]flownFlow, flows)
	for i := range f.flows {
		f.flows[i].port = f.key.port + uint16(i)
	}
	f.timer = time.AfterFunc(time.Until(f.limit), func() { f.ctx.end(context.DeadlineExceeded) })
}

// end returns when the handshakes end. Its caller holds the mutex of the flights.
func (f *flight) end() time.Time {
	if f.first.deadline.Before(f.limit) {
		return f.first.deadline
	}
	return f.limit
}

// schedule sets the end of the handshakes to the earliest deadline of the probes that take part. Its caller holds the
// mutex of the flights.
func (f *flight) schedule() {
	if f.timer == nil || f.hasLanded() {
		return
	}
	var first *seat
	for _, s := range f.seats {
		if s.ends && (first == nil || s.deadline.Before(first.deadline)) {
			first = s
		}
	}
	if first != nil {
		f.first = first
	}
	f.timer.Reset(time.Until(f.end()))
}

// leave ends the part of a probe in a flight. The last one ends the handshakes if they are still running, and waits
// until the ports are free.
func (all *flights) leave(s *seat) {
	f := s.flight
	all.mu.Lock()
	f.seats = slices.DeleteFunc(f.seats, func(other *seat) bool { return other == s })
	last := len(f.seats) == 0
	if !last {
		f.schedule()
	}
	all.mu.Unlock()
	if !last {
		return
	}
	f.ctx.end(context.Canceled)
	<-f.landed
	all.mu.Lock()
	if all.all[f.key] == f {
		delete(all.all, f.key)
	}
	all.mu.Unlock()
	close(f.gone)
}

// leave ends the probe's part in a flight.
func (r *running) leave(s *seat) {
	all := &r.prober.flights
	all.mu.Lock()
	r.seats = slices.DeleteFunc(r.seats, func(other *seat) bool { return other == s })
	all.mu.Unlock()
	all.leave(s)
}

// flightOf returns the flight with an address in which the probe takes part, nil if there is none.
func (r *running) flightOf(peer netip.AddrPort) *flight {
	for _, s := range r.seats {
		if s.flight.key.peer == peer {
			return s.flight
		}
	}
	return nil
}

// leaveAll ends the probe's part in all flights.
func (r *running) leaveAll() {
	for _, s := range r.seats {
		r.prober.flights.leave(s)
	}
	r.seats = nil
}

// admitFlows counts the flows of an address as in flight, except one that is counted already.
func (r *running) admitFlows() error {
	n := int64(r.Module.TCP.Flows)
	if most := int64(r.prober.options.MaxInFlight); 0 < most && most < n {
		return fmt.Errorf("%w: the module has %d flows, the limit is %d: want fewer flows, or a higher limit",
			ErrInFlight, n, most)
	}
	if !r.prober.admit(n - 1) {
		return r.prober.errInFlight()
	}
	return nil
}

// fly performs the handshakes of a flight.
func (p *Prober) fly(f *flight) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	var shaking sync.WaitGroup
	for i := range f.flows {
		flow := &f.flows[i]
		shaking.Go(func() {
			begun, result, err := p.shakeFlow(ctx, f, flow)
			p.flights.mu.Lock()
			defer p.flights.mu.Unlock()
			flow.result, flow.err, flow.ended = result, err, time.Now()
			if result.Outcome == shaker.Timeout {
				// Time after the end does not count: this host was late then, and perhaps before that as well.
				flow.silent = max(0, min(flow.ended.Sub(begun), f.end().Sub(begun)))
			}
			if err != nil && f.fault == nil && ctx.Err() == nil && !errors.Is(err, syscall.EADDRINUSE) {
				f.fault = fmt.Errorf("flow from port %d: %w", flow.port, err)
				cancel() // the others are not enough for a verdict
			}
		})
	}
	shaking.Wait()
	p.release(int64(len(f.flows)) - 1)
	f.timer.Stop()
	close(f.landed)
}

// busyWait is how long a flight waits before it tries again to use a port that another handshake with the address has.
const busyWait = 20 * time.Millisecond

// shakeFlow performs the handshake of a flow. Another process may have a handshake with the address from the same port,
// such as the command line beside an exporter. The flight waits for the port for as long as the handshake would still
// have the time that one of the probes needs. begun is when the last attempt has begun.
func (p *Prober) shakeFlow(ctx context.Context, f *flight, flow *flownFlow) (
	begun time.Time, result shaker.Result, err error,
) {
	for {
		p.flights.mu.Lock()
		f.sent = time.Now()
		p.flights.mu.Unlock()
		options := f.module.Options()
		begun = time.Now() // after the wait for the mutex
		options.Timeout, options.SourcePort = max(1, f.limit.Sub(begun)), flow.port
		result, err = p.options.Shaker.Shake(ctx, f.key.peer, &options)
		if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			err = withoutVersion(&result, f.key.peer, err)
			return begun, result, err
		}
		p.flights.mu.Lock()
		err = errPortBusy(&f.module, err)
		flow.inUse = err
		canWait := slices.ContainsFunc(f.seats, func(s *seat) bool {
			return s.canEndAt(time.Now().Add(busyWait), s.deadline)
		})
		p.flights.mu.Unlock()
		if !canWait {
			return begun, result, err
		}
		select {
		case <-time.After(busyWait):
		case <-ctx.Done():
			return begun, result, err
		}
	}
}

// land waits for the handshakes of the flight, or if they do not end by the deadline of the probe, until then.
func (s *seat) land(ctx context.Context) error {
	if s.ends {
		select {
		case <-s.flight.landed:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := waitUntil(ctx, s.deadline, s.flight.landed); !errors.Is(err, shaker.ErrUnsent) {
		return err
	}
	return nil
}

func (f *flight) hasLanded() bool {
	select {
	case <-f.landed:
		return true
	default:
		return false
	}
}

// resultsOf returns the results of a flight so far.
func (all *flights) resultsOf(f *flight) (flows []flownFlow, fault error) {
	all.mu.Lock()
	defer all.mu.Unlock()
	return slices.Clone(f.flows), f.fault
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

// shareTimeout makes the timeout of the report the one that applied to the handshakes.
func (r *running) shareTimeout() {
	all := &r.prober.flights
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, s := range r.seats {
		if applied := s.flight.first.timeout; !s.again && applied < r.Timeout {
			shortened := *r.Request
			shortened.Timeout = applied
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
		s := p.flights.forTrace(newFlightKey(r.Handshake.Peer, ports, &r.Module), &r.Module)
		defer p.flights.leave(s)
		f = s.flight
	}
	waiting := ctx
	if r.onFlow == nil {
		var cancel context.CancelFunc
		waiting, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	busy := func() {
		if r.PathErr = errPortsBusy; ctx.Err() != nil {
			r.PathErr = fmt.Errorf("not traced: %w", context.Cause(ctx))
		}
	}
	select {
	case <-f.landed:
	case <-waiting.Done():
		busy()
		return
	}
	select {
	case f.tracing <- struct{}{}:
	case <-waiting.Done():
		busy()
		return
	}
	defer func() { <-f.tracing }()
	if t := f.traced; t != nil && r.onHop == nil && r.onFlow == nil && t.isAboutFlow(r) {
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

// isAboutFlow reports whether another report describes the same handshake with the same module, so that both have the
// same path.
func (r *Report) isAboutFlow(other *Report) bool {
	return r.Handshake == other.Handshake && reflect.DeepEqual(r.Module, other.Module)
}

// untilOf returns when the probe ends whose deadline is the earliest one, zero if the flight only traces.
func (all *flights) untilOf(f *flight) time.Time {
	all.mu.Lock()
	defer all.mu.Unlock()
	if f.first == nil {
		return time.Time{}
	}
	return f.first.start.Add(f.first.timeout)
}

// errPortsBusy means that other handshakes had the ports of the flows for too long.
var errPortsBusy = errors.New("not traced: other probes of the same address use the ports of the flows")

// forTrace lets the caller take part in the flight with the key, or in a new one without handshakes.
func (all *flights) forTrace(key flightKey, m *config.Module) *seat {
	all.mu.Lock()
	defer all.mu.Unlock()
	f := all.all[key]
	if f == nil || len(f.seats) == 0 {
		f = all.add(key, m)
		close(f.landed)
	}
	s := &seat{flight: f}
	f.seats = append(f.seats, s)
	return s
}
