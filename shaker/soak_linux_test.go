package shaker

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// footprint is what a Shaker takes of this process when nothing is under way.
type footprint struct {
	goroutines, descriptors  int
	slots, deadlines, queued int
	heap                     uint64 // bytes
}

func footprintOf(t *testing.T, s *Shaker) footprint {
	t.Helper()
	// What a test has done last may still be ending, and a sync.Pool outlives a collection.
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
		h := hold(l)                     // its own data may be read now
		f.slots += l.slots.running() - 1 // without that of the hold
		f.deadlines += len(l.deadlines)
		f.queued += len(l.queue) - l.queueHead + len(l.arrivals) + len(l.aborts) + len(l.abandoned)
		close(h.release)
	}
	return f
}

// However long the crowd probes, what it leaves behind is what its first seconds left.
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
		t.Errorf("after the first round %+v", first)
	}
	for began := time.Now(); time.Since(began) < *lab.Soak; {
		last := round()
		// The marks of high water that callers leave rise for a while.
		if grown := int64(last.heap) - int64(first.heap); grown > 2<<20 {
			t.Errorf("the heap has grown by %d bytes in %d probes", grown, crowd.probes.Load())
		}
		last.heap = first.heap
		if last != first {
			t.Fatalf("after %d probes %+v, after the first round %+v", crowd.probes.Load(), last, first)
		}
	}
	t.Logf("%d probes, %d verdicts: %+v", crowd.probes.Load(), crowd.verdicts.Load(), first)
}
