package peers

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// What a user of blackbox_exporter has: a job for TCP ports, an alert and recording rules.
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

// A user of blackbox_exporter moves a job over: the address in prometheus.yml is all that
// changes. The same alerts fire, the same rules record, the same series go on.
func TestMigration(t *testing.T) {
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	exporter.Start(t, "--config.file=test/testdata/blackbox.yml") // their file
	dir := t.TempDir()
	lab.Write(t, dir, "rules.yml", migrationRules)
	file := lab.Write(t, dir, "prometheus.yml", migrationJob)
	prometheus := process.StartPrometheus(t, 9090, file)

	recorded := `{__name__=~"job:.*|instance:.*"}`
	settled := func() bool {
		return len(prometheus.Query(`probe_success{job="tcp"}`)) == 3 && len(prometheus.Query("ALERTS")) == 1 && len(prometheus.Query(recorded)) == 4
	}
	lab.Eventually(t, "blackbox_exporter's job has been scraped and judged", settled)
	before := names(prometheus.Query(`{__name__=~"probe_.*|ALERTS|job:.*|instance:.*"}`))
	if got := prometheus.Query(`probe_result_info`); len(got) != 0 {
		t.Fatalf("it is this exporter already: %v", got)
	}

	moved := strings.Replace(migrationJob, "localhost:9115", "localhost:10115", 1)
	if err := os.WriteFile(file, []byte(moved), 0o644); err != nil {
		t.Fatal(err)
	}
	prometheus.Signal(syscall.SIGHUP)
	lab.Eventually(t, "this exporter's job has been scraped and judged", func() bool {
		return len(prometheus.Query("probe_result_info")) == 3 && settled()
	})
	after := names(prometheus.Query(`{__name__=~"probe_.*|ALERTS|job:.*|instance:.*"}`))
	for _, name := range before {
		if !slices.Contains(after, name) && !strings.HasPrefix(name, "probe_failed_due_to_regex") {
			t.Errorf("the series %s has ended", name)
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
			t.Errorf("%s: %v, want %d", expression, got, want)
		}
	}
	if got := prometheus.Query(`changes(ALERTS_FOR_STATE{alertname="PortDown"}[1m])`); len(got) != 1 || got[0].Value != 0 {
		t.Errorf("the alert began anew: %v", got)
	}
}

// names returns the samples' names and labels, in order.
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
