package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// BenchmarkBesideBlackbox asks this exporter and Debian's blackbox_exporter, in turns, for
// probes of the same loopback port over kept-alive HTTP connections. The ratios are of this
// one to that one: on a shared machine only these mean something.
//
//	go test -run '^$' -bench BesideBlackbox -benchtime 5000x .
func BenchmarkBesideBlackbox(b *testing.B) {
	lab.Need(b)
	target := listen(b)
	ours, theirs := startPeers(b, target)
	for _, connections := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			var here, there usage
			const rounds = 4
			for range rounds {
				here.add(ours.load(b, connections, b.N/rounds+1))
				there.add(theirs.load(b, connections, b.N/rounds+1))
			}
			b.ReportMetric(0, "ns/op") // of both together: means nothing
			b.ReportMetric(here.cpu/there.cpu, "CPU-ratio")
			b.ReportMetric(here.cpu/here.probes*1000, "CPU-s/1000-ours")
			b.ReportMetric(there.cpu/there.probes*1000, "CPU-s/1000-blackbox")
			b.ReportMetric(here.allocations/here.probes, "allocs/ours")
			b.ReportMetric(there.allocations/there.probes, "allocs/blackbox")
			b.ReportMetric(here.bytes/here.probes, "B/ours")
			b.ReportMetric(there.bytes/there.probes, "B/blackbox")
			b.ReportMetric(here.resident/(1<<20), "MB-resident/ours")
			b.ReportMetric(there.resident/(1<<20), "MB-resident/blackbox")
		})
	}
}

// listen listens on a loopback port and closes each connection after the peer has.
func listen(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				io.Copy(io.Discard, conn)
				conn.Close()
			})
		}
	})
	b.Cleanup(func() { l.Close(); serving.Wait() })
	return l.Addr().String()
}

// A peer is an exporter that is asked for probes.
type peer struct{ url, probe string }

// startPeers starts this exporter and blackbox_exporter, to be asked for probes of the target.
func startPeers(b *testing.B, target string) (ours, theirs peer) {
	b.Helper()
	startBlackbox(b)
	startExporter(b)
	return peer{"http://localhost:10115", "/probe?target=" + target},
		peer{"http://localhost:9115", "/probe?module=tcp_connect&target=" + target}
}

// ask gets a page of the exporter.
func (p peer) ask(b *testing.B, client *http.Client, path string) []byte {
	b.Helper()
	response, err := client.Get(p.url + path)
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

// usage is what probes took of an exporter.
type usage struct {
	probes, cpu, allocations, bytes float64
	resident                        float64 // bytes, afterwards
}

func (u *usage) add(v usage) {
	u.probes += v.probes
	u.cpu += v.cpu
	u.allocations += v.allocations
	u.bytes += v.bytes
	u.resident = v.resident
}

// load asks for so many probes over so many connections.
func (p peer) load(b *testing.B, connections, probes int) usage {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: connections}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	before := p.usage(b, client)
	var asking sync.WaitGroup
	for i := range connections {
		asking.Go(func() {
			for n := i; n < probes; n += connections {
				response, err := client.Get(p.url + p.probe)
				if err != nil {
					b.Error(err)
					return
				}
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if !regexp.MustCompile(`(?m)^probe_success 1$`).Match(body) {
					b.Errorf("%s: %s", p.url, body)
					return
				}
			}
		})
	}
	asking.Wait()
	after := p.usage(b, client)
	return usage{float64(probes), after.cpu - before.cpu, after.allocations - before.allocations, after.bytes - before.bytes, after.resident}
}

// usage reads what an exporter says of itself.
func (p peer) usage(b *testing.B, client *http.Client) usage {
	b.Helper()
	body := p.ask(b, client, "/metrics")
	return usage{
		cpu:         value(b, body, "process_cpu_seconds_total"),
		allocations: value(b, body, "go_memstats_mallocs_total"),
		bytes:       value(b, body, "go_memstats_alloc_bytes_total"),
		resident:    value(b, body, "process_resident_memory_bytes"),
	}
}

// value returns the value of a metric in an exporter's answer.
func value(b *testing.B, body []byte, name string) float64 {
	b.Helper()
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(body)
	if match == nil {
		b.Fatalf("no %s in %s", name, body)
	}
	value, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return value
}
