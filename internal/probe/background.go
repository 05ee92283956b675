package probe

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// What runs in the background between probes uses these parts of a probe.

// Resolve resolves the name of a request, as a probe does, without a handshake. The addresses are those that may be
// probed, the first one being the one that a probe would choose. If there are none, the report has a verdict about the
// name. An error means that there is no verdict: it is [ErrDenied], or a local error. The address of a target that has
// no name is checked only.
func (p *Prober) Resolve(ctx context.Context, req *Request) (*Report, []netip.Addr, error) {
	r := &running{Report: &Report{Request: req, Start: time.Now()}, prober: p}
	if req.Addr.IsValid() {
		if err := req.Check(req.Addr); err != nil {
			return nil, nil, err
		}
		return r.Report, []netip.Addr{req.Addr}, nil
	}
	r.lookup = newLookup(ctx, p.options.DialDNS, r.Report)
	defer r.lookup.end()
	if err := r.resolve(ctx); err != nil {
		return nil, nil, err
	}
	if len(r.addrs) == 0 {
		return r.Report, nil, r.noAddress()
	}
	first := r.choose(r.addrs)
	others := slices.DeleteFunc(r.addrs, func(addr netip.Addr) bool { return addr == first })
	return r.Report, append([]netip.Addr{first}, others...), nil
}

// Choose returns the address to connect to for a request, as a probe chooses it: that of the target, or one of its
// name. The address is invalid if the name has none; then the report has a verdict about the name. An error is that of
// Resolve.
func (p *Prober) Choose(ctx context.Context, req *Request) (*Report, netip.AddrPort, error) {
	report, addrs, err := p.Resolve(ctx, req)
	if err != nil || len(addrs) == 0 {
		if err == nil {
			report.Duration = time.Since(report.Start)
		}
		return report, netip.AddrPort{}, err
	}
	return report, netip.AddrPortFrom(addrs[0], req.Port), nil
}

// TracePath traces the path to the address of a report whose handshake has ended. It sets the Path of the report, or
// its PathErr.
func (p *Prober) TracePath(ctx context.Context, r *Report) {
	if !p.admit(1) {
		r.PathErr = errTooManyForTrace
		return
	}
	defer p.release(1)
	deadline := time.Now().Add(LongestTrace)
	if r.Module.TCP.Flows > 0 {
		p.traceFlight(ctx, r, nil, deadline)
		return
	}
	r.trace(ctx, p, deadline)
}
