package watch

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Errors of a scrape that is not answered although the target may be fine.
var (
	// ErrLimit means that a limit does not permit another watched target.
	ErrLimit = errors.New("target not watched")

	// ErrStale means that this host has completed no handshake for so long that the last result does not
	// describe the target's present state.
	ErrStale = errors.New("no recent handshake with the target because of this host")
)

// tracesAtOnce limits how many traces run concurrently. Others are left out.
const tracesAtOnce = 8

// Options configure a [Watcher]. Shaker and Prober are required.
type Options struct {
	Shaker *shaker.Shaker
	Prober *probe.Prober

	// MaxTargets limits the number of watched targets, and MaxRate the number of handshakes with all of them in
	// a second. 0 means no limit.
	MaxTargets int
	MaxRate    float64

	// History keeps the failures for the status page; nil keeps none.
	History *history.History

	// Observe is called with every handshake in the background; nil ignores them. The calls are made one after
	// the other.
	Observe func(module string, r *shaker.Repeated)

	// Changed is called with the first handshake in the background with which a target begins to fail, or the lookup
	// that finds that its name has no address any more, and with the first handshake with which it has recovered. A
	// target with flows begins to fail with the first flow, and recovers with the last one; there is one more call if
	// other flows than at the last call fail for as many handshakes as there are flows. nil ignores all of them.
	Changed func(*probe.Report)

	// Parted is called when traces have found where the paths of flows part, after Changed has been called because the
	// target begins to fail. nil ignores this.
	Parted func(*probe.Report)
}

// A Watcher watches targets. It is safe for concurrent use.
type Watcher struct {
	options  Options
	started  time.Time
	limits   limits
	registry *registry.Registry[*target]
	traces   chan struct{} // holds a value for each trace that is running
	streams  streams
}

// New returns a Watcher that runs until Close.
func New(options Options) *Watcher {
	if options.History == nil {
		options.History = history.New(0)
	}
	if options.Observe == nil {
		options.Observe = func(string, *shaker.Repeated) {}
	}
	if options.Changed == nil {
		options.Changed = func(*probe.Report) {}
	}
	if options.Parted == nil {
		options.Parted = func(*probe.Report) {}
	}
	w := &Watcher{
		options: options,
		started: time.Now(),
		limits:  limits{prober: options.Prober, maxTargets: options.MaxTargets, maxRate: options.MaxRate},
		traces:  make(chan struct{}, tracesAtOnce),
	}
	w.registry = registry.New(registry.Options[*target]{
		Prober:   options.Prober,
		Activity: "watching",
		New:      func() *target { return &target{watcher: w} },
		Limits:   &w.limits,
		Expire:   func(m *config.Module) time.Duration { return m.Watch.Expire },
		Resolve:  func(m *config.Module) time.Duration { return m.Watch.Resolve },
	})
	return w
}

// A moment is a time on a clock that cannot be set: the time since [New]. It takes a third of the memory of a
// time.Time.
type moment time.Duration

// at returns the moment of a time that has a reading of the monotonic clock.
func (w *Watcher) at(t time.Time) moment { return moment(t.Sub(w.started)) }

func (w *Watcher) now() moment { return w.at(time.Now()) }

// onWallClock returns a moment as the wall clock shows it now, which may have been set since.
func (w *Watcher) onWallClock(m moment) time.Time { return time.Now().Add(time.Duration(m - w.now())) }

// Close stops all handshakes. Later scrapes are an error that wraps [shaker.ErrClosed].
func (w *Watcher) Close() { w.registry.Close() }

// An Answer is the answer to a scrape.
type Answer struct {
	*probe.Report

	// Watch is what is known from the background. It is nil if the target is not watched: its name has not had an
	// address yet, the module was reloaded or the Watcher closed during the probe, or Inspect has performed the probe.
	Watch *Snapshot

	// Probed reports whether the scrape has performed the probe of the report. Otherwise the report is about the last
	// handshake in the background.
	Probed bool
}

// Scrape answers a request whose module is watched. The first scrape of a target performs a probe and registers the
// target. The client is who asks.
//
// An error means that there is no verdict, as that of [probe.Prober.Probe], or that it is [ErrLimit] or [ErrStale].
func (w *Watcher) Scrape(ctx context.Context, req *probe.Request, client string) (Answer, error) {
	t, err := w.registry.Find(req, client)
	if err != nil {
		return Answer{}, err
	}
	if t != nil {
		return t.answer(req)
	}
	req.ReuseFlows(w.knownFlows(req))
	report, err := w.options.Prober.Probe(ctx, req)
	if err != nil {
		return Answer{}, err
	}
	answer := Answer{Report: report, Probed: true}
	peer := report.Handshake.Peer
	if !peer.IsValid() {
		return answer, nil
	}
	t, err = w.registry.Register(req, peer, client, func(t *target) error { return t.begin(report) })
	if errors.Is(err, shaker.ErrClosed) {
		return answer, nil // the probe was performed
	}
	if err != nil {
		return Answer{}, err
	}
	if t != nil {
		answer.Watch = t.snapshot()
	}
	return answer, nil
}

// Inspect answers a request like Scrape, but leaves the Watcher as it is: it neither registers the target nor defers
// its expiry. If the target is not watched, it performs a probe.
func (w *Watcher) Inspect(ctx context.Context, req *probe.Request) (Answer, error) {
	if t := w.registry.Peek(req); t != nil {
		return t.answer(req)
	}
	req.ReuseFlows(w.knownFlows(req))
	report, err := w.options.Prober.Probe(ctx, req)
	return Answer{Report: report, Probed: true}, err
}

// canTrace reports whether another path can be traced now.
func (w *Watcher) canTrace() bool { return len(w.traces) < cap(w.traces) }

// trace traces the path to a target that begins to fail, or to which other flows fail than before, unless too many
// other paths are being traced. Its caller holds the mutex of the target.
func (w *Watcher) trace(t *target, report *probe.Report) {
	select {
	case w.traces <- struct{}{}:
	default:
		return
	}
	if t.flows != nil {
		t.flows.traced, t.flows.tracing = t.flows.failing, true
	}
	w.registry.Go(func(ctx context.Context) {
		defer func() { <-w.traces }()
		w.options.Prober.TracePath(ctx, report)
		slices.SortFunc(report.Flows, func(a, b probe.Flow) int { return cmp.Compare(a.Port, b.Port) })
		if report.Parting != nil {
			w.options.Parted(report)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.flows != nil {
			t.flows.tracing = false
		}
		if t.isFailing() {
			t.failure.path, t.failure.pathErr = report.Path, report.PathErr
			if t.flows != nil {
				t.flows.parting = report.Parting
			}
		}
	})
}

// Configure adapts to the configuration that is active in the Prober now. It forgets the targets whose module has
// changed, and those whose address the policy does not permit any more. All others keep their counters.
func (w *Watcher) Configure() { w.registry.Configure() }

// Modules returns the totals of all modules that have had a watched target, in the order of their names.
func (w *Watcher) Modules() []registry.Module { return w.registry.Modules() }

// MaxTargets returns the maximum number of watched targets; 0 means no limit.
func (w *Watcher) MaxTargets() int { return w.options.MaxTargets }
