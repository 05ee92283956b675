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
	// Options are those of the SYNs. Timeout limits the whole trace; 0 means 2 s. TTL
	// and FIN mean nothing here.
	Options

	// MaxHops is how many hops are looked at, from 1 to 255. 0 means 30.
	MaxHops int

	// OnHop, if it is set, is called for each hop as soon as it is known, in the order
	// of the hops.
	OnHop func(Hop)
}

// A Path is the way of a flow to a target, as far as it could be seen.
type Path struct {
	// Hops are those that were asked, the nearest first, without silent ones at the end.
	Hops []Hop

	// Reached is the hop at which the target itself answered, or somebody in its name
	// did. It is 0 if nobody did.
	Reached int
}

// A Hop is a place on the way to a target.
type Hop struct {
	// TTL is its distance: the hop after TTL-1 routers.
	TTL int

	// From is who answered: the router, the target, or whoever speaks in the target's
	// name. It is invalid if nobody did.
	From netip.Addr

	// ICMP is what a router said, time exceeded as a rule; its From is invalid if the
	// answer was a SYN-ACK or an RST.
	ICMP ICMP

	// Outcome is what the SYN came to that went this far: Open for a SYN-ACK, Refused for
	// an RST, and otherwise what a handshake would have come to.
	Outcome Outcome

	// RTT is the time from SYN to answer on this process's clock, 0 if there was none.
	RTT time.Duration
}

// final tells whether there is nothing beyond the hop.
func (h *Hop) final() bool { return h.From.IsValid() && !h.ICMP.ttlExceeded() }

// HopsAtOnce is how many hops a trace asks at once at most, each with a descriptor.
const HopsAtOnce = 8

// What a hop is waited for that does not answer.
const (
	shortestWait = 100 * time.Millisecond
	usualWait    = 300 * time.Millisecond
	longestWait  = 800 * time.Millisecond // before the SYN is sent again: no hop gets two
)

// Trace looks for the routers on the way to a target with which a handshake has just ended:
// its SYNs to the target's own port have a TTL of 1, 2, 3, …, and whoever drops one for that
// says so (time exceeded). It needs no privilege.
//
// The SYNs have the local port of the handshake, and with it its way through routers that
// balance by flow. The next one is sent when the last was answered, so that the target sees
// one handshake at most, SYN, SYN-ACK and RST. A hop that stays silent costs a wait: three
// times the longest latency so far, from 100 to 800 ms.
//
// If the handshake was not [Open], no SYN-ACK is to be expected, and the hops beyond the first
// silent one are asked [HopsAtOnce] at once. These SYNs have ports of their own, since the kernel
// allows a flow but one socket, and may go other ways where those are balanced. So may every
// SYN of IPv6, where routers go by the flow label, which the kernel draws anew.
//
// The path ends at the target, at a router that has another error to tell, where packets go
// in circles, after HopsAtOnce silent hops of those that were asked at once, at MaxHops, or
// when the time is over. An error means that this side could not look, as with Shake.
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

// A trace is one that is under way.
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
		return Path{}, fmt.Errorf("%d hops, of 1 to 255", t.options.MaxHops)
	}
	if t.options.Timeout == 0 {
		t.options.Timeout = 2 * time.Second
	}
	if !t.after.Local.IsValid() || t.after.ICMP.Own {
		return Path{}, nil // nothing has left this host
	}
	t.options.FIN = false
	ctx, cancel := context.WithTimeout(ctx, t.options.Timeout)
	defer cancel()
	err := t.follow(ctx)
	for n := len(t.path.Hops); n > 0 && !t.path.Hops[n-1].From.IsValid(); n-- {
		t.path.Hops = t.path.Hops[:n-1]
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnsent) {
		err = nil // what was found is what there was time for
	}
	return t.path, err
}

// follow asks one hop after the other.
func (t *trace) follow(ctx context.Context) error {
	for ttl := 1; ttl <= t.options.MaxHops; ttl++ {
		hop, err := t.ask(ctx, ttl, t.after.Local.Port())
		if err != nil {
			return err
		}
		if done := t.add(hop); done {
			return nil
		}
		if !hop.From.IsValid() && t.after.Outcome != Open {
			return t.askSeveral(ctx, ttl+1)
		}
	}
	return nil
}

// askSeveral asks the hops from one on, several at once, until as many are silent.
func (t *trace) askSeveral(ctx context.Context, first int) error {
	for ; first <= t.options.MaxHops; first += HopsAtOnce {
		hops, err := t.askAtOnce(ctx, first, min(HopsAtOnce, t.options.MaxHops+1-first))
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

// askAtOnce asks n hops at once.
func (t *trace) askAtOnce(ctx context.Context, first, n int) ([]Hop, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hops := make([]Hop, n)
	var asking sync.WaitGroup
	for i := range hops {
		asking.Go(func() {
			var err error
			if hops[i], err = t.ask(ctx, first+i, 0); err != nil {
				cancel(err) // the first one is the cause
			}
		})
	}
	asking.Wait()
	return hops, context.Cause(ctx)
}

// add adds a hop to the path. It is done if there is nothing beyond it.
func (t *trace) add(hop Hop) (done bool) {
	if hop.TTL == 0 {
		return true // there was no time for it
	}
	t.path.Hops = append(t.path.Hops, hop)
	if t.options.OnHop != nil {
		t.options.OnHop(hop)
	}
	if hop.From == t.after.Peer.Addr().WithZone("") && !hop.ICMP.ttlExceeded() {
		t.path.Reached = hop.TTL
	}
	return hop.final() || t.loops(hop)
}

// loops tells whether a router answered for the third time: packets go in circles.
func (t *trace) loops(hop Hop) bool {
	times := 0
	for _, other := range t.path.Hops {
		if hop.From.IsValid() && other.From == hop.From {
			times++
		}
	}
	return times == 3
}

// ask sends one SYN with the TTL, from the port if that is not 0 and is to be had.
func (t *trace) ask(ctx context.Context, ttl int, port uint16) (Hop, error) {
	options := t.options.Options
	options.TTL = uint8(ttl)
	options.Timeout = t.patience()
	if port != 0 {
		options.SourcePorts = PortRange{port, port}
	}
	result, err := t.shaker.shake(ctx, t.after.Peer, &options)
	if port != 0 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENOPROTOOPT)) {
		// Somebody has the port now, or the kernel is too old to be asked for one.
		return t.ask(ctx, ttl, 0)
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

// patience returns how long a hop is waited for.
func (t *trace) patience() time.Duration {
	longest := max(t.after.RTT, t.after.Handshake)
	for _, hop := range t.path.Hops {
		longest = max(longest, hop.RTT)
	}
	if longest == 0 {
		return usualWait
	}
	return min(max(3*longest, shortestWait), longestWait)
}
