package examples

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// mixin evaluates a field of the mixin with a configuration. On an error, it returns the error's text, too.
func mixin(t *testing.T, config, field string) (output string, err error) {
	t.Helper()
	code := fmt.Sprintf("((import '../mixin/mixin.libsonnet') + { _config+:: %s }).%s", config, field)
	out, err := exec.Command(lab.GoProgram(t, "jsonnet"), "-e", code).CombinedOutput()
	return string(out), err
}

// A rulesFile is the content of a file with rules, as far as the tests change it.
type rulesFile struct {
	Groups []rulesGroup `json:"groups"`
}

type rulesGroup struct {
	Name     string           `json:"name"`
	Interval string           `json:"interval,omitempty"`
	Rules    []map[string]any `json:"rules"`
}

// mixinRules returns the rules of the mixin.
func mixinRules(t *testing.T, config string) (rules rulesFile) {
	t.Helper()
	text, err := mixin(t, config, "prometheusAlerts")
	if err == nil {
		err = decodeStrictly(text, &rules)
	}
	if err != nil {
		t.Fatalf("the rules of the mixin with the configuration %s: %v\n%s", config, err, text)
	}
	return rules
}

// testRules runs a file of examples/rules/tests with rules that change makes of those of the mixin, instead of the
// rules of examples/rules.
func testRules(t *testing.T, file string, change func(*rulesFile)) (output string, err error) {
	t.Helper()
	var test map[string]any
	if err := yaml.Unmarshal([]byte(lab.Read(t, file)), &test); err != nil {
		t.Fatalf("decode %s: %v", file, err)
	}
	var names []string
	for _, name := range test["rule_files"].([]any) {
		names = append(names, fmt.Sprintf("%q", strings.TrimSuffix(filepath.Base(name.(string)), ".yml")))
	}
	rules := mixinRules(t, fmt.Sprintf("{ shakerRules: [%s] }", strings.Join(names, ", ")))
	change(&rules)
	test["rule_files"] = []string{"rules.yml"}
	if order, ok := test["group_eval_order"].([]any); ok {
		for _, group := range rules.Groups {
			if !slices.Contains(order, any(group.Name)) {
				order = append([]any{group.Name}, order...) // Prometheus evaluates groups in any order
			}
		}
		test["group_eval_order"] = order
	}
	dir := t.TempDir()
	for name, content := range map[string]any{"rules.yml": rules, "test.yml": test} {
		text, err := json.Marshal(content) // which is YAML
		if err != nil {
			t.Fatal(err)
		}
		lab.Write(t, dir, name, string(text))
	}
	return process.Promtool(t, "test", "rules", filepath.Join(dir, "test.yml"))
}

// The mixin has the rules and dashboards of examples, and the tests of the rules pass with what Jsonnet renders. The
// control has records and alerts in different groups, as many mixins have,
// evaluated in the order in which the alerts lag behind.
func TestMixin(t *testing.T) {
	lab.SkipWithRace(t)
	var want rulesFile
	var names []string
	for _, file := range lab.Files(t, "rules/*.yml") {
		var rules rulesFile
		if err := decodeStrictly(lab.Read(t, file), &rules); err != nil {
			t.Fatalf("decode %s: %v", file, err)
		}
		want.Groups = append(want.Groups, rules.Groups...)
		names = append(names, fmt.Sprintf("%q", strings.TrimSuffix(filepath.Base(file), ".yml")))
	}
	all := fmt.Sprintf("{ shakerRules: [%s] }", strings.Join(names, ", "))
	if got := mixinRules(t, all); !reflect.DeepEqual(got, want) {
		t.Errorf("the rules of the mixin are\n%+v\nwant those of examples/rules\n%+v", got, want)
	}
	for _, config := range []string{"{}", all, "{ shakerSeverities: { page: 'critical', ticket: 'warning' } }"} {
		text, err := mixin(t, config, "prometheusAlerts")
		if err != nil {
			t.Fatalf("the mixin with %s: %v\n%s", config, err, text)
		}
		file := lab.Write(t, t.TempDir(), "rules.json", text)
		if out, err := process.Promtool(t, "check", "rules", "--lint-fatal", file); err != nil {
			t.Errorf("promtool check rules of the mixin with %s: %v, want no error\n%s", config, err, out)
		}
	}

	text, err := mixin(t, "{}", "grafanaDashboards")
	var got map[string]any
	if err := decodeStrictly(text, &got); err != nil {
		t.Errorf("the dashboards of the mixin: %v\n%s", err, text)
	}
	dashboards := make(map[string]any)
	for _, file := range lab.Files(t, "grafana/*.json") {
		var content any
		if err := decodeStrictly(lab.Read(t, file), &content); err != nil {
			t.Fatalf("decode %s: %v", file, err)
		}
		dashboards["shaker-"+filepath.Base(file)] = content
	}
	if err != nil || !reflect.DeepEqual(got, dashboards) {
		t.Errorf("the mixin has the dashboards %q, %v, want those of examples/grafana unchanged",
			slices.Sorted(maps.Keys(got)), err)
	}

	for _, file := range lab.Files(t, "rules/tests/*.yml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel() // promtool uses one processor
			if out, err := testRules(t, file, func(*rulesFile) {}); err != nil {
				t.Errorf("promtool test rules with the rules of the mixin: %v, want no error\n%s", err, out)
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		t.Parallel()
		out, err := testRules(t, "rules/tests/targets_test.yml", func(rules *rulesFile) {
			var records, alerts []rulesGroup
			for _, group := range rules.Groups {
				split := map[bool][]map[string]any{}
				for _, rule := range group.Rules {
					split[rule["alert"] != nil] = append(split[rule["alert"] != nil], rule)
				}
				records = append(records, rulesGroup{Name: group.Name, Interval: group.Interval, Rules: split[false]})
				alerts = append(alerts, rulesGroup{
					Name: group.Name + "_alerts", Interval: group.Interval, Rules: split[true],
				})
			}
			rules.Groups = append(records, alerts...)
		})
		if err == nil {
			t.Errorf("the tests of the rules pass with alerts in groups of their own, want a failure\n%s", out)
		}
	})
}

// Severities of one's own replace those of the alerts, and nothing else.
func TestMixinSeverities(t *testing.T) {
	lab.SkipWithRace(t)
	want := mixinRules(t, "{}")
	for _, group := range want.Groups {
		for _, rule := range group.Rules {
			if labels, ok := rule["labels"].(map[string]any); ok && labels["severity"] == "page" {
				labels["severity"] = "critical"
			}
		}
	}
	if got := mixinRules(t, "{ shakerSeverities: { page: 'critical' } }"); !reflect.DeepEqual(got, want) {
		t.Errorf("with page: 'critical' the rules of the mixin are\n%+v\nwant\n%+v", got, want)
	}
}

// A mistake in the configuration of the mixin is an error that names it.
func TestMixinMistakes(t *testing.T) {
	lab.SkipWithRace(t)
	for config, want := range map[string]string{
		"{ shakerRules: ['alerts'] }": "shakerRules has alerts, want some of flows, hold, prober, slo, targets, " +
			"vantage, watch",
		"{ shakerSeverities: { pages: 'critical' } }": "shakerSeverities has pages, want page and ticket",
		"{ shakerSeverities: { page: 1 } }":           "shakerSeverities.page is 1, want a string",
		"{ shakerSeverities: { ticket: '' } }":        `shakerSeverities.ticket is "", want a string`,
		"{ shakerSeverities: 'critical' }":            "shakerSeverities is critical, want an object",
		"{ shakerRulez: ['targets'] }":                "_config has shakerRulez, want shakerRules and shakerSeverities",
		"{ shakerRules: 'targets' }": "shakerRules is targets, want an array, such as ['targets', " +
			"'prober']",
		"{ shakerRules: ['hold', 'hold'] }": `shakerRules is ["hold", "hold"], want each file once`,
		"{ shakerRules: [1] }":              "shakerRules has 1, want some of flows, hold",
	} {
		if out, err := mixin(t, config, "prometheusAlerts"); err == nil || !strings.Contains(out, want) {
			t.Errorf("the mixin with %s: %v, %s, want an error with %q", config, err, out, want)
		}
	}
	if out, err := mixin(t, "{ nodeExporterSelector: 'a' }", "prometheusAlerts"); err != nil {
		t.Errorf("the mixin with a key of another mixin: %v, want no error\n%s", err, out)
	}
}
