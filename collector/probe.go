package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Why a probe is not made, although it could be.
var (
	// errDenied says that the policy for targets forbids to probe an address.
	errDenied = errors.New("may not be probed")

	// errInFlight says that as many probes as may be in flight are.
	errInFlight = errors.New("no more probes may be in flight (--probe.max-in-flight)")
)

// maxAddresses is how many addresses of a name are probed at once. Each makes series.
const maxAddresses = 64

// A Report is what is known of a probe that ended with a verdict.
type Report struct {
	*Request
	start      time.Time
	duration   time.Duration
	resolution resolution // zero if the target was an address
	verdict               // of several addresses, the worst one's

	// verdicts are those about all addresses, in the order of the addresses, if the module
	// probes all of them.
	verdicts []verdict

	// path is the way to the target, if it was traced; pathErr why it could not be.
	path    *shaker.Path
	pathErr error
}

// A verdict is what is said of an address, or of a name that has none.
type verdict struct {
	result, errno string        // as the labels have them
	handshake     shaker.Result // zero if there was no address to shake hands with
	at            time.Duration // when it was there, from the beginning of the probe
}

// Probe makes a probe. An error says that there is no verdict: the policy forbids the target,
// too many handshakes are in flight, or it is one of [shaker.Shaker.Shake], or of the resolver
// for want of something on this host.
func (p *Prober) Probe(ctx context.Context, req *Request) (*Report, error) {
	return p.probe(ctx, req, time.Now())
}

// probe makes a probe whose timeout began at start.
func (p *Prober) probe(ctx context.Context, req *Request, start time.Time) (*Report, error) {
	if req.addr.IsValid() {
		if err := req.check(req.addr); err != nil {
			return nil, err
		}
	}
	if !p.admit(1) {
		return nil, errInFlight
	}
	defer p.release(1)
	report := &Report{Request: req, start: start}
	deadline := start.Add(req.timeout)
	if err := report.run(ctx, p, deadline.Add(-req.traceTime())); err != nil {
		return nil, err
	}
	if report.wantsPath() {
		report.trace(ctx, p, deadline)
	}
	report.duration = time.Since(start)
	return report, nil
}

// run finds the addresses and shakes hands.
func (r *Report) run(ctx context.Context, p *Prober, deadline time.Time) error {
	addr := r.addr
	if !addr.IsValid() {
		addrs, err := r.lookup(ctx, p, deadline)
		if err != nil || addrs == nil {
			return err
		}
		if r.moduleData.TCP.Addresses == config.All {
			return r.shakeAll(ctx, p, addrs, deadline)
		}
		addr = choose(addrs, r.moduleData.TCP.PreferredIPProtocol)
	} else if r.moduleData.TCP.Addresses == config.All {
		return r.shakeAll(ctx, p, []netip.Addr{addr}, deadline)
	}
	var err error
	r.verdict, err = r.shake(ctx, p, addr, deadline)
	return err
}

// lookup resolves the name and returns the addresses of it that may be probed. There are
// none, and no error, if that is the verdict.
func (r *Report) lookup(ctx context.Context, p *Prober, deadline time.Time) ([]netip.Addr, error) {
	var err error
	tcp := &r.moduleData.TCP
	if r.resolution, err = resolve(ctx, p.options.DialDNS, r.name, tcp.Network(), deadline); err != nil {
		return nil, err
	}
	r.result, r.at = r.resolution.result, r.resolution.took
	if r.result != "" {
		return nil, nil
	}
	// A link-local address without its zone is on no link in particular.
	addrs := slices.DeleteFunc(slices.Clone(r.resolution.addrs), func(addr netip.Addr) bool {
		return addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == ""
	})
	if len(addrs) == 0 {
		r.result = config.DNSError
		r.resolution.result, r.resolution.err = config.DNSError, errors.New("only link-local addresses, which mean nothing without their zone")
		return nil, nil
	}
	var denied error
	addrs = slices.DeleteFunc(addrs, func(addr netip.Addr) bool {
		err := r.check(addr)
		denied = cmp.Or(denied, err)
		return err != nil
	})
	if len(addrs) == 0 {
		return nil, denied
	}
	return addrs, nil
}

// check returns an error if the policy forbids to probe an address.
func (r *Request) check(addr netip.Addr) error {
	target := netip.AddrPortFrom(addr, r.port)
	if err := r.targets.Check(target); err != nil {
		return fmt.Errorf("target %v %w: %w", target, errDenied, err)
	}
	return nil
}

// shake shakes hands with an address.
func (r *Report) shake(ctx context.Context, p *Prober, addr netip.Addr, deadline time.Time) (v verdict, err error) {
	options := r.moduleData.Options()
	options.Timeout = max(1, time.Until(deadline))
	v.handshake, err = p.options.Shaker.Shake(ctx, netip.AddrPortFrom(addr, r.port), &options)
	v.at = time.Since(r.start)
	v.result = v.handshake.Outcome.String()
	v.errno = shaker.ErrnoName(v.handshake.Errno)
	return v, err
}

// shakeAll shakes hands with all addresses at once. If one of them cannot be probed there is
// no verdict about the name.
func (r *Report) shakeAll(ctx context.Context, p *Prober, addrs []netip.Addr, deadline time.Time) error {
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if len(addrs) > maxAddresses {
		r.result, r.at = config.DNSError, time.Since(r.start)
		r.resolution.result, r.resolution.err = config.DNSError, fmt.Errorf("%d addresses, of which %d at most are probed", len(addrs), maxAddresses)
		return nil
	}
	others := int64(len(addrs) - 1) // one is admitted already
	if !p.admit(others) {
		return errInFlight
	}
	defer p.release(others)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.verdicts = make([]verdict, len(addrs))
	var shaking sync.WaitGroup
	for i, addr := range addrs {
		shaking.Go(func() {
			var err error
			if r.verdicts[i], err = r.shake(ctx, p, addr, deadline); err != nil {
				cancel(err) // the first one is the cause
			}
		})
	}
	shaking.Wait()
	r.verdict = slices.MaxFunc(r.verdicts, r.worse)
	return context.Cause(ctx)
}

// worse orders verdicts: those that are not wanted are worse than those that are. Among wanted
// ones those without a SYN-ACK are worse, among unwanted ones those with it: such a port should be
// closed. Then those are worse that took longer.
func (r *Report) worse(a, b verdict) int {
	open := compare(a.handshake.Handshake > 0, b.handshake.Handshake > 0)
	if r.wants(a.result) {
		open = -open
	}
	return cmp.Or(
		-compare(r.wants(a.result), r.wants(b.result)),
		open,
		cmp.Compare(a.handshake.Handshake, b.handshake.Handshake))
}

func compare(a, b bool) int { return cmp.Compare(boolean(a), boolean(b)) }

// wants tells whether a result is one that the module wants.
func (r *Request) wants(result string) bool {
	return slices.Contains(r.moduleData.TCP.ValidResults, result)
}

// success tells whether the result is what the module wants, for every address probed.
func (r *Report) success() bool { return r.wants(r.result) } // the worst one's

// each returns the verdicts about all addresses that were probed, or the only one.
func (r *Report) each() []verdict {
	if r.verdicts != nil {
		return r.verdicts
	}
	return []verdict{r.verdict}
}

// Records returns what there is to remember of each address that was probed, or of the
// name if it has none.
func (r *Report) Records() []Record {
	var records []Record
	for _, v := range r.each() {
		records = append(records, r.record(&v))
	}
	return records
}

// record returns what there is to remember of a verdict.
func (r *Report) record(v *verdict) Record {
	h := &v.handshake
	sent := h.Local.IsValid() || h.Outcome == shaker.Refused || h.Outcome == shaker.Timeout
	if !sent {
		h = &shaker.Result{Peer: h.Peer, ICMP: h.ICMP, SYNRetransmits: -1}
	}
	var reason string
	if r.resolution.err != nil && r.result != config.DNSTimeout { // which says it all
		reason = r.resolution.err.Error()
	}
	return Record{
		Reason:         reason,
		Time:           r.start,
		Success:        r.wants(v.result),
		Result:         v.result,
		Errno:          v.errno,
		Duration:       v.at,
		Handshake:      h.Handshake,
		RTT:            h.RTT,
		Sent:           sent,
		SYNRetransmits: h.SYNRetransmits,
		Address:        h.Peer.Addr(),
		ICMP:           h.ICMP,
	}
}
