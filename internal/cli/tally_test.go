package cli

import (
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
)

func TestTally(t *testing.T) {
	var got tally
	if got.valid() || got.String() != "0 sent, 0 open, 0 lost" {
		t.Errorf("of nothing: %v, well: %t", &got, got.valid())
	}
	for i := range 100 {
		got.add(&history.Record{Result: "open", Success: true, Sent: true, RTT: time.Duration(100-i) * time.Millisecond})
	}
	if !got.valid() {
		t.Error("not well")
	}
	got.add(&history.Record{Result: "timeout", Sent: true})
	got.add(&history.Record{Result: "unreachable"})
	got.unprobed++
	const want = "101 sent, 100 open, 1 lost, 1 unreachable, 1 not probed; min/avg/p95/max = 1.00/50.5/95.0/100 ms"
	if got.String() != want || got.valid() {
		t.Errorf("%v, want %s; well: %t", &got, want, got.valid())
	}
}

// However many handshakes there are, the tally does not grow.
func TestTallyIsBounded(t *testing.T) {
	var got tally
	for i := range 10 * sampleSize {
		got.add(&history.Record{Result: "open", Success: true, Sent: true, RTT: time.Duration(1+i%1000) * time.Millisecond})
	}
	if n := len(got.latencies.kept); n != sampleSize {
		t.Errorf("%d latencies are kept, want %d", n, sampleSize)
	}
	if p := got.latencies.percentile(95); p < 900*time.Millisecond || p > time.Second || got.latencies.max != time.Second {
		t.Errorf("p95 %v of latencies from 1 ms to 1 s", p)
	}
}
