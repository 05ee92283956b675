package benchmarks

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/capture"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

var plotFile = flag.String("plot", "", "SVG file in which BenchmarkTruth plots its measurements")

// BenchmarkTruth compares reported latencies with the latencies on the wire: the times from SYN to SYN-ACK, as the
// kernel captures them at the prober's end of a veth pair. The reports are the RTT and the handshake latency of
// shaker_exporter, the handshake latency of package shaker without sockets, the probe duration of Debian's
// blackbox_exporter, and the RTT and the handshake latency of a bare loop, a C program of one thread that makes the
// same system calls (shaker/testdata/floor.c). The programs probe in turns, one handshake at a time, 10 ms apart: first
// while nothing else runs, then while other programs keep every processor busy.
//
// The figures are the differences between the reports and the wire. The ratios are the 99th percentiles of
// shaker_exporter divided by those of the bare loop, and those without sockets divided by those of
// shaker_exporter: on a shared machine only the ratios are meaningful. The plot of -plot does not show the bare loop
// and the handshakes without sockets.
//
//	go -C test test -run '^$' -bench Truth -benchtime 1000x ./benchmarks -plot docs/truth.svg
func BenchmarkTruth(b *testing.B) {
	lab.Program(b, "sh", "dash") // for process.KeepBusy
	floor := process.Compile(b, "shaker/testdata/floor.c")
	neighbour := kernel.NewNeighbour(b)
	capture := capture.Interface(b, neighbour.Interface(), neighbour.Target.Addr())
	ours, theirs := peers(b)
	ours.start(b)
	theirs.start(b)
	path := probePath + neighbour.Target.String()
	probers := []prober{
		ours.prober(b, path, map[string]string{
			"rtt":       "probe_tcp_rtt_seconds",
			"handshake": "probe_tcp_handshake_seconds",
		}),
		theirs.prober(b, path, map[string]string{"blackbox": "probe_duration_seconds"}),
		bareLoop(floor, neighbour),
		withoutSockets(b, neighbour),
	}
	compare(b, 1, probers, capture) // resolves the neighbour's address, opens HTTP connections
	var panels []panel
	for _, state := range []string{"idle", "busy"} {
		var latencies map[string][]latency
		b.Run(state, func(b *testing.B) {
			if state == "busy" {
				process.KeepBusy(b)
			}
			latencies = make(map[string][]latency)
			const rounds = 4
			for range rounds {
				for name, more := range compare(b, b.N/rounds+1, probers, capture) {
					latencies[name] = append(latencies[name], more...)
				}
			}
			report(b, latencies)
		})
		if latencies != nil { // the state was selected
			panels = append(panels, panel{title: state, latencies: latencies})
		}
	}
	if *plotFile == "" || b.Failed() || panels == nil {
		return
	}
	if err := writePlot(*plotFile, panels); err != nil {
		b.Fatal(err)
	}
}

// report reports the differences between the reported latencies and the wire.
func report(b *testing.B, latencies map[string][]latency) {
	b.ReportMetric(0, "ns/op") // covers all probers, so it is meaningless
	p99 := make(map[string]float64)
	for name := range latencies {
		differences := differences(latencies[name])
		p99[name] = differences[int(0.99*float64(len(differences)-1))]
		b.ReportMetric(differences[len(differences)/2], name+"-p50-µs")
		b.ReportMetric(p99[name], name+"-p99-µs")
	}
	b.ReportMetric(p99["rtt"]/p99["bare-rtt"], "rtt-ratio")
	b.ReportMetric(p99["handshake"]/p99["bare-handshake"], "handshake-ratio")
	b.ReportMetric(p99["raw"]/p99["handshake"], "raw-ratio")
	b.ReportMetric(p99["raw"]/p99["rtt"], "raw-rtt-ratio") // without sockets, the RTT is the handshake latency
}

// A latency is the latency of a handshake as it is reported, and as it is on the wire.
type latency struct{ reported, wire time.Duration }

// A prober makes n handshakes, one after the other, and returns the reported latencies of each, under one or more
// names.
type prober func(b *testing.B, n int) map[string][]time.Duration

// compare makes n handshakes with each prober and returns their latencies.
func compare(b *testing.B, n int, probers []prober, capture *capture.Capture) map[string][]latency {
	b.Helper()
	latencies := make(map[string][]latency)
	for _, probe := range probers {
		reports := probe(b, n)
		wire := handshakes(capture.Segments())
		for name, reported := range reports {
			if len(reported) != len(wire) {
				b.Fatalf("%s: %d reports and %d handshakes on the wire, want the same number",
					name, len(reported), len(wire))
			}
			for i := range wire {
				latencies[name] = append(latencies[name], latency{reported: reported[i], wire: wire[i]})
			}
		}
	}
	return latencies
}

// handshakes returns the times from SYN to SYN-ACK of handshakes that do not overlap.
func handshakes(segments []simnet.Segment) (times []time.Duration) {
	var sent time.Time
	for _, s := range segments {
		switch {
		case s.SYN && s.ACK:
			times = append(times, s.Time.Sub(sent))
		case s.SYN:
			sent = s.Time
		}
	}
	return times
}

// differences returns the sorted differences between report and wire in microseconds.
func differences(latencies []latency) []float64 {
	var differences []float64
	for _, l := range latencies {
		differences = append(differences, microseconds((l.reported - l.wire).Abs()))
	}
	slices.Sort(differences)
	return differences
}

func microseconds(d time.Duration) float64 { return d.Seconds() * 1e6 }

// prober returns a prober that reports metrics of the exporter's responses. It maps its own names to the names of the
// metrics.
func (p peer) prober(b *testing.B, path string, metrics map[string]string) prober {
	client := &http.Client{Transport: &http.Transport{}}
	b.Cleanup(client.CloseIdleConnections)
	return func(b *testing.B, n int) map[string][]time.Duration {
		reports := make(map[string][]time.Duration)
		for range n {
			time.Sleep(10 * time.Millisecond)
			response := p.get(b, client, path)
			for name, metric := range metrics {
				seconds := value(b, response, metric)
				reports[name] = append(reports[name], time.Duration(seconds*float64(time.Second)))
			}
		}
		return reports
	}
}

// bareLoop returns a prober that reports what the C program prints.
func bareLoop(program string, neighbour *kernel.Neighbour) prober {
	address, port := neighbour.Target.Addr().String(), strconv.Itoa(int(neighbour.Target.Port()))
	return func(b *testing.B, n int) map[string][]time.Duration {
		out, err := exec.Command(program, address, port, strconv.Itoa(n), "0").Output()
		if err != nil {
			b.Fatal(err)
		}
		reports := make(map[string][]time.Duration)
		for line := range bytes.Lines(out) {
			var rtt, handshake time.Duration
			if _, err := fmt.Sscan(string(line), &rtt, &handshake); err != nil {
				b.Fatalf("%s prints %q: %v, want two durations", program, line, err)
			}
			reports["bare-rtt"] = append(reports["bare-rtt"], rtt)
			reports["bare-handshake"] = append(reports["bare-handshake"], handshake)
		}
		return reports
	}
}

// withoutSockets returns a prober that reports the handshake latency of package shaker without sockets.
func withoutSockets(b *testing.B, neighbour *kernel.Neighbour) prober {
	s, err := shaker.New(&shaker.Config{Raw: &shaker.Raw{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return func(b *testing.B, n int) map[string][]time.Duration {
		reports := make(map[string][]time.Duration)
		for range n {
			time.Sleep(10 * time.Millisecond)
			r, err := s.Shake(b.Context(), neighbour.Target, nil)
			if err != nil || r.Outcome != shaker.Open {
				b.Fatalf("Shake(%v) without a socket = %+v, error %v, want Open", neighbour.Target, r, err)
			}
			reports["raw"] = append(reports["raw"], r.Handshake)
		}
		return reports
	}
}
