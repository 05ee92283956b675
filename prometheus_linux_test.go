package main

import (
	"net/url"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A real Prometheus with the example's configuration scrapes an open, a refused and a
// silent target.
func TestPrometheus(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	startExporter(t)
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

// promtool has nothing to say against the metrics and the example.
func TestPromtool(t *testing.T) {
	promtool := lab.Program(t, "promtool", "prometheus")
	startExporter(t)
	for _, path := range []string{"/probe?target=localhost:10115", "/probe?target=localhost:1", "/metrics"} {
		_, body := get(t, path)
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(body)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
	if out, err := process.Promtool(t, "check", "config", "examples/prometheus.yml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// The control: promtool does complain.
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader("probe_Milliseconds 1\n")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("promtool accepts anything: %s", out)
	}
}

// startBlackbox starts Debian's blackbox_exporter on its usual port.
func startBlackbox(t testing.TB) {
	t.Helper()
	program := lab.Program(t, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	process.Start(t, exec.Command(program, "--config.file=testdata/blackbox.yml")).Listening(9115)
}

// What blackbox_exporter exports of a TCP probe has the same name and value here, but for
// the one metric about its regular expressions.
func TestBlackboxExporter(t *testing.T) {
	startExporter(t)
	startBlackbox(t)
	for _, target := range []string{"localhost:10115", "127.0.0.1:10115", "[::1]:10115", "127.0.0.1:1", "absent.invalid:80"} {
		path := "/probe?module=tcp_connect&target=" + url.QueryEscape(target)
		_, theirs := ask(t, 9115, path, "")
		_, ours := ask(t, 10115, path, "")
		compared := 0
		for name, value := range series(theirs) {
			got, ok := series(ours)[name]
			switch {
			case name == "probe_failed_due_to_regex":
			case name == "probe_ip_addr_hash" && value == "0" && !ok: // no address, no hash
			case !ok:
				t.Errorf("%s: no %s", target, name)
			case slices.Contains([]string{"probe_success", "probe_ip_protocol", "probe_ip_addr_hash"}, name) && got != value:
				t.Errorf("%s: %s is %s there and %s here", target, name, value, got)
			default:
				compared++
			}
		}
		if compared < 4 {
			t.Errorf("%s: only %d series to compare in\n%s", target, compared, theirs)
		}
	}
}

// series returns the values of an exposition's unlabelled series by their names.
func series(exposition string) map[string]string {
	values := make(map[string]string)
	for _, line := range regexp.MustCompile(`(?m)^(probe_[a-z_]+) (\S+)$`).FindAllStringSubmatch(exposition, -1) {
		values[line[1]] = line[2]
	}
	return values
}
