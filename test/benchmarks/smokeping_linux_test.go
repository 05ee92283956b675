package benchmarks

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// BenchmarkBesideSmokeping compares the CPU time of a handshake with a watched target with that of a ping of Debian's
// smokeping_prober. Both probe the same 1,000 addresses of this host once per second, at the same time. CPU-ratio is
// shaker_exporter divided by smokeping_prober.
//
//	go -C test test -run '^$' -bench BesideSmokeping -benchtime 5x ./benchmarks
func BenchmarkBesideSmokeping(b *testing.B) {
	const targets = 1000
	ours := build(b)
	ours.args = append(ours.args, "--config.file="+lab.Write(b, b.TempDir(), "shaker.yml",
		"modules: {watched: {prober: tcp, watch: {}}}"))
	theirs := peer{program: lab.Program(b, "prometheus-smokeping-prober", "prometheus-smokeping-prober"), port: 9374}
	var hosts []string
	for i := range targets {
		hosts = append(hosts, fmt.Sprintf("127.1.%d.%d", i>>8, i&255))
	}
	// Without --privileged, each target has a socket that receives only its own replies, and not those of all targets.
	kernel.Sysctl(b, "net.ipv4.ping_group_range", "0 2147483647")
	theirs.args = []string{"--config.file=" + lab.Write(b, b.TempDir(), "smokeping.yml",
		"targets: [{hosts: ["+strings.Join(hosts, ", ")+"], interval: 1s, network: ip4, protocol: icmp}]")}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	kernel.ServeUntilEOF(b, l)
	port := l.Addr().(*net.TCPAddr).Port
	shaker, smokeping := ours.start(b), theirs.start(b)
	var registering sync.WaitGroup
	for i := range 10 {
		registering.Go(func() {
			for n := i; n < targets; n += 10 {
				ours.get(b, lab.Client, fmt.Sprintf("/probe?module=watched&target=%s:%d", hosts[n], port))
			}
		})
	}
	registering.Wait()
	sent := func() float64 { // pings
		return metricOf(b, theirs, "smokeping_requests_total")
	}
	handshakes := func() float64 { return float64(exporter.Metric(b, "shaker_watch_lag_seconds_count")) }
	// The metrics of smokeping_prober are not polled: they take it more CPU time than the pings.
	lab.Eventually(b, "all targets have been probed five times", func() bool { return handshakes() > 5*targets })
	ourProbes, theirProbes := handshakes(), sent()
	ourCPU, theirCPU := shaker.CPU(), smokeping.CPU()
	for range b.N {
		time.Sleep(2 * time.Second)
	}
	ourCPU, theirCPU = shaker.CPU()-ourCPU, smokeping.CPU()-theirCPU
	ourProbes, theirProbes = handshakes()-ourProbes, sent()-theirProbes
	if ourProbes < targets || theirProbes < targets {
		b.Fatalf("%v handshakes and %v pings, want %d of each or more", ourProbes, theirProbes, targets)
	}
	each := func(cpu time.Duration, probes float64) float64 { return float64(cpu.Microseconds()) / probes }
	b.ReportMetric(0, "ns/op") // it waits
	b.ReportMetric(each(ourCPU, ourProbes), "CPU-µs/handshake")
	b.ReportMetric(each(theirCPU, theirProbes), "CPU-µs/ping")
	b.ReportMetric(each(ourCPU, ourProbes)/each(theirCPU, theirProbes), "CPU-ratio")
}

// metricOf returns the sum of a metric of an exporter.
func metricOf(b *testing.B, p peer, name string) (sum float64) {
	b.Helper()
	for line := range strings.Lines(string(p.get(b, lab.Client, "/metrics"))) {
		if series, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(series, name) {
			var n float64
			fmt.Sscan(value, &n)
			sum += n
		}
	}
	return sum
}
