package registry

import (
	"errors"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

const (
	// lookupsAtOnce limits how many lookups run concurrently. A lookup that finds no room is made later.
	lookupsAtOnce = 64
	lookupTimeout = 5 * time.Second
)

// Resolve starts the lookups that are due. The Registry calls it every second.
func (r *Registry[T]) Resolve(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	began := r.now()
	for _, t := range r.targets {
		own := t.registration()
		if !own.active() || !own.mustLookUp(r.at(now)) {
			continue
		}
		select {
		case r.lookups <- struct{}{}:
		default:
			return // the rest has to wait for the next time
		}
		own.setLooking(true)
		r.running.Go(func() {
			defer func() { <-r.lookups }()
			defer own.setLooking(false)
			r.lookUp(t, began)
		})
	}
}

// lookUp looks the name of a target up, and lets the target adapt to its addresses. A result that was found with a
// configuration that is not active any more is ignored: the name is looked up again within seconds.
func (r *Registry[T]) lookUp(t T, began moment) {
	own := t.registration()
	c := r.options.Prober.Config()
	req, err := probe.NewRequest(c, own.Key.Target, own.Key.Module)
	if err != nil {
		return // the module has gone: Configure forgets the target
	}
	req.Timeout = lookupTimeout
	interval := r.options.Resolve(own.Module)
	report, addrs, err := r.options.Prober.Resolve(r.ctx, req)
	reloaded := func() bool { return r.options.Prober.Config() != c }
	switch {
	case reloaded():
	case errors.Is(err, probe.ErrDenied):
		r.forgetIf(t, func() bool { return true }) // the next scrape says so
	case err != nil: // a local error: the addresses are not known
		own.countLookup(fault, began, interval)
	default:
		t.Adapt(report, addrs)
		result := report.Result
		if len(report.Resolution.Addrs) > 0 {
			result = Resolved
		}
		own.countLookup(result, began, interval)
		if reloaded() { // Configure may have looked at the previous address
			r.forgetIf(t, func() bool {
				return !permits(r.options.Prober.Config(), own.Key.Module, own.Module, t.Peer())
			})
		}
	}
}
