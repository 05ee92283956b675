package idle

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A target is one to which the path is measured.
type target struct {
	registry.Registration
	meter *Meter

	mu         sync.Mutex
	cancel     context.CancelFunc // ends its goroutine
	done       chan struct{}      // closed when that has ended
	peer       netip.AddrPort
	registered time.Time
	resolution *probe.Resolution // nil if the target is an address
	preferred  string            // the IP version to use because this host lacks the other one, "" if both are tried

	verdict *probe.Verdict // about the last connects, nil if there is none yet
	since   time.Time      // when the verdict was found
	fault   error          // why the last round was not performed, nil if it was

	inquiry    inquiry
	rounds     uint64
	completed  time.Time // end of the last complete round
	findings   []Finding // of the last fan
	bracket    bracket   // that the complete rounds have found
	told       time.Duration
	consistent bool
	control    *Control
	skipped    [numberReasons]uint64
	attempt    time.Time // start of the present round, or of the last one
	steps      []time.Duration
}

// begin starts the rounds with an address.
func (t *target) begin(report *probe.Report, peer netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.aim(peer)
	t.resolvedBy(report)
	if t.registered.IsZero() {
		t.registered = report.Start.Round(0) // on the wall clock
	}
	t.fault, t.attempt, t.preferred = nil, time.Now(), ""
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.cancel, t.done = cancel, done
	t.meter.registry.Go(func(context.Context) {
		defer close(done)
		t.run(ctx)
	})
}

// aim sets the address of the next round. Another host may be behind other middleboxes, so its inquiry starts again.
// What was found stays until the first round with that host is complete. Its caller holds mu.
func (t *target) aim(peer netip.AddrPort) {
	if peer != t.peer {
		t.peer, t.inquiry = peer, inquiry{fan: t.Module.Idle.Steps}
	}
}

// resolvedBy notes how the name was resolved. Its caller holds mu.
func (t *target) resolvedBy(report *probe.Report) {
	if !report.Addr.IsValid() {
		resolution := report.Resolution
		t.resolution = &resolution
	}
}

// Stop implements registry.Target. A round that is running ends without a result.
func (t *target) Stop() {
	t.mu.Lock()
	cancel, done := t.cancel, t.done
	t.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
	t.meter.options.History.End(t.Key.Target, t.Key.Module)
}

// Peer implements registry.Target.
func (t *target) Peer() netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peer
}

// Adapt implements registry.Target. Nothing calls it: the name is looked up at the start of each round.
func (t *target) Adapt(*probe.Report, []netip.Addr) {}

// run performs one round after the other, until the context ends.
func (t *target) run(ctx context.Context) {
	for {
		next := t.measure(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
	}
}

// measure performs a round, and returns when the next one begins: at once, except that a round whose connections the
// peer closes early, or does not accept, is not repeated sooner than if it had not. If this host lacks the IP version
// of the address, and the name has an address of the other one, there is no result.
func (t *target) measure(ctx context.Context) (next time.Time) {
	start := time.Now()
	t.mu.Lock()
	steps, isFan := t.inquiry.next()
	t.attempt, t.steps = start, steps
	t.mu.Unlock()

	report, peer, err := t.resolve(ctx)
	if err == nil && peer.IsValid() {
		var result *result
		if result, err = t.round(ctx, report, peer, steps); err == nil {
			if t.fallBack(ctx, report, &result.connect) {
				return start
			}
			if t.take(result, isFan) {
				return start.Add(steps[len(steps)-1])
			}
			return start.Add(t.meter.retry)
		}
	}
	if err != nil && ctx.Err() == nil {
		t.fail(err)
	}
	return start.Add(t.meter.retry)
}

// resolve returns the address for a round. It is that of the last round as long as it is one of those of the name, if
// the DNS servers do not answer, or if too many probes are in flight to ask them. It is invalid if there is none.
func (t *target) resolve(ctx context.Context) (*probe.Report, netip.AddrPort, error) {
	peer := t.Peer()
	req, err := t.activeRequest()
	if err != nil { // the module has gone: Configure stops the target
		return nil, netip.AddrPort{}, err
	}
	t.mu.Lock()
	preferred := t.preferred
	t.mu.Unlock()
	if preferred != "" {
		req.Module.TCP.PreferredIPProtocol = preferred
	}
	if !req.Addr.IsValid() {
		leave, err := t.meter.options.Prober.Enter()
		if err != nil {
			return &probe.Report{Request: req}, peer, nil
		}
		defer leave()
	}
	report, addrs, err := t.meter.options.Prober.Resolve(ctx, req)
	switch {
	case err != nil:
		return nil, netip.AddrPort{}, err
	case len(addrs) == 0 && report.Result == config.DNSNotFound:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.resolvedBy(report)
		t.found(&report.Verdict)
		return report, netip.AddrPort{}, nil
	case len(addrs) > 0 && (!slices.Contains(addrs, peer.Addr()) ||
		preferred != "" && addrs[0].Is4() != peer.Addr().Is4()):
		peer = netip.AddrPortFrom(addrs[0], peer.Port())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.aim(peer)
	t.resolvedBy(report)
	// During the lookup, a reload may have looked at the previous address.
	if req, err = t.activeRequest(); err == nil {
		err = req.Check(peer.Addr())
	}
	return report, peer, err
}

// activeRequest returns a request for the target with the active configuration.
func (t *target) activeRequest() (*probe.Request, error) {
	return probe.NewRequest(t.meter.options.Prober.Config(), t.Key.Target, t.Key.Module)
}

// round performs a round with an address.
func (t *target) round(
	ctx context.Context, report *probe.Report, peer netip.AddrPort, steps []time.Duration,
) (*result, error) {
	options := t.Module.Options()
	options.Timeout = t.Module.Timeout
	// The application has seen the connections, and expects a FIN. With few source ports, an RST leaves them usable for
	// the next round: after a FIN, they would have to wait for a minute (TIME_WAIT).
	options.FIN = options.SourcePorts == shaker.PortRange{}
	r := &round{
		ctx:      ctx,
		target:   t,
		peer:     peer,
		settings: t.Module.Idle,
		options:  shaker.HoldOptions{Options: options},
		connected: func(h *shaker.Result) {
			t.mu.Lock()
			defer t.mu.Unlock()
			if !t.fallsBack(h) {
				t.found(verdictOf(h, report.Resolution.Took))
			}
		},
	}
	return r.run(steps)
}

// fallsBack reports whether a connect has failed because this host lacks the IP version of the address, so that one of
// the other IP version has to be tried, as in a probe. Its caller holds mu.
func (t *target) fallsBack(h *shaker.Result) bool {
	return t.resolution != nil && t.preferred == "" && t.Module.TCP.Network() == "ip" && probe.LacksFamily(h)
}

// fallBack aims at an address of the other IP version if the connect of a round asks for it. If there is none, the
// connect has failed. found reports whether there is one.
func (t *target) fallBack(ctx context.Context, report *probe.Report, h *shaker.Result) (found bool) {
	t.mu.Lock()
	needed := t.fallsBack(h)
	t.mu.Unlock()
	if !needed {
		return false
	}
	other, found := t.meter.options.Prober.OtherVersion(ctx, report.Request, h.Peer.Addr())
	t.mu.Lock()
	defer t.mu.Unlock()
	if !found {
		if ctx.Err() == nil {
			t.found(verdictOf(h, report.Resolution.Took))
		}
		return false
	}
	t.preferred = config.IP6
	if other.Is4() {
		t.preferred = config.IP4
	}
	t.aim(netip.AddrPortFrom(other, h.Peer.Port()))
	return true
}

// verdictOf returns the verdict about a connect.
func verdictOf(h *shaker.Result, resolved time.Duration) *probe.Verdict {
	return &probe.Verdict{
		Result:    h.Outcome.String(),
		Errno:     shaker.ErrnoName(h.Errno),
		Handshake: *h,
		At:        resolved + h.Waited,
	}
}

// found notes the verdict about the last connects. Its caller holds mu.
func (t *target) found(v *probe.Verdict) {
	before := t.verdict
	t.verdict, t.fault = v, nil
	if before != nil && before.Result == v.Result {
		return
	}
	t.since = time.Now()
	report := t.reportOf(t.request(), v)
	if before == nil && report.Success() {
		return // the round adds it to the history when it is complete
	}
	t.meter.options.Changed(report)
	t.record(report, t.since)
}

// record adds a report to the history. Its caller holds mu.
func (t *target) record(report *probe.Report, at time.Time) {
	record := report.Record()
	record.Time = at
	t.meter.options.History.Add(t.Key.Target, t.Key.Module, record, nil)
}

// fail notes that this host could not perform a round.
func (t *target) fail(err error) {
	if !errors.Is(err, probe.ErrDenied) {
		t.meter.options.Fault(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fault = err
	t.skipped[LocalError] += uint64(len(t.steps))
}

// take takes the result of a round. complete reports whether it has measured anything.
func (t *target) take(r *result, isFan bool) (complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range r.findings {
		if f.Kind == Skipped {
			t.skipped[f.Skipped]++
		}
	}
	b, consistent, ok := bracketOf(r.findings)
	if !ok {
		return false
	}
	t.inquiry.take(b, isFan)
	t.bracket = t.inquiry.report()
	t.rounds++
	t.completed = time.Now()
	t.consistent = consistent
	t.control = r.control
	t.told = 0
	for _, f := range r.findings {
		if f.Kind == Told && (t.told == 0 || f.Idle < t.told) {
			t.told = f.Idle
		}
	}
	if isFan {
		t.findings = r.findings
	}
	t.record(t.report(t.request()), t.attempt)
	return true
}

// request returns a request for the target.
func (t *target) request() *probe.Request {
	return &probe.Request{Target: probe.Target{Text: t.Key.Target}, ModuleName: t.Key.Module, Module: *t.Module}
}

// report returns the report of the last connects. Its Result is "" if there is none, or if they succeeded and no round
// is complete. Its caller holds mu.
func (t *target) report(req *probe.Request) *probe.Report {
	if t.verdict != nil && (t.rounds > 0 || !t.isValid(t.verdict)) {
		return t.reportOf(req, t.verdict)
	}
	v := &probe.Verdict{Handshake: shaker.Result{Peer: t.peer}}
	if t.resolution != nil {
		v.At = t.resolution.Took
	}
	return t.reportOf(req, v)
}

// reportOf returns a report with a verdict. Its caller holds mu.
func (t *target) reportOf(req *probe.Request, v *probe.Verdict) *probe.Report {
	r := &probe.Report{Request: req, Start: t.since, Verdict: *v, Duration: v.At}
	if t.resolution != nil {
		r.Resolution = *t.resolution
	}
	return r
}

// isValid reports whether the connects have succeeded.
func (t *target) isValid(v *probe.Verdict) bool {
	return slices.Contains(t.Module.TCP.ValidResults, v.Result)
}

// answer answers a scrape from memory.
func (t *target) answer(req *probe.Request) (Answer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.stale(); err != nil {
		return Answer{}, err
	}
	answered := *req
	answered.Timeout = t.Module.Timeout
	return Answer{Report: t.report(&answered), Idle: t.snapshot()}, nil
}

// stale returns an error if this host could not perform rounds for so long that there is nothing to tell. Its caller
// holds mu.
func (t *target) stale() error {
	switch longest := t.Module.Idle.Steps[len(t.Module.Idle.Steps)-1]; {
	case errors.Is(t.fault, probe.ErrDenied):
		return t.fault
	case t.fault != nil && (t.completed.IsZero() || time.Since(t.completed) > 3*longest+5*t.meter.retry):
		return &staleError{cause: t.fault}
	}
	return nil
}

// A staleError is an [ErrStale] with its cause.
type staleError struct{ cause error }

func (e *staleError) Error() string   { return ErrStale.Error() + ": " + e.cause.Error() }
func (e *staleError) Unwrap() []error { return []error{ErrStale, e.cause} }
