package watch

import (
	"errors"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

const (
	// upkeepInterval is how often the Watcher looks for targets that expire, or whose names have to be resolved.
	upkeepInterval = time.Second

	// keptAfterExpiry is for how long the counters of an expired target are kept. If it is scraped again until
	// then, they continue.
	keptAfterExpiry = time.Minute

	// lookupsAtOnce and tracesAtOnce limit how many lookups and traces run concurrently. A lookup that finds no room
	// is made later. A trace is left out.
	lookupsAtOnce = 64
	lookupTimeout = 5 * time.Second
	tracesAtOnce  = 8
)

// upkeep runs until the Watcher is closed.
func (w *Watcher) upkeep() {
	ticker := time.NewTicker(upkeepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			w.expire(time.Now())
			w.resolve(time.Now())
		case <-w.ctx.Done():
			return
		}
	}
}

// expire retires the targets that have not been scraped for too long, and forgets those that expired long ago.
func (w *Watcher) expire(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.targets {
		switch {
		case t.expired.IsZero() && t.unscraped(now) > t.module.Watch.Expire:
			w.retire(t)
			w.module(t.key.module).Expirations++
		case !t.expired.IsZero() && now.Sub(t.expired) > keptAfterExpiry:
			w.forget(t)
		}
	}
}

// unscraped returns for how long the target has not been scraped.
func (t *target) unscraped(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now.Sub(t.scraped)
}

// resolve starts the lookups that are due.
func (w *Watcher) resolve(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.targets {
		if !t.expired.IsZero() || !t.mustLookUp(now) {
			continue
		}
		select {
		case w.lookups <- struct{}{}:
		default:
			return // the rest has to wait for the next time
		}
		t.setLooking()
		w.running.Go(func() {
			defer func() { <-w.lookups }()
			w.lookUp(t)
		})
	}
}

func (t *target) mustLookUp(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.looking && !t.nextLookup.IsZero() && !now.Before(t.nextLookup)
}

func (t *target) setLooking() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looking = true
}

// lookUp looks the name of a target up, and adapts to its addresses.
func (w *Watcher) lookUp(t *target) {
	req, err := probe.NewRequest(w.options.Prober.Config(), t.key.text, t.key.module)
	if err != nil {
		return // the module has gone: Configure forgets the target
	}
	req.Timeout = lookupTimeout
	report, addrs, err := w.options.Prober.Resolve(w.ctx, req)
	if denied := errors.Is(err, probe.ErrDenied); denied {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.targets[t.key] == t {
			w.forget(t) // the next scrape says so
		}
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looking = false
	if err != nil { // a local error: the addresses are not known
		t.countLookup("fault")
		t.scheduleLookup()
		return
	}
	t.looked(report)
	t.adapt(report, addrs)
}

// looked counts a lookup and schedules the next one. Its caller holds mu.
func (t *target) looked(report *probe.Report) {
	result := report.Result
	if len(report.Resolution.Addrs) > 0 {
		result = resolved
	}
	t.countLookup(result)
	resolution := report.Resolution
	t.resolution = &resolution
	t.scheduleLookup()
}

func (t *target) countLookup(result string) {
	for i := range t.lookups {
		if t.lookups[i].result == result {
			t.lookups[i].n++
			return
		}
	}
	t.lookups = append(t.lookups, lookupCount{result: result, n: 1})
}

func (t *target) scheduleLookup() { t.nextLookup = time.Now().Add(t.module.Watch.Resolve) }

// adapt adapts to the addresses of the name. The handshakes go on with the present address as long as it is one of
// them, even if it is not the first one, because DNS servers change the order. They also go on if the addresses are
// not known at present. They pause if the name has no address any more. Its caller holds mu.
func (t *target) adapt(report *probe.Report, addrs []netip.Addr) {
	current := t.last.Peer
	switch {
	case t.stopped: // during the lookup
	case len(addrs) == 0 && report.Result == config.DNSNotFound:
		t.pause()
		t.gone = &report.Verdict
		t.found(report.Result, report.Start)
		t.recordFailure(report)
	case len(addrs) == 0 || t.gone == nil && slices.Contains(addrs, current.Addr()):
	default:
		if t.gone != nil {
			t.completed = time.Now() // the pause was not the fault of this host
		}
		if err := t.repeat(netip.AddrPortFrom(addrs[0], current.Port())); err != nil {
			t.fault = err
		}
	}
}

// trace traces the path to a target that begins to fail, unless too many other paths are being traced.
func (w *Watcher) trace(t *target, report *probe.Report) {
	select {
	case w.traces <- struct{}{}:
	default:
		return
	}
	w.running.Go(func() {
		defer func() { <-w.traces }()
		w.options.Prober.TracePath(w.ctx, report)
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.isFailing() {
			t.path, t.pathErr = report.Path, report.PathErr
		}
	})
}

// offset spreads the handshakes of all targets over the interval.
func (k key) offset() time.Duration {
	h := fnv.New64a()
	h.Write([]byte(k.module + "\n" + k.text))
	return max(1, time.Duration(h.Sum64()>>1))
}
