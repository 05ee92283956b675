package cli

import (
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
)

// The summary counts results and latencies. It is valid only if every result is valid and there is at least one.
func TestTally(t *testing.T) {
	var got tally
	if got.valid() || got.String() != "0 sent, 0 open, 0 lost" {
		t.Errorf("the empty tally is %q with valid() = %t, want 0 sent, 0 open, 0 lost and false", &got, got.valid())
	}
	for i := range 100 {
		rtt := time.Duration(100-i) * time.Millisecond
		got.add(&history.Record{Result: "open", Success: true, Sent: true, RTT: rtt})
	}
	if !got.valid() {
		t.Error("valid() of 100 valid results = false, want true")
	}
	got.add(&history.Record{Result: "timeout", Sent: true})
	got.add(&history.Record{Result: "unreachable"})
	got.fail()
	got.sent.Store(103)
	const want = "103 sent, 100 open, 1 lost, 2 not answered yet, 1 unreachable, 1 not probed; " +
		"min/avg/p95/max = 1.00/50.5/95.0/100 ms"
	if got.String() != want || got.valid() {
		t.Errorf("the tally is %q with valid() = %t, want %q and false", &got, got.valid(), want)
	}
}

// The size of a tally does not depend on the number of handshakes.
func TestTallyIsBounded(t *testing.T) {
	var got tally
	for i := range 10 * sampleSize {
		rtt := time.Duration(1+i%1000) * time.Millisecond
		got.add(&history.Record{Result: "open", Success: true, Sent: true, RTT: rtt})
	}
	if n := len(got.latencies.kept); n != sampleSize {
		t.Errorf("after %d handshakes, the tally keeps %d latencies, want %d", 10*sampleSize, n, sampleSize)
	}
	if p := got.latencies.percentile(95); p < 900*time.Millisecond || p > time.Second {
		t.Errorf("p95 of latencies from 1 ms to 1 s = %v, want 900 ms to 1 s", p)
	}
	if most := got.latencies.max; most != time.Second {
		t.Errorf("maximum of latencies from 1 ms to 1 s = %v, want 1 s", most)
	}
}

// The loss by flow has a line for each flow with failures, once the flows have been probed more than once.
func TestLossByFlow(t *testing.T) {
	flowsOf := func(results string) *history.Flows {
		f := &history.Flows{}
		for i, c := range results {
			f.Add(history.Flow{Port: 20000 + uint16(i), Success: c == 'o'})
		}
		return f
	}
	for _, c := range []struct {
		probes []string // o is a success, x a failure
		want   string
	}{
		{want: ""},
		{probes: []string{"oxo"}, want: ""},
		{probes: []string{"ooo", "ooo"}, want: "3 flows: 0 of 6 failed\n"},
		{
			probes: []string{"xoox", "xooo", "xooo"},
			want: "port 20000: 3 of 3 failed, 100 %\nport 20003: 1 of 3 failed, 33 %\n" +
				"the other 2 flows: 0 of 6 failed\n",
		},
		{
			probes: []string{"xo", "xo"},
			want:   "port 20000: 2 of 2 failed, 100 %\nthe other flow: 0 of 2 failed\n",
		},
		{
			probes: []string{"xx", "xo"},
			want:   "port 20000: 2 of 2 failed, 100 %\nport 20001: 1 of 2 failed, 50 %\n",
		},
	} {
		var got tally
		for _, results := range c.probes {
			got.addFlows(flowsOf(results))
		}
		if got.lossByFlow() != c.want {
			t.Errorf("the loss by flow of the probes %q is\n%swant\n%s", c.probes, got.lossByFlow(), c.want)
		}
	}
}
