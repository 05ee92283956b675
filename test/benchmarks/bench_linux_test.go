package benchmarks

import (
	"bufio"
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

// BenchmarkBesideBlackbox asks this exporter and Debian's blackbox_exporter, in turns, for
// probes of the same loopback port over kept-alive HTTP connections. The ratios are of this
// one to that one: on a shared machine only these mean something.
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
			b.ReportMetric(0, "ns/op") // of both together: means nothing
			b.ReportMetric(here.cpu/there.cpu, "CPU-ratio")
			b.ReportMetric(there.wall.Seconds()/here.wall.Seconds(), "rate-ratio")
			for _, side := range []struct {
				name string
				load
			}{{"ours", here}, {"blackbox", there}} {
				b.ReportMetric(side.cpu/side.probes*1000, "CPU-s/1000-"+side.name)
				b.ReportMetric(side.probes/side.wall.Seconds(), "probes/s-"+side.name)
				b.ReportMetric(side.allocations/side.probes, "allocs/"+side.name)
				b.ReportMetric(side.bytes/side.probes, "B/"+side.name)
			}
		})
	}
}

// BenchmarkMemory weighs this exporter and Debian's blackbox_exporter, in turns, each after a
// thousand probes: at rest, and with so many probes of silent targets under way, on kept-alive
// HTTP connections that have brought some answers before, as those of Prometheus have. The
// ratio is of this one to that one.
//
//	go -C test test -run '^$' -bench Memory -benchtime 3x ./benchmarks
func BenchmarkMemory(b *testing.B) {
	ours, theirs := peers(b)
	ours.args = []string{"--probe.max-in-flight=100000"}
	simnet.NewWire(b, nil, "10.0.0.0/8")
	path := probePath + listen(b)
	sizes := []int{0, 1000, 9900} // 20,000 descriptors have no room for 10,000
	if testing.Short() {
		sizes = sizes[:2]
	}
	for _, probes := range sizes {
		b.Run(fmt.Sprintf("probes=%d", probes), func(b *testing.B) {
			lab.NeedDescriptors(b, 2*probes+100)
			var here, there float64
			for range b.N {
				here += ours.weigh(b, path, probes)
				there += theirs.weigh(b, path, probes)
			}
			b.ReportMetric(0, "ns/op") // is how long they were left at rest
			b.ReportMetric(here/there, "resident-ratio")
			b.ReportMetric(here/float64(b.N)/(1<<20), "MB-resident/ours")
			b.ReportMetric(there/float64(b.N)/(1<<20), "MB-resident/blackbox")
		})
	}
}

// listen listens on a loopback port and closes each connection after the peer has.
func listen(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	kernel.ServeUntilEOF(b, l)
	return l.Addr().String()
}

// load is what probes took of an exporter.
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

// load asks for so many probes over so many connections.
func (p peer) load(b *testing.B, path string, connections, probes int) load {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: connections}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	open := regexp.MustCompile(`(?m)^probe_success 1$`)
	before, began := p.usage(b), time.Now()
	var asking sync.WaitGroup
	for i := range connections {
		asking.Go(func() {
			for n := i; n < probes; n += connections {
				response, err := client.Get(p.url(path))
				if err != nil {
					b.Error(err)
					return
				}
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if !open.Match(body) {
					b.Errorf("%s: %s", p.program, body)
					return
				}
			}
		})
	}
	asking.Wait()
	wall := time.Since(began)
	return load{p.usage(b).minus(before), float64(probes), wall}
}

// weigh starts the exporter anew, asks it for a path, and returns how many bytes of it are in
// memory while so many probes of silent targets are under way.
func (p peer) weigh(b *testing.B, path string, probes int) float64 {
	b.Helper()
	process := p.start(b)
	defer process.Stop()
	p.load(b, path, 1, 1000)
	time.Sleep(time.Second) // it comes to rest
	conns := make([]net.Conn, probes)
	for i := range conns {
		// An address for each, so that local ports suffice.
		conn, err := net.Dial("tcp", fmt.Sprintf("127.1.%d.%d:%d", i>>8, i&255, p.port))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		conns[i] = conn
	}
	ask := func(header string) {
		for i, conn := range conns {
			fmt.Fprintf(conn, "GET %s10.0.%d.%d:443 HTTP/1.1\r\nHost: x\r\n%s\r\n", probePath, i>>8, i&255, header)
		}
	}
	for range 3 {
		ask("X-Prometheus-Scrape-Timeout-Seconds: 2\r\n")
		for _, conn := range conns {
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, response.Body)
		}
	}
	ask("")
	lab.Eventually(b, "all probes are under way", func() bool { return exporter.SilentHandshakes(b) == probes })
	return float64(process.Resident())
}
