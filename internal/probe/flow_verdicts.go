package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// shakeFlows performs a handshake with an address for each flow of the module, or shares those of another probe. The
// verdict is the worst one. It is undefined if there is an error.
func (r *running) shakeFlows(ctx context.Context, addr netip.Addr, v *Verdict) error {
	peer := netip.AddrPortFrom(addr, r.Port)
	ports, err := r.prober.FlowPorts(&r.Module)
	if err != nil {
		return err
	}
	if r.known != nil {
		if flows, err := r.known(peer); err != nil || flows != nil {
			if err == nil {
				*v = r.VerdictOf(flows)
				v.LeftOut = othersOf(flows, ports)
			}
			return err
		}
	}
	s := &seat{
		start: r.Start, came: time.Now(), deadline: r.deadline(), needed: needed(r.budget()), timeout: r.Timeout,
	}
	if err := r.board(ctx, s, newFlightKey(peer, ports, &r.Module)); err != nil {
		if r.blamesDNS(s, err, v) {
			v.Handshake, v.At = shaker.Result{Peer: peer}, time.Since(s.start)
			return nil
		}
		return err
	}
	r.countFlows(int(r.Module.TCP.Flows))
	for {
		flows, fault, gone := r.prober.flights.awaitEnd(ctx, s)
		if gone != nil {
			r.reportFlows(s, flows)
			return gone
		}
		err := r.judge(s, flows, fault, v)
		if err == nil {
			sent := slices.DeleteFunc(slices.Clone(v.Flows), func(f Flow) bool { return !sentSYN(&f.Handshake) })
			r.countFlows(len(sent) - int(r.Module.TCP.Flows))
			return nil
		}
		if !isTooLate(err) || !r.prober.flyAgain(s) {
			r.countFlows(r.reportFlows(s, flows) - int(r.Module.TCP.Flows))
			return err
		}
	}
}

// othersOf returns the ports that none of the flows has.
func othersOf(flows []Flow, ports shaker.PortRange) (others []uint16) {
	for n := range int(ports.Last) - int(ports.First) + 1 {
		port := ports.First + uint16(n)
		if !slices.ContainsFunc(flows, func(f Flow) bool { return f.Port == port }) {
			others = append(others, port)
		}
	}
	return others
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
		if flows[i].ended.IsZero() && flows[i].result.Outcome == 0 {
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

// judgeFlow returns what the handshakes of a flow mean for the probe, see [running.shakeOnce].
func (r *running) judgeFlow(s *seat, f *flownFlow, v *Verdict) (err error) {
	switch {
	case f.hasReply(), f.isSilentFor(s.needed):
	case f.err != nil:
		err = f.err
	case f.inUse != nil:
		err = f.inUse
	default:
		err = fmt.Errorf("shake %v: %w", s.flight.key.peer, shaker.ErrUnsent)
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

// shareTimeout makes the timeout of the report the one that applied to the handshakes.
func (r *running) shareTimeout() {
	for _, s := range r.seats {
		if 0 < s.applied && s.applied < r.Timeout {
			shortened := *r.Request
			shortened.Timeout = s.applied
			r.Request = &shortened
		}
	}
}
