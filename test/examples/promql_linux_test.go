package examples

import (
	"regexp"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// Every metric of docs/metrics.md is in a query of docs/promql.md, and every query finds something
// where it has happened.
func testPromQLPage(t *testing.T, prometheus *process.Prometheus) {
	var queries []string
	for _, block := range regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(lab.Read(t, "../docs/promql.md"), -1) {
		for line := range strings.Lines(block[1]) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				queries = append(queries, line)
			}
		}
	}
	all := strings.Join(queries, "\n")
	metrics := regexp.MustCompile("(?m)^\\| `((?:probe|shaker)_[a-z_]+)").FindAllStringSubmatch(lab.Read(t, "../docs/metrics.md"), -1)
	if len(metrics) < 30 {
		t.Fatalf("docs/metrics.md has %d metrics", len(metrics))
	}
	for _, metric := range metrics {
		if !regexp.MustCompile(metric[1] + `(_bucket)?\b`).MatchString(all) {
			t.Errorf("no query has %s", metric[1])
		}
	}
	// What these look for did not happen here, but what is like it did.
	alike := strings.NewReplacer("[1d]) > 0", "[1d]) >= 0", "probe_tcp_ack_sent == 1", "probe_tcp_ack_sent == 0",
		"last_reload_successful == 0", "last_reload_successful == 1", `icmp!="",icmp!="ttl_exceeded"`, `icmp!=""`,
		" unless count by (job, instance, address) ", " and count by (job, instance, address) ")
	for _, query := range queries {
		lab.Eventually(t, query, func() bool { return len(prometheus.Query(alike.Replace(query))) > 0 })
	}
}
