package shaker

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// repeatOnLoopback starts Repetitions with targets on this host, each with an address of its own.
func repeatOnLoopback(b *testing.B, s *Shaker, port uint16, targets int, interval time.Duration, each func(Repeated)) (
	all []*Repetition,
) {
	b.Helper()
	for i := range targets {
		addr := netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)})
		schedule := Schedule{Interval: interval, Options: Options{Timeout: time.Second}}
		all = append(all, mustRepeat(b, s, netip.AddrPortFrom(addr, port), schedule, each))
	}
	return all
}

func skippedOf(all []*Repetition) (n uint64) {
	for _, r := range all {
		s := r.Skipped()
		n += s.Late + s.Overlapping + s.Unread
	}
	return n
}

// BenchmarkRepeat compares a handshake of a Repetition with the C program of BenchmarkFloor. The targets are on this
// host. It also reports the memory of a Repetition, and what this host could not perform. It does so with sockets and
// without.
//
//	go test -run '^$' -bench 'Repeat$' -benchtime 100000x ./shaker
func BenchmarkRepeat(b *testing.B) {
	floor := process.Compile(b, "testdata/floor.c")
	target, _ := listen(b, "0.0.0.0:0")
	for _, c := range []struct {
		engine   string
		config   *Config
		targets  int
		interval time.Duration
	}{
		{engine: "socket", targets: 10_000, interval: time.Second},
		{engine: "socket", targets: 50_000, interval: 2 * time.Second},
		{engine: "socket", targets: 60_000, interval: time.Second},
		{engine: "raw", config: withoutSockets, targets: 10_000, interval: time.Second},
		{engine: "raw", config: withoutSockets, targets: 50_000, interval: 2 * time.Second},
		{engine: "raw", config: withoutSockets, targets: 60_000, interval: time.Second},
		{engine: "raw", config: withoutSockets, targets: 120_000, interval: time.Second},
	} {
		if testing.Short() {
			c.targets /= 100
		}
		b.Run(fmt.Sprintf("engine=%s,targets=%d,interval=%v", c.engine, c.targets, c.interval), func(b *testing.B) {
			s, err := New(c.config)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			var results, failed atomic.Int64
			var lags []time.Duration
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			all := repeatOnLoopback(b, s, target.Port(), c.targets, c.interval, func(r Repeated) {
				if r.Err != nil || r.Result.Outcome != Open {
					failed.Add(1)
				}
				if results.Add(1)%16 == 0 {
					lags = append(lags, r.Lag)
				}
			})
			runtime.GC()
			runtime.ReadMemStats(&after)
			time.Sleep(c.interval) // all have begun
			acks := kernel.Counters(b)["TcpPassiveOpens"]
			skipped, n := skippedOf(all), results.Load()
			cpu, began := lab.CPU(), time.Now()
			for results.Load() < n+int64(b.N) {
				time.Sleep(10 * time.Millisecond)
			}
			cpu, n = lab.CPU()-cpu, results.Load()-n
			wall := time.Since(began)
			acks = kernel.Counters(b)["TcpPassiveOpens"] - acks
			skipped = skippedOf(all) - skipped
			s.Close()

			theirs := runFloor(b, floor, target.Port(), b.N, 100).cpu.Seconds() / float64(b.N)
			slices.Sort(lags)
			b.ReportMetric(0, "ns/op") // it depends on the interval
			b.ReportMetric(cpu.Seconds()/float64(n)/theirs, "CPU-ratio")
			b.ReportMetric(cpu.Seconds()/float64(n)*1e6, "CPU-µs/handshake")
			b.ReportMetric(float64(n)/wall.Seconds(), "handshakes/s")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(c.targets), "B/target")
			b.ReportMetric(float64(skipped), "skipped")
			b.ReportMetric(float64(failed.Load()), "failed")
			b.ReportMetric(float64(acks), "ACKs")
			b.ReportMetric(lags[len(lags)*99/100].Seconds()*1000, "lag-p99-ms")
		})
	}
}

// BenchmarkShakeBesideRepetitions measures the latency of a caller's handshake alone, beside 30,000 handshakes a
// second in the background, and beside as many of the C program of BenchmarkFloor, in turns. So the ratio of the C
// program shows what the processors cost that are busy otherwise. There is one handshake of the caller per
// millisecond: a caller that never pauses would need a processor of its own. cores is how many processors this
// process used beside the handshakes in the background, and waiting how many of its threads were runnable and
// waited for a processor, on average.
//
//	go test -run '^$' -bench ShakeBesideRepetitions -benchtime 10000x ./shaker
func BenchmarkShakeBesideRepetitions(b *testing.B) {
	lab.Need(b)
	const rounds = 4
	perSecond := 30_000
	if testing.Short() {
		perSecond /= 100
	}
	floor := process.Compile(b, "testdata/floor.c")
	target, _ := listen(b, "0.0.0.0:0")
	own := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), target.Port())
	latencies := func(s *Shaker) (all []time.Duration) {
		for range b.N/rounds + 1 {
			time.Sleep(time.Millisecond)
			began := time.Now()
			if r, err := s.Shake(context.Background(), own, nil); err != nil || r.Outcome != Open {
				b.Fatalf("Shake(%v) = %+v, error %v, want Open", own, r, err)
			}
			all = append(all, time.Since(began))
		}
		return all
	}
	var alone, besideC, beside []time.Duration
	var skipped uint64
	var took, ran, waited time.Duration
	for range rounds {
		s, err := New(nil)
		if err != nil {
			b.Fatal(err)
		}
		alone = append(alone, latencies(s)...)

		stop := startFloors(b, floor, target.Port(), perSecond)
		besideC = append(besideC, latencies(s)...)
		stop()

		all := repeatOnLoopback(b, s, target.Port(), perSecond, time.Second, func(Repeated) {})
		time.Sleep(time.Second) // all have begun
		began, skippedBefore := time.Now(), skippedOf(all)
		ranBefore, waitedBefore := threadTimes(b)
		beside = append(beside, latencies(s)...)
		ranNow, waitedNow := threadTimes(b)
		ran, waited = ran+ranNow-ranBefore, waited+waitedNow-waitedBefore
		took, skipped = took+time.Since(began), skipped+skippedOf(all)-skippedBefore
		s.Close()
	}
	b.ReportMetric(0, "ns/op") // of all together: meaningless
	b.ReportMetric(float64(skipped), "skipped")
	b.ReportMetric(ran.Seconds()/took.Seconds(), "cores")
	b.ReportMetric(waited.Seconds()/took.Seconds(), "waiting")
	for _, q := range []int{50, 90, 99} {
		quantile := func(all []time.Duration) float64 {
			slices.Sort(all)
			return all[len(all)*q/100].Seconds() * 1e6
		}
		b.ReportMetric(quantile(alone), fmt.Sprintf("p%d-µs-alone", q))
		b.ReportMetric(quantile(besideC)/quantile(alone), fmt.Sprintf("p%d-ratio-C", q))
		b.ReportMetric(quantile(beside)/quantile(alone), fmt.Sprintf("p%d-ratio", q))
	}
}

// threadTimes returns for how long the threads of this process have run, and have waited for a processor.
func threadTimes(b *testing.B) (ran, waited time.Duration) {
	b.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/schedstat")
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		var on, queued time.Duration
		if _, err := fmt.Sscan(string(text), &on, &queued); err != nil {
			b.Fatalf("%s is %q, want two times and more: %v", name, text, err)
		}
		ran, waited = ran+on, waited+queued
	}
	return ran, waited
}

// startFloors starts one C program for each processor, which together make handshakes with a port of this host at a
// rate until stop is called.
func startFloors(b *testing.B, floor string, port uint16, perSecond int) (stop func()) {
	b.Helper()
	var all []*process.Process
	n := runtime.GOMAXPROCS(0)
	for range n {
		all = append(all, process.Start(b, exec.Command(floor, "127.0.0.1", strconv.Itoa(int(port)),
			strconv.Itoa(math.MaxInt32), "100", strconv.Itoa(perSecond/n))))
	}
	return func() {
		for _, p := range all {
			p.Stop()
		}
	}
}
