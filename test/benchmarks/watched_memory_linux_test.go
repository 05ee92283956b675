package benchmarks

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// BenchmarkWatchedMemory measures the resident memory of the exporter with 100,000 watched targets, addresses of this
// host. Each of them has a handshake once per minute, and is scraped once per minute. The figures are the highest ones
// of all seconds, in millions of bytes: MB-resident with the code of the program, MB-anonymous without it. The goal is
// for MB-resident.
//
// An op is a minute. The targets are registered before the first one. With -short there are fewer targets, and an op is
// 5 s.
//
//	go -C test test -run '^$' -bench WatchedMemory -benchtime 2x ./benchmarks
func BenchmarkWatchedMemory(b *testing.B) {
	targets, interval := 100_000, time.Minute
	if testing.Short() {
		targets, interval = 1000, 5*time.Second
	}
	const connections = 8
	ours := build(b)
	ours.args = []string{
		"--watch.max-targets=100000", "--probe.max-in-flight=100000",
		"--config.file=" + lab.Write(b, b.TempDir(), "shaker.yml",
			fmt.Sprintf("modules: {watched: {prober: tcp, watch: {interval: %v, expire: 1h}}}", interval)),
	}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	kernel.ServeUntilEOF(b, l)
	port := l.Addr().(*net.TCPAddr).Port
	process := ours.start(b)
	scrape := func(first, last int) {
		ours.requestEach(b, connections, last-first, func(i int) string {
			i += first
			return fmt.Sprintf("/probe?module=watched&target=127.%d.%d.%d:%d", 1+i>>16, i>>8&255, i&255, port)
		})
	}
	scrape(0, targets)
	handshakes := func() float64 { return float64(exporter.Metric(b, "shaker_watch_lag_seconds_count")) }
	registered, began := exporter.Metric(b, `shaker_watched_targets{module="watched"}`), time.Now()
	before, cpu := handshakes(), process.CPU()
	var resident, anonymous int
	seconds := int(interval / time.Second)
	for second := range b.N * seconds {
		part := second % seconds
		scrape(targets*part/seconds, targets*(part+1)/seconds)
		resident, anonymous = max(resident, process.Resident()), max(anonymous, process.Anonymous())
		time.Sleep(time.Until(began.Add(time.Duration(second+1) * time.Second)))
	}
	cpu = process.CPU() - cpu
	took := time.Since(began).Seconds()
	performed := handshakes() - before
	if registered != targets || performed < float64(b.N*targets)*0.9 {
		b.Errorf("%d targets had %v handshakes in %d intervals, want %d targets and 90%% of the handshakes or more",
			registered, performed, b.N, targets)
	}
	b.ReportMetric(0, "ns/op") // is the interval
	b.ReportMetric(200, "MB-goal")
	b.ReportMetric(float64(resident)/1e6, "MB-resident")
	b.ReportMetric(float64(anonymous)/1e6, "MB-anonymous")
	b.ReportMetric(performed/took, "handshakes/s")
	b.ReportMetric(cpu.Seconds()/took, "cores")
}
