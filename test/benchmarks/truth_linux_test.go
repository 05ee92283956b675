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

	"github.com/shaker-exporter/shaker_exporter/internal/lab/capture"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

var plotFile = flag.String("plot", "", "SVG file into which BenchmarkTruth draws what it has measured")

// BenchmarkTruth compares latencies that are reported with those on the wire: SYN to SYN-ACK
// as the kernel captures them at the prober's end of a veth pair. Reported are the exporter's
// RTT and handshake, the probe duration of Debian's blackbox_exporter, and RTT and handshake
// of a bare loop, a C program of one thread that does the same system calls
// (shaker/testdata/floor.c). They probe in turns, one handshake at a time, 10 ms apart: first
// while nothing else runs, then while other programs keep every processor busy. The figures
// are how far the reports are off, the ratios those of the exporter's 99th percentiles to the
// bare loop's: on a shared machine only these mean something. What -plot draws is without the
// bare loop.
//
//	go -C test test -run '^$' -bench Truth -benchtime 1000x ./benchmarks -plot docs/truth.svg
func BenchmarkTruth(b *testing.B) {
	floor := process.Compile(b, "shaker/testdata/floor.c")
	neighbour := kernel.NewNeighbour(b)
	capture := capture.Interface(b, neighbour.Interface(), neighbour.Target.Addr())
	ours, theirs := peers(b)
	ours.start(b)
	theirs.start(b)
	path := probePath + neighbour.Target.String()
	probers := []prober{
		ours.prober(b, path, map[string]string{"rtt": "probe_tcp_rtt_seconds", "handshake": "probe_tcp_handshake_seconds"}),
		theirs.prober(b, path, map[string]string{"blackbox": "probe_duration_seconds"}),
		bareLoop(floor, neighbour),
	}
	compare(b, 1, probers, capture) // learns the neighbour's address, opens HTTP connections
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
		panels = append(panels, panel{state, latencies})
	}
	if *plotFile == "" || b.Failed() {
		return
	}
	if err := writePlot(*plotFile, panels); err != nil {
		b.Fatal(err)
	}
}

// report reports how far off the latencies are.
func report(b *testing.B, latencies map[string][]latency) {
	b.ReportMetric(0, "ns/op") // of all together: means nothing
	p99 := make(map[string]float64)
	for name := range latencies {
		off := off(latencies[name])
		p99[name] = off[int(0.99*float64(len(off)-1))]
		b.ReportMetric(off[len(off)/2], name+"-p50-µs")
		b.ReportMetric(p99[name], name+"-p99-µs")
	}
	b.ReportMetric(p99["rtt"]/p99["bare-rtt"], "rtt-ratio")
	b.ReportMetric(p99["handshake"]/p99["bare-handshake"], "handshake-ratio")
}

// A latency is what is reported of a handshake, and what the wire shows of it.
type latency struct{ reported, wire time.Duration }

// A prober makes n handshakes, one after the other, and returns what it reports of each
// under one or more names.
type prober func(b *testing.B, n int) map[string][]time.Duration

// compare lets each prober make n handshakes.
func compare(b *testing.B, n int, probers []prober, capture *capture.Capture) map[string][]latency {
	b.Helper()
	latencies := make(map[string][]latency)
	for _, probe := range probers {
		reports := probe(b, n)
		wire := handshakes(capture.Segments())
		for name, reported := range reports {
			if len(reported) != len(wire) {
				b.Fatalf("%s: %d reports, %d handshakes on the wire", name, len(reported), len(wire))
			}
			for i := range wire {
				latencies[name] = append(latencies[name], latency{reported[i], wire[i]})
			}
		}
	}
	return latencies
}

// handshakes returns the times from SYN to SYN-ACK of handshakes that are one after the other.
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

// off returns by how many microseconds the reports are off, the best first.
func off(latencies []latency) []float64 {
	var off []float64
	for _, l := range latencies {
		off = append(off, microseconds((l.reported - l.wire).Abs()))
	}
	slices.Sort(off)
	return off
}

func microseconds(d time.Duration) float64 { return d.Seconds() * 1e6 }

// prober reports metrics of the exporter's answers, which have other names there.
func (p peer) prober(b *testing.B, path string, metrics map[string]string) prober {
	client := &http.Client{Transport: &http.Transport{}}
	b.Cleanup(client.CloseIdleConnections)
	return func(b *testing.B, n int) map[string][]time.Duration {
		reports := make(map[string][]time.Duration)
		for range n {
			time.Sleep(10 * time.Millisecond)
			answer := p.ask(b, client, path)
			for name, metric := range metrics {
				seconds := value(b, answer, metric)
				reports[name] = append(reports[name], time.Duration(seconds*float64(time.Second)))
			}
		}
		return reports
	}
}

// bareLoop reports what the C program prints.
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
				b.Fatalf("%s: %v", line, err)
			}
			reports["bare-rtt"] = append(reports["bare-rtt"], rtt)
			reports["bare-handshake"] = append(reports["bare-handshake"], handshake)
		}
		return reports
	}
}
