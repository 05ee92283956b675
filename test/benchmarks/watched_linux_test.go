package benchmarks

import (
	"fmt"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// BenchmarkWatchedScrape compares the CPU time of a scrape of a watched target, which is answered from memory, with
// that in which a net/http server writes the same response (testdata/nethttp). Both run in turns. The CPU time of the
// exporter includes the handshakes in the background, one in a minute.
//
//	go -C test test -run '^$' -bench WatchedScrape -benchtime 40000x ./benchmarks
func BenchmarkWatchedScrape(b *testing.B) {
	ours := build(b)
	config := lab.Write(b, b.TempDir(), "shaker.yml", "modules: {watched: {prober: tcp, watch: {interval: 1m}}}")
	ours.args = append(ours.args, "--config.file="+config)
	exporter := ours.start(b)
	path := "/probe?module=watched&target=" + listen(b)
	ours.get(b, lab.Client, path) // registers the target
	plain, server := startNetHTTP(b, ours.get(b, lab.Client, path))
	for _, connections := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			var scrapes, responses time.Duration
			const rounds = 4
			n := b.N/rounds + 1
			for range rounds {
				before := exporter.CPU()
				ours.request(b, path, connections, n)
				scrapes += exporter.CPU() - before

				before = server.CPU()
				plain.request(b, path, connections, n)
				responses += server.CPU() - before
			}
			each := func(cpu time.Duration) float64 { return float64(cpu.Microseconds()) / float64(rounds*n) }
			b.ReportMetric(0, "ns/op") // covers both, so it is meaningless
			b.ReportMetric(each(scrapes), "CPU-µs/scrape")
			b.ReportMetric(each(responses), "CPU-µs/response")
			b.ReportMetric(scrapes.Seconds()/responses.Seconds(), "CPU-ratio")
		})
	}
}
