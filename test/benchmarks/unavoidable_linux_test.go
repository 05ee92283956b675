package benchmarks

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// BenchmarkUnavoidable compares the CPU time of a probe with what cannot be avoided: the CPU time in which a net/http
// server writes the same response (testdata/nethttp), plus the CPU time of a C program that makes the system calls of
// a handshake and nothing else (shaker/testdata/floor.c). The three run in turns. CPU-ratio is shaker_exporter divided
// by the sum of the others.
//
//	go -C test test -run '^$' -bench Unavoidable -benchtime 40000x ./benchmarks
func BenchmarkUnavoidable(b *testing.B) {
	ours := build(b)
	exporter := ours.start(b)
	floor := process.Compile(b, "shaker/testdata/floor.c")
	target := listen(b)
	path := probePath + target
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		b.Fatal(err)
	}
	plain, server := startNetHTTP(b, ours.get(b, lab.Client, path))
	for _, connections := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			var probes, responses, handshakes time.Duration
			const rounds = 4
			n := b.N/rounds + 1
			for range rounds {
				before := exporter.CPU()
				ours.request(b, path, connections, n)
				probes += exporter.CPU() - before

				before = server.CPU()
				plain.request(b, path, connections, n)
				responses += server.CPU() - before

				cmd := exec.Command(floor, host, port, strconv.Itoa(n), strconv.Itoa(connections))
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%d handshakes of the C program %v end with %v, want no error: %s", n, cmd, err, out)
				}
				handshakes += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			}
			each := func(cpu time.Duration) float64 { return float64(cpu.Microseconds()) / float64(rounds*n) }
			b.ReportMetric(0, "ns/op") // covers all three, so it is meaningless
			b.ReportMetric(each(probes), "CPU-µs/probe")
			b.ReportMetric(each(responses), "CPU-µs/response")
			b.ReportMetric(each(handshakes), "CPU-µs/handshake")
			b.ReportMetric(probes.Seconds()/(responses+handshakes).Seconds(), "CPU-ratio")
		})
	}
}

// startNetHTTP builds and starts the plain net/http server, which answers every request with the body.
func startNetHTTP(b *testing.B, body []byte) (peer, *process.Process) {
	b.Helper()
	program := filepath.Join(b.TempDir(), "nethttp")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, "main.go")
	cmd.Dir = "test/benchmarks/testdata/nethttp"
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("go build: %v: %s", err, out)
	}
	plain := peer{program: program, port: 10116}
	file := lab.Write(b, b.TempDir(), "body", string(body))
	plain.args = []string{fmt.Sprintf("127.0.0.1:%d", plain.port), file}
	return plain, plain.start(b)
}
