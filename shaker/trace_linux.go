package shaker

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// hopsAtOnce is how many hops a trace probes concurrently with whole SYNs. Each of them uses a descriptor, unless the
// SYNs need no sockets.
const hopsAtOnce = 8

// How long to wait for a hop that does not answer.
const (
	shortestWait = 100 * time.Millisecond
	defaultWait  = 300 * time.Millisecond // if no latency is known
	longestWait  = 800 * time.Millisecond // shorter than the kernel's retransmission timeout: one SYN per hop
)

// A trace is a running Trace.
type trace struct {
	shaker   *Shaker
	options  TraceOptions
	after    Result
	sameFlow Options        // of SYNs of the handshake's flow, any number at a time; zero if they need sockets
	from     netip.AddrPort // where the next SYN is sent from; initially the Local of the handshake
	path     Path
}

func (s *Shaker) tracePath(ctx context.Context, after Result, options TraceOptions) (Path, error) {
	ctx, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	t := trace{shaker: s, options: options, after: after, from: after.Local}
	var first *volley
	flow := after.options.get()
	flow.SourcePort, flow.tracing = after.Local.Port(), true
	if s.engine.isRaw(&flow) {
		t.sameFlow = flow
	}
	// A router that rejects SYNs would reject all those of a volley that get as far. That exhausts its rate limit of
	// ICMP errors, and the next handshakes through it would get none.
	if t.sameFlow.SourcePort != 0 && !after.ICMP.From.IsValid() {
		first = t.fire(ctx)
		defer first.stop()
	}
	err := t.probeInTurn(ctx, first)
	for n := len(t.path.Hops); n > 0 && !t.path.Hops[n-1].From.IsValid(); n-- {
		t.path.Hops = t.path.Hops[:n-1]
	}
	t.path.SameFlow = true
	for _, hop := range t.path.Hops {
		t.path.SameFlow = t.path.SameFlow && hop.Local == after.Local
	}
	return t.path, err
}

// probeInTurn probes one hop after the other, from one local port if possible. It does not probe the hops that the
// volley, if there was one, has shown already.
func (t *trace) probeInTurn(ctx context.Context, first *volley) error {
	for ttl := 1; ttl <= t.options.MaxHops; ttl++ {
		hop, known := first.await(ctx, ttl, t.patience())
		switch {
		case known && t.believes(&hop):
		case first != nil && t.after.Outcome == Timeout && !first.reaches(ttl):
			return t.probeInGroups(ctx, ttl)
		default:
			var err error
			if hop, err = t.probe(ctx, ttl, t.from); err != nil {
				return err
			}
		}
		if hop.Local.IsValid() {
			t.from = hop.Local
		}
		if done := t.add(hop); done {
			return nil
		}
		if !hop.From.IsValid() && t.after.Outcome != Open && !first.reaches(ttl) {
			return t.probeInGroups(ctx, ttl+1)
		}
	}
	return nil
}

// believes reports whether the hop replies to a whole SYN as it did to one with a wrong checksum. That is not certain
// if the handshake had another outcome: a firewall may reject what does not belong to a connection.
func (t *trace) believes(hop *Hop) bool { return !hop.final() || hop.Outcome == t.after.Outcome }

// patience returns how long to wait for the volley before a hop is probed with a whole SYN.
func (t *trace) patience() time.Duration {
	latency := t.latency()
	if latency == 0 || t.after.Outcome == Timeout {
		return longestWait // until the time of each hop is up
	}
	return max(2*latency, shortestVolley)
}

// probeInGroups probes the hops from first on, in groups of hopsAtOnce, until no hop of a group
// answers.
func (t *trace) probeInGroups(ctx context.Context, first int) error {
	for ; first <= t.options.MaxHops; first += hopsAtOnce {
		hops, err := t.probeGroup(ctx, first, min(hopsAtOnce, t.options.MaxHops+1-first))
		silent := true
		for _, hop := range hops {
			if hop.TTL == 0 {
				return err // it was not probed
			}
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

// probeGroup probes n hops concurrently. With an error, some of the hops are zero.
func (t *trace) probeGroup(ctx context.Context, first, n int) ([]Hop, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hops := make([]Hop, n)
	var group sync.WaitGroup
	for i := range hops {
		group.Go(func() {
			var err error
			if hops[i], err = t.probe(ctx, first+i, netip.AddrPort{}); err != nil {
				cancel(err) // the first error is the cause
			}
		})
	}
	group.Wait()
	return hops, context.Cause(ctx)
}

// add adds a hop to the path. done reports whether the path ends there. An ICMP error that this host generated
// is not a reply of a hop: the SYN has not left.
func (t *trace) add(hop Hop) (done bool) {
	if hop.ICMP.Own {
		return true
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

// final reports whether the path ends at the hop.
func (h *Hop) final() bool { return h.From.IsValid() && !h.ICMP.ttlExceeded() }

// inLoop reports whether the hop, the last of the path, shows a routing loop: its router has replied
// three times, and others in between.
func (t *trace) inLoop(hop Hop) bool {
	if t.replied() || !hop.From.IsValid() {
		return false
	}
	times := 0
	var previous netip.Addr
	for _, other := range t.path.Hops {
		if other.From == hop.From && other.From != previous {
			times++
		}
		if other.From.IsValid() {
			previous = other.From
		}
	}
	return times == 3
}

// replied reports whether the handshake's SYN got as far as the target, or to a firewall that answers
// in its name.
func (t *trace) replied() bool {
	switch t.after.Outcome {
	case Open, Reset:
		return true
	case Refused:
		return !t.after.ICMP.From.IsValid()
	}
	return false
}

// probe sends one whole SYN with the TTL, if possible from the given address and port. A zero AddrPort leaves
// the port to the kernel, which allows only one socket per flow.
func (t *trace) probe(ctx context.Context, ttl int, from netip.AddrPort) (hop Hop, err error) {
	for _, options := range t.waysFrom(from) {
		options.Timeout = t.wait()
		// Every error except ErrUnsent may be caused by the port: it is taken, or below 1024, or the
		// kernel is too old to choose it. If the cause is another one, the last way fails, too.
		if hop, err = t.send(ctx, ttl, options); err == nil || errors.Is(err, ErrUnsent) || ended(ctx) != nil {
			break
		}
	}
	if errors.Is(err, ErrUnsent) && ended(ctx) == nil {
		// This host was too slow: it is not known whether there is a reply.
		return t.probe(ctx, ttl, from)
	}
	return hop, err
}

// send sends one SYN with the TTL and other options.
func (t *trace) send(ctx context.Context, ttl int, options Options) (Hop, error) {
	options.TTL = uint8(ttl)
	var result Result
	err := t.shaker.shake(ctx, t.after.Peer, &options, &result)
	end := ended(ctx)
	switch {
	case errors.Is(err, ErrUnsent) && end != nil:
		return Hop{}, end
	case err != nil:
		return Hop{}, err
	}
	hop := Hop{TTL: ttl, Local: result.Local, Outcome: result.Outcome, ICMP: result.ICMP, RTT: result.Waited}
	switch {
	case result.ICMP.From.IsValid():
		hop.From = result.ICMP.From
	case result.Outcome == Open, result.Outcome == Refused, result.Outcome == Reset:
		hop.From = result.Peer.Addr().WithZone("")
	case end != nil:
		return Hop{}, end // it had less time than the others to answer
	default:
		hop.RTT = 0
	}
	return hop, nil
}

// waysFrom returns the options with which to send from the given address and port, in the order in
// which to try them. The last ones leave the port to the kernel.
func (t *trace) waysFrom(from netip.AddrPort) []Options {
	if t.sameFlow.SourcePort != 0 {
		return []Options{t.sameFlow}
	}
	free := t.after.options.get()
	free.SourcePort = 0
	if !from.IsValid() {
		return []Options{free}
	}
	bound, shared := free, free
	bound.Source, bound.SourcePort, bound.SourcePorts = from.Addr(), from.Port(), PortRange{}
	// On Linux 6.3 or newer the socket can share the port with a socket towards another target that
	// has not set SO_REUSEADDR.
	shared.SourcePorts = PortRange{First: from.Port(), Last: from.Port()}
	return []Options{bound, shared, free}
}

// wait returns how long to wait for a hop's answer.
func (t *trace) wait() time.Duration {
	longest := t.latency()
	if longest == 0 {
		return defaultWait
	}
	return min(max(3*longest, shortestWait), longestWait)
}

// latency returns the longest latency so far, 0 if none is known.
func (t *trace) latency() time.Duration {
	longest := max(t.after.RTT, t.after.Handshake)
	if t.replied() && t.after.SYNs == 1 {
		longest = max(longest, t.after.Waited)
	}
	for _, hop := range t.path.Hops {
		longest = max(longest, hop.RTT)
	}
	return longest
}
