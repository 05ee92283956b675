package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

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
// depend on the result. If some flows fail and others do not, it also traces the paths of other flows of both kinds, at
// the same time, and compares them.
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
	flows := r.flowsToCompare()
	paths := make([]FlowPath, 1+len(flows))
	var tracing sync.WaitGroup
	for i, flow := range flows {
		if !p.admit(traceHandshakes) {
			break
		}
		defer p.release(traceHandshakes)
		tracing.Go(func() {
			path, err := p.options.Shaker.Trace(ctx, flow.Handshake, &options)
			paths[1+i] = newFlowPath(flow, &path, err)
		})
	}
	worst := options
	worst.OnHop = r.onHop
	path, err := p.options.Shaker.Trace(ctx, r.Handshake, &worst)
	tracing.Wait()
	paths[0] = newFlowPath(Flow{Port: r.Handshake.Local.Port(), Verdict: r.Verdict}, &path, err)
	r.setPath(path, err)
	paths = slices.DeleteFunc(paths, func(path FlowPath) bool { return path.Port == 0 }) // too many in flight
	if partings := r.partings(paths); len(partings) > 0 {
		r.Parting = &partings[0]
	}
}

// setPath sets the path of the report, or why it is not known. The path of a flow has only the hops that were traced
// from its port: it would change from probe to probe otherwise.
func (r *Report) setPath(path shaker.Path, err error) {
	if err != nil { // a part of the path would look like a path that ends there
		r.PathErr = fmt.Errorf("incomplete, known up to hop %d: %w", len(path.Hops), err)
		return
	}
	if r.Flows != nil {
		path = ownPath(r.Handshake.Local.Port(), path)
	}
	r.Path = &path
}

// PathTo returns the path to a probed address, nil if that path was not traced.
func (r *Report) PathTo(addr netip.Addr) *shaker.Path {
	if addr != r.Handshake.Peer.Addr() {
		return nil
	}
	return r.Path
}

const (
	tracesAtOnce  = 8 // how many paths of flows are traced at the same time
	tracesPerFlow = 3 // how often each of them is traced, to count what gets lost
)

// TraceFlows makes the probe trace the path of each flow of the worst address, several times, after the timeout and for
// as long as that takes. The probe calls onFlow after each trace, with the number of traces that have ended and of all.
func (r *Request) TraceFlows(onFlow func(traced, all int)) {
	r.Module.TCP.Path, r.onFlow = config.Always, onFlow
}

// traceFlows traces the paths of all flows. The path of a flow is that of the trace with the most answers: routers
// limit the rate of their ICMP errors. A trace that was incomplete counts only if all are.
func (r *Report) traceFlows(ctx context.Context, p *Prober) {
	paths := make([]shaker.Path, len(r.Flows))
	r.FlowPaths = make([]FlowPath, len(r.Flows))
	var mu sync.Mutex
	traced, all := 0, tracesPerFlow*len(r.Flows)
	raw := p.IsRawFor(&r.Module)
	r.onFlow(traced, all)
	for round := 0; round < tracesPerFlow && (round == 0 || ctx.Err() == nil); round++ {
		var tracing errgroup.Group // only for its limit
		tracing.SetLimit(tracesAtOnce)
		for i, f := range r.Flows {
			tracing.Go(func() error {
				options := shaker.TraceOptions{Timeout: LongestTrace, MaxHops: int(r.Module.TCP.MaxHops)}
				path, err := p.options.Shaker.Trace(ctx, f.Handshake, &options)
				found := newFlowPath(f, &path, err)
				found.count(&path, &options, raw)
				mu.Lock()
				defer mu.Unlock()
				before := r.FlowPaths[i]
				if before.Port == 0 || found.isBetter(&before) {
					paths[i], r.FlowPaths[i] = path, found
				}
				r.FlowPaths[i].Counts = AddCounts(before.Counts, found.Counts)
				traced++
				r.onFlow(traced, all)
				return nil
			})
		}
		tracing.Wait()
	}
	worst := slices.IndexFunc(r.Flows, func(f Flow) bool { return f.Handshake.Local == r.Handshake.Local })
	if worst >= 0 {
		r.setPath(paths[worst], r.FlowPaths[worst].Err)
	}
	if partings := r.Partings(); len(partings) > 0 {
		r.Parting = &partings[0]
	}
}
