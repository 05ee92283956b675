package documents

import (
	"net"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// With the example's configurations, Prometheus scrapes an open, a refused and a silent target, a target that is
// watched, and one to which a connection is held, and stores the right result for each. README's queries are valid, and
// the first one finds the targets that are down.
func TestPrometheus(t *testing.T) { process.EachPrometheus(t, testPrometheus) }

func testPrometheus(t *testing.T, major process.Major) {
	if lab.Apart(t) {
		return
	}
	simnet.NewWire(t, nil, "192.0.2.0/24")
	alertmanager, err := net.Listen("tcp", "localhost:9093") // the held target, which gets no alert here
	if err != nil {
		t.Fatal(err)
	}
	kernel.ServeUntilEOF(t, alertmanager)
	exporter.Start(t, "--config.file=examples/shaker.yml") // which closes the connection when it stops
	prometheus := major.Start(t, 9090, "examples/prometheus.yml")

	lab.Eventually(t, "each target has been scraped", func() bool {
		return len(prometheus.Query("probe_success")) == 5
	})
	for _, c := range []struct {
		instance      string
		success       float64
		result, errno string
	}{
		{instance: "localhost:10115", success: 1, result: "open", errno: ""},
		{instance: "localhost:1", success: 0, result: "refused", errno: "ECONNREFUSED"},
		{instance: "192.0.2.1:443", success: 0, result: "timeout", errno: "ETIMEDOUT"},
	} {
		series := `{job="shaker",instance="` + c.instance + `"}`
		if got := prometheus.Query("up" + series); len(got) != 1 || got[0].Value != 1 {
			t.Errorf("Query(up%s) = %v, want one series with the value 1", series, got)
		}
		if got := prometheus.Query("probe_success" + series); len(got) != 1 || got[0].Value != c.success {
			t.Errorf("Query(probe_success%s) = %v, want one series with the value %v", series, got, c.success)
		}
		if got := prometheus.Query("probe_result_info" + series); len(got) != 1 || got[0].Value != 1 ||
			got[0].Labels["result"] != c.result || got[0].Labels["errno"] != c.errno {
			t.Errorf("Query(probe_result_info%s) = %v, want one series with the value 1, result %q and errno %q",
				series, got, c.result, c.errno)
		}
		switch got := prometheus.Query("probe_tcp_rtt_seconds" + series); c.result {
		case "open":
			if len(got) != 1 || !(got[0].Value > 0 && got[0].Value < 1) {
				t.Errorf("Query(probe_tcp_rtt_seconds%s) = %v, want one series with a value between 0 and 1",
					series, got)
			}
		default:
			if len(got) != 0 {
				t.Errorf("Query(probe_tcp_rtt_seconds%s) = %v, want no series", series, got)
			}
		}
	}
	lab.Eventually(t, "the exporter itself has been scraped", func() bool {
		return len(prometheus.Query(`shaker_exporter_build_info{job="shaker_exporter"}`)) == 1
	})
	const watched = `probe_watch_handshakes_total{job="shaker_watch",instance="localhost:9090",result="open"}`
	if got := prometheus.Query(watched); len(got) != 1 || got[0].Value < 1 {
		t.Errorf("Query(%s) = %v, want one series with a value of at least 1", watched, got)
	}
	const held = `probe_hold_connects_total{job="shaker_hold",instance="localhost:9093",result="open"}`
	if got := prometheus.Query(held); len(got) != 1 || got[0].Value != 1 {
		t.Errorf("Query(%s) = %v, want one series with the value 1", held, got)
	}
	queries := readmeQueries(t)
	for _, expression := range queries {
		prometheus.Query(expression) // fails the test if the expression is invalid
	}
	if down := prometheus.Query(queries[0]); len(down) != 2 {
		t.Errorf("Query(%s) = %v, want the 2 targets that are down", queries[0], down)
	}
}

// readmeQueries returns README's queries, each of one line.
func readmeQueries(t *testing.T) []string {
	t.Helper()
	var queries []string
	for line := range strings.Lines(snippetWith(t, readme, "promql", "")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			queries = append(queries, line)
		}
	}
	if len(queries) < 3 {
		t.Fatalf("%s has %d queries, want at least 3: %q", readme, len(queries), queries)
	}
	return queries
}
