package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const (
	// LongestTrace limits how long the trace of a path may take.
	LongestTrace = 2 * time.Second

	// traceHandshakes is how many handshakes [shaker.Shaker.Trace] makes concurrently at most.
	traceHandshakes = 8
)

// traceTime returns how much of the timeout is reserved for the trace of the path: a third, but at
// most LongestTrace, and 0 if the module traces no path, or if the traces have time of their own.
func (r *Request) traceTime() time.Duration {
	if r.Module.TCP.Path == config.Never || r.onFlow != nil {
		return 0
	}
	return min(r.Timeout/3, LongestTrace)
}

// TracePath makes the probe trace the path, whatever the verdict is, and call onHop for each hop as soon as
// its reply is known.
func (r *Request) TracePath(onHop func(shaker.Hop)) {
	r.Module.TCP.Path, r.onHop = config.Always, onHop
}

// wantsPath reports whether the path must be traced, given the verdict. If no SYN was sent, there is no path.
func (r *Report) wantsPath() bool {
	switch r.Module.TCP.Path {
	case config.Always:
		return r.Handshake.Local.IsValid()
	case config.OnFailure:
		return r.Handshake.Local.IsValid() && !r.Success()
	}
	return false
}

// errTooManyForTrace means that a trace would have exceeded the limit of handshakes in flight. errNeverTraced means
// that the limit permits no trace at all.
var (
	errTooManyForTrace = errors.New("not traced: too many handshakes are in flight")
	errNeverTraced     = fmt.Errorf("not traced: --probe.max-in-flight is less than the %d handshakes of a trace",
		traceHandshakes)
)

// trace traces the path to the probed address, or to the worst of several addresses. The verdict does not
// depend on the result. If some flows fail and others do not, it also traces the paths of some of the others, at the
// same time.
func (r *Report) trace(ctx context.Context, p *Prober, deadline time.Time) {
	const others = traceHandshakes - 1 // Probe has admitted one already
	if r.onFlow != nil && len(r.Flows) > 0 {
		r.traceFlows(ctx, p)
		return
	}
	if most := p.options.MaxInFlight; 0 < most && most < traceHandshakes {
		r.PathErr = errNeverTraced
		return
	}
	if !p.admit(others) {
		r.PathErr = errTooManyForTrace
		return
	}
	defer p.release(others)
	options := shaker.TraceOptions{
		Timeout: max(1, min(LongestTrace, time.Until(deadline))),
		MaxHops: int(r.Module.TCP.MaxHops),
	}
	goodFlows := r.goodFlows()
	good := make([]*shaker.Path, len(goodFlows))
	var tracing sync.WaitGroup
	for i, flow := range goodFlows {
		if !p.admit(traceHandshakes) {
			break
		}
		defer p.release(traceHandshakes)
		tracing.Go(func() {
			// If the target does not answer it any more, it is not a good flow.
			if path, err := p.options.Shaker.Trace(ctx, flow.Handshake, &options); err == nil && path.Reached > 0 {
				good[i] = &path
			}
		})
	}
	failing := options
	failing.OnHop = r.onHop
	path, err := p.options.Shaker.Trace(ctx, r.Handshake, &failing)
	tracing.Wait()
	if err != nil { // a part of the path would look like a path that ends there
		r.PathErr = fmt.Errorf("incomplete, known up to hop %d: %w", len(path.Hops), err)
		return
	}
	r.Path = &path
	worst := newFlowPath(Flow{Port: r.Handshake.Local.Port(), Verdict: r.Verdict}, r.Path, nil)
	if n := len(worst.Hops); n > 0 && r.Valid(worst.Hops[n-1].Outcome.String()) {
		return // the flow did not fail any more when it was traced: its path shows nothing
	}
	var paths []FlowPath
	for i, path := range good {
		if path == nil {
			continue
		}
		if r.Parting == nil {
			r.Parting = &Parting{Good: goodFlows[i], Path: path}
		}
		paths = append(paths, newFlowPath(goodFlows[i], path, nil))
	}
	if r.Parting != nil {
		r.Parting.part(worst, paths...)
	}
}

// PathTo returns the path to a probed address, nil if that path was not traced.
func (r *Report) PathTo(addr netip.Addr) *shaker.Path {
	if addr != r.Handshake.Peer.Addr() {
		return nil
	}
	return r.Path
}
