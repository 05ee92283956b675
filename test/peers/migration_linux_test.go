package peers

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The configuration of a user of blackbox_exporter: a job that probes TCP ports, alerts and recording rules.
const (
	migrationJob = `
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs:
  - job_name: tcp
    metrics_path: /probe
    params: {module: [tcp_connect]}
    static_configs: [{targets: ["localhost:9090", "127.0.0.1:1", "[::1]:9090"]}]
    relabel_configs:
      - {source_labels: [__address__], target_label: __param_target}
      - {source_labels: [__param_target], target_label: instance}
      - {target_label: __address__, replacement: "localhost:9115"}
`
	migrationRules = `
groups:
  - name: tcp
    rules:
      - {alert: PortDown, expr: "probe_success == 0", labels: {severity: page}}
      - {alert: ProbeSlow, expr: "probe_duration_seconds > 3"}
      - {record: "job:probe_success:avg", expr: "avg by (job) (probe_success)"}
      - {record: "instance:probe_duration_seconds:max1m", expr: "max_over_time(probe_duration_seconds[1m])"}
`
)

// A user of blackbox_exporter moves a job to shaker_exporter by changing the address in prometheus.yml and nothing
// else. The same alerts fire, the same rules record, and the same series continue.
func TestMigration(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	exporter.Start(t, "--config.file=test/testdata/blackbox.yml") // the same file
	dir := t.TempDir()
	lab.Write(t, dir, "rules.yml", migrationRules)
	file := lab.Write(t, dir, "prometheus.yml", migrationJob)
	prometheus := process.StartPrometheus(t, 9090, file)

	const (
		recorded = `{__name__=~"job:.*|instance:.*"}`
		all      = `{__name__=~"probe_.*|ALERTS|job:.*|instance:.*"}`
	)
	evaluated := func() bool {
		return len(prometheus.Query(`probe_success{job="tcp"}`)) == 3 &&
			len(prometheus.Query("ALERTS")) == 1 && len(prometheus.Query(recorded)) == 4
	}
	lab.Eventually(t, "Prometheus has scraped blackbox_exporter and evaluated the rules", evaluated)
	before := names(prometheus.Query(all))
	// blackbox_exporter does not have this metric.
	if got := prometheus.Query("probe_result_info"); len(got) != 0 {
		t.Fatalf("before the move the query probe_result_info = %v, want no series", got)
	}

	lab.Write(t, dir, "prometheus.yml", strings.Replace(migrationJob, "localhost:9115", "localhost:10115", 1))
	prometheus.Signal(syscall.SIGHUP)
	lab.Eventually(t, "Prometheus has scraped shaker_exporter and evaluated the rules", func() bool {
		return len(prometheus.Query("probe_result_info")) == 3 && evaluated()
	})
	after := names(prometheus.Query(all))
	for _, name := range before {
		if !slices.Contains(after, name) && !strings.HasPrefix(name, "probe_failed_due_to_regex") {
			t.Errorf("after the move there are the series %q, want %s among them, as before", after, name)
		}
	}
	for expression, want := range map[string]int{
		`changes(probe_success[1m]) > 0`:      0,
		`changes(probe_ip_protocol[1m]) > 0`:  0,
		`changes(probe_ip_addr_hash[1m]) > 0`: 0,
		`ALERTS{alertname="PortDown",alertstate="firing",instance="127.0.0.1:1",severity="page"}`: 1,
		`ALERTS{alertname="ProbeSlow"}`: 0,
	} {
		if got := prometheus.Query(expression); len(got) != want {
			t.Errorf("after the move the query %s = %v, want %d series", expression, got, want)
		}
	}
	// The alert has been firing since before the move.
	const restarts = `changes(ALERTS_FOR_STATE{alertname="PortDown"}[1m])`
	if got := prometheus.Query(restarts); len(got) != 1 || got[0].Value != 0 {
		t.Errorf("after the move the query %s = %v, want one series with the value 0", restarts, got)
	}
}

// names returns the names and labels of the samples, sorted.
func names(samples []process.Sample) []string {
	var names []string
	for _, s := range samples {
		var labels []string
		for name, value := range s.Labels {
			if name != "__name__" {
				labels = append(labels, fmt.Sprintf("%s=%q", name, value))
			}
		}
		slices.Sort(labels)
		names = append(names, s.Labels["__name__"]+"{"+strings.Join(labels, ",")+"}")
	}
	slices.Sort(names)
	return names
}
