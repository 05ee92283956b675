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

// A rule is an alerting rule or a recording rule.
type rule struct {
	Record, Alert, Expr string
	Labels, Annotations map[string]string
}

// rulesOf returns the rules of a file.
func rulesOf(t *testing.T, file string) (rules []rule) {
	t.Helper()
	var content struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal([]byte(lab.Read(t, file)), &content); err != nil {
		t.Fatalf("decode %s: %v", file, err)
	}
	for _, group := range content.Groups {
		rules = append(rules, group.Rules...)
	}
	return rules
}

// The rules and prometheus.yml are valid, and the tests of the rules pass.
func TestRules(t *testing.T) {
	lab.SkipWithRace(t)
	process.EachPrometheus(t, func(t *testing.T, major process.Major) {
		for _, args := range [][]string{
			{"check", "config", "prometheus.yml"},
			append([]string{"check", "rules", "--lint-fatal"}, lab.Files(t, "rules/*.yml")...),
		} {
			if out, err := major.Promtool(t, args...); err != nil {
				t.Errorf("promtool %s: %v, want no error\n%s", strings.Join(args, " "), err, out)
			}
		}
		for _, file := range lab.Files(t, "rules/tests/*.yml") {
			t.Run(filepath.Base(file), func(t *testing.T) {
				t.Parallel() // promtool uses one processor
				if out, err := major.Promtool(t, "test", "rules", file); err != nil {
					t.Errorf("promtool test rules %s: %v, want no error\n%s", file, err, out)
				}
			})
		}
	})
}

// Each alert has a test in which it fires, and does not fire before and after that.
func TestEachAlertIsTested(t *testing.T) {
	type moment struct {
		Alertname string
		EvalTime  string `yaml:"eval_time"`
		ExpAlerts []any  `yaml:"exp_alerts"`
	}
	tested := make(map[string]bool)
	for _, file := range lab.Files(t, "rules/tests/*.yml") {
		var content struct {
			Tests []struct {
				Moments []moment `yaml:"alert_rule_test"`
			}
		}
		if err := yaml.Unmarshal([]byte(lab.Read(t, file)), &content); err != nil {
			t.Fatalf("decode %s: %v", file, err)
		}
		for _, test := range content.Tests {
			course := make(map[string]string)
			for _, m := range test.Moments {
				if len(m.ExpAlerts) > 0 {
					course[m.Alertname] += "F" // fires
				} else {
					course[m.Alertname] += "-"
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
				t.Errorf("%s: %s has no test in which it does not fire, fires, and does not fire again", file, r.Alert)
			}
		}
	}
}

// The control of the tests of the rules: the tests fail if an alert never fires, and if it always fires.
func TestBrokenRules(t *testing.T) {
	lab.SkipWithRace(t)
	all := slices.Concat(lab.Files(t, "rules/*.yml"), lab.Files(t, "rules/tests/*.yml"))
	alertExpr := regexp.MustCompile(`(?m)(- alert: .*\n +expr: )(?:\|(?:\n {10}.*)+|.*)`)
	for _, file := range lab.Files(t, "rules/*.yml") {
		for _, broken := range []string{"vector(0) > 1", "vector(1)"} {
			t.Run(filepath.Base(file)+" with "+broken, func(t *testing.T) {
				t.Parallel() // promtool uses one processor
				dir := t.TempDir()
				for _, other := range all {
					lab.Write(t, dir, other, lab.Read(t, other))
				}
				lab.Write(t, dir, file, alertExpr.ReplaceAllString(lab.Read(t, file), "${1}"+broken))
				tests := filepath.Join(dir, "rules/tests", strings.TrimSuffix(filepath.Base(file), ".yml")+"_test.yml")
				out, _ := process.Promtool(t, "test", "rules", tests)
				for _, r := range rulesOf(t, file) {
					if r.Alert != "" && !strings.Contains(out, "alertname: "+r.Alert+",") {
						t.Errorf("%s with the expression %s passes its tests, want a failure:\n%s",
							r.Alert, broken, out)
					}
				}
			})
		}
	}
}

// Each alert has a severity that alertmanager.yml routes, a summary, and a section in the runbook docs/alerts.md.
func TestAlertsHaveRunbooks(t *testing.T) {
	const (
		page       = "../docs/alerts.md"
		runbookURL = "https://github.com/shaker-exporter/shaker_exporter/blob/main/docs/alerts.md"
	)
	runbook := lab.Read(t, page)
	described := make(map[string]bool)
	for _, heading := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(runbook, -1) {
		described[heading[1]] = true
	}
	for _, file := range lab.Files(t, "rules/*.yml") {
		for _, r := range rulesOf(t, file) {
			if r.Alert == "" {
				continue
			}
			if severity := r.Labels["severity"]; severity != "page" && severity != "ticket" {
				t.Errorf("severity of %s = %q, want page or ticket", r.Alert, severity)
			}
			if r.Annotations["summary"] == "" {
				t.Errorf("%s has no annotation summary", r.Alert)
			}
			want := runbookURL + "#" + strings.ToLower(r.Alert)
			if got := r.Annotations["runbook_url"]; got != want {
				t.Errorf("runbook_url of %s = %q, want %q", r.Alert, got, want)
			}
			if !described[r.Alert] {
				t.Errorf("%s has no section about %s", page, r.Alert)
			}
			delete(described, r.Alert)
		}
	}
	for alert := range described {
		t.Errorf("%s has a section about %s, which is not an alert", page, alert)
	}
}
