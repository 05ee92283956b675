package alerts

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// With the relabelling of docs/elsewhere.md, alerts reach the receivers of an Alertmanager whose routes expect the
// severities critical and warning. The series ALERTS keep the severities of the rules. The control is a Prometheus
// without the relabelling.
func TestSeverities(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.SkipWithRace(t)
	p := newPager(t, 60,
		"receiver: ticket\n  # Alerts of one job", "receiver: other\n  # Alerts of one job",
		"    - matchers: [severity = page]\n", "    - matchers: [severity = warning]\n      receiver: ticket\n"+
			"    - matchers: [severity = critical]\n",
		"\nreceivers:\n", "\nreceivers:\n  - name: other\n    webhook_configs: [{url: http://localhost:9095/other}]\n")
	snippet := regexp.MustCompile("(?s)```yaml\n(alerting:.*?)```").
		FindStringSubmatch(lab.Read(t, "../docs/elsewhere.md"))
	if snippet == nil {
		t.Fatal("docs/elsewhere.md has no snippet with alerting:")
	}
	plain := regexp.MustCompile(`(?s)  alert_relabel_configs:.*  alertmanagers:`).
		ReplaceAllString(snippet[1], "  alertmanagers:")
	type receiver = map[string]string // by the severity of the rule
	for i, c := range []struct {
		name, alerting string
		want           receiver
	}{
		{name: "Mapped", alerting: snippet[1], want: receiver{"page": "/page", "ticket": "/ticket", "info": "/other"}},
		{name: "Plain", alerting: plain, want: receiver{"page": "/other", "ticket": "/other", "info": "/other"}},
	} {
		dir := t.TempDir()
		rules := ""
		for severity := range c.want {
			rules += fmt.Sprintf("      - {alert: %s%s, expr: vector(1), labels: {severity: %[2]s}}\n",
				c.name, severity)
		}
		lab.Write(t, dir, "rules.yml", "groups:\n  - name: test\n    rules:\n"+rules)
		lab.Write(t, dir, "prometheus.yml",
			"global: {evaluation_interval: 1s}\nrule_files: [rules.yml]\n"+c.alerting)
		// An alert that fires before Prometheus knows its Alertmanager is sent again.
		prometheus := process.Prometheus3.Start(t, 9090+i, filepath.Join(dir, "prometheus.yml"),
			"--rules.alert.resend-delay=1s")
		for severity, receiver := range c.want {
			name := c.name + severity
			lab.Eventually(t, name+" reaches a receiver", func() bool { return len(p.receivers(name)) > 0 })
			if got := p.receivers(name); !slices.Equal(got, []string{receiver}) {
				t.Errorf("%s, with severity %s, reaches the receivers %q, want %s", name, severity, got, receiver)
			}
			query := fmt.Sprintf("ALERTS{alertname=%q, severity=%q}", name, severity)
			lab.Eventually(t, query+" has a series", func() bool { return len(prometheus.Query(query)) == 1 })
		}
	}
}

// receivers returns the receivers that were notified of an alert, sorted.
func (p *pager) receivers(name string) (receivers []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.notifications {
		for _, a := range n.Alerts {
			if a.String() == name {
				receivers = append(receivers, n.receiver)
			}
		}
	}
	slices.Sort(receivers)
	return slices.Compact(receivers)
}
