package watch

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// BenchmarkTargets registers targets on this host, and reports how much memory a watched target takes.
//
//	go test -run '^$' -bench Targets -benchtime 100000x ./internal/watch
func BenchmarkTargets(b *testing.B) {
	lab.Need(b)
	c, _, err := config.Parse("watch.yml", []byte("modules: {m: {prober: tcp, watch: {interval: 1m}}}"))
	if err != nil {
		b.Fatal(err)
	}
	engine, err := shaker.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer engine.Close()
	prober := probe.New(probe.Options{Shaker: engine, Config: c})
	w := New(Options{Shaker: engine, Prober: prober})
	defer w.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range b.N {
		addr := netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)})
		req, err := probe.NewRequest(c, netip.AddrPortFrom(addr, 1).String(), "m")
		if err != nil {
			b.Fatal(err)
		}
		if answer, err := w.Scrape(b.Context(), req, "192.0.2.1"); err != nil || answer.Watch == nil {
			b.Fatalf("Scrape of %v = %+v, error %v, want a registration", addr, answer, err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(0, "ns/op") // of a probe and the registration together
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(b.N), "B/target")
}
