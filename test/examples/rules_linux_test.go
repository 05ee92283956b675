package examples

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// A rule is an alert or a recorded expression.
type rule struct {
	Record, Alert, Expr string
	Labels, Annotations map[string]string
}

// rulesOf returns the rules of a file.
func rulesOf(t *testing.T, file string) (rules []rule) {
	t.Helper()
	var content struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal([]byte(lab.Read(t, file)), &content); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for _, group := range content.Groups {
		rules = append(rules, group.Rules...)
	}
	return rules
}

// The rules and the simplest configuration are valid, and the rules do what their tests say.
func TestRules(t *testing.T) {
	for _, args := range [][]string{
		{"check", "config", "prometheus.yml"},
		append([]string{"check", "rules", "--lint-fatal"}, lab.Files(t, "rules/*.yml")...),
		append([]string{"test", "rules"}, lab.Files(t, "rules/tests/*.yml")...),
	} {
		if out, err := process.Promtool(t, args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Each alert has a test in which it fires, is silent before, and is silent again.
func TestEachAlertIsTested(t *testing.T) {
	type moment struct {
		Alertname string
		EvalTime  string `yaml:"eval_time"`
		ExpAlerts []any  `yaml:"exp_alerts"`
	}
	const fires, silent = "F", "-"
	tested := make(map[string]bool)
	for _, file := range lab.Files(t, "rules/tests/*.yml") {
		var content struct {
			Tests []struct {
				Moments []moment `yaml:"alert_rule_test"`
			}
		}
		if err := yaml.Unmarshal([]byte(lab.Read(t, file)), &content); err != nil {
			t.Fatal(err)
		}
		for _, test := range content.Tests {
			course := make(map[string]string)
			for _, m := range test.Moments {
				if len(m.ExpAlerts) > 0 {
					course[m.Alertname] += fires
				} else {
					course[m.Alertname] += silent
				}
			}
			for alert, course := range course {
				tested[alert] = tested[alert] || regexp.MustCompile("-F+-").MatchString(course)
			}
		}
	}
	for _, file := range lab.Files(t, "rules/*.yml") {
		for _, r := range rulesOf(t, file) {
			if r.Alert != "" && !tested[r.Alert] {
				t.Errorf("%s: %s has no test in which it is silent, fires, and is silent again", file, r.Alert)
			}
		}
	}
}

// The control of the tests of rules: alerts that never fire, or always, make them fail.
func TestBrokenRules(t *testing.T) {
	dir := t.TempDir()
	for _, file := range slices.Concat(lab.Files(t, "rules/*.yml"), lab.Files(t, "rules/tests/*.yml")) {
		lab.Write(t, dir, file, lab.Read(t, file))
	}
	alertExpr := regexp.MustCompile(`(?m)(- alert: .*\n +expr: )(?:\|(?:\n {10}.*)+|.*)`)
	for _, file := range lab.Files(t, "rules/*.yml") {
		text := lab.Read(t, file)
		for _, broken := range []string{"vector(0) > 1", "vector(1)"} {
			lab.Write(t, dir, file, alertExpr.ReplaceAllString(text, "${1}"+broken))
			tests := filepath.Join(dir, "rules/tests", strings.TrimSuffix(filepath.Base(file), ".yml")+"_test.yml")
			out, _ := process.Promtool(t, "test", "rules", tests)
			for _, r := range rulesOf(t, file) {
				if r.Alert != "" && !strings.Contains(out, "alertname: "+r.Alert+",") {
					t.Errorf("%s as %s passes its tests:\n%s", r.Alert, broken, out)
				}
			}
		}
		lab.Write(t, dir, file, text)
	}
}

// Who is woken up by an alert finds out what to do: each has a severity that is routed, a
// summary, and a chapter in the manual.
func TestAlertsHaveAManual(t *testing.T) {
	const page = "../docs/alerts.md"
	manual := lab.Read(t, page)
	described := make(map[string]bool)
	for _, heading := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(manual, -1) {
		described[heading[1]] = true
	}
	for _, file := range lab.Files(t, "rules/*.yml") {
		for _, r := range rulesOf(t, file) {
			if r.Alert == "" {
				continue
			}
			if severity := r.Labels["severity"]; severity != "page" && severity != "ticket" {
				t.Errorf("%s: severity is %q", r.Alert, severity)
			}
			if r.Annotations["summary"] == "" {
				t.Errorf("%s has no summary", r.Alert)
			}
			want := "https://github.com/shaker-exporter/shaker_exporter/blob/main/docs/alerts.md#" + strings.ToLower(r.Alert)
			if got := r.Annotations["runbook_url"]; got != want {
				t.Errorf("%s: runbook_url is %q", r.Alert, got)
			}
			if !described[r.Alert] {
				t.Errorf("%s does not describe %s", page, r.Alert)
			}
			delete(described, r.Alert)
		}
	}
	for alert := range described {
		t.Errorf("%s describes %s, which is no alert", page, alert)
	}
}
