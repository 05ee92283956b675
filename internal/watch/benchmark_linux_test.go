package watch

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// BenchmarkTargets lists 100,000 watched targets for the status page: addresses whose handshakes succeed, and names
// whose last handshake was lost. B/target is the memory of a target, without its Repetition.
//
//	go test -run '^$' -bench Targets -benchmem ./internal/watch
func BenchmarkTargets(b *testing.B) {
	b.Run("addresses", func(b *testing.B) {
		benchmarkTargets(b, "[2001:db8:0:1234::%x:%x]:443", func(*target) {})
	})
	b.Run("addresses with 16 flows", func(b *testing.B) {
		ports := shaker.PortRange{First: 20000, Last: 20015}
		benchmarkTargets(b, "[2001:db8:0:1234::%x:%x]:443", func(t *target) {
			t.flows = newFlows(ports)
			for port := ports.First; port <= ports.Last; port++ {
				t.add(&shaker.Repeated{Sent: time.Now(), Result: t.last, SourcePort: port})
			}
		})
	})
	b.Run("failing names", func(b *testing.B) {
		name := &probe.Report{Resolution: probe.Resolution{Addrs: make([]netip.Addr, 1)}}
		benchmarkTargets(b, "web-%x-%x.production.example:443", func(t *target) {
			t.resolved(name)
			t.repetition = new(shaker.Repetition) // so that the target takes the result
			lost := shaker.Result{Outcome: shaker.Timeout, Waited: time.Second, SYNs: 1, Peer: t.last.Peer}
			t.take(shaker.Repeated{Sent: time.Now(), Result: lost})
			t.repetition = nil
		})
	})
}

func benchmarkTargets(b *testing.B, format string, prepare func(*target)) {
	const n = 100_000
	engine, err := shaker.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer engine.Close()
	c, _, err := config.Parse("watch.yml", []byte(strings.ReplaceAll(watchConfig, "100ms", "1m")))
	if err != nil {
		b.Fatal(err)
	}
	w := New(Options{Shaker: engine, Prober: probe.New(probe.Options{Shaker: engine, Config: c})})
	defer w.Close()
	peer := netip.MustParseAddrPort("192.0.2.1:443")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		req, err := probe.NewRequest(c, fmt.Sprintf(format, i>>8, i&0xff), "fast")
		if err != nil {
			b.Fatal(err)
		}
		_, err = w.registry.Register(req, peer, "", func(t *target) error {
			t.add(&shaker.Repeated{Sent: time.Now(), Result: shaker.Result{
				Outcome: shaker.Open, RTT: 3 * time.Millisecond, Handshake: 3 * time.Millisecond, SYNs: 1, Peer: peer,
			}})
			prepare(t)
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	for b.Loop() {
		for range w.Targets() {
		}
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/target")
}

// BenchmarkReload changes the module of 20,000 watched targets. waited-ms is how long a scrape waited at most
// meanwhile.
//
//	go test -run '^$' -bench Reload -benchtime 3x ./internal/watch
func BenchmarkReload(b *testing.B) {
	const n = 20_000
	engine, err := shaker.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer engine.Close()
	parse := func(ttl int) *config.Config {
		c, _, err := config.Parse("watch.yml", fmt.Appendf(nil, "modules: {many: {prober: tcp, watch: {interval: 1m}, "+
			"tcp: {ttl: %d}}, other: {prober: tcp, watch: {interval: 1m}}}", ttl))
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	prober := probe.New(probe.Options{Shaker: engine, Config: parse(1)})
	w := New(Options{Shaker: engine, Prober: prober})
	defer w.Close()
	register := func(module string, i int) *probe.Request {
		text := fmt.Sprintf("127.0.%d.%d:9", i>>8, i&0xff)
		req, err := probe.NewRequest(prober.Config(), text, module)
		if err != nil {
			b.Fatal(err)
		}
		peer := netip.MustParseAddrPort(text)
		report := &probe.Report{Request: req, Start: time.Now()}
		report.Handshake = shaker.Result{Outcome: shaker.Refused, Peer: peer, SYNs: 1}
		if _, err := w.registry.Register(req, peer, "", func(t *target) error { return t.begin(report) }); err != nil {
			b.Fatal(err)
		}
		return req
	}
	other := register("other", 0)
	var longest time.Duration
	for i := range b.N {
		b.StopTimer()
		for k := range n {
			register("many", k)
		}
		prober.Configure(parse(i%2 + 2))
		reloaded, scraped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(scraped)
			for {
				select {
				case <-reloaded:
					return
				default:
				}
				start := time.Now()
				if t, err := w.registry.Find(other, ""); t == nil || err != nil {
					b.Errorf("Find during a reload = %v, error %v, want a target", t, err)
				}
				longest = max(longest, time.Since(start))
				time.Sleep(time.Millisecond)
			}
		}()
		b.StartTimer()
		w.Configure()
		b.StopTimer()
		close(reloaded)
		<-scraped
		b.StartTimer()
	}
	b.ReportMetric(longest.Seconds()*1000, "waited-ms")
}
