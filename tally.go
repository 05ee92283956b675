package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A tally is what is kept of the handshakes with a target. It does not grow with them.
type tally struct {
	sent      int            // SYNs that left this host, each SYN of a handshake but the first not counted
	results   map[string]int // how often there was each
	failures  int            // results that the module does not want
	unprobed  int            // probes without a verdict
	latencies latencies
}

func (t *tally) add(r *collector.Record) {
	if t.results == nil {
		t.results = make(map[string]int)
	}
	t.results[r.Result]++
	if r.Sent {
		t.sent++
	}
	if !r.Success {
		t.failures++
	}
	if latency := r.Latency(); latency > 0 {
		t.latencies.add(latency)
	}
}

// well tells whether every handshake went as the module wants, and there was one.
func (t *tally) well() bool { return t.unprobed == 0 && t.failures == 0 && len(t.results) > 0 }

// String returns how many handshakes there were, how they ended, and how long they took.
func (t *tally) String() string {
	open, lost := shaker.Open.String(), shaker.Timeout.String()
	text := fmt.Sprintf("%d sent, %d open, %d lost", t.sent, t.results[open], t.results[lost])
	for _, result := range slices.Sorted(maps.Keys(t.results)) {
		if result != open && result != lost {
			text += fmt.Sprintf(", %d %s", t.results[result], result)
		}
	}
	if t.unprobed > 0 {
		text += fmt.Sprintf(", %d not probed", t.unprobed)
	}
	if s := &t.latencies; s.n > 0 {
		text += fmt.Sprintf("; min/avg/p95/max = %s/%s/%s/%s ms", collector.Milliseconds(s.min), collector.Milliseconds(s.sum/time.Duration(s.n)),
			collector.Milliseconds(s.percentile(95)), collector.Milliseconds(s.max))
	}
	return text
}

// latencies are the times of the handshakes, as far as they are kept. Percentiles are those of a random choice of them once
// there are more than sampleSize (reservoir sampling).
type latencies struct {
	n             int
	sum, min, max time.Duration
	kept          []time.Duration
}

const sampleSize = 10_000

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

// percentile returns the latency that p percent of them do not exceed.
func (l *latencies) percentile(p int) time.Duration {
	slices.Sort(l.kept) // their order means nothing
	return l.kept[(p*len(l.kept)+99)/100-1]
}
