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

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// MaxAddresses is the maximum number of addresses of a name that are probed. Each address has series of its own.
const MaxAddresses = 64

// Probe performs a probe. An error means that there is no verdict: it is [ErrDenied], [ErrInFlight], [ErrAddresses],
// an error of [shaker.Shaker.Shake], [context.Canceled] if the caller is gone, or an error of the resolver because a
// local resource is exhausted.
func (p *Prober) Probe(ctx context.Context, req *Request) (*Report, error) {
	start := time.Now()
	if req.Addr.IsValid() {
		if err := req.Check(req.Addr); err != nil {
			return nil, err
		}
	}
	if !p.admit(1) {
		return nil, p.errInFlight()
	}
	defer p.release(1)
	r := &running{Report: &Report{Request: req, Start: start}, prober: p}
	defer r.leaveAll()
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	switch {
	case !r.wantsPath():
	case r.Module.TCP.Flows > 0:
		p.traceFlight(ctx, r.Report, r.flightOf(r.Handshake.Peer), start.Add(req.Timeout))
	default:
		r.trace(ctx, p, start.Add(req.Timeout))
	}
	r.shareTimeout()
	r.Duration = time.Since(start)
	return r.Report, nil
}

// A running is a probe that has not ended.
type running struct {
	*Report
	prober *Prober
	lookup *lookup      // nil if the target is an address
	addrs  []netip.Addr // addresses to probe, as far as they are known
	denied []netip.Addr // the other addresses of the name that the policy does not permit

	seats []*seat // in flights; guarded by the mutex of the Prober's flights
}

// run resolves the name and performs the handshakes.
func (r *running) run(ctx context.Context) error {
	if r.Addr.IsValid() {
		r.addrs = []netip.Addr{r.Addr}
	} else {
		r.lookup = newLookup(ctx, r.prober.options.DialDNS, r.Report)
		defer r.lookup.end()
		if err := r.resolve(ctx); err != nil {
			return err
		}
	}
	switch {
	case len(r.addrs) == 0:
		return r.noAddress()
	case r.Module.TCP.Addresses == config.All:
		return r.shakeAll(ctx)
	}
	if err := r.shake(ctx, r.choose(r.addrs), &r.Verdict); err != nil {
		return err
	}
	if r.lookup != nil && lacksFamily(&r.Verdict) {
		return r.fallBack(ctx)
	}
	return nil
}

// networks returns the networks of the addresses to probe, "ip4", "ip6" or both.
func (r *Request) networks() []string {
	if network := r.Module.TCP.Network(); network != "ip" {
		return []string{network}
	}
	return []string{config.IP4, config.IP6}
}

// deadline returns when the handshakes end. The rest of the timeout is for the trace of the path.
func (r *Report) deadline() time.Time { return r.Start.Add(r.budget()) }

// budget returns how long name resolution and handshakes may take together.
func (r *Report) budget() time.Duration { return r.Timeout - r.traceTime() }

// lookupTime returns how long name resolution may take.
func (r *Report) lookupTime() time.Duration {
	if limit := r.Module.TCP.DNSTimeout; limit > 0 {
		return min(limit, r.budget())
	}
	return r.budget()
}

// resolve waits for the addresses of the name, as long as [running.patience] says.
func (r *running) resolve(ctx context.Context) error {
	for {
		until, ok := r.patience()
		if !ok {
			break
		}
		answer, ok := r.lookup.next(until)
		if !ok {
			break
		}
		if answer.fault != nil {
			return answer.fault
		}
		r.add(answer.addrs)
	}
	r.Resolution.Took = time.Since(r.Start)
	r.Resolution.Silent = r.lookup.shares.allSilent()
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return nil
}

// patience returns until when the probe waits for an answer of the resolver, given the addresses that it knows. ok
// is false if the known addresses are enough.
//
// The address of the preferred protocol is waited for as long as the handshake with another address would still have
// the time that it needs: for half of what it does not need, because the probe may wake up late. With addresses: all
// there is nothing to choose: the probe needs all addresses, and waits until the handshakes have only the time left
// that usually is enough for an answer.
func (r *running) patience() (until time.Time, ok bool) {
	most := r.lookupTime()
	switch {
	case len(r.addrs) == 0:
	case r.Module.TCP.Addresses == config.All:
		most = min(most, needed(r.budget()))
	case !r.lookup.isWaiting(r.Module.TCP.PreferredIPProtocol):
		return time.Time{}, false
	default:
		most = min(most, (r.budget()-needed(r.budget()))/2)
	}
	return r.Start.Add(most), true
}

// needed returns how much of a time the handshake must have, so that silence is a verdict about the target: three
// quarters.
func needed(d time.Duration) time.Duration { return d / 4 * 3 }

// add adds addresses of the name to those to probe, except the ones that must not be probed.
func (r *running) add(addrs []netip.Addr) {
	r.Resolution.Addrs = append(r.Resolution.Addrs, addrs...)
	for _, addr := range addrs {
		err := checkAddr(addr)
		if err == nil {
			if err = r.Check(addr); err != nil {
				r.denied = append(r.denied, addr)
			}
		}
		if err != nil {
			r.Resolution.LeftOut = append(r.Resolution.LeftOut, err)
			continue
		}
		r.addrs = append(r.addrs, addr)
	}
}

// choose returns the first address of the preferred protocol, or the first address if there is none.
func (r *Request) choose(addrs []netip.Addr) netip.Addr {
	for _, addr := range addrs {
		if protocol(addr) == r.Module.TCP.PreferredIPProtocol {
			return addr
		}
	}
	return addrs[0]
}

// noAddress sets the verdict about a name without an address to probe. If the policy is the reason, it returns an
// error instead.
func (r *running) noAddress() error {
	if len(r.denied) > 0 {
		return r.Check(r.choose(r.denied))
	}
	reason := r.lookup.failure()
	switch {
	case reason != nil:
	case len(r.Resolution.LeftOut) > 0:
		reason = &nameError{result: config.DNSError, err: fmt.Errorf("no usable address: %w", r.Resolution.LeftOut[0])}
	default:
		reason = r.lookup.absent
	}
	r.Verdict = r.aboutName(reason)
	return nil
}

// aboutName returns the verdict that is about the name, and not about an address of it.
func (r *running) aboutName(reason *nameError) Verdict {
	return Verdict{Result: reason.result, Err: reason.err, At: time.Since(r.Start)}
}

// shake performs the handshakes with an address, one for each flow or only one. The verdict is undefined if there is an
// error.
func (r *running) shake(ctx context.Context, addr netip.Addr, v *Verdict) error {
	if r.Module.TCP.Flows > 0 {
		return r.shakeFlows(ctx, addr, v)
	}
	return r.shakeOnce(ctx, addr, v)
}

// shakeOnce performs one handshake with an address. The verdict is undefined if there is an error.
//
// The caller provides the memory of the verdict, because a copy of it would enlarge the stack of the goroutine that
// waits for the target.
//
// Silence is a verdict about the target only if the handshake had the time that it needs. If it had less, or
// nothing at all, the verdict is about the DNS servers, provided that name resolution took most of the missing time.
// Otherwise this host was late, and there is no verdict.
func (r *running) shakeOnce(ctx context.Context, addr netip.Addr, v *Verdict) (err error) {
	target := netip.AddrPortFrom(addr, r.Port)
	left := time.Until(r.deadline())
	options := r.Module.Options()
	options.Timeout = max(1, left)
	v.Handshake, err = r.countedShake(ctx, target, &options)
	v.At = time.Since(r.Start)
	waited := time.Duration(0) // no SYN was sent
	if v.Handshake.Outcome == shaker.Timeout && left < needed(r.budget()) {
		err = fmt.Errorf("shake %v: %w", target, shaker.ErrUnsent)
		waited = left
	}
	if err = withoutVersion(&v.Handshake, target, err); r.tookTooLong(err, waited, v) {
		v.Handshake.Peer = target
		return nil
	}
	if err != nil {
		return err
	}
	v.Result = v.Handshake.Outcome.String()
	v.Errno = shaker.ErrnoName(v.Handshake.Errno)
	return nil
}

// withoutVersion makes the error that this kernel lacks the IP version of the target a result: the same one as with a
// kernel that has the version disabled.
func withoutVersion(h *shaker.Result, target netip.AddrPort, err error) error {
	if !errors.Is(err, syscall.EAFNOSUPPORT) {
		return err
	}
	*h = shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.EAFNOSUPPORT, Peer: target}
	return nil
}

// tookTooLong makes the verdict one about the DNS servers if an error means that a handshake had too little time, and
// name resolution took most of what was missing. The handshake had so much time.
func (r *running) tookTooLong(err error, had time.Duration, v *Verdict) bool {
	if !errors.Is(err, shaker.ErrUnsent) || r.lookup == nil || !r.lookup.asked ||
		r.Resolution.Took <= (r.budget()-had)/2 {
		return false
	}
	v.Result = config.DNSTimeout
	v.Err = fmt.Errorf("name resolution took %v of %v, which left the target too little time to answer",
		r.Resolution.Took.Round(time.Millisecond), r.budget())
	return true
}

// shakeAll performs handshakes with all addresses at the same time. If this host could not probe one of
// them, there is no verdict about the name. If some addresses of the name are not known, that is one more verdict.
func (r *running) shakeAll(ctx context.Context) error {
	slices.SortFunc(r.addrs, netip.Addr.Compare)
	addrs := slices.Compact(r.addrs)
	limit, by := MaxAddresses, "the maximum for addresses: all"
	if most, flows := r.prober.options.MaxInFlight, int(r.Module.TCP.Flows); 0 < most && most/max(1, flows) < limit {
		limit, by = most/max(1, flows), "--probe.max-in-flight"
		if flows > 0 {
			by = fmt.Sprintf("--probe.max-in-flight is %d, and the module has %d flows for each address", most, flows)
		}
	}
	if len(addrs) > limit {
		return fmt.Errorf("%w: %s has %d, the limit is %d (%s)", ErrAddresses, r.Name, len(addrs), limit, by)
	}
	others := int64(len(addrs)) - 1 // Probe has admitted one already
	if !r.prober.admit(others) {
		return r.prober.errInFlight()
	}
	defer r.prober.release(others)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.Verdicts = make([]Verdict, len(addrs))
	done := make([]bool, len(addrs))
	var shaking sync.WaitGroup
	for i, addr := range addrs {
		shaking.Go(func() {
			if err := r.shake(ctx, addr, &r.Verdicts[i]); err != nil {
				cancel(err) // the first one is the cause
				return
			}
			done[i] = true
		})
	}
	shaking.Wait()
	if err := context.Cause(ctx); err != nil {
		for i, v := range r.Verdicts {
			if done[i] && v.Flows != nil {
				r.reportPart(v)
			}
		}
		return err
	}
	if r.lookup != nil {
		if reason := r.lookup.failure(); reason != nil {
			r.Unknown = new(r.aboutName(reason))
		}
		r.leaveOutLacking()
	}
	r.Verdict = slices.MaxFunc(r.Each(), r.worse)
	return nil
}

// reportPart reports a verdict about some flows of a probe that ends without one.
func (r *running) reportPart(v Verdict) {
	if r.partial != nil {
		r.partial(&Report{Request: r.Request, Start: r.Start, Duration: time.Since(r.Start), Verdict: v})
	}
}

// countedShake performs a handshake and counts it while it runs, and from then on if it has sent a SYN.
func (r *running) countedShake(ctx context.Context, target netip.AddrPort, options *shaker.Options) (
	h shaker.Result, err error,
) {
	if r.sent == nil {
		return r.prober.options.Shaker.Shake(ctx, target, options)
	}
	r.sent.Add(1)
	h, err = r.prober.options.Shaker.Shake(ctx, target, options)
	if err == nil && !sentSYN(&h) || err != nil && !errors.Is(err, context.Canceled) {
		r.sent.Add(-1)
	}
	return h, err
}
