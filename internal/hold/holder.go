package hold

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Errors of a scrape that is not answered although the target may be fine.
var (
	// ErrLimit means that a limit does not permit another connection.
	ErrLimit = errors.New("connection not held")

	// ErrPending means that the connect of a registered target has not begun, or not early enough for a verdict.
	ErrPending = errors.New("target not connected yet")

	// ErrFault means that there is no connection because of this host.
	ErrFault = errors.New("no connection to the target because of this host")

	// ErrStopped means that the target was closed during the scrape, because it expired or because of a reload.
	ErrStopped = errors.New("target closed during the scrape")
)

// Options configure a [Holder]. Shaker, Prober and Connections are required.
type Options struct {
	Shaker *shaker.Shaker
	Prober *probe.Prober

	// Connections limit the number of connections.
	Connections *probe.Connections

	// History keeps failures, and what follows them, for the status page; nil keeps none.
	History *history.History

	// Observe is called with every connect that has ended: with its result, or with an error of this host. nil
	// ignores them.
	Observe func(module string, r *shaker.Result, err error)

	// Changed is called when a target begins to fail, and when it has recovered; nil ignores it. The function must
	// not call methods of the Holder.
	Changed func(*probe.Report)
}

// A Holder holds connections. It is safe for concurrent use.
type Holder struct {
	options  Options
	started  time.Time
	registry *registry.Registry[*target]
	pace     pace
	causes   causes
	closed   atomic.Bool

	mu        sync.Mutex
	perModule map[*config.Module]*shaker.HoldOptions
}

// New returns a Holder that runs until Close.
func New(options Options) *Holder {
	if options.History == nil {
		options.History = history.New(0)
	}
	if options.Observe == nil {
		options.Observe = func(string, *shaker.Result, error) {}
	}
	if options.Changed == nil {
		options.Changed = func(*probe.Report) {}
	}
	h := &Holder{options: options, started: time.Now()}
	h.registry = registry.New(registry.Options[*target]{
		Prober:   options.Prober,
		Activity: "holding connections",
		New:      func() *target { return &target{holder: h} },
		Limits:   limits{connections: options.Connections},
		Expire:   func(m *config.Module) time.Duration { return m.Hold.Expire },
		Resolve:  func(m *config.Module) time.Duration { return m.Hold.Resolve },
	})
	return h
}

// Close closes all connections. Scrapes that are running, and later ones, are an error that wraps [shaker.ErrClosed].
func (h *Holder) Close() {
	h.closed.Store(true)
	h.registry.Close()
}

// Configure adapts to the configuration that is active in the Prober now. It closes the connections of modules that
// have changed, and those to addresses that the policy does not permit any more. All others stay, with their counters.
func (h *Holder) Configure() {
	h.registry.Configure()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.perModule = nil // those that are in use are made again
}

// Modules returns the totals of all modules that have had a held target, in the order of their names.
func (h *Holder) Modules() []registry.Module { return h.registry.Modules() }

// MaxConnections returns the maximum number of connections; 0 means no limit.
func (h *Holder) MaxConnections() int { return h.options.Connections.Limit() }

// An Answer is the answer to a scrape.
type Answer struct {
	*probe.Report

	// Hold is what is known about the connections. It is nil if the target is not registered, because its name has not
	// had an address yet.
	Hold *Snapshot
}

// Scrape answers a request whose module holds connections. The first scrape of a target registers it and waits for its
// connection. The client is who asks.
//
// An error means that there is no verdict, as that of [probe.Prober.Probe], or that it is [ErrLimit], [ErrPending],
// [ErrFault] or [ErrStopped].
func (h *Holder) Scrape(ctx context.Context, req *probe.Request, client string) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, req.Timeout)
	defer cancel()
	t, err := h.registry.Find(req, client)
	if err != nil {
		return Answer{}, err
	}
	if t != nil && t.isSettled() {
		return t.answer(req)
	}
	leave, err := h.options.Prober.Enter()
	if err != nil {
		return Answer{}, err
	}
	defer leave()
	if t == nil {
		report, peer, err := h.options.Prober.Choose(ctx, req)
		if err != nil {
			return Answer{}, err
		}
		if !peer.IsValid() {
			return Answer{Report: report}, nil
		}
		t, err = h.registry.Register(req, peer, client, func(t *target) error { return t.begin(report, peer) })
		if err != nil {
			return Answer{}, err
		}
		if t == nil {
			return Answer{}, h.errStopped()
		}
	}
	if err := t.await(ctx, req); err != nil {
		return Answer{}, err
	}
	return t.answer(req)
}

// errStopped returns the error of a scrape whose target was stopped meanwhile.
func (h *Holder) errStopped() error {
	if h.closed.Load() {
		return fmt.Errorf("%w: %w", ErrStopped, shaker.ErrClosed)
	}
	return ErrStopped
}

// optionsOf returns the options of a module's connections, which they share.
func (h *Holder) optionsOf(m *config.Module) *shaker.HoldOptions {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known := h.perModule[m]; known != nil {
		return known
	}
	options := m.HoldOptions()
	if h.perModule == nil {
		h.perModule = make(map[*config.Module]*shaker.HoldOptions)
	}
	h.perModule[m] = &options
	return &options
}

func errPending(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrPending, fmt.Sprintf(format, args...))
}
