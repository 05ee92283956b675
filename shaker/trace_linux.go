package shaker

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"
)

// hopsAtOnce is how many hops a trace probes concurrently. Each of them uses a descriptor.
const hopsAtOnce = 8

// How long to wait for a hop that does not answer.
const (
	shortestWait = 100 * time.Millisecond
	defaultWait  = 300 * time.Millisecond // if no latency is known
	longestWait  = 800 * time.Millisecond // shorter than the kernel's retransmission timeout: one SYN per hop
)

func (s *Shaker) tracePath(ctx context.Context, after Result, options TraceOptions) (Path, error) {
	t := trace{shaker: s, after: after, options: options}
	return t.run(ctx)
}

// A trace is a running Trace.
type trace struct {
	shaker  *Shaker
	options TraceOptions
	after   Result
	path    Path
}

func (t *trace) run(ctx context.Context) (Path, error) {
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

// probeInGroups probes the hops from first on, in groups of hopsAtOnce, until no hop of a group
// answers.
func (t *trace) probeInGroups(ctx context.Context, first int) error {
	for ; first <= t.options.MaxHops; first += hopsAtOnce {
		hops, err := t.probeGroup(ctx, first, min(hopsAtOnce, t.options.MaxHops+1-first))
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
	options := t.after.options
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

// final reports whether the path ends at the hop.
func (h *Hop) final() bool { return h.From.IsValid() && !h.ICMP.ttlExceeded() }
