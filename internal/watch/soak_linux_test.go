package watch

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A footprint is what a Watcher takes of this process when nothing is watched.
type footprint struct {
	goroutines, descriptors, targets, watched, reserved int
}

// However many registrations come and go, the exporter takes no more than after the first ones.
func TestSoak(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	const targets = 200
	rounds, registrations := 0, 0
	round := func() (f footprint, heap uint64) {
		rounds++
		var scraping sync.WaitGroup
		for i := range targets {
			kind := []int{0, 1, 8}[i%3] // open, refused, silent
			scraping.Go(func() { b.scrape(fmt.Sprintf("10.0.%d.%d:80", kind, i+1), "fast") })
			registrations++
		}
		scraping.Wait()
		b.awaitHandshakes("10.0.0.1:80", "fast", "open", 5)
		b.expire(time.Hour)     // they expire
		b.expire(2 * time.Hour) // and are forgotten
		for range 3 {
			debug.FreeOSMemory() // a sync.Pool survives one garbage collection
		}
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return footprint{
			goroutines:  runtime.NumGoroutine(),
			descriptors: lab.Descriptors(t),
			targets:     len(slices.Collect(b.watcher.registry.Targets())),
			watched:     b.watcher.limits.watched,
			reserved:    b.watcher.limits.reserved,
		}, stats.HeapAlloc
	}
	round()
	b.network.Forget()
	first, heap := round()
	if first.targets != 0 || first.watched != 0 || first.reserved != 0 {
		t.Errorf("after a round: %+v, want no targets, and nothing reserved", first)
	}
	for began := time.Now(); time.Since(began) < *lab.Soak; {
		b.network.Forget()
		last, now := round()
		if grown := int64(now) - int64(heap); grown > 2<<20 {
			t.Errorf("the heap has grown by %d bytes in %d rounds, want 2 MiB at most", grown, rounds)
		}
		lab.Eventually(t, "the goroutines have ended", func() bool {
			last.goroutines = runtime.NumGoroutine()
			return last.goroutines <= first.goroutines
		})
		first.goroutines = last.goroutines
		if last != first {
			t.Fatalf("the footprint after %d rounds is %+v, want %+v as after the first ones", rounds, last, first)
		}
	}
	t.Logf("%d registrations: %+v", registrations, first)
}
