package documents

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The YAML of the pages is valid: the exporter accepts its configurations, and promtool accepts the
// configurations and rules of Prometheus. An invalid file is shown in a transcript instead.
func TestDocsYAML(t *testing.T) {
	byKind := make(map[string][]snippet)
	for _, s := range snippets(t, "yaml", triedPages...) {
		kind := kindOf(s.text)
		if tryYAML[kind] == nil {
			t.Errorf("%s has YAML of an unknown kind:\n%s", s.page, s.text)
		}
		byKind[kind] = append(byKind[kind], s)
	}
	for kind, try := range tryYAML {
		t.Run(kind, func(t *testing.T) {
			if byKind[kind] == nil {
				t.Errorf("the pages have no YAML of the kind %s, want at least one block", kind)
			}
			for _, s := range byKind[kind] {
				if err := try(t, s.text); err != nil {
					t.Errorf("%s: %s: %v, want valid YAML\n%s", s.page, kind, err, s.text)
				}
			}
		})
	}
}

// The control case of TestDocsYAML: invalid YAML of each kind is rejected.
func TestDocsWrongYAML(t *testing.T) {
	for kind, text := range map[string]string{
		"exporter":   "modules: {a: {prober: udp}}",
		"prometheus": "scrape_configs: [{job_name: a, scrape_interval: soon}]",
		"rules":      "groups: [{name: a, rules: [{alert: A, expr: 'probe_success =='}]}]",
		"kubernetes": "apiVersion: v1\nkind: Service\nmetadata: {nane: a}",
	} {
		t.Run(kind, func(t *testing.T) {
			if got := kindOf(text); got != kind {
				t.Fatalf("kindOf(%q) = %q, want %q", text, got, kind)
			}
			if err := tryYAML[kind](t, text); err == nil {
				t.Errorf("the invalid text %q was accepted as %s", text, kind)
			}
		})
	}
	if got := kindOf("something: else"); got != "" {
		t.Errorf("kindOf(%q) = %q, want none", "something: else", got)
	}
}

// kindOf returns what a text in YAML configures, a key of tryYAML, or "" if it is none of them.
func kindOf(text string) string {
	has := func(key string) bool { return regexp.MustCompile(`(?m)^` + key + `:`).MatchString(text) }
	switch {
	case has("modules"), has("targets"):
		return "exporter"
	case has("scrape_configs"), has("alerting"):
		return "prometheus"
	case has("groups"):
		return "rules"
	case has("apiVersion"):
		return "kubernetes"
	}
	return ""
}

// tryYAML maps each kind of YAML to the function that checks a text.
var tryYAML = map[string]func(t *testing.T, text string) error{
	"exporter": func(t *testing.T, text string) error {
		t.Helper()
		lab.Need(t) // Parse tries the options in this network namespace, which has the kernel's default settings
		_, warnings, err := config.Parse("page.yml", []byte(text))
		if err == nil && warnings != nil { // an address or an interface that this host does not have
			t.Log(warnings)
		}
		return err
	},
	"prometheus": func(t *testing.T, text string) error { return checkText(t, "config", text) },
	"rules":      func(t *testing.T, text string) error { return checkText(t, "rules", text) },
	// The types of the Gateway API are not among the dependencies, so that only this much is checked.
	"kubernetes": func(_ *testing.T, text string) error {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			return err
		}
		if object.Kind == "" || object.Metadata.Name == "" {
			return errors.New("no kind, or no name")
		}
		return nil
	},
}

// checkText checks a text with promtool, as "config" or "rules".
func checkText(t *testing.T, as, text string) error {
	t.Helper()
	if out, err := process.Promtool(t, "check", as, lab.Write(t, t.TempDir(), "page.yml", text)); err != nil {
		return fmt.Errorf("promtool check %s: %w: %s", as, err, out)
	}
	return nil
}

// Prometheus can parse the PromQL of the pages.
func TestDocsPromQL(t *testing.T) {
	queries := 0
	for _, s := range snippets(t, "promql", triedPages...) {
		for expression := range strings.SplitSeq(s.text, "\n\n") {
			queries++
			if err := tryPromQL(t, expression); err != nil {
				t.Errorf("%s: %v\n%s", s.page, err, expression)
			}
		}
	}
	if queries < 5 {
		t.Errorf("found %d expressions, want at least 5", queries)
	}
	const invalid = "# The control case\nrate(probe_success)"
	if err := tryPromQL(t, invalid); err == nil {
		t.Errorf("promtool accepts the invalid expression %q", invalid)
	}
}

func tryPromQL(t *testing.T, expression string) error {
	t.Helper()
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{ // JSON is YAML
		"name": "page", "rules": []any{map[string]any{"record": "page", "expr": expression}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return checkText(t, "rules", string(text))
}

// The pages name only metrics that are in the tables of docs/metrics.md. TestMetricsTables compares these
// tables with the exporter.
func TestDocsMetrics(t *testing.T) {
	known := []string{
		"shaker_exporter",                                                       // this program
		"shaker_handshake_seconds_bucket", "probe_hold_lifetime_seconds_bucket", // of histograms
		"probe_failed_due_to_regex", "probe_ssl_earliest_cert_expiry", // of blackbox_exporter
		"shaker_blackbox", "shaker_consul", "shaker_flows", "shaker_mesh", // jobs
		"shaker_port", // a tag
	}
	row := regexp.MustCompile("(?m)^\\| `((?:probe|shaker)_[a-z_]+)")
	for _, found := range row.FindAllStringSubmatch(lab.Read(t, metricsPage), -1) {
		known = append(known, found[1])
	}
	named := 0
	metric := regexp.MustCompile(`\b(?:probe|shaker)_[a-z_]+`)
	for _, page := range triedPages {
		for _, name := range metric.FindAllString(lab.Read(t, page), -1) {
			named++
			if !slices.Contains(known, name) {
				t.Errorf("%s names %s, which is not in the tables of %s", page, name, metricsPage)
			}
		}
	}
	if named < 50 {
		t.Errorf("found %d names of metrics, want at least 50", named)
	}
}

// Each test, benchmark and fuzz test in the pages' go test commands exists.
func TestDocsGoTest(t *testing.T) {
	commands := regexp.MustCompile("go (-C test )?test[^\n`|)]*")
	selected := regexp.MustCompile(` -(run|bench|fuzz) '?([A-Z]\w*)`)
	named := 0
	for _, page := range allPages(t) {
		for _, command := range commands.FindAllString(lab.Read(t, page), -1) {
			for _, found := range selected.FindAllStringSubmatch(command, -1) {
				named++
				if !hasTest(t, found[1], found[2], strings.Fields(command)) {
					t.Errorf("%s: `%s` selects nothing", page, command)
				}
			}
		}
	}
	if named < 10 {
		t.Errorf("found %d names of tests and benchmarks, want at least 10", named)
	}
	const absent = "DocsGoTestThatIsNotThere" // the control case
	if hasTest(t, "run", absent, []string{"."}) {
		t.Errorf("hasTest(%q) = true, want false", absent)
	}
}

// hasTest reports whether one of the packages among the arguments of go test has a function that the flag
// selects with the name.
func hasTest(t *testing.T, flag, name string, arguments []string) bool {
	t.Helper()
	kind := map[string]string{"run": "Test", "bench": "Benchmark", "fuzz": "Fuzz"}[flag]
	function := regexp.MustCompile(`(?m)^func ` + kind + `\w*` + strings.TrimPrefix(name, kind))
	module := "."
	if slices.Contains(arguments, "-C") {
		module = "test"
	}
	for _, argument := range arguments {
		if argument != "." && !strings.HasPrefix(argument, "./") {
			continue
		}
		files, err := filepath.Glob(filepath.Join(module, strings.Replace(argument, "...", "*", 1), "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(files, func(file string) bool { return function.MatchString(lab.Read(t, file)) }) {
			return true
		}
	}
	return false
}

// The commands in the transcripts of these pages print what the pages show.
func TestDocsTranscripts(t *testing.T) {
	for _, page := range []string{blackboxPage, faqPage} {
		t.Run(filepath.Base(page), func(t *testing.T) {
			lab.Program(t, "sh", "dash")
			exporter.Start(t)
			tried := 0
			for _, s := range snippets(t, "console", page) {
				for _, c := range commands(s.text) {
					if c.tried() {
						tried++
					}
				}
				tryTranscript(t, s, exporter.Steady)
			}
			if tried == 0 {
				t.Errorf("%s has no command to try, want at least one", page)
			}
		})
	}
}

// The page's program compiles and prints what the page shows, and each name of package shaker on the page
// exists.
func TestDocsLibrary(t *testing.T) {
	t.Run("program", func(t *testing.T) {
		lab.Need(t)
		program := snippetWith(t, libraryPage, "go", "shaker.New(")
		want := snippetWith(t, libraryPage, "text", "127.0.0.1")
		if got := runGo(t, program); got != want {
			t.Errorf("%s: the program prints\n%s\nthe page has\n%s", libraryPage, got, want)
		}
	})
	t.Run("names", func(t *testing.T) {
		goTool := lab.Program(t, "go", "golang-go")
		name := regexp.MustCompile("`shaker\\.([A-Z]\\w*(?:\\.[A-Z]\\w*)?)")
		names := name.FindAllStringSubmatch(lab.Read(t, libraryPage), -1)
		if len(names) < 5 {
			t.Errorf("%s: found %d names of package shaker, want at least 5", libraryPage, len(names))
		}
		for _, found := range names {
			if out, err := exec.Command(goTool, "doc", "./shaker", found[1]).CombinedOutput(); err != nil {
				t.Errorf("%s: go doc ./shaker %s: %v: %s", libraryPage, found[1], err, out)
			}
		}
	})
}

// runGo runs a Go program as a program of this module and returns its output.
func runGo(t *testing.T, source string) string {
	t.Helper()
	goTool := lab.Program(t, "go", "golang-go")
	directory, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(directory, "page", "main.go"): lab.Write(t, t.TempDir(), "main.go", source)}})
	if err != nil {
		t.Fatal(err)
	}
	overlayFile := lab.Write(t, t.TempDir(), "overlay.json", string(overlay))
	out, err := exec.Command(goTool, "run", "-overlay="+overlayFile, "./page").CombinedOutput()
	if err != nil {
		t.Errorf("go run: %v: %s", err, out)
	}
	return string(out)
}
