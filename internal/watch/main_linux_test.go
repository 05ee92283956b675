package watch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A bench is a Watcher in a simulated network, whose DNS server can be replaced.
type bench struct {
	t       *testing.T
	network *simnet.Network
	prober  *probe.Prober
	watcher *Watcher
	results *history.History
	dns     atomic.Pointer[func(ctx context.Context, network, address string) (net.Conn, error)]
	told    atomic.Pointer[string] // the last call of LeftOut of the Prober
}

// The addresses of the network: open, refusing and silent targets.
const (
	openPrefix    = "10.0.0.0/24"
	refusedPrefix = "10.0.1.0/24"
)

const watchConfig = `
modules:
  fast:
    prober: tcp
    timeout: 300ms
    watch: {interval: 100ms}
  ip6:
    prober: tcp
    timeout: 300ms
    watch: {interval: 100ms}
    tcp: {preferred_ip_protocol: ip4}
  traced:
    prober: tcp
    timeout: 300ms
    watch: {interval: 100ms}
    tcp: {path: on_failure}
`

// newBench returns a bench. The options of the Watcher lack what the bench has itself.
func newBench(t *testing.T, text string, maxInFlight int, options Options) *bench {
	t.Helper()
	return newEngineBench(t, nil, text, maxInFlight, options)
}

// newEngineBench is newBench with another engine.
func newEngineBench(t *testing.T, of *shaker.Config, text string, maxInFlight int, options Options) *bench {
	t.Helper()
	b := &bench{t: t, network: simnet.NewNetwork(t), results: history.New(10_000)}
	b.network.At(openPrefix, simnet.SYNACK().After(2*time.Millisecond))
	b.network.At(refusedPrefix, simnet.RST().After(2*time.Millisecond))
	engine, err := shaker.New(of)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	b.answerDNS(nil)
	b.prober = probe.New(probe.Options{Shaker: engine, Config: b.parse(text), MaxInFlight: maxInFlight,
		DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
			return (*b.dns.Load())(ctx, network, address)
		},
		LeftOut: func(module, protocol string, ports []uint16) {
			b.told.Store(new(fmt.Sprintf("%s %s %v", module, protocol, ports)))
		}})
	options.Shaker, options.Prober, options.History = engine, b.prober, b.results
	b.watcher = New(options)
	t.Cleanup(b.watcher.Close)
	return b
}

func (b *bench) parse(text string) *config.Config {
	b.t.Helper()
	c, _, err := config.Parse("watch.yml", []byte(text))
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// answerDNS replaces the DNS server.
func (b *bench) answerDNS(names simnet.Names) {
	b.t.Helper()
	dial := simnet.NewDNS(b.t, names)
	b.dns.Store(&dial)
}

// leftOut returns what the last call of LeftOut of the Prober was about, "" if there was none.
func (b *bench) leftOut() string {
	if told := b.told.Load(); told != nil {
		return *told
	}
	return ""
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

// scrape scrapes a target. It fails the test on an error, except that the machine has stood still.
func (b *bench) scrape(target, module string) (answer Answer) {
	b.t.Helper()
	lab.Eventually(b.t, "there is a recent handshake", func() bool {
		var err error
		answer, err = b.watcher.Scrape(b.t.Context(), b.request(target, module), "192.0.2.1")
		if err != nil && !errors.Is(err, ErrStale) && !errors.Is(err, shaker.ErrUnsent) {
			b.t.Fatalf("Scrape of %s with %s: error %v, want an answer", target, module, err)
		}
		return err == nil
	})
	return answer
}

// expire lets targets expire as if so much time had passed.
func (b *bench) expire(after time.Duration) { b.watcher.registry.Expire(time.Now().Add(after)) }

// resolve looks all names up.
func (b *bench) resolve() { b.watcher.registry.Resolve(time.Now().Add(time.Hour)) }

// target returns a watched target.
func (b *bench) target(text, module string) *target {
	b.t.Helper()
	for t := range b.watcher.registry.Targets() {
		if t.Key == (registry.Key{Module: module, Target: text}) {
			return t
		}
	}
	b.t.Fatalf("target %s is not watched with module %s, want that it is", text, module)
	return nil
}

// total returns the number of completed handshakes with a result, or with any if it is "".
func (s *Snapshot) total(result string) (n uint64) {
	for _, c := range s.Handshakes {
		if result == "" || c.Result == result {
			n += c.Total
		}
	}
	return n
}

// lookups returns the number of lookups with a result.
func (s *Snapshot) looked(result string) uint64 {
	for _, c := range s.Lookups {
		if c.Result == result {
			return c.Total
		}
	}
	return 0
}

// awaitHandshakes scrapes a target until there are n completed handshakes with a result.
func (b *bench) awaitHandshakes(target, module, result string, n uint64) (last Answer) {
	b.t.Helper()
	lab.Eventually(b.t, "there are enough handshakes that are "+result, func() bool {
		last = b.scrape(target, module)
		return last.Watch.total(result) >= n
	})
	return last
}
