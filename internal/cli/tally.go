package cli

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A tally summarizes the handshakes with a target. Its size does not depend on their number. It is safe for use by any
// number of goroutines.
type tally struct {
	sent atomic.Int64 // handshakes whose SYN left this host; retransmissions are not counted

	mu        sync.Mutex
	ended     int64          // those of them that have a result
	results   map[string]int // by result
	failures  int            // results that are not valid for the module
	unprobed  int            // probes without a result
	latencies latencies
}

// fail adds a probe without a result.
func (t *tally) fail() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unprobed++
}

// add adds the result of a handshake.
func (t *tally) add(r *history.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.results == nil {
		t.results = make(map[string]int)
	}
	t.results[r.Result]++
	if r.Sent {
		t.ended++
	}
	if !r.Success {
		t.failures++
	}
	if latency := r.Latency(); latency > 0 {
		t.latencies.add(latency)
	}
}

// valid reports whether there was at least one result, every result was valid for the module, and no probe
// ended without a result.
func (t *tally) valid() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.unprobed == 0 && t.failures == 0 && len(t.results) > 0
}

// String formats the summary: the number of handshakes, their results and their latencies.
func (t *tally) String() string {
	open, lost := shaker.Open.String(), shaker.Timeout.String()
	t.mu.Lock()
	defer t.mu.Unlock()
	sent := t.sent.Load()
	text := fmt.Sprintf("%d sent, %d open, %d lost", sent, t.results[open], t.results[lost])
	if waiting := sent - t.ended; waiting > 0 {
		text += fmt.Sprintf(", %d not answered yet", waiting)
	}
	for _, result := range slices.Sorted(maps.Keys(t.results)) {
		if result != open && result != lost {
			text += fmt.Sprintf(", %d %s", t.results[result], result)
		}
	}
	if t.unprobed > 0 {
		text += fmt.Sprintf(", %d not probed", t.unprobed)
	}
	if s := &t.latencies; s.n > 0 {
		average := s.sum / time.Duration(s.n)
		text += fmt.Sprintf("; min/avg/p95/max = %s/%s/%s/%s ms", probe.Milliseconds(s.min),
			probe.Milliseconds(average), probe.Milliseconds(s.percentile(95)), probe.Milliseconds(s.max))
	}
	return text
}

// latencies summarizes the latencies of handshakes. If there are more than sampleSize latencies, percentiles
// are computed from a random sample of them (reservoir sampling).
type latencies struct {
	n             int
	sum, min, max time.Duration
	kept          []time.Duration // the sample
}

const sampleSize = 10_000

// add adds a latency.
func (l *latencies) add(d time.Duration) {
	if l.n == 0 {
		l.min = d
	}
	l.n++
	l.sum += d
	l.min, l.max = min(l.min, d), max(l.max, d)
	if len(l.kept) < sampleSize {
		l.kept = append(l.kept, d)
	} else if i := rand.IntN(l.n); i < sampleSize {
		l.kept[i] = d
	}
}

// percentile returns the latency that p percent of the sample do not exceed.
func (l *latencies) percentile(p int) time.Duration {
	slices.Sort(l.kept) // the order of the sample has no meaning
	return l.kept[(p*len(l.kept)+99)/100-1]
}
