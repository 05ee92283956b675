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

// probePath is the path of every request, without the target.
const probePath = "/probe?module=tcp_connect&target="

// A peer is an exporter that runs as a program of its own: shaker_exporter or blackbox_exporter.
type peer struct {
	program string
	args    []string
	port    int
}

// peers returns shaker_exporter, built as for its users, and Debian's blackbox_exporter.
func peers(b *testing.B) (ours, theirs peer) {
	b.Helper()
	blackbox := lab.Program(b, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	return build(b), peer{program: blackbox, args: []string{"--config.file=test/testdata/blackbox.yml"}, port: 9115}
}

// build builds shaker_exporter.
func build(b *testing.B) peer {
	b.Helper()
	return peer{program: exporter.Command(b).Path, port: exporter.Port}
}

// start starts the exporter for the rest of the benchmark.
func (p peer) start(b *testing.B) *process.Process {
	b.Helper()
	process := process.Start(b, exec.Command(p.program, p.args...))
	process.Listening(p.port)
	return process
}

func (p peer) url(path string) string { return fmt.Sprintf("http://localhost:%d%s", p.port, path) }

// get requests a path from the exporter and returns the body.
func (p peer) get(b *testing.B, client *http.Client, path string) []byte {
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

// usage is the CPU time and the memory that an exporter has used, according to its own metrics.
type usage struct {
	cpu                float64 // seconds
	allocations, bytes float64
}

func (p peer) usage(b *testing.B) usage {
	b.Helper()
	metrics := p.get(b, lab.Client, "/metrics")
	return usage{
		cpu:         value(b, metrics, "process_cpu_seconds_total"),
		allocations: value(b, metrics, "go_memstats_mallocs_total"),
		bytes:       value(b, metrics, "go_memstats_alloc_bytes_total"),
	}
}

func (u usage) plus(v usage) usage {
	return usage{cpu: u.cpu + v.cpu, allocations: u.allocations + v.allocations, bytes: u.bytes + v.bytes}
}

func (u usage) minus(v usage) usage {
	return usage{cpu: u.cpu - v.cpu, allocations: u.allocations - v.allocations, bytes: u.bytes - v.bytes}
}

// value returns the value of a metric in an exporter's response.
func value(b *testing.B, response []byte, name string) float64 {
	b.Helper()
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(response)
	if match == nil {
		b.Fatalf("the response lacks %s:\n%s", name, response)
	}
	value, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		b.Fatalf("parse the result of %s: %v", name, err)
	}
	return value
}
