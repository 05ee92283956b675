package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// flightOf returns the flight with an address in which the probe takes part, nil if there is none.
func (r *running) flightOf(peer netip.AddrPort) *flight {
	for _, s := range r.seats {
		if s.flight.key.peer == peer {
			return s.flight
		}
	}
	return nil
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
		defer p.leave(s)
		f = s.flight
	}
	waiting := ctx
	if r.onFlow == nil {
		var cancel context.CancelFunc
		waiting, cancel = context.WithDeadlineCause(ctx, deadline, errPortsBusy)
		defer cancel()
	}
	err := p.flights.await(waiting, f, func() bool { return !f.flying })
	if err == nil {
		select {
		case f.tracing <- struct{}{}:
		case <-waiting.Done():
			err = context.Cause(waiting)
		}
	}
	if err != nil {
		r.PathErr = fmt.Errorf("not traced: %w", err)
		return
	}
	defer func() { <-f.tracing }()
	if t := f.traced; t != nil && r.onHop == nil && r.onFlow == nil && t.isAboutFlow(r) {
		r.Path, r.Parting = t.Path, t.Parting
		return
	}
	r.trace(ctx, p, p.flights.nextEnd(f, deadline))
	if r.PathErr == nil {
		f.traced = new(*r) // a copy, because the probe goes on to change its report
	}
}

// isAboutFlow reports whether another report describes the same handshake with the same module, so that both have the
// same path.
func (r *Report) isAboutFlow(other *Report) bool {
	return r.Handshake == other.Handshake && reflect.DeepEqual(r.Module, other.Module)
}

// nextEnd returns when the next of the probes in a flight ends, and the deadline if that is sooner. So all probes that
// share the path get it in time.
func (all *flights) nextEnd(f *flight, deadline time.Time) time.Time {
	all.mu.Lock()
	defer all.mu.Unlock()
	now := time.Now()
	for _, s := range f.seats {
		if end := s.start.Add(s.timeout); now.Before(end) && end.Before(deadline) {
			deadline = end
		}
	}
	return deadline
}

// errPortsBusy means that other handshakes had the ports of the flows for too long.
var errPortsBusy = errors.New("other probes of the same address use the ports of the flows")

// forTrace lets the caller take part in the flight with the key, or in a new one without handshakes.
func (all *flights) forTrace(key flightKey, m *config.Module) *seat {
	all.mu.Lock()
	defer all.mu.Unlock()
	f := all.all[key]
	if f == nil || len(f.seats) == 0 {
		f = all.add(key, m)
	}
	s := new(seat)
	f.add(s)
	return s
}
