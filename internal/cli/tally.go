package cli

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
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
	flows     map[uint16]flowTally // by source port; empty if there are no flows
}

// A flowTally summarizes the handshakes from one source port.
type flowTally struct{ handshakes, failures int }

// addFlows adds the results of flows, which are added one by one as well.
func (t *tally) addFlows(flows *history.Flows) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows == nil {
		t.flows = make(map[uint16]flowTally)
	}
	for _, f := range flows.Each {
		of := t.flows[f.Port]
		of.handshakes++
		if !f.Success {
			of.failures++
		}
		t.flows[f.Port] = of
	}
}

// lossByFlow describes how many handshakes of each flow failed, in one line for each flow with failures and one for all
// others: "" if no flow has more than one handshake.
func (t *tally) lossByFlow() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var text strings.Builder
	var others flowTally
	repeated, good := false, 0
	for _, port := range slices.Sorted(maps.Keys(t.flows)) {
		of := t.flows[port]
		repeated = repeated || of.handshakes > 1
		if of.failures == 0 {
			good++
			others.handshakes += of.handshakes
			continue
		}
		fmt.Fprintf(&text, "port %d: %d of %d failed, %d %%\n", port, of.failures, of.handshakes,
			max(1, of.failures*100/of.handshakes))
	}
	switch {
	case !repeated:
		return ""
	case good == len(t.flows):
		return fmt.Sprintf("%d flows: 0 of %d failed\n", good, others.handshakes)
	case good == 1:
		fmt.Fprintf(&text, "the other flow: 0 of %d failed\n", others.handshakes)
	case good > 1:
		fmt.Fprintf(&text, "the other %d flows: 0 of %d failed\n", good, others.handshakes)
	}
	return text.String()
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
