package benchmarks

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// probePath is what every exporter is asked for, less the target.
const probePath = "/probe?module=tcp_connect&target="

// A peer is an exporter as a program.
type peer struct {
	program string
	args    []string
	port    int
}

// peers returns this exporter, as it is built for its users, and Debian's blackbox_exporter.
func peers(b *testing.B) (ours, theirs peer) {
	b.Helper()
	blackbox := lab.Program(b, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	return build(b), peer{blackbox, []string{"--config.file=test/testdata/blackbox.yml"}, 9115}
}

// build builds this exporter.
func build(b *testing.B) peer {
	b.Helper()
	return peer{exporter.Command(b).Path, nil, 10115}
}

// start starts the exporter for the rest of the benchmark.
func (p peer) start(b *testing.B) *process.Process {
	b.Helper()
	process := process.Start(b, exec.Command(p.program, p.args...))
	process.Listening(p.port)
	return process
}

func (p peer) url(path string) string { return fmt.Sprintf("http://localhost:%d%s", p.port, path) }

// ask asks the exporter for a path.
func (p peer) ask(b *testing.B, client *http.Client, path string) []byte {
	b.Helper()
	response, err := client.Get(p.url(path))
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// usage is what an exporter has used so far, according to its own metrics.
type usage struct {
	cpu                float64 // seconds
	allocations, bytes float64
}

func (p peer) usage(b *testing.B) usage {
	b.Helper()
	metrics := p.ask(b, lab.Client, "/metrics")
	return usage{
		cpu:         value(b, metrics, "process_cpu_seconds_total"),
		allocations: value(b, metrics, "go_memstats_mallocs_total"),
		bytes:       value(b, metrics, "go_memstats_alloc_bytes_total"),
	}
}

func (u usage) plus(v usage) usage {
	return usage{u.cpu + v.cpu, u.allocations + v.allocations, u.bytes + v.bytes}
}

func (u usage) minus(v usage) usage {
	return usage{u.cpu - v.cpu, u.allocations - v.allocations, u.bytes - v.bytes}
}

// value returns the value of a metric in an exporter's answer.
func value(b *testing.B, answer []byte, name string) float64 {
	b.Helper()
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(answer)
	if match == nil {
		b.Fatalf("no %s in %s", name, answer)
	}
	value, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return value
}
