package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Errors of a scrape that is not answered although the target may be fine.
var (
	// ErrLimit means that a limit does not permit another watched target.
	ErrLimit = errors.New("target not watched")

	// ErrStale means that this host has completed no handshake for so long that the last result does not
	// describe the target's present state.
	ErrStale = errors.New("no recent handshake with the target because of this host")

	errClosed = fmt.Errorf("watching has ended: %w", shaker.ErrClosed)
)

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

	// Changed is called with the first handshake in the background with which a target begins to fail, and with
	// the first one with which it has recovered; nil ignores them.
	Changed func(*probe.Report)
}

// A Watcher watches targets. It is safe for concurrent use.
type Watcher struct {
	options Options
	started time.Time
	ctx     context.Context // until Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	lookups chan struct{} // holds a value for each lookup that is running
	traces  chan struct{} // holds a value for each trace that is running

	mu       sync.Mutex
	closed   bool
	targets  map[key]*target
	modules  map[string]*Module
	configs  map[string]*config.Module // by name, see shared
	watched  int                       // targets that have not expired
	rate     float64                   // handshakes with them in a second
	reserved int                       // handshakes with them that may be running at once
}

// A key names a target. Two texts of one address are two targets, because they are two targets in Prometheus.
type key struct{ module, text string }

// A Module has the totals of a module.
type Module struct {
	Name                       string
	Watched                    int // targets at present
	Registrations, Expirations uint64
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
	w := &Watcher{
		options: options,
		started: time.Now(),
		lookups: make(chan struct{}, lookupsAtOnce),
		traces:  make(chan struct{}, tracesAtOnce),
		targets: make(map[key]*target),
		modules: make(map[string]*Module),
		configs: make(map[string]*config.Module),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.running.Go(w.upkeep)
	return w
}

// uptime returns the time since New, on a clock that cannot be set.
func (w *Watcher) uptime() time.Duration { return time.Since(w.started) }

// Close stops all handshakes. Later scrapes are an error that wraps [shaker.ErrClosed].
func (w *Watcher) Close() {
	w.mu.Lock()
	closed, all := w.closed, w.targets
	w.closed, w.targets = true, nil
	w.mu.Unlock()
	if closed {
		return
	}
	for _, t := range all {
		t.stop() // from now on it starts no trace
	}
	w.cancel()
	w.running.Wait()
}

// An Answer is the answer to a scrape.
type Answer struct {
	*probe.Report

	// Watch is what is known from the background. It is nil if the target is not watched: its name has not had an
	// address yet, or the module has been reloaded during the probe.
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
	k := key{module: req.ModuleName, text: req.Text}
	t, err := w.find(k, &req.Module)
	if err != nil {
		return Answer{}, err
	}
	if t != nil {
		return t.answer(req, client)
	}
	report, err := w.options.Prober.Probe(ctx, req)
	if err != nil {
		return Answer{}, err
	}
	answer := Answer{Report: report, Probed: true}
	if !report.Handshake.Peer.IsValid() {
		return answer, nil
	}
	if t, err = w.register(k, report); err != nil {
		return Answer{}, err
	}
	if t != nil {
		answer.Watch = t.snapshot(client)
	}
	return answer, nil
}

// find returns a watched target, or nil if it has to be registered, and the limits permit that at present.
func (w *Watcher) find(k key, m *config.Module) (*target, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, errClosed
	}
	if t := w.targets[k]; t != nil && t.expired.IsZero() {
		return t, nil
	}
	return nil, w.permit(m)
}

// register registers a target that has just been probed. It returns nil if the configuration has changed since.
func (w *Watcher) register(k key, report *probe.Report) (*target, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, errClosed
	}
	t := w.targets[k]
	if t != nil && t.expired.IsZero() {
		return t, nil // another scrape has registered it meanwhile
	}
	if current, ok := w.options.Prober.Config().Modules[k.module]; !ok || !reflect.DeepEqual(current, report.Module) {
		return nil, nil
	}
	if err := w.permit(&report.Module); err != nil {
		return nil, err
	}
	if t == nil {
		t = newTarget(w, k, w.shared(k.module, &report.Module))
	}
	if err := t.begin(report); err != nil {
		return nil, err
	}
	w.targets[k] = t
	w.module(k.module).Registrations++
	w.account(t, 1)
	return t, nil
}

// permit returns an error if a limit does not permit another target of a module. Its caller holds mu.
func (w *Watcher) permit(m *config.Module) error {
	most := handshakesPerProbe * w.options.Prober.MaxInFlight() / 2
	switch rate, reserved := w.rate+perSecond(m), w.reserved+atOnce(m); {
	case w.options.MaxTargets > 0 && w.watched >= w.options.MaxTargets:
		return fmt.Errorf("%w: %d targets are watched already (limit: --watch.max-targets)", ErrLimit, w.watched)
	case w.options.MaxRate > 0 && rate > w.options.MaxRate:
		return fmt.Errorf("%w: %.6g handshakes a second would be too many (limit: --watch.max-rate)", ErrLimit, rate)
	case most > 0 && reserved > most:
		return fmt.Errorf("%w: watched targets that are silent could have %d handshakes in flight "+
			"(limit: %d, 1.5 times --probe.max-in-flight)", ErrLimit, reserved, most)
	}
	return nil
}

// handshakesPerProbe is how many handshakes in the background count as one probe in flight. A probe needs three
// descriptors, with those of its HTTP connection and of its DNS queries, and a handshake in the background one.
const handshakesPerProbe = 3

// perSecond returns how many handshakes with a target of the module there are in a second.
func perSecond(m *config.Module) float64 { return 1 / m.Watch.Interval.Seconds() }

// atOnce returns how many handshakes with a target of the module are in flight if the target is silent.
func atOnce(m *config.Module) int { return int((m.Timeout + m.Watch.Interval - 1) / m.Watch.Interval) }

// account counts a target, or with -1 one less, towards the limits. Its caller holds mu.
func (w *Watcher) account(t *target, n int) {
	w.watched += n
	w.module(t.key.module).Watched += n
	w.rate += float64(n) * perSecond(t.module)
	before := w.reservedProbes()
	w.reserved += n * atOnce(t.module)
	w.options.Prober.Reserve(w.reservedProbes() - before)
}

// reservedProbes returns how many probes need as much as the handshakes that are reserved. Its caller holds mu.
func (w *Watcher) reservedProbes() int {
	return (w.reserved + handshakesPerProbe - 1) / handshakesPerProbe
}

// module returns the totals of a module. Its caller holds mu.
func (w *Watcher) module(name string) *Module {
	m := w.modules[name]
	if m == nil {
		m = &Module{Name: name}
		w.modules[name] = m
	}
	return m
}

// shared returns the configuration of a module, which all of its targets share. Its caller holds mu.
func (w *Watcher) shared(name string, m *config.Module) *config.Module {
	c := w.configs[name]
	if c == nil || !reflect.DeepEqual(*c, *m) {
		copied := *m
		c = &copied
		w.configs[name] = c
	}
	return c
}

// retire stops the handshakes with a target. Its counters are kept for some time. Its caller holds mu.
func (w *Watcher) retire(t *target) {
	t.stop()
	t.recordEnd()
	t.expired = time.Now()
	w.account(t, -1)
}

// forget forgets a target. Its caller holds mu.
func (w *Watcher) forget(t *target) {
	if t.expired.IsZero() {
		w.retire(t)
	}
	delete(w.targets, t.key)
}

// Configure adapts to the configuration that is active in the Prober now. It forgets the targets whose module has
// changed, and those whose address the policy does not permit any more. All others keep their counters.
func (w *Watcher) Configure() {
	c := w.options.Prober.Config()
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, t := range w.targets {
		module, ok := c.Modules[k.module]
		if !ok || !reflect.DeepEqual(module, *t.module) || c.Targets.Check(t.peer()) != nil {
			w.forget(t)
		}
	}
}

// Modules returns the totals of all modules that have had a watched target, in the order of their names.
func (w *Watcher) Modules() []Module {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Module
	for _, m := range w.modules {
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b Module) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// MaxTargets returns the maximum number of watched targets; 0 means no limit.
func (w *Watcher) MaxTargets() int { return w.options.MaxTargets }
