package benchmarks

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// BenchmarkBesideBlackbox compares the cost of a probe with Debian's blackbox_exporter. Both exporters, in turns, probe
// the same loopback port, requested over kept-alive HTTP connections. Ratios are shaker_exporter divided by
// blackbox_exporter. On a shared machine only the ratios are meaningful.
//
//	go -C test test -run '^$' -bench BesideBlackbox -benchtime 20000x ./benchmarks
func BenchmarkBesideBlackbox(b *testing.B) {
	ours, theirs := peers(b)
	ours.start(b)
	theirs.start(b)
	path := probePath + listen(b)
	for _, connections := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			var here, there load
			const rounds = 4
			for range rounds {
				here.add(ours.load(b, path, connections, b.N/rounds+1))
				there.add(theirs.load(b, path, connections, b.N/rounds+1))
			}
			b.ReportMetric(0, "ns/op") // covers both exporters, so it is meaningless
			b.ReportMetric(here.cpu/there.cpu, "CPU-ratio")
			b.ReportMetric(there.wall.Seconds()/here.wall.Seconds(), "rate-ratio")
			for _, side := range []struct {
				name string
				load
			}{
				{name: "ours", load: here},
				{name: "blackbox", load: there},
			} {
				b.ReportMetric(side.cpu/side.probes*1000, "CPU-s/1000-"+side.name)
				b.ReportMetric(side.probes/side.wall.Seconds(), "probes/s-"+side.name)
				b.ReportMetric(side.allocations/side.probes, "allocs/"+side.name)
				b.ReportMetric(side.bytes/side.probes, "B/"+side.name)
			}
		})
	}
}

// BenchmarkMemory compares the resident memory with Debian's blackbox_exporter, each after a thousand probes: at rest,
// and with probes of silent targets in flight, each requested over a new HTTP connection. The ratio is shaker_exporter
// divided by blackbox_exporter.
//
//	go -C test test -run '^$' -bench Memory -benchtime 3x ./benchmarks
func BenchmarkMemory(b *testing.B) {
	ours, theirs := peers(b)
	ours.args = []string{"--probe.max-in-flight=100000"}
	simnet.NewWire(b, nil, "10.0.0.0/8")
	path := probePath + listen(b)
	sizes := []int{0, 1000, 9900} // 10,000 probes would exceed 20,000 descriptors
	if testing.Short() {
		sizes = sizes[:2]
	}
	for _, probes := range sizes {
		b.Run(fmt.Sprintf("probes=%d", probes), func(b *testing.B) {
			lab.NeedDescriptors(b, 2*probes+100)
			var here, there float64
			for range b.N {
				here += ours.resident(b, path, probes)
				there += theirs.resident(b, path, probes)
			}
			b.ReportMetric(0, "ns/op") // includes the waits, so it is meaningless
			b.ReportMetric(here/there, "resident-ratio")
			b.ReportMetric(here/float64(b.N)/(1<<20), "MB-resident/ours")
			b.ReportMetric(there/float64(b.N)/(1<<20), "MB-resident/blackbox")
		})
	}
}

// listen listens on a loopback port, closes each connection after the peer has closed it, and returns the address.
func listen(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	kernel.ServeUntilEOF(b, l)
	return l.Addr().String()
}

// load is what an exporter used for a number of probes.
type load struct {
	usage
	probes float64
	wall   time.Duration
}

func (l *load) add(m load) {
	l.usage = l.plus(m.usage)
	l.probes += m.probes
	l.wall += m.wall
}

// load requests a number of probes of an open port over a number of connections.
func (p peer) load(b *testing.B, path string, connections, probes int) load {
	b.Helper()
	before, began := p.usage(b), time.Now()
	p.request(b, path, connections, probes)
	wall := time.Since(began)
	return load{usage: p.usage(b).minus(before), probes: float64(probes), wall: wall}
}

// request requests a number of probes of an open port over a number of connections.
func (p peer) request(b *testing.B, path string, connections, probes int) {
	b.Helper()
	p.requestEach(b, connections, probes, func(int) string { return path })
}

// requestEach requests a number of probes of open ports, each with a path of its own, over a number of connections.
func (p peer) requestEach(b *testing.B, connections, probes int, path func(i int) string) {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: connections}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	open := regexp.MustCompile(`(?m)^probe_success 1$`)
	var requesting sync.WaitGroup
	for i := range connections {
		requesting.Go(func() {
			for n := i; n < probes; n += connections {
				url := p.url(path(n))
				response, err := client.Get(url)
				if err != nil {
					b.Error(err)
					return
				}
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if !open.Match(body) {
					b.Errorf("%s: GET %s = %s, want probe_success 1 in\n%s", p.program, url, response.Status, body)
					return
				}
			}
		})
	}
	requesting.Wait()
}

// resident starts the exporter, requests a path a thousand times, and returns the exporter's resident memory in bytes
// while a number of probes of silent targets are in flight.
func (p peer) resident(b *testing.B, path string, probes int) float64 {
	b.Helper()
	process := p.start(b)
	defer process.Stop()
	p.load(b, path, 1, 1000)
	time.Sleep(time.Second) // until the exporter is at rest
	for i := range probes {
		// Each connection has an address of its own, so that the local ports suffice.
		conn, err := net.Dial("tcp", fmt.Sprintf("127.1.%d.%d:%d", i>>8, i&255, p.port))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s10.0.%d.%d:443 HTTP/1.1\r\nHost: x\r\n\r\n", probePath, i>>8, i&255)
	}
	lab.Eventually(b, "all probes are in flight", func() bool { return exporter.SilentHandshakes(b) == probes })
	return float64(process.Resident())
}
