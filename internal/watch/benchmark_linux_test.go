package watch

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// BenchmarkTargets lists 100,000 watched targets for the status page. locked-ms is the time for which the mutex of the
// Watcher is held, and B/target the memory of a target, without its Repetition.
//
//	go test -run '^$' -bench Targets -benchmem ./internal/watch
func BenchmarkTargets(b *testing.B) {
	const n = 100_000
	engine, err := shaker.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer engine.Close()
	w := New(Options{Shaker: engine, Prober: probe.New(probe.Options{Shaker: engine})})
	defer w.Close()
	c, _, err := config.Parse("watch.yml", []byte(watchConfig))
	if err != nil {
		b.Fatal(err)
	}
	module := c.Modules["fast"]
	module.Watch.Interval = time.Minute // the last handshakes are recent
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		k := key{module: "tcp_watch", text: fmt.Sprintf("web-%d.prod.example:443", i)}
		t := newTarget(w, k, &module)
		t.scraped = time.Now()
		t.add(&shaker.Repeated{Sent: time.Now(), Result: shaker.Result{
			Outcome: shaker.Open, RTT: 3 * time.Millisecond, Handshake: 3 * time.Millisecond, SYNs: 1,
			Peer: netip.MustParseAddrPort("192.0.2.1:443"),
		}})
		w.targets[k] = t
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	var locked time.Duration
	for b.Loop() {
		start := time.Now()
		w.all()
		locked += time.Since(start)
		for range w.Targets() {
		}
	}
	w.mu.Lock()
	w.targets = make(map[key]*target)
	w.mu.Unlock()
	b.ReportMetric(locked.Seconds()*1000/float64(b.N), "locked-ms")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/target")
}
