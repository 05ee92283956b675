package registry

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const (
	// upkeepInterval is how often a Registry looks for targets that expire, or whose names have to be looked up.
	upkeepInterval = time.Second

	// keptAfterExpiry is for how long an expired target is kept. If it is scraped again until then, its counters
	// continue.
	keptAfterExpiry = time.Minute

	// stopsAtOnce is how many targets are stopped at once: their stops share turns of the engine's loops.
	stopsAtOnce = 64
)

// Options configure a [Registry]. All of them are required.
type Options[T Target] struct {
	// Prober has the active configuration, and looks names up.
	Prober *probe.Prober

	// Activity is what is done with the targets, for errors, such as "watching".
	Activity string

	// New returns a target that does nothing yet. The Registry fills in its Registration.
	New func() T

	Limits Limits

	// Expire returns after what time without a scrape a target of a module expires, and Resolve the time between two
	// lookups of a name, 0 for none.
	Expire, Resolve func(*config.Module) time.Duration
}

// Limits decide how many targets may be registered. Their methods are called one at a time.
type Limits interface {
	// Permit returns an error if a limit does not permit another target of a module.
	Permit(*config.Module) error

	// Count counts n more targets of a module.
	Count(m *config.Module, n int)
}

// A Registry has the targets that are registered. It is safe for concurrent use.
type Registry[T Target] struct {
	options Options[T]
	started time.Time
	ctx     context.Context // until Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	lookups chan struct{} // holds a value for each lookup that is running

	ending sync.Mutex // held while targets are leaving

	mu      sync.Mutex
	left    sync.Cond // some targets have left
	leaving int       // targets that are being stopped; each of them makes room when it has left
	closed  bool
	targets map[Key]T
	modules map[string]*Module
	configs map[string]*config.Module // by name, see shared
}

// A Module has the totals of a module.
type Module struct {
	Name                       string
	Registered                 int // targets at present
	Registrations, Expirations uint64
}

// New returns a Registry that runs until Close.
func New[T Target](options Options[T]) *Registry[T] {
	r := &Registry[T]{
		options: options,
		started: time.Now(),
		lookups: make(chan struct{}, lookupsAtOnce),
		targets: make(map[Key]T),
		modules: make(map[string]*Module),
		configs: make(map[string]*config.Module),
	}
	r.left.L = &r.mu
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.running.Go(r.upkeep)
	return r
}

// at returns the moment of a time that has a reading of the monotonic clock. It is never 0 after New.
func (r *Registry[T]) at(t time.Time) moment { return moment(t.Sub(r.started)) + 1 }

func (r *Registry[T]) now() moment { return r.at(time.Now()) }

// LastScrape returns when a target was scraped last, as the wall clock shows it now, and by whom.
func (r *Registry[T]) LastScrape(t T) (at time.Time, client string) {
	scraped, client := t.registration().lastScrape()
	return time.Now().Add(time.Duration(scraped - r.now())), client
}

// upkeep runs until the Registry is closed.
func (r *Registry[T]) upkeep() {
	ticker := time.NewTicker(upkeepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.Expire(time.Now())
			r.Resolve(time.Now())
		case <-r.ctx.Done():
			return
		}
	}
}

// Go calls f in a goroutine. Close cancels its context and waits for it. Only a target that has not been stopped may
// call Go.
func (r *Registry[T]) Go(f func(context.Context)) { r.running.Go(func() { f(r.ctx) }) }

// Close stops all targets. Later scrapes are an error that wraps [shaker.ErrClosed].
func (r *Registry[T]) Close() {
	for batch := range slices.Chunk(r.close(), stopsAtOnce) {
		stop(batch)
	}
	r.cancel()
	r.running.Wait()
}

// close returns the targets that have to be stopped. No other ones are registered afterwards.
func (r *Registry[T]) close() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Collect(maps.Values(r.targets))
	r.closed, r.targets = true, nil
	return all
}

func (r *Registry[T]) errClosed() error {
	return fmt.Errorf("%s has ended: %w", r.options.Activity, shaker.ErrClosed)
}

// Find returns a registered target, and notes that a client scrapes it. It returns the zero T if the target has to be
// registered, and the limits permit that at present.
func (r *Registry[T]) Find(req *probe.Request, client string) (none T, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed {
		if t, ok := r.targets[keyOf(req)]; ok && t.registration().active() {
			t.registration().scrape(r.now(), client)
			return t, nil
		}
		if err := r.options.Limits.Permit(&req.Module); err == nil || r.leaving == 0 {
			return none, err
		}
		r.left.Wait() // those that are leaving make room
	}
	return none, r.errClosed()
}

// Peek returns a registered target, and the zero T if it is not registered. Unlike Find, it does not count as a scrape.
func (r *Registry[T]) Peek(req *probe.Request) (none T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.targets[keyOf(req)]; ok && t.registration().active() {
		return t
	}
	return none
}

// Register registers a target for a request, and returns it. The peer is the address that the request has chosen. If
// the target is not registered yet, begin is called to start what runs in the background; an error of it is that of
// Register. While begin runs, all scrapes wait: it must not wait for the network.
//
// Register returns the zero T if the active configuration is not that of the request any more: it lacks the module, has
// changed it, or does not permit the address.
func (r *Registry[T]) Register(
	req *probe.Request, peer netip.AddrPort, client string, begin func(T) error,
) (none T, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed {
		t, known := r.targets[keyOf(req)]
		switch {
		case known && t.registration().active(): // another scrape has registered it meanwhile
			t.registration().scrape(r.now(), client)
			return t, nil
		case known && t.registration().leaving:
			r.left.Wait()
			continue
		case !permits(r.options.Prober.Config(), req.ModuleName, &req.Module, peer):
			return none, nil
		}
		if err := r.options.Limits.Permit(&req.Module); err != nil {
			if r.leaving == 0 {
				return none, err
			}
			r.left.Wait() // those that are leaving make room
			continue
		}
		if !known {
			t = r.options.New()
			// The text may be a small part of a large HTTP request, which it would keep in memory.
			key := Key{Module: r.module(req.ModuleName).Name, Target: strings.Clone(req.Text)}
			*t.registration() = Registration{Key: key, Module: r.shared(key.Module, &req.Module)}
		}
		if err := begin(t); err != nil {
			return none, err
		}
		r.add(t, req, client)
		return t, nil
	}
	return none, r.errClosed()
}

// add adds a target that has begun. Its caller holds mu.
func (r *Registry[T]) add(t T, req *probe.Request, client string) {
	own := t.registration()
	own.expired = 0
	own.scrape(r.now(), client)
	if !req.Addr.IsValid() {
		own.countLookup(Resolved, r.now(), r.options.Resolve(own.Module))
	}
	r.targets[own.Key] = t
	r.module(own.Key.Module).Registrations++
	r.count(own, 1)
}

func keyOf(req *probe.Request) Key { return Key{Module: req.ModuleName, Target: req.Text} }

// count counts n more targets. Its caller holds mu.
func (r *Registry[T]) count(own *Registration, n int) {
	r.module(own.Key.Module).Registered += n
	r.options.Limits.Count(own.Module, n)
}

// module returns the totals of a module. Its caller holds mu.
func (r *Registry[T]) module(name string) *Module {
	m := r.modules[name]
	if m == nil {
		m = &Module{Name: strings.Clone(name)}
		r.modules[m.Name] = m
	}
	return m
}

// shared returns the configuration of a module, which all of its targets share. Its caller holds mu.
func (r *Registry[T]) shared(name string, m *config.Module) *config.Module {
	c := r.configs[name]
	if c == nil || !reflect.DeepEqual(*c, *m) {
		copied := *m
		c = &copied
		r.configs[name] = c
	}
	return c
}

// Config returns the configuration that the targets of a request's module share, nil if there are none.
func (r *Registry[T]) Config(req *probe.Request) *config.Module {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.configs[req.ModuleName]; c != nil && reflect.DeepEqual(*c, req.Module) {
		return c
	}
	return nil
}

// Expire ends the registrations of targets that have not been scraped for too long, and forgets those that expired long
// ago. The Registry calls it every second.
func (r *Registry[T]) Expire(now time.Time) {
	r.end(func() (expiring []T) {
		for key, t := range r.targets {
			own := t.registration()
			if own.expired != 0 {
				if r.at(now)-own.expired > moment(keptAfterExpiry) {
					delete(r.targets, key)
				}
				continue
			}
			if scraped, _ := own.lastScrape(); r.at(now)-scraped > moment(r.options.Expire(own.Module)) {
				expiring = append(expiring, t)
			}
		}
		return expiring
	}, func(own *Registration) {
		own.expired = r.now()
		r.module(own.Key.Module).Expirations++
	})
}

// end ends the registrations of the targets that choose returns: it stops them, takes them off the totals and the
// limits, and calls then. Both functions are called with mu, and choose while no target is leaving.
func (r *Registry[T]) end(choose func() []T, then func(*Registration)) {
	r.ending.Lock()
	defer r.ending.Unlock()
	for batch := range slices.Chunk(r.leave(choose), stopsAtOnce) {
		stop(batch)
		r.mu.Lock()
		for _, t := range batch {
			own := t.registration()
			own.leaving = false
			if own.expired == 0 {
				r.count(own, -1)
			}
			then(own)
		}
		r.leaving -= len(batch)
		r.left.Broadcast()
		r.mu.Unlock()
	}
}

// leave marks targets as leaving. Until they have left, nothing begins with them.
func (r *Registry[T]) leave(choose func() []T) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	leaving := choose()
	for _, t := range leaving {
		t.registration().leaving = true
	}
	r.leaving = len(leaving)
	return leaving
}

// stop stops some targets at once, and returns when all of them have stopped.
func stop[T Target](targets []T) {
	var stopping sync.WaitGroup
	for _, t := range targets {
		stopping.Go(t.Stop)
	}
	stopping.Wait()
}

// Targets returns all registered targets, in no particular order. It leaves out those that have expired when it is
// their turn.
func (r *Registry[T]) Targets() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, t := range r.all() {
			if r.isActive(t) && !yield(t) {
				return
			}
		}
	}
}

// all returns all targets. It does not look at them, because that takes too long for a caller that holds mu.
func (r *Registry[T]) all() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.AppendSeq(make([]T, 0, len(r.targets)), maps.Values(r.targets))
}

func (r *Registry[T]) isActive(t T) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return t.registration().active()
}

// Modules returns the totals of all modules that have had a registered target, in the order of their names.
func (r *Registry[T]) Modules() []Module {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Module
	for _, m := range r.modules {
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b Module) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
