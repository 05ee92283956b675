package idle

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Errors of a scrape that is not answered although the path may be fine.
var (
	// ErrLimit means that a limit does not permit the connections of another target.
	ErrLimit = errors.New("idle timeout not measured")

	// ErrStale means that this host has performed no round of measurements for too long.
	ErrStale = errors.New("no recent measurement of the idle timeout because of this host")
)

const (
	// retryInterval is the time between the starts of two rounds of which the first one has measured nothing.
	retryInterval = time.Minute

	// connectInterval is the least time between two connects of all targets.
	connectInterval = 10 * time.Millisecond
)

// Options configure a [Meter]. Shaker, Prober and Connections are required.
type Options struct {
	Shaker *shaker.Shaker
	Prober *probe.Prober

	// Connections limit the number of connections. A target counts as many as one of its rounds has, as long as it is
	// registered.
	Connections *probe.Connections

	// History keeps the rounds for the status page; nil keeps none.
	History *history.History

	// Changed is called when the connects of a round begin to fail, and when they have recovered; nil ignores them.
	Changed func(*probe.Report)

	// Fault is called with every local error because of which a round is not performed; nil ignores them.
	Fault func(error)
}

// A Meter measures idle timeouts. It is safe for concurrent use.
type Meter struct {
	options  Options
	registry *registry.Registry[*target]
	retry    time.Duration // retryInterval except in tests

	mu          sync.Mutex
	nextConnect time.Time
}

// New returns a Meter that runs until Close.
func New(options Options) *Meter {
	if options.History == nil {
		options.History = history.New(0)
	}
	if options.Changed == nil {
		options.Changed = func(*probe.Report) {}
	}
	if options.Fault == nil {
		options.Fault = func(error) {}
	}
	m := &Meter{options: options, retry: retryInterval}
	m.registry = registry.New(registry.Options[*target]{
		Prober:   options.Prober,
		Activity: "measuring idle timeouts",
		New:      func() *target { return &target{meter: m} },
		Limits:   limits{connections: options.Connections},
		Expire:   func(m *config.Module) time.Duration { return m.Idle.Expire },
		Resolve:  func(*config.Module) time.Duration { return 0 }, // each round does
	})
	return m
}

// Close closes all connections. Later scrapes are an error that wraps [shaker.ErrClosed].
func (m *Meter) Close() { m.registry.Close() }

// turn returns when it is the turn of another connection to be opened.
func (m *Meter) turn() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	turn := time.Now()
	if turn.Before(m.nextConnect) {
		turn = m.nextConnect
	}
	m.nextConnect = turn.Add(connectInterval)
	return turn
}

// An Answer is the answer to a scrape.
type Answer struct {
	// Report is about the last connects. Its Result is "" until the first round is complete, unless a connect failed.
	*probe.Report

	// Idle is what was measured. It is nil if the target is not measured: its name has not had an address yet, or
	// the module has been reloaded during the lookup.
	Idle *Snapshot
}

// Scrape answers a request whose module measures idle timeouts. The first scrape of a target registers it. The client
// is who asks.
//
// An error means that there is nothing to tell: it is as that of [probe.Prober.Probe], or [ErrLimit] or [ErrStale].
func (m *Meter) Scrape(ctx context.Context, req *probe.Request, client string) (Answer, error) {
	t, err := m.registry.Find(req, client)
	if err != nil {
		return Answer{}, err
	}
	if t != nil {
		return t.answer(req)
	}
	leave, err := m.options.Prober.Enter()
	if err != nil {
		return Answer{}, err
	}
	defer leave()
	report, peer, err := m.options.Prober.Choose(ctx, req)
	if err != nil {
		return Answer{}, err
	}
	if !peer.IsValid() {
		return Answer{Report: report}, nil
	}
	t, err = m.registry.Register(req, peer, client, func(t *target) error { t.begin(report, peer); return nil })
	if err != nil {
		return Answer{}, err
	}
	if t == nil {
		report.Handshake.Peer = peer
		return Answer{Report: report}, nil
	}
	return t.answer(req)
}

// Configure adapts to the configuration that is active in the Prober now. It forgets the targets whose module has
// changed, and those whose address the policy does not permit any more. All others go on with their rounds.
func (m *Meter) Configure() { m.registry.Configure() }

// Modules returns the totals of all modules that have had a target, in the order of their names.
func (m *Meter) Modules() []registry.Module { return m.registry.Modules() }

// Targets returns the statuses of all targets, in no particular order.
func (m *Meter) Targets() iter.Seq[*Status] {
	return func(yield func(*Status) bool) {
		for t := range m.registry.Targets() {
			if !yield(t.status()) {
				return
			}
		}
	}
}

// Connections returns how many connections the targets of each module count as. Modules without a target are left out.
func (m *Meter) Connections() map[string]int {
	all := make(map[string]int)
	for t := range m.registry.Targets() {
		all[t.Key.Module] += connections(t.Module)
	}
	return all
}

// limits count the connections that rounds may have at once.
type limits struct{ connections *probe.Connections }

// connections returns how many connections a round has.
func connections(m *config.Module) int {
	n := len(m.Idle.Steps)
	if m.Idle.Control > 0 {
		n++
	}
	return n
}

// Permit implements registry.Limits.
func (l limits) Permit(m *config.Module) error {
	if err := l.connections.Permit(connections(m)); err != nil {
		return fmt.Errorf("%w: it needs %d connections: %w", ErrLimit, connections(m), err)
	}
	return nil
}

// Count implements registry.Limits.
func (l limits) Count(m *config.Module, n int) { l.connections.Count(n * connections(m)) }
