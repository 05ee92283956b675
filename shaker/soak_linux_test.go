package shaker

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A footprint is the resources that a Shaker uses while no handshake is running.
type footprint struct {
	goroutines, descriptors  int
	slots, deadlines, queued int
	heap                     uint64 // bytes
}

func footprintOf(t *testing.T, s *Shaker) footprint {
	t.Helper()
	// Goroutines of the test may still be ending, and a sync.Pool survives one garbage collection.
	for range 3 {
		debug.FreeOSMemory()
	}
	f := footprint{
		goroutines:  runtime.NumGoroutine(),
		descriptors: lab.Descriptors(t),
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	f.heap = stats.HeapAlloc
	for _, l := range s.engine.loops {
		h := hold(l) // now the loop's own fields may be read, in which the holdUp counts
		f.slots += running(l) - 1
		f.deadlines += len(l.deadlines)
		f.queued += l.waiting[interactive].len() - 1 + l.waiting[background].len() +
			len(l.arrivals) + len(l.messages) + l.unread.len() + l.readers.len()
		close(h.release)
	}
	return f
}

// However long the crowd probes, the Shaker uses no more resources than after the first round.
func TestSoak(t *testing.T) {
	callers := manyCallers(1000)
	lab.NeedDescriptors(t, callers+100)
	crowd := newCrowd(t, 60*time.Millisecond)
	round := func() footprint {
		if wrong := crowd.run(callers, crowd.verdicts.Load()+int64(20*callers)); wrong != nil {
			t.Fatal(wrong)
		}
		assertNoACK(t, crowd.network.Wire)
		crowd.network.Forget()
		return footprintOf(t, crowd.shaker)
	}
	first := round()
	if first.slots != 0 || first.deadlines != 0 || first.queued != 0 {
		t.Errorf("the footprint after the first round is %+v, want no slots, deadlines or queued tasks", first)
	}
	for began := time.Now(); time.Since(began) < *lab.Soak; {
		last := round()
		// The heap grows for a while, because slices keep the size of the largest burst so far.
		if grown := int64(last.heap) - int64(first.heap); grown > 2<<20 {
			t.Errorf("the heap has grown by %d bytes in %d probes, want 2 MiB at most", grown, crowd.probes.Load())
		}
		last.heap = first.heap
		// A goroutine of the last round, or of the first one, may have been about to end.
		first.goroutines = min(first.goroutines, last.goroutines)
		lab.Eventually(t, "the goroutines have ended", func() bool {
			last.goroutines = footprintOf(t, crowd.shaker).goroutines
			return last.goroutines <= first.goroutines
		})
		first.goroutines = last.goroutines
		if last != first {
			t.Fatalf("the footprint after %d probes is %+v, want %+v as after the first round",
				crowd.probes.Load(), last, first)
		}
	}
	t.Logf("%d probes, %d verdicts: %+v", crowd.probes.Load(), crowd.verdicts.Load(), first)
}
