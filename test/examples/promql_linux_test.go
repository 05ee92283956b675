package examples

import (
	"regexp"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// testPromQLPages checks that every metric of docs/metrics.md is in a query of docs/promql.md, and that every query of
// this page, of docs/watch.md and of docs/hold.md returns a series after the exporter has probed the network of
// newGrafanaNetwork.
func testPromQLPages(t *testing.T, prometheus *process.Prometheus) {
	queries := queriesOfPage(t, "../docs/promql.md")
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
		"[1d]) > 0", "[1d]) >= 0", "[1d])) > 0", "[1d])) >= 0", "probe_tcp_ack_sent == 1", "probe_tcp_ack_sent == 0",
		"last_reload_successful == 0", "last_reload_successful == 1", `icmp!="",icmp!="ttl_exceeded"`, `icmp!=""`,
		`result!="resolved"`, `result="resolved"`, "registrations_total[1h]) > 0", "registrations_total[1h]) >= 0",
		" unless count by (job, instance, address) ", " and count by (job, instance, address) ",
		"keepalives_unanswered > 0", "keepalives_unanswered >= 0", "address_current == 0", "address_current == 1",
		`{result!="open"}[1h])) > 0`, `{result!="open"}[1h])) >= 0`,
		"control_alive == 1", "control_alive == 0", "idle_consistent == 0", "idle_consistent == 1",
		"rounds_total[2h]) == 0", "rounds_total[2h]) >= 0", "registered_timestamp_seconds > 7200",
		"registered_timestamp_seconds > 0",
		// No target here is watched with flows.
		"probe_watch_flow_handshakes_total", "probe_watch_handshakes_total",
		// There are none with sockets.
		"sum by (reason) (increase(shaker_raw_segments_dropped_total[1h])) > 0", `shaker_engine_info{engine="socket"}`,
		"increase(shaker_raw_resets_missing_total[1h]) / increase(shaker_raw_resets_checked_total[1h]) > 0",
		`shaker_engine_info{engine="socket"}`,
		"left_out > 0", "left_out >= 0")
	for _, page := range []string{"../docs/watch.md", "../docs/hold.md", "../docs/idle.md"} {
		more := queriesOfPage(t, page)
		if len(more) < 3 {
			t.Fatalf("%s has %d queries, want at least 3", page, len(more))
		}
		queries = append(queries, more...)
	}
	for _, query := range queries {
		lab.Eventually(t, query+" returns a series", func() bool {
			return len(prometheus.Query(changed.Replace(query))) > 0
		})
	}
}

// queriesOfPage returns the queries of a page, each of one line.
func queriesOfPage(t *testing.T, page string) (queries []string) {
	t.Helper()
	for _, block := range regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(lab.Read(t, page), -1) {
		for line := range strings.Lines(block[1]) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				queries = append(queries, line)
			}
		}
	}
	return queries
}
