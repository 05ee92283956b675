package registry

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

func TestMain(m *testing.M) { lab.Main(m) }

const testConfig = `
modules:
  one:
    prober: tcp
    watch: {interval: 1s}
    tcp: {preferred_ip_protocol: ip4}
  two:
    prober: tcp
    watch: {interval: 1s}
`

// A fakeTarget notes what the Registry tells it.
type fakeTarget struct {
	Registration
	bench *bench

	mu       sync.Mutex
	peer     netip.AddrPort
	running  bool
	adapted  []netip.Addr // by the last call of Adapt
	verdict  string       // of the last call of Adapt
	adaptedN int
}

func (t *fakeTarget) Stop() {
	if f := t.bench.onStop.Load(); f != nil {
		(*f)(t)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = false
}

func (t *fakeTarget) Peer() netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peer
}

func (t *fakeTarget) Adapt(report *probe.Report, addrs []netip.Addr) {
	if f := t.bench.onAdapt; f != nil {
		f()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.adapted, t.verdict = addrs, report.Result
	t.adaptedN++
	if len(addrs) > 0 {
		t.peer = netip.AddrPortFrom(addrs[0], t.peer.Port())
	}
}

func (t *fakeTarget) isRunning() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running
}

func (t *fakeTarget) adaptations() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.adaptedN
}

func (t *fakeTarget) isLooking() bool {
	t.Registration.mu.Lock()
	defer t.Registration.mu.Unlock()
	return t.looking
}

// looked returns the number of lookups with a result.
func (t *fakeTarget) looked(result string) uint64 {
	for _, c := range t.Lookups() {
		if c.Result == result {
			return c.Total
		}
	}
	return 0
}

var errTooMany = errors.New("too many")

// fakeLimits permit a number of targets.
type fakeLimits struct{ most, targets int }

func (l *fakeLimits) Permit(*config.Module) error {
	if l.targets < l.most {
		return nil
	}
	return errTooMany
}

func (l *fakeLimits) Count(_ *config.Module, n int) { l.targets += n }

// A bench is a Registry that permits 1000 targets. There is no DNS server before answerDNS is called.
type bench struct {
	*Registry[*fakeTarget]
	t       *testing.T
	prober  *probe.Prober
	limits  *fakeLimits
	dns     atomic.Pointer[func(ctx context.Context, network, address string) (net.Conn, error)]
	onStop  atomic.Pointer[func(*fakeTarget)] // called by each Stop
	onAdapt func()                            // called by each Adapt; set it before the first lookup
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, limits: &fakeLimits{most: 1000}}
	b.dialDNS(func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no DNS server") })
	b.prober = probe.New(probe.Options{Config: b.parse(testConfig),
		DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
			return (*b.dns.Load())(ctx, network, address)
		}})
	b.Registry = New(Options[*fakeTarget]{
		Prober:   b.prober,
		Activity: "watching",
		New:      func() *fakeTarget { return &fakeTarget{bench: b} },
		Limits:   b.limits,
		Expire:   func(m *config.Module) time.Duration { return m.Watch.Expire },
		Resolve:  func(m *config.Module) time.Duration { return m.Watch.Resolve },
	})
	t.Cleanup(func() {
		b.onStop.Store(nil)
		b.Close()
	})
	return b
}

func (b *bench) parse(text string) *config.Config {
	b.t.Helper()
	c, _, err := config.Parse("registry.yml", []byte(text))
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// reload makes a configuration the active one.
func (b *bench) reload(text string) {
	b.t.Helper()
	b.prober.Configure(b.parse(text))
	b.Configure()
}

// answerDNS replaces the DNS server.
func (b *bench) answerDNS(names simnet.Names) {
	b.t.Helper()
	b.dialDNS(simnet.NewDNS(b.t, names))
}

func (b *bench) dialDNS(dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	b.dns.Store(&dial)
}

// request returns a request of the active configuration.
func (b *bench) request(target, module string) *probe.Request {
	b.t.Helper()
	req, err := probe.NewRequest(b.prober.Config(), target, module)
	if err != nil {
		b.t.Fatal(err)
	}
	return req
}

// peerOf returns the address of a request, or 10.0.0.1 if its target is a name.
func peerOf(req *probe.Request) netip.AddrPort {
	addr := req.Addr
	if !addr.IsValid() {
		addr = netip.MustParseAddr("10.0.0.1")
	}
	return netip.AddrPortFrom(addr, req.Port)
}

// register registers a target for a request. It returns nil if the Registry does not register it.
func (b *bench) register(req *probe.Request) (*fakeTarget, error) {
	return b.Register(req, peerOf(req), "192.0.2.1", func(t *fakeTarget) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.peer, t.running = peerOf(req), true
		return nil
	})
}

// scrape finds or registers a target. It fails the test if there is none afterwards.
func (b *bench) scrape(target, module string) *fakeTarget {
	b.t.Helper()
	req := b.request(target, module)
	t, err := b.Find(req, "192.0.2.1")
	if err == nil && t == nil {
		t, err = b.register(req)
	}
	if err != nil || t == nil {
		b.t.Fatalf("scrape of %s with %s: %v, error %v, want a target", target, module, t, err)
	}
	return t
}

// expire lets targets expire as if so much time had passed.
func (b *bench) expire(after time.Duration) { b.Expire(time.Now().Add(after)) }

// resolve looks all names up.
func (b *bench) resolve() { b.Resolve(time.Now().Add(time.Hour)) }

// keys returns the keys of all registered targets, sorted.
func (b *bench) keys() (keys []string) {
	for t := range b.Targets() {
		keys = append(keys, t.Key.Module+" "+t.Key.Target)
	}
	slices.Sort(keys)
	return keys
}

// within waits for a channel to be closed or to have a value.
func within[T any](t *testing.T, what string, ch <-chan T) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: not within 30 s", what)
	}
}

// inBackground calls f, and returns a channel that is closed when f has returned.
func inBackground(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

// inBubble runs a test in which synctest.Wait waits until every goroutine waits for another one.
func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	probe.New(probe.Options{Config: config.Default()}) // package net then has its channels outside of the bubble
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// holdStops lets the stops of all targets wait for release. A value is sent for each that has begun.
func (b *bench) holdStops() (begun <-chan struct{}, release func()) {
	arrivals, released := make(chan struct{}, 1000), make(chan struct{})
	wait := func(*fakeTarget) {
		arrivals <- struct{}{}
		<-released
	}
	b.onStop.Store(&wait)
	release = sync.OnceFunc(func() {
		b.onStop.Store(nil)
		close(released)
	})
	b.t.Cleanup(release)
	return arrivals, release
}
