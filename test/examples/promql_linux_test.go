package examples

import (
	"regexp"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// testPromQLPage checks that every metric of docs/metrics.md is in a query of docs/promql.md, and that every query
// returns a series after the exporter has probed the network of newGrafanaNetwork.
func testPromQLPage(t *testing.T, prometheus *process.Prometheus) {
	var queries []string
	blocks := regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(lab.Read(t, "../docs/promql.md"), -1)
	for _, block := range blocks {
		for line := range strings.Lines(block[1]) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				queries = append(queries, line)
			}
		}
	}
	all := strings.Join(queries, "\n")
	row := regexp.MustCompile("(?m)^\\| `((?:probe|shaker)_[a-z_]+)")
	metrics := row.FindAllStringSubmatch(lab.Read(t, "../docs/metrics.md"), -1)
	if len(metrics) < 30 {
		t.Fatalf("docs/metrics.md has %d metrics, want at least 30", len(metrics))
	}
	for _, metric := range metrics {
		if !regexp.MustCompile(metric[1] + `(_bucket)?\b`).MatchString(all) {
			t.Errorf("docs/promql.md has no query with %s, which is in docs/metrics.md", metric[1])
		}
	}
	// Some queries look for what does not happen here, and are changed to look for the opposite. The step of the
	// subquery is shorter, because there are only a few scrapes.
	changed := strings.NewReplacer("[1h:15s]", "[1h:1s]",
		"[1d]) > 0", "[1d]) >= 0", "probe_tcp_ack_sent == 1", "probe_tcp_ack_sent == 0",
		"last_reload_successful == 0", "last_reload_successful == 1", `icmp!="",icmp!="ttl_exceeded"`, `icmp!=""`,
		" unless count by (job, instance, address) ", " and count by (job, instance, address) ")
	for _, query := range queries {
		lab.Eventually(t, query+" returns a series", func() bool {
			return len(prometheus.Query(changed.Replace(query))) > 0
		})
	}
}
