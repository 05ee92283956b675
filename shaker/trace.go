package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// TraceOptions configures a trace. Its zero value holds the defaults.
type TraceOptions struct {
	// Options apply to each SYN of the trace, with two exceptions: Timeout limits the whole
	// trace, where 0 means 2 s, and TTL and FIN are ignored.
	Options

	// MaxHops limits how many hops are probed, from 1 to 255. 0 means 30.
	MaxHops int

	// OnHop, if not nil, is called for each hop as soon as its result is known, in the order
	// of the hops. It is called on the goroutine that called Trace.
	OnHop func(Hop)
}

// A Path is the route of a flow to a target, as far as Trace could see it.
type Path struct {
	// Hops are the hops that were probed, the nearest first. Hops at the end that did not
	// reply are left out.
	Hops []Hop

	// Reached is the TTL of the hop that replied with the target's address: the target itself,
	// or a firewall that answers in its name. It is 0 if there was no such reply.
	Reached int
}

// A Hop is one step on the route to a target.
type Hop struct {
	// TTL is the distance of the hop, from 1 to 255: it is behind TTL-1 routers.
	TTL int

	// From is the source address of the reply: a router, the target, or a firewall that
	// answers in the target's name. It is invalid if there was no reply.
	From netip.Addr

	// ICMP is the ICMP error that a router sent, usually time exceeded. Its From is invalid
	// if the reply was a SYN-ACK or an RST, or if there was none.
	ICMP ICMP

	// Outcome is the verdict of the handshake with this TTL: Open for a SYN-ACK, Refused for
	// an RST, Timeout if there was no reply, and for an ICMP error the outcome that Shake
	// would return.
	Outcome Outcome

	// RTT is the time from the SYN to the reply on this process's clock, 0 if there was no
	// reply.
	RTT time.Duration
}

// final reports whether the path ends at the hop.
func (h *Hop) final() bool { return h.From.IsValid() && !h.ICMP.ttlExceeded() }

// HopsAtOnce is the maximum number of hops that a trace probes concurrently. Each of them uses a
// descriptor.
const HopsAtOnce = 8

// How long to wait for a hop that does not answer.
const (
	shortestWait = 100 * time.Millisecond
	defaultWait  = 300 * time.Millisecond // if no latency is known
	longestWait  = 800 * time.Millisecond // shorter than the kernel's retransmission timeout: one SYN per hop
)

// Trace finds the routers on the path to a target, right after a handshake with that target. It
// sends SYNs to the target's port with a TTL of 1, 2, 3 and so on. The router at which the TTL of
// a SYN runs out replies with an ICMP time exceeded, which shows the router's address. Trace needs
// no privilege on Linux 5.11 or newer. It is not supported on systems other than Linux.
//
// The SYNs have the same local port as the handshake, so that load-balancing routers send them
// along the same path. Trace sends the next SYN when the previous one was answered, so that the
// target sees at most one handshake: SYN, SYN-ACK and RST. For a hop that does not answer, Trace
// waits three times the longest latency so far, at least 100 ms and at most 800 ms.
//
// If the handshake was not [Open], no SYN-ACK is expected. From the first hop that does not answer,
// Trace then probes [HopsAtOnce] hops concurrently. The kernel allows only one socket per flow, so
// these SYNs have other local ports, and load-balancing routers may send them along a different
// path. Over IPv6 that is true for every SYN where routers balance by the flow label, because the
// kernel picks a new flow label for each socket.
//
// The path ends at the target, at a router that replies with another ICMP error, at a router that
// has replied three times (a routing loop), after HopsAtOnce concurrently probed hops without a
// reply, at MaxHops, or when the time is up. The path is empty if the handshake sent no SYN, or if
// it ended with an ICMP error that this host generated.
//
// As with [Shaker.Shake], an error means that there is no result: MaxHops is out of range, the
// options cannot be used, a local resource is exhausted, or the context was cancelled.
func (s *Shaker) Trace(ctx context.Context, after Result, options *TraceOptions) (Path, error) {
	t := trace{shaker: s, after: after}
	if options != nil {
		t.options = *options
	}
	path, err := t.run(ctx)
	if err != nil {
		return Path{}, fmt.Errorf("trace %v: %w", after.Peer, err)
	}
	return path, nil
}

// A trace is a running Trace.
type trace struct {
	shaker  *Shaker
	options TraceOptions
	after   Result
	path    Path
}

func (t *trace) run(ctx context.Context) (Path, error) {
	if t.options.MaxHops == 0 {
		t.options.MaxHops = 30
	}
	if t.options.MaxHops < 1 || t.options.MaxHops > 255 {
		return Path{}, fmt.Errorf("MaxHops is %d, want 1 to 255", t.options.MaxHops)
	}
	if t.options.Timeout == 0 {
		t.options.Timeout = 2 * time.Second
	}
	if !t.after.Local.IsValid() || t.after.ICMP.Own {
		return Path{}, nil // no packet has left this host
	}
	t.options.FIN = false
	ctx, cancel := context.WithTimeout(ctx, t.options.Timeout)
	defer cancel()
	err := t.probeInTurn(ctx)
	for n := len(t.path.Hops); n > 0 && !t.path.Hops[n-1].From.IsValid(); n-- {
		t.path.Hops = t.path.Hops[:n-1]
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnsent) {
		err = nil // the time is up: the hops found so far are the result
	}
	return t.path, err
}

// probeInTurn probes one hop after the other.
func (t *trace) probeInTurn(ctx context.Context) error {
	for ttl := 1; ttl <= t.options.MaxHops; ttl++ {
		hop, err := t.probe(ctx, ttl, t.after.Local.Port())
		if err != nil {
			return err
		}
		if done := t.add(hop); done {
			return nil
		}
		if !hop.From.IsValid() && t.after.Outcome != Open {
			return t.probeInGroups(ctx, ttl+1)
		}
	}
	return nil
}

// probeInGroups probes the hops from first on, in groups of HopsAtOnce, until no hop of a group
// answers.
func (t *trace) probeInGroups(ctx context.Context, first int) error {
	for ; first <= t.options.MaxHops; first += HopsAtOnce {
		hops, err := t.probeGroup(ctx, first, min(HopsAtOnce, t.options.MaxHops+1-first))
		silent := true
		for _, hop := range hops {
			if done := t.add(hop); done {
				return nil
			}
			silent = silent && !hop.From.IsValid()
		}
		if silent || err != nil {
			return err
		}
	}
	return nil
}

// probeGroup probes n hops concurrently.
func (t *trace) probeGroup(ctx context.Context, first, n int) ([]Hop, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hops := make([]Hop, n)
	var group sync.WaitGroup
	for i := range hops {
		group.Go(func() {
			var err error
			if hops[i], err = t.probe(ctx, first+i, 0); err != nil {
				cancel(err) // the first error is the cause
			}
		})
	}
	group.Wait()
	return hops, context.Cause(ctx)
}

// add adds a hop to the path. done reports whether the path ends there.
func (t *trace) add(hop Hop) (done bool) {
	if hop.TTL == 0 {
		return true // there was no time to probe it
	}
	t.path.Hops = append(t.path.Hops, hop)
	if t.options.OnHop != nil {
		t.options.OnHop(hop)
	}
	if hop.From == t.after.Peer.Addr().WithZone("") && !hop.ICMP.ttlExceeded() {
		t.path.Reached = hop.TTL
	}
	return hop.final() || t.inLoop(hop)
}

// inLoop reports whether the router of the hop has answered three times, which means a routing loop.
func (t *trace) inLoop(hop Hop) bool {
	times := 0
	for _, other := range t.path.Hops {
		if hop.From.IsValid() && other.From == hop.From {
			times++
		}
	}
	return times == 3
}

// probe sends one SYN with the TTL. It uses the local port if that is not 0 and is free.
func (t *trace) probe(ctx context.Context, ttl int, port uint16) (Hop, error) {
	options := t.options.Options
	options.TTL = uint8(ttl)
	options.Timeout = t.wait()
	if port != 0 {
		options.SourcePorts = PortRange{port, port}
	}
	result, err := t.shaker.shake(ctx, t.after.Peer, &options)
	if port != 0 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENOPROTOOPT)) {
		// The port is in use by now, or the kernel is too old for IP_LOCAL_PORT_RANGE.
		return t.probe(ctx, ttl, 0)
	}
	if err != nil {
		return Hop{}, err
	}
	hop := Hop{TTL: ttl, Outcome: result.Outcome, ICMP: result.ICMP, RTT: result.answered}
	switch {
	case result.ICMP.From.IsValid():
		hop.From = result.ICMP.From
	case result.Outcome == Open, result.Outcome == Refused, result.Outcome == Reset:
		hop.From = result.Peer.Addr().WithZone("")
	default:
		hop.RTT = 0
	}
	return hop, nil
}

// wait returns how long to wait for a hop's answer.
func (t *trace) wait() time.Duration {
	longest := max(t.after.RTT, t.after.Handshake)
	for _, hop := range t.path.Hops {
		longest = max(longest, hop.RTT)
	}
	if longest == 0 {
		return defaultWait
	}
	return min(max(3*longest, shortestWait), longestWait)
}
