package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Flow is one of the handshakes with an address that a probe with flows performs at the same time. Routers and links
// that share the load by ports send the packets of one flow along one path.
type Flow struct {
	Port uint16 // of this host
	Verdict
}

// performFlows performs a handshake with an address from each port, until the end of the context at the latest. The
// verdict is the worst one. A flow whose port another program has is left out. If all are, or if this host could not
// perform one of the others, there is no verdict.
func (r *running) performFlows(ctx context.Context, addr netip.Addr, ports shaker.PortRange, v *Verdict) error {
	flows := make([]Flow, r.Module.TCP.Flows)
	busy := make([]error, len(flows))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var shaking sync.WaitGroup
	var failed sync.Once
	var fault error // the first one is the cause of the others
	for i := range flows {
		flows[i].Port = ports.First + uint16(i)
		shaking.Go(func() {
			err := r.shakeFlow(ctx, addr, flows[i].Port, &flows[i].Verdict)
			if errors.Is(err, syscall.EADDRINUSE) {
				busy[i] = err
			} else if err != nil {
				failed.Do(func() { fault = fmt.Errorf("flow from port %d: %w", flows[i].Port, err) })
				cancel()
			}
		})
	}
	shaking.Wait()
	if fault != nil {
		return fault
	}
	var performed []Flow
	for i := range flows {
		if busy[i] == nil {
			performed = append(performed, flows[i])
		}
	}
	if performed == nil {
		return fmt.Errorf("all ports of the flows, %v, are in use by other programs, or reserved by an exporter of "+
			"another user, want other source ports: %w", ports, busy[0])
	}
	*v = r.VerdictOf(performed)
	return nil
}

// busyWait is how long a probe waits before it tries again to use a port that another handshake with the address has.
const busyWait = 20 * time.Millisecond

// shakeFlow is shakeFrom for a flow. Another process may have a handshake with the address from the same port, such as
// the command line beside an exporter. The probe waits for the port for as long as the handshake would still have the
// time that it needs.
func (r *running) shakeFlow(ctx context.Context, addr netip.Addr, port uint16, v *Verdict) error {
	for {
		err := r.shakeFrom(ctx, addr, port, v)
		if !errors.Is(err, syscall.EADDRNOTAVAIL) || time.Until(r.deadline())-busyWait < needed(r.budget()) {
			return err
		}
		select {
		case <-time.After(busyWait):
		case <-ctx.Done():
			return err
		}
	}
}

// VerdictOf returns the verdict about an address, given those of its flows, at least one: the worst one.
func (r *Report) VerdictOf(flows []Flow) Verdict {
	v := slices.MaxFunc(flows, func(a, b Flow) int { return r.worse(a.Verdict, b.Verdict) }).Verdict
	v.Flows = flows
	return v
}

// FlowPorts returns the ports from which the handshakes of a module with flows are sent, one for each flow. They are
// the zero range for a module without flows. Of the ports that this process reserves, modules have different ones.
func (p *Prober) FlowPorts(m *config.Module) (ports shaker.PortRange, err error) {
	if m.TCP.Flows == 0 {
		return ports, nil
	}
	before, flows := m.TCP.FlowsBefore, int(m.TCP.Flows)
	raw := p.options.Shaker.Ports()
	switch {
	case m.TCP.SourcePorts != shaker.PortRange{}:
		ports.First = m.TCP.SourcePorts.First
	case m.TCP.Close == config.Reset && int(raw.First)+before+flows <= int(raw.Last)+1:
		ports.First = raw.First + uint16(before)
	default:
		block, err := p.ports.get(before / config.MaxFlows)
		if err != nil {
			return ports, err
		}
		ports.First = block + uint16(before%config.MaxFlows)
	}
	ports.Last = ports.First + uint16(flows) - 1
	return ports, nil
}

// reservedPorts are blocks of ports that are reserved when they are needed for the first time, and as long as this
// process runs.
type reservedPorts struct {
	mu     sync.Mutex
	blocks []*shaker.Ports
}

// get returns the first port of a block. All blocks before it are reserved first, so that each has the same ports after
// a restart.
func (p *reservedPorts) get(block int) (first uint16, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.blocks) <= block {
		reserved, err := shaker.ReservePorts(config.MaxFlows)
		if err != nil {
			return 0, err
		}
		p.blocks = append(p.blocks, reserved)
	}
	return p.blocks[block].First, nil
}

// FailedFlows returns those flows of a verdict whose results are not valid.
func (r *Report) FailedFlows(v *Verdict) []Flow {
	var failed []Flow
	for _, f := range v.Flows {
		if !r.Valid(f.Result) {
			failed = append(failed, f)
		}
	}
	return failed
}

// A FlowPath is the path of a flow. Its hops are only those from which the port of the flow is known to have got an
// answer, or none: a SYN from another port may have taken another path.
type FlowPath struct {
	Flow
	Hops []shaker.Hop
	Err  error // not nil if the path is incomplete
}

// newFlowPath returns the path of a flow, given what a trace has found.
func newFlowPath(f Flow, path *shaker.Path, err error) FlowPath {
	hops := path.Hops
	for i, h := range hops {
		// A silent hop may lack the local address.
		if h.Local.IsValid() && h.Local.Port() != f.Port {
			hops = hops[:i]
			break
		}
	}
	return FlowPath{Flow: f, Hops: hops, Err: err}
}

// A Parting is where the path of a flow that fails parts from the paths of those that do not.
type Parting struct {
	Good   Flow         // one that does not fail
	Path   *shaker.Path // of the good flow
	Shared shaker.Hop   // the last hop that the good ones have as well; the zero Hop if there is none
	Failed shaker.Hop   // the first hop that only the flow that fails has; the zero Hop if none answered
}

// mostGoodFlows limits how many flows that do not fail are traced. With only one, a hop that it avoids by chance would
// look like one that only failing flows pass.
const mostGoodFlows = 8

// goodFlows returns flows with a valid result, provided that another one of the same address has an invalid result.
func (r *Report) goodFlows() (good []Flow) {
	if r.Valid(r.Result) {
		return nil
	}
	for _, f := range r.Flows {
		if r.Valid(f.Result) && len(good) < mostGoodFlows {
			good = append(good, f)
		}
	}
	return good
}

// part finds where the path of a flow that fails parts from the paths of good ones.
func (p *Parting) part(failing FlowPath, good ...FlowPath) {
	type hop struct {
		ttl  int
		from netip.Addr
	}
	at, seen := make(map[hop]bool), make(map[netip.Addr]bool)
	for _, g := range good {
		for _, h := range g.Hops {
			at[hop{h.TTL, h.From}], seen[h.From] = true, true
		}
	}
	for _, h := range failing.Hops {
		switch {
		case !h.From.IsValid():
		case at[hop{h.TTL, h.From}]:
			p.Shared = h
		case !seen[h.From] && avoided(h.TTL, good):
			p.Failed = h
			return
		}
	}
}

// avoided reports whether a hop at a distance, which is not on the paths of good flows as far as they are known, really
// is not: more of them have another hop there, or none, than have one that did not answer. Routers limit the rate of
// their ICMP errors, so that a hop may answer some flows only.
func avoided(ttl int, good []FlowPath) bool {
	known := 0
	for _, g := range good {
		switch {
		case ttl <= len(g.Hops) && g.Hops[ttl-1].From.IsValid(), ttl > len(g.Hops) && g.reached():
			known++
		default:
			known--
		}
	}
	return known > 0
}

// reached reports whether the path ends at a hop that did not send the ICMP error of a router on the path.
func (p *FlowPath) reached() bool {
	n := len(p.Hops)
	return n > 0 && p.Hops[n-1].From.IsValid() && p.Hops[n-1].ICMP.String() != TTLExceeded
}

// FailedHop returns the first hop on the path of a flow that fails that only failing flows pass. It is the zero Hop if
// there is none, or if all flows fail.
func (r *Report) FailedHop(failing *FlowPath) shaker.Hop {
	var p Parting
	if !r.Valid(failing.Result) {
		p.part(*failing, r.goodPaths()...)
	}
	return p.Failed
}

// goodPaths returns the paths of the flows that do not fail.
func (r *Report) goodPaths() []FlowPath {
	var good []FlowPath
	for _, path := range r.FlowPaths {
		if r.Valid(path.Result) {
			good = append(good, path)
		}
	}
	return good
}

// String describes where the paths part.
func (p *Parting) String() string { return DescribeParting(hopOf(p.Shared), hopOf(p.Failed)) }

// answers returns how many hops of the path answered.
func (p *FlowPath) answers() (n int) {
	for _, h := range p.Hops {
		if h.From.IsValid() {
			n++
		}
	}
	return n
}

// silentWhereOthersAnswer returns the indices of the flows that got no answer at a distance at which others did. The
// reason may be that routers limit the rate of their ICMP errors, so that it is worth another try.
func (r *Report) silentWhereOthersAnswer() []int {
	answered := make(map[int]bool) // by TTL
	for _, path := range r.FlowPaths {
		for _, h := range path.Hops {
			answered[h.TTL] = answered[h.TTL] || h.From.IsValid()
		}
	}
	var silent []int
	for i, path := range r.FlowPaths {
		missing := !path.reached() && answered[len(path.Hops)+1]
		for _, h := range path.Hops {
			missing = missing || !h.From.IsValid() && answered[h.TTL]
		}
		if missing {
			silent = append(silent, i)
		}
	}
	return silent
}

// tracesAtOnce is how many paths of flows are traced at the same time.
const tracesAtOnce = 8

// TraceFlows makes the probe trace the path of each flow of the worst address, after the timeout and for as long as
// that takes. A flow that gets no answer where others do is traced twice. The probe calls onFlow after each trace, with
// the number of traces that have ended and of all that are known to be necessary.
func (r *Request) TraceFlows(onFlow func(traced, all int)) {
	r.Module.TCP.Path, r.onFlow = config.Always, onFlow
}

// traceFlows traces the paths of all flows.
func (r *Report) traceFlows(ctx context.Context, p *Prober) {
	paths := make([]shaker.Path, len(r.Flows))
	r.FlowPaths = make([]FlowPath, len(r.Flows))
	var mu sync.Mutex
	traced, all := 0, 0
	trace := func(flows []int) {
		var tracing errgroup.Group // only for its limit
		tracing.SetLimit(tracesAtOnce)
		all += len(flows)
		r.onFlow(traced, all)
		for _, i := range flows {
			tracing.Go(func() error {
				f := r.Flows[i]
				options := shaker.TraceOptions{Timeout: LongestTrace, MaxHops: int(r.Module.TCP.MaxHops)}
				path, err := p.options.Shaker.Trace(ctx, f.Handshake, &options)
				mu.Lock()
				defer mu.Unlock()
				before := &r.FlowPaths[i]
				if found := newFlowPath(f, &path, err); before.Port == 0 || found.answers() > before.answers() {
					paths[i], r.FlowPaths[i] = path, found
				}
				traced++
				r.onFlow(traced, all)
				return nil
			})
		}
		tracing.Wait()
	}
	every := make([]int, len(r.Flows))
	for i := range every {
		every[i] = i
	}
	trace(every)
	if again := r.silentWhereOthersAnswer(); len(again) > 0 && ctx.Err() == nil {
		trace(again)
	}
	worst := slices.IndexFunc(r.Flows, func(f Flow) bool { return f.Handshake.Local == r.Handshake.Local })
	if worst < 0 {
		return
	}
	if err := r.FlowPaths[worst].Err; err != nil {
		r.PathErr = fmt.Errorf("incomplete, known up to hop %d: %w", len(paths[worst].Hops), err)
		return
	}
	r.Path = &paths[worst]
	if good := r.goodFlows(); len(good) > 0 {
		r.Parting = &Parting{Good: good[0]}
		for i, path := range r.FlowPaths {
			if path.Port == good[0].Port {
				r.Parting.Path = &paths[i]
			}
		}
		r.Parting.part(r.FlowPaths[worst], r.goodPaths()...)
	}
}
