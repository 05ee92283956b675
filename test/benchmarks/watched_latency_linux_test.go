package benchmarks

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// BenchmarkProbeBesideWatched compares how long a probe of an open port takes, from the request to the response, while
// the exporter watches 30,000 targets of this host with a handshake per second each, and while it watches none. There
// is one request at a time, and a pause of 1 ms between two. With -short there are fewer targets.
//
//	go -C test test -run '^$' -bench ProbeBesideWatched -benchtime 10000x ./benchmarks
func BenchmarkProbeBesideWatched(b *testing.B) {
	targets := 30_000
	if testing.Short() {
		targets = 1000
	}
	ours := build(b)
	ours.args = []string{
		"--watch.max-targets=100000", "--watch.max-rate=100000", "--probe.max-in-flight=100000",
		"--config.file=" + lab.Write(b, b.TempDir(), "shaker.yml",
			"modules: {tcp_connect: {prober: tcp}, watched: {prober: tcp, watch: {interval: 1s, expire: 1h}}}"),
	}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	kernel.ServeUntilEOF(b, l)
	port := l.Addr().(*net.TCPAddr).Port
	ours.start(b)
	quantiles := func() (p50, p99 time.Duration) {
		return ours.latencies(b, fmt.Sprintf("/probe?target=127.0.0.1:%d", port), max(b.N, 100))
	}
	quantiles() // warms up
	alone50, alone99 := quantiles()
	ours.requestEach(b, 8, targets, func(i int) string {
		return fmt.Sprintf("/probe?module=watched&target=127.%d.%d.%d:%d", 1+i>>16, i>>8&255, i&255, port)
	})
	handshakes := func() float64 { return float64(exporter.Metric(b, "shaker_watch_lag_seconds_count")) }
	before, began := handshakes(), time.Now()
	beside50, beside99 := quantiles()
	rate := (handshakes() - before) / time.Since(began).Seconds()
	b.ReportMetric(0, "ns/op") // covers all phases, so it is meaningless
	b.ReportMetric(rate, "handshakes/s")
	b.ReportMetric(beside50.Seconds()/alone50.Seconds(), "p50-ratio")
	b.ReportMetric(beside99.Seconds()/alone99.Seconds(), "p99-ratio")
	b.ReportMetric(float64(alone99.Microseconds()), "µs-p99-alone")
	b.ReportMetric(float64(beside99.Microseconds()), "µs-p99-beside")
}

// latencies returns the median and the 99th percentile of the time from a request to the response, over n requests of a
// path, with a pause of 1 ms between two.
func (p peer) latencies(b *testing.B, path string, n int) (p50, p99 time.Duration) {
	b.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var all []time.Duration
	for range n {
		start := time.Now()
		response, err := client.Get(p.url(path))
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		all = append(all, time.Since(start))
		if response.StatusCode != http.StatusOK {
			b.Fatalf("GET %s = %s, want 200", path, response.Status)
		}
		time.Sleep(time.Millisecond)
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100]
}
