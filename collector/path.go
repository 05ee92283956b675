package collector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// longestTrace is how long the trace of a path may take.
const longestTrace = 2 * time.Second

// traceTime returns how much of the timeout is kept for the trace of the path: a third, or
// longestTrace, if it may be traced at all.
func (r *Request) traceTime() time.Duration {
	if r.moduleData.TCP.Path == config.Never {
		return 0
	}
	return min(r.timeout/3, longestTrace)
}

// TracePath asks for the path to be traced, whatever the verdict, and to be told of each hop
// as soon as it is known.
func (r *Request) TracePath(onHop func(shaker.Hop)) {
	r.moduleData.TCP.Path, r.onHop = config.Always, onHop
}

// wantsPath tells whether the path is to be traced now that the verdict is known. Where no
// SYN was sent there is none.
func (r *Report) wantsPath() bool {
	switch r.moduleData.TCP.Path {
	case config.Always:
		return r.handshake.Local.IsValid()
	case config.OnFailure:
		return r.handshake.Local.IsValid() && !r.success()
	}
	return false
}

// errNoRoom says that a trace would have taken more handshakes at once than there may be.
var errNoRoom = errors.New("not traced: too many handshakes are in flight")

// trace looks for the routers on the way to the address that was probed, or to the worst
// one. The verdict stands without it.
func (r *Report) trace(ctx context.Context, p *Prober, deadline time.Time) {
	const others = shaker.HopsAtOnce - 1 // one is admitted already
	if !p.admit(others) {
		r.pathErr = errNoRoom
		return
	}
	defer p.release(others)
	options := &shaker.TraceOptions{
		Options: r.moduleData.Options(),
		MaxHops: int(r.moduleData.TCP.MaxHops),
		OnHop:   r.onHop,
	}
	options.Timeout = max(1, min(longestTrace, time.Until(deadline)))
	path, err := p.options.Shaker.Trace(ctx, r.handshake, options)
	if err != nil {
		r.pathErr = fmt.Errorf("not traced: %w", err)
		return
	}
	r.path = &path
}

// PathTo returns the path to an address that was probed, nil if it was not traced.
func (r *Report) PathTo(addr netip.Addr) *shaker.Path {
	if addr != r.handshake.Peer.Addr() {
		return nil
	}
	return r.path
}

// writePath writes the path for a person.
func (r *Report) writePath(at tell) {
	if r.pathErr != nil {
		at(r.duration, "path: %v", r.pathErr)
	}
	if r.path == nil {
		return
	}
	for _, hop := range r.path.Hops {
		at(r.duration, "path: %s", DescribeHop(hop))
	}
	if r.path.Reached == 0 {
		at(r.duration, "path: nobody answers beyond that")
	}
}

// DescribeHop writes a hop for people, as traceroute(8) does it.
func DescribeHop(h shaker.Hop) string {
	switch {
	case !h.From.IsValid():
		return fmt.Sprintf("%2d  *", h.TTL)
	case h.ICMP.From.IsValid() && h.ICMP.String() == ttlExceeded:
		return fmt.Sprintf("%2d  %v  %s ms", h.TTL, h.From, Milliseconds(h.RTT))
	case h.ICMP.From.IsValid():
		return fmt.Sprintf("%2d  %v  %s ms  %v", h.TTL, h.From, Milliseconds(h.RTT), h.ICMP)
	}
	return fmt.Sprintf("%2d  %v  %s ms  %v", h.TTL, h.From, Milliseconds(h.RTT), h.Outcome)
}

// ttlExceeded is what a router says that is on the way.
const ttlExceeded = "ttl_exceeded"
