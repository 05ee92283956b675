package documents

import (
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A real Prometheus with the example's configuration scrapes an open, a refused and a
// silent target.
func TestPrometheus(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t)
	prometheus := process.StartPrometheus(t, 9090, "examples/prometheus.yml")

	lab.Eventually(t, "each target has been scraped", func() bool { return len(prometheus.Query("probe_success")) == 3 })
	for instance, want := range map[string]struct {
		success       float64
		result, errno string
	}{
		"localhost:10115": {1, "open", ""},
		"localhost:1":     {0, "refused", "ECONNREFUSED"},
		"192.0.2.1:443":   {0, "timeout", "ETIMEDOUT"},
	} {
		series := `{job="shaker",instance="` + instance + `"}`
		if got := prometheus.Query("up" + series); len(got) != 1 || got[0].Value != 1 {
			t.Errorf("up%s: %v", series, got)
		}
		if got := prometheus.Query("probe_success" + series); len(got) != 1 || got[0].Value != want.success {
			t.Errorf("probe_success%s: %v", series, got)
		}
		if got := prometheus.Query("probe_result_info" + series); len(got) != 1 || got[0].Value != 1 ||
			got[0].Labels["result"] != want.result || got[0].Labels["errno"] != want.errno {
			t.Errorf("probe_result_info%s: %v", series, got)
		}
		got := prometheus.Query("probe_tcp_rtt_seconds" + series)
		if open := want.result == "open"; len(got) == 1 != open || open && !(got[0].Value > 0 && got[0].Value < 1) {
			t.Errorf("probe_tcp_rtt_seconds%s: %v", series, got)
		}
	}
	lab.Eventually(t, "the exporter itself has been scraped", func() bool {
		return len(prometheus.Query(`shaker_exporter_build_info{job="shaker_exporter"}`)) == 1
	})
	for _, expression := range readmeQueries(t) {
		prometheus.Query(expression) // is understood
	}
	if down := prometheus.Query(readmeQueries(t)[0]); len(down) != 2 {
		t.Errorf("README's first query finds %v, want the two targets that are down", down)
	}
}

// PromQL of the README, a line each.
func readmeQueries(t *testing.T) []string {
	t.Helper()
	var queries []string
	for line := range strings.Lines(snippetWith(t, "README.md", "promql", "")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			queries = append(queries, line)
		}
	}
	if len(queries) < 5 {
		t.Fatalf("only %q", queries)
	}
	return queries
}
