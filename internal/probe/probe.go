package probe

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// MaxAddresses is the maximum number of addresses of a name that are probed. Each address has series of its own.
const MaxAddresses = 64

// Probe makes a probe. An error means that there is no verdict: it is [ErrDenied], [ErrInFlight], an
// error of [shaker.Shaker.Shake], or an error of the resolver because a local resource is exhausted.
func (p *Prober) Probe(ctx context.Context, req *Request) (*Report, error) {
	start := time.Now()
	if req.Addr.IsValid() {
		if err := req.Check(req.Addr); err != nil {
			return nil, err
		}
	}
	if !p.admit(1) {
		return nil, ErrInFlight
	}
	defer p.release(1)
	report := &Report{Request: req, Start: start}
	deadline := start.Add(req.Timeout)
	if err := report.run(ctx, p, deadline.Add(-req.traceTime())); err != nil {
		return nil, err
	}
	if report.wantsPath() {
		report.trace(ctx, p, deadline)
	}
	report.Duration = time.Since(start)
	return report, nil
}

// run resolves the name and performs the handshakes.
func (r *Report) run(ctx context.Context, p *Prober, deadline time.Time) error {
	addr := r.Addr
	if !addr.IsValid() {
		addrs, err := r.lookup(ctx, p, deadline)
		if err != nil || addrs == nil {
			return err
		}
		if r.Module.TCP.Addresses == config.All {
			return r.shakeAll(ctx, p, addrs, deadline)
		}
		addr = choose(addrs, r.Module.TCP.PreferredIPProtocol)
	} else if r.Module.TCP.Addresses == config.All {
		return r.shakeAll(ctx, p, []netip.Addr{addr}, deadline)
	}
	var err error
	r.Verdict, err = r.shake(ctx, p, addr, deadline)
	return err
}

// lookup resolves the name and returns the addresses that the policy permits. If it returns neither an
// address nor an error, the report has a verdict about the name.
func (r *Report) lookup(ctx context.Context, p *Prober, deadline time.Time) ([]netip.Addr, error) {
	var err error
	tcp := &r.Module.TCP
	if r.Resolution, err = resolve(ctx, p.options.DialDNS, r.Name, tcp.Network(), deadline); err != nil {
		return nil, err
	}
	r.Result, r.At = r.Resolution.Result, r.Resolution.Took
	if r.Result != "" {
		return nil, nil
	}
	var unusable error
	addrs := slices.DeleteFunc(slices.Clone(r.Resolution.Addrs), func(addr netip.Addr) bool {
		err := checkAddr(addr)
		unusable = cmp.Or(unusable, err)
		return err != nil
	})
	if len(addrs) == 0 {
		r.Result = config.DNSError
		r.Resolution.Result = config.DNSError
		r.Resolution.Err = fmt.Errorf("no usable address: %w", unusable)
		return nil, nil
	}
	var denied error
	addrs = slices.DeleteFunc(addrs, func(addr netip.Addr) bool {
		err := r.Check(addr)
		denied = cmp.Or(denied, err)
		return err != nil
	})
	if len(addrs) == 0 {
		return nil, denied
	}
	return addrs, nil
}

// shake performs a handshake with an address.
func (r *Report) shake(ctx context.Context, p *Prober, addr netip.Addr, deadline time.Time) (v Verdict, err error) {
	options := r.Module.Options()
	options.Timeout = max(1, time.Until(deadline))
	v.Handshake, err = p.options.Shaker.Shake(ctx, netip.AddrPortFrom(addr, r.Port), &options)
	v.At = time.Since(r.Start)
	v.Result = v.Handshake.Outcome.String()
	v.Errno = shaker.ErrnoName(v.Handshake.Errno)
	return v, err
}

// shakeAll performs handshakes with all addresses at the same time. If this host could not probe one of
// them, there is no verdict about the name.
func (r *Report) shakeAll(ctx context.Context, p *Prober, addrs []netip.Addr, deadline time.Time) error {
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if len(addrs) > MaxAddresses {
		r.Result, r.At = config.DNSError, time.Since(r.Start)
		r.Resolution.Result = config.DNSError
		r.Resolution.Err = fmt.Errorf("%d addresses, at most %d can be probed", len(addrs), MaxAddresses)
		return nil
	}
	others := int64(len(addrs) - 1) // Probe has admitted one already
	if !p.admit(others) {
		return ErrInFlight
	}
	defer p.release(others)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.Verdicts = make([]Verdict, len(addrs))
	var shaking sync.WaitGroup
	for i, addr := range addrs {
		shaking.Go(func() {
			var err error
			if r.Verdicts[i], err = r.shake(ctx, p, addr, deadline); err != nil {
				cancel(err) // the first one is the cause
			}
		})
	}
	shaking.Wait()
	r.Verdict = slices.MaxFunc(r.Verdicts, r.worse)
	return context.Cause(ctx)
}
