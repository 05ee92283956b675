package benchmarks

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// BenchmarkScale measures what the exporter uses for 10,000, 50,000 and 100,000 targets. A client that behaves like
// Prometheus probes each target every 15 s. Targets have round-trip times of 1 to 80 ms, and one in a hundred is
// silent. CPU-ratio is the CPU time per probe divided by the CPU time per probe with the fewest targets.
//
// The benchmark fails if a result is wrong or missing, or if a probe begins more than 1 s late. In the second case the
// machine is too slow or too busy for the benchmark's own part: the client, the simulated network, and the kernel's
// processing of the SYN-ACKs.
//
// An op is an interval. A third of an interval precedes the first one, so that silent targets are in flight from the
// start. With -short there are fewer targets, which are probed every 3 s.
//
//	go -C test test -run '^$' -bench Scale -benchtime 4x ./benchmarks
func BenchmarkScale(b *testing.B) {
	lab.NeedDescriptors(b, 5000)
	exporter := build(b)
	sizes, interval := []int{10_000, 50_000, 100_000}, 15*time.Second
	if testing.Short() {
		sizes, interval = []int{1000, 2000}, 3*time.Second
	}
	var fewest float64 // CPU seconds per probe with the fewest targets
	for _, n := range sizes {
		b.Run(fmt.Sprintf("targets=%d", n), func(b *testing.B) {
			network := simnet.NewNetwork(b)
			process := exporter.start(b)
			j := newJob(b, network, n, interval)
			j.next = time.Now().Add(-interval * 2 / 3)
			j.scrape(j.targets[n*2/3:])

			before, testBefore, start := exporter.usage(b), lab.CPU(), time.Now()
			for range b.N {
				network.Forget() // with 100,000 targets the record grows by 20 MB per interval
				j.scrape(j.targets)
			}
			after, test, wall := exporter.usage(b), lab.CPU()-testBefore, time.Since(start)
			j.end()

			cpu, probes := after.cpu-before.cpu, float64(b.N*n)
			if n == sizes[0] {
				fewest = cpu / probes
			}
			b.ReportMetric(0, "ns/op") // is the interval
			b.ReportMetric(probes, "probes")
			b.ReportMetric(float64(j.wrong.Load()), "wrong")
			b.ReportMetric(float64(j.late.Load()), "late")
			b.ReportMetric(cpu/wall.Seconds(), "cores/exporter")
			b.ReportMetric(test.Seconds()/wall.Seconds(), "cores/test")
			b.ReportMetric(cpu/probes*1e6, "CPU-µs/probe")
			if fewest > 0 { // the run with the fewest targets was selected
				b.ReportMetric(cpu/probes/fewest, "CPU-ratio")
			}
			b.ReportMetric(float64(process.Resident())/(1<<20), "MB-resident")
			b.ReportMetric(float64(process.PeakResident())/(1<<20), "MB-peak")
		})
	}
}

// A job is a client that probes targets at an interval, like a scrape job of Prometheus.
type job struct {
	b        *testing.B
	interval time.Duration
	next     time.Time // when the next interval begins
	targets  []scraped // in the order of their offsets
	client   *http.Client
	header   http.Header

	probing     sync.WaitGroup
	wrong, late atomic.Int64 // wrong or missing results, late probes
}

// scraped is a target of a job.
type scraped struct {
	offset time.Duration // since the interval began
	url    string
	want   string // in the response
}

// newJob puts n targets behind the network and spreads them evenly over the interval.
func newJob(b *testing.B, network *simnet.Network, n int, interval time.Duration) *job {
	b.Helper()
	const slowest = 80
	for ms := 1; ms <= slowest; ms++ {
		network.At(fmt.Sprintf("%d.0.0.0/8", ms), simnet.SYNACK().After(time.Duration(ms)*time.Millisecond))
	}
	timeout := interval * 2 / 3
	j := &job{
		b:        b,
		interval: interval,
		client: &http.Client{
			Timeout:   timeout,
			Transport: &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true},
		},
		header: http.Header{
			"Accept": {"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6," +
				"application/openmetrics-text;version=0.0.1;q=0.5," +
				"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"},
			"Accept-Encoding":                     {"gzip"},
			"User-Agent":                          {"Prometheus/3.5.0"},
			"X-Prometheus-Scrape-Timeout-Seconds": {strconv.FormatFloat(timeout.Seconds(), 'f', -1, 64)},
		},
	}
	for i := range n {
		random := network.Random(uint64(i))
		ms, result := 1+random.IntN(slowest), "open"
		if random.IntN(100) == 0 {
			ms, result = slowest+1, "timeout" // the network does not answer for this address
		}
		j.targets = append(j.targets, scraped{
			offset: time.Duration(random.Int64N(int64(interval))),
			url:    fmt.Sprintf("http://localhost:10115/probe?target=%d.%d.%d.%d:443", ms, i>>16, i>>8&255, i&255),
			want:   fmt.Sprintf("probe_result_info{result=%q,", result),
		})
	}
	slices.SortFunc(j.targets, func(x, y scraped) int { return cmp.Compare(x.offset, y.offset) })
	b.Cleanup(func() { j.probing.Wait(); j.client.CloseIdleConnections() })
	return j
}

// scrape probes the targets, each at its offset in the next interval, and returns at the interval's end. Probes of
// silent targets are then still in flight.
func (j *job) scrape(targets []scraped) {
	for _, t := range targets {
		due := j.next.Add(t.offset)
		time.Sleep(time.Until(due))
		j.probing.Go(func() {
			if time.Since(due) > time.Second {
				j.late.Add(1)
			}
			if err := j.probe(t); err != nil && j.wrong.Add(1) <= 10 {
				j.b.Error(err)
			}
		})
	}
	j.next = j.next.Add(j.interval)
	time.Sleep(time.Until(j.next))
}

// end waits for the probes in flight, and fails the benchmark if a result was wrong or missing, or a probe late.
func (j *job) end() {
	j.b.Helper()
	j.probing.Wait()
	if wrong, late := j.wrong.Load(), j.late.Load(); wrong > 0 || late > 0 {
		j.b.Errorf("%d results are wrong or missing and %d probes were late, want none", wrong, late)
	}
}

// probe probes a target. It returns an error if the result is wrong or missing.
func (j *job) probe(t scraped) error {
	request, err := http.NewRequestWithContext(j.b.Context(), "GET", t.url, nil)
	if err != nil {
		return err
	}
	request.Header = j.header
	response, err := j.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && !bytes.Contains(body, []byte(t.want)) {
		err = fmt.Errorf("GET %s = %s, want %s in\n%s", t.url, response.Status, t.want, body)
	}
	return err
}
