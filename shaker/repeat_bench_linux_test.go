package shaker

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
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
// host. It also reports the memory of a Repetition, and what this host could not perform.
//
//	go test -run '^$' -bench 'Repeat$' -benchtime 100000x ./shaker
func BenchmarkRepeat(b *testing.B) {
	floor := process.Compile(b, "testdata/floor.c")
	target, _ := listen(b, "0.0.0.0:0")
	for _, c := range []struct {
		targets  int
		interval time.Duration
	}{
		{targets: 10_000, interval: time.Second},
		{targets: 50_000, interval: 2 * time.Second},
		{targets: 60_000, interval: time.Second},
	} {
		b.Run(fmt.Sprintf("targets=%d,interval=%v", c.targets, c.interval), func(b *testing.B) {
			s, err := New(nil)
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

// BenchmarkShakeBesideRepetitions measures the latency of a handshake of a caller with and without 30,000 handshakes a
// second in the background, in turns. The ratio is that of the 99th percentiles.
//
//	go test -run '^$' -bench ShakeBesideRepetitions -benchtime 20000x ./shaker
func BenchmarkShakeBesideRepetitions(b *testing.B) {
	lab.Need(b)
	target, _ := listen(b, "0.0.0.0:0")
	s, err := New(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	own := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), target.Port())
	latencies := func(n int) (all []time.Duration) {
		for range n {
			began := time.Now()
			if r, err := s.Shake(context.Background(), own, nil); err != nil || r.Outcome != Open {
				b.Fatalf("Shake(%v) = %+v, error %v, want Open", own, r, err)
			}
			all = append(all, time.Since(began))
		}
		return all
	}
	var alone, beside []time.Duration
	var background atomic.Int64
	var took time.Duration
	const rounds = 4
	for range rounds {
		alone = append(alone, latencies(b.N/rounds+1)...)
		all := repeatOnLoopback(b, s, target.Port(), 30_000, time.Second, func(Repeated) { background.Add(1) })
		time.Sleep(time.Second)
		n, began := background.Load(), time.Now()
		beside = append(beside, latencies(b.N/rounds+1)...)
		took += time.Since(began)
		background.Add(-n)
		for _, r := range all {
			r.Stop()
		}
	}
	p99 := func(all []time.Duration) float64 {
		slices.Sort(all)
		return all[len(all)*99/100].Seconds() * 1e6
	}
	b.ReportMetric(0, "ns/op") // of both together: meaningless
	b.ReportMetric(p99(alone), "p99-µs-alone")
	b.ReportMetric(p99(beside), "p99-µs-beside")
	b.ReportMetric(p99(beside)/p99(alone), "p99-ratio")
}
