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

// BenchmarkScale has 10,000, 50,000 and 100,000 targets probed every 15 s, by a client that
// behaves like Prometheus, and tells what that takes of the exporter, a program of its own.
// CPU-ratio is the CPU time of a probe to that among the fewest targets. Each target has a
// round-trip time from 1 to 80 ms, but one in a hundred is silent.
//
// It fails if a verdict is wrong or missing, or if a probe begins more than 1 s after it is
// due: then the machine is too slow, or too busy, for the test's own part. That is the client,
// the network, and what the kernel does with the SYN-ACKs.
//
// An op is an interval. A third of one comes before, so that silent targets are in flight from
// the first on. With -short there are fewer targets, every 3 s.
//
//	go -C test test -run '^$' -bench Scale -benchtime 4x ./benchmarks
func BenchmarkScale(b *testing.B) {
	lab.NeedDescriptors(b, 5000)
	exporter := build(b)
	sizes, interval := []int{10_000, 50_000, 100_000}, 15*time.Second
	if testing.Short() {
		sizes, interval = []int{1000, 2000}, 3*time.Second
	}
	var fewest float64 // CPU seconds of a probe among the fewest targets
	for _, n := range sizes {
		b.Run(fmt.Sprintf("targets=%d", n), func(b *testing.B) {
			network := simnet.NewNetwork(b)
			process := exporter.start(b)
			j := newJob(b, network, n, interval)
			j.next = time.Now().Add(-interval * 2 / 3)
			j.scrape(j.targets[n*2/3:])

			before, testBefore, start := exporter.usage(b), lab.CPU(), time.Now()
			for range b.N {
				network.Forget() // 100,000 targets fill the record with 20 MB in an interval
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
			if fewest > 0 { // they have not been filtered out
				b.ReportMetric(cpu/probes/fewest, "CPU-ratio")
			}
			b.ReportMetric(float64(process.Resident())/(1<<20), "MB-resident")
			b.ReportMetric(float64(process.PeakResident())/(1<<20), "MB-peak")
		})
	}
}

// A job is what Prometheus scrapes at an interval.
type job struct {
	b        *testing.B
	interval time.Duration
	next     time.Time // when the next interval begins
	targets  []scraped // in the order of their offsets
	client   *http.Client
	header   http.Header

	probing     sync.WaitGroup
	wrong, late atomic.Int64 // wrong or missing verdicts, late probes
}

// scraped is a target of a job.
type scraped struct {
	offset time.Duration // since the interval began
	url    string
	want   string // a part of the answer
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
		client:   &http.Client{Timeout: timeout, Transport: &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true}},
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
			ms, result = slowest+1, "timeout" // nobody is there
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

// scrape probes the targets, each at its offset into the next interval, and returns at the
// interval's end, when silent targets are still in flight.
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

// end waits for the probes in flight, and fails the benchmark if not all have been as they
// should be.
func (j *job) end() {
	j.b.Helper()
	j.probing.Wait()
	if wrong, late := j.wrong.Load(), j.late.Load(); wrong > 0 || late > 0 {
		j.b.Errorf("%d verdicts are wrong or missing, %d probes were late", wrong, late)
	}
}

// probe probes a target. The error says that there is no verdict, or a wrong one.
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
		err = fmt.Errorf("%s: %s, want %s\n%s", t.url, response.Status, t.want, body)
	}
	return err
}
