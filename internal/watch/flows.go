package watch

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// flows are the flows of a target whose module has them. The handshakes in the background take their ports in turns.
type flows struct {
	ports shaker.PortRange
	all   []flow // of these ports

	stream *stream        // nil while there are no handshakes
	before shaker.Skipped // what the stream had skipped when the target joined it
	begun  moment         // when the target joined it

	// Sets of flows, as bits: there are 64 flows at most.
	failing uint64 // those that failed after the last handshake
	told    uint64 // those that failed at the last call of Options.Changed
	traced  uint64 // those that failed when the path was traced last

	// previous is what was known about the previous address, until each flow has a result with the present one. nil if
	// the present address is the first one.
	previous *probe.Report

	since   int            // handshakes completed since failing changed
	tracing bool           // whether the path is being traced
	parting *probe.Parting // for the path of the present failure, nil if there is none
}

// A flow is what is known about the handshakes from one port.
type flow struct {
	counts    [shaker.Failed + 1]uint64 // by outcome
	last      shaker.Result             // zero if there is none with the present address
	sent      moment                    // when its SYN was sent, or the present address was chosen
	completed moment
	fault     error // why the last handshake was not performed, nil if it was completed
}

// A FlowCount is the number of handshakes from one port, by their outcome.
type FlowCount struct {
	Port  uint16
	Total [shaker.Failed + 1]uint64
}

func newFlows(ports shaker.PortRange) *flows {
	return &flows{ports: ports, all: make([]flow, ports.Last-ports.First+1)}
}

// forget forgets the last results, because the handshakes that are sent from now on have another address. The counters
// stay.
func (f *flows) forget(now moment) {
	for i := range f.all {
		f.all[i].last, f.all[i].sent = shaker.Result{}, now
	}
	f.parting, f.failing, f.traced, f.since = nil, 0, 0, 0
}

// of returns the flow with a port, nil if there is none.
func (f *flows) of(port uint16) *flow {
	if port < f.ports.First || port > f.ports.Last {
		return nil
	}
	return &f.all[port-f.ports.First]
}

// addToFlow counts a completed handshake for its flow. current reports whether it describes the present state of the
// flow. The caller holds mu.
func (t *target) addToFlow(r *shaker.Repeated, sent moment) (current bool) {
	flow := t.flows.of(r.SourcePort)
	if flow == nil {
		return true // no flow had a handshake in the first probe
	}
	flow.fault = nil
	flow.counts[r.Result.Outcome]++
	if current = sent >= flow.sent; current {
		flow.last, flow.sent, flow.completed = r.Result, sent, t.watcher.now()
	}
	if t.knowsFlows() {
		t.flows.previous = nil
	}
	t.flows.since++
	if failing := t.failingFlows(); failing != t.flows.failing {
		t.flows.failing, t.flows.since = failing, 0
	}
	return current
}

// observe passes a handshake on to Options.Observe, and notes whether another program has its port. If so, its flow is
// left out, as by a probe, and this is not a fault, unless all flows are.
func (s *stream) observe(r *shaker.Repeated) {
	all := uint64(1)<<(s.ports.Last-s.ports.First+1) - 1
	flow := uint64(1) << (r.SourcePort - s.ports.First)
	taken, before := isTaken(r.Err), s.taken&flow != 0
	if s.taken &^= flow; taken {
		s.taken |= flow
	}
	if taken || before {
		s.watcher.options.Prober.NoteTaken(s.name, s.key.peer.Addr(), r.SourcePort, taken)
	}
	if !taken || s.taken == all {
		s.watcher.options.Observe(s.name, r)
	}
}

// isTaken reports whether a handshake was not performed because another program has its port.
func isTaken(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// addFault notes that a handshake of a flow was not performed. again reports whether the reason is that another program
// still has its port, while others can be performed. The caller holds mu.
func (t *target) addFault(r *shaker.Repeated) (again bool) {
	own := t.flows.of(r.SourcePort)
	again = isTaken(own.fault) && isTaken(r.Err) &&
		slices.ContainsFunc(t.flows.all, func(f flow) bool { return !isTaken(f.fault) })
	own.fault = fmt.Errorf("flow from port %d: %w", r.SourcePort, r.Err)
	return again
}

// isCurrent reports whether a flow counts: it has a result, and is not left out. The caller holds mu.
func (t *target) isCurrent(f *flow) bool { return f.last.Outcome != 0 && !t.isLeftOut(f) }

// isLeftOut reports whether a flow does not count because another program uses its port, and it has no result, or has
// missed its last turns. No other reason is good enough: a flow that fails is the one whose handshakes take long, so
// that another handshake from the port, such as one of a trace, is most likely to be in its way. The caller holds mu.
func (t *target) isLeftOut(f *flow) bool {
	return isTaken(f.fault) && (f.last.Outcome == 0 || t.isOverdue(f))
}

// leftOutPorts returns the ports of the flows that do not count because other programs use them. The caller holds mu.
func (t *target) leftOutPorts() (ports []uint16) {
	for i := range t.flows.all {
		if t.isLeftOut(&t.flows.all[i]) {
			ports = append(ports, t.flows.ports.First+uint16(i))
		}
	}
	return ports
}

// isOverdue reports whether a flow has missed its last turns, for longer than a trace from its port takes. The caller
// holds mu.
func (t *target) isOverdue(f *flow) bool {
	turn := time.Duration(len(t.flows.all)) * t.Module.Watch.Interval
	age := time.Duration(t.watcher.now() - max(f.completed, t.flows.begun))
	return age > 3*turn+t.Module.Timeout+probe.LongestTrace
}

// staleFlow returns an error if this host has completed no handshake of a flow for too long. Without the flow, the
// others could make the probe succeed. The caller holds mu.
func (t *target) staleFlow() error {
	for i := range t.flows.all {
		f := &t.flows.all[i]
		if !t.isOverdue(f) || t.isLeftOut(f) {
			continue
		}
		cause := f.fault
		if cause == nil {
			cause = fmt.Errorf("flow from port %d: %w", t.flows.ports.First+uint16(i), errBusy)
		}
		age := time.Duration(t.watcher.now() - max(f.completed, t.flows.begun))
		return fmt.Errorf("%w: none of one flow was completed for %v: %w",
			ErrStale, age.Round(time.Millisecond), cause)
	}
	return nil
}

// failingFlows returns the set of the flows whose last result is not valid. The caller holds mu.
func (t *target) failingFlows() (set uint64) {
	for i := range t.flows.all {
		if f := &t.flows.all[i]; f.last.Outcome != 0 && !t.isValid(&f.last) && t.isCurrent(f) {
			set |= 1 << i
		}
	}
	return set
}

// failsInPart reports whether there are flows whose last result is valid, in addition to those that fail. The caller
// holds mu.
func (t *target) failsInPart() bool {
	return t.flows.failing != 0 && slices.ContainsFunc(t.flows.all, func(f flow) bool {
		return f.last.Outcome != 0 && t.isValid(&f.last) && t.isCurrent(&f)
	})
}

// hasSettled reports whether other flows fail than at the last call of Options.Changed, and the same ones for a whole
// turn. So flows that fail now and then, or one after the other, do not flood the log. The caller holds mu.
func (t *target) hasSettled() bool {
	return t.flows != nil && t.flows.failing != t.flows.told && t.flows.isSteady()
}

// isSteady reports whether the same flows have failed for as many handshakes as there are flows.
func (f *flows) isSteady() bool { return f.since >= len(f.all) }

// knowsFlows reports whether each flow has a result, except those whose ports other programs have. A part of the flows
// does not decide that the target succeeds. The caller holds mu.
func (t *target) knowsFlows() bool {
	return !slices.ContainsFunc(t.flows.all, func(f flow) bool {
		return f.last.Outcome == 0 && !errors.Is(f.fault, syscall.EADDRINUSE)
	})
}

// startFlows notes the results of the first probe. Those that were known before the probe are not counted: other
// targets have had these handshakes. The caller holds mu.
func (t *target) startFlows(report *probe.Report) {
	for i := range t.flows.all {
		t.flows.all[i].fault = syscall.EADDRINUSE // unless the probe has performed it
	}
	t.flows.previous = nil
	for _, f := range report.Flows {
		flow := t.flows.of(f.Port)
		if flow == nil {
			continue
		}
		flow.fault = nil
		if f.Sent.IsZero() {
			t.add(&shaker.Repeated{Result: f.Handshake, Sent: sentAt(report, &f.Verdict), SourcePort: f.Port})
			continue
		}
		sent := t.watcher.at(f.Sent)
		flow.last, flow.sent, flow.completed = f.Handshake, sent, sent+moment(f.Handshake.Waited)
		t.completed = max(t.completed, flow.completed)
		if sent >= t.sent {
			t.last, t.sent = f.Handshake, sent
		}
		t.flows.failing = t.failingFlows()
		t.found(t.present(&f.Handshake), sent)
	}
}

// sentAt returns when the SYN of a handshake of a probe was sent.
func sentAt(report *probe.Report, v *probe.Verdict) time.Time {
	return report.Start.Add(max(0, v.At-v.Handshake.Waited))
}

// currentFlows returns the last results of all flows that count. The caller holds mu.
func (t *target) currentFlows(resolution *probe.Resolution) (all []probe.Flow) {
	for i := range t.flows.all {
		f := &t.flows.all[i]
		if t.isCurrent(f) {
			all = append(all, probe.Flow{Port: t.flows.ports.First + uint16(i), Verdict: verdictOf(&f.last,
				resolution)})
		}
	}
	return all
}

// addFlows adds the last results of all flows to the report of the last handshake, which then is about the worst one.
// The caller holds mu.
func (t *target) addFlows(r *probe.Report) {
	all := t.currentFlows(&r.Resolution)
	if all == nil {
		return // the address has just changed
	}
	r.Verdict = r.VerdictOf(all)
	r.LeftOut = t.leftOutPorts()
	r.Duration = r.At
	worst := slices.IndexFunc(all, func(f probe.Flow) bool { return f.Handshake == r.Handshake })
	r.Start = t.watcher.onWallClock(t.flows.of(all[worst].Port).sent)
	if t.failsInPart() {
		r.Parting = t.flows.parting
	}
}

// historyFlows returns the last results of all flows for the record of a handshake that failed. There may be many of
// them, so that it takes less memory than the report of a scrape. The caller holds mu.
func (t *target) historyFlows() *history.Flows {
	flows := &history.Flows{Each: make([]history.Flow, 0, len(t.flows.all)), LeftOut: t.leftOutPorts()}
	for i := range t.flows.all {
		f := &t.flows.all[i]
		if t.isCurrent(f) {
			flows.Add(history.Flow{
				Port: t.flows.ports.First + uint16(i), Success: t.isValid(&f.last),
				Result: f.last.Outcome.String(), Errno: shaker.ErrnoName(f.last.Errno),
				Latency: f.last.Latency(),
			})
		}
	}
	if flows.Len() == 0 {
		return nil
	}
	return flows
}

// sortFlows puts the flows of a report that had a handshake last in front, so that a trace compares with these. The
// others may fail as well without a result yet, and their handshakes may be using their ports. [Watcher.trace] puts
// the flows into their order again. The caller holds mu.
func (t *target) sortFlows(r *probe.Report) {
	r.Flows = slices.Clone(r.Flows)
	slices.SortFunc(r.Flows, func(a, b probe.Flow) int {
		return cmp.Compare(t.flows.of(b.Port).sent, t.flows.of(a.Port).sent)
	})
}
