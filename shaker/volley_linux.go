package shaker

import (
	"context"
	"sync"
	"time"
)

// A volley probes all hops of a path at the same time, with SYNs of the handshake's flow whose checksums are wrong. A
// router forwards such a SYN, and replies when its TTL runs out. The kernel of a target drops it. So however many of
// the SYNs get as far as the target, it sees none of them. A firewall that tracks connections may drop them, too: the
// hops behind it have to be probed with whole SYNs, as have those behind the last router, where the target is.
type volley struct {
	hops    []volleyHop
	results chan volleyHop
	last    int       // the TTL of the farthest hop that has replied, 0 if there is none
	sent    time.Time // when the volley began
	stop    func()    // ends it
}

// A volleyHop is what the volley knows about a hop.
type volleyHop struct {
	Hop
	ended bool  // the hop has replied, or its time is up
	err   error // it is not known whether the hop replies
}

// shortestVolley is how long a volley lasts at least before a hop is probed with a whole SYN because none replies so
// far from there on. That is for delays of this host: an early whole SYN does no harm.
const shortestVolley = 10 * time.Millisecond

// fire sends a volley.
func (t *trace) fire(ctx context.Context) *volley {
	ctx, cancel := context.WithCancel(ctx)
	n := t.options.MaxHops
	v := &volley{hops: make([]volleyHop, n), results: make(chan volleyHop, n), sent: time.Now()}
	options := t.sameFlow
	options.damaged, options.Timeout = true, t.wait()
	if deadline, ok := ctx.Deadline(); ok && t.latency() == 0 {
		// If it is the routers that show the latency, leave time for the silent hops behind them.
		options.Timeout = min(options.Timeout, time.Until(deadline)/2)
	}
	var group sync.WaitGroup
	for ttl := 1; ttl <= n; ttl++ {
		group.Go(func() {
			hop, err := t.send(ctx, ttl, options)
			hop.TTL = ttl
			v.results <- volleyHop{Hop: hop, ended: true, err: err}
		})
	}
	v.stop = func() { cancel(); group.Wait() }
	return v
}

// await waits until it is known whether a hop replies. ok is false if it has to be probed with a whole SYN: neither the
// hop nor one behind it has replied in time, or this host could not send the SYN, or the context has ended.
func (v *volley) await(ctx context.Context, ttl int, patience time.Duration) (hop Hop, ok bool) {
	if v == nil || ended(ctx) != nil {
		return Hop{}, false
	}
	enough := time.NewTimer(time.Until(v.sent.Add(patience)))
	defer enough.Stop()
	impatient := enough.C
	for h := &v.hops[ttl-1]; !h.ended; {
		select {
		case result := <-v.results:
			v.take(result)
		case <-impatient:
			v.takeAll()
			if !v.reaches(ttl) {
				return Hop{}, false
			}
			impatient = nil // it is a silent router, or a slow one: its whole time counts
		case <-ctx.Done():
			return Hop{}, false
		}
	}
	v.takeAll()
	h := &v.hops[ttl-1]
	return h.Hop, h.err == nil && v.reaches(ttl)
}

// reaches reports whether the hop, or one behind it, has replied.
func (v *volley) reaches(ttl int) bool { return v != nil && v.last >= ttl }

func (v *volley) take(h volleyHop) {
	v.hops[h.TTL-1] = h
	if h.err == nil && h.From.IsValid() {
		v.last = max(v.last, h.TTL)
	}
}

// takeAll takes the results that are known by now.
func (v *volley) takeAll() {
	for len(v.results) > 0 {
		v.take(<-v.results)
	}
}
