package examples

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

const kubernetesPage = "../docs/kubernetes.md"

// pageSnippet returns the first code block of docs/kubernetes.md in a language that contains a text.
func pageSnippet(t *testing.T, language, with string) string {
	t.Helper()
	blocks := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$")
	for _, block := range blocks.FindAllStringSubmatch(lab.Read(t, kubernetesPage), -1) {
		if strings.Contains(block[1], with) {
			return block[1]
		}
	}
	t.Fatalf("%s has no %s block that contains %q", kubernetesPage, language, with)
	return ""
}

// The table of docs/kubernetes.md has all values, with their defaults, and the schema knows the same values.
func TestChartValues(t *testing.T) {
	var values, schema map[string]any
	for file, content := range map[string]any{"values.yaml": &values, "values.schema.json": &schema} {
		if err := decodeStrictly(lab.Read(t, filepath.Join(chartDirectory, file)), content); err != nil {
			t.Fatalf("decode %s: %v", file, err)
		}
	}
	// The table describes these values as a whole.
	whole := []string{"config", "resources", "podSecurityContext", "securityContext"}
	defaults := make(map[string]any)
	var flatten func(prefix string, values, schema map[string]any)
	flatten = func(prefix string, values, schema map[string]any) {
		known, _ := schema["properties"].(map[string]any)
		keys := slices.Sorted(maps.Keys(known))
		keys = slices.DeleteFunc(keys, func(key string) bool {
			return prefix == "" && (key == "global" || key == "enabled") // for parent charts
		})
		if got := slices.Sorted(maps.Keys(values)); !slices.Equal(got, keys) {
			t.Errorf("values.yaml has the keys %q in %q, the schema %q", got, prefix, keys)
		}
		for key, value := range values {
			object, _ := value.(map[string]any)
			of, _ := known[key].(map[string]any)
			if len(object) > 0 && of["properties"] != nil {
				flatten(prefix+key+".", object, of)
			} else {
				defaults[prefix+key] = value
			}
		}
	}
	flatten("", values, schema)

	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*?) \\| .*\\|$")
	for _, cells := range row.FindAllStringSubmatch(lab.Read(t, kubernetesPage), -1) {
		want, ok := defaults[cells[1]]
		if !ok {
			t.Errorf("%s has the value %s, which values.yaml does not have", kubernetesPage, cells[1])
			continue
		}
		delete(defaults, cells[1])
		text, exact := strings.CutPrefix(cells[2], "`")
		var got any
		if err := decodeStrictly(strings.TrimSuffix(text, "`"), &got); exact && err != nil {
			t.Errorf("%s: the default of %s, %s: %v", kubernetesPage, cells[1], text, err)
		}
		if exact == slices.Contains(whole, cells[1]) || exact && !reflect.DeepEqual(got, want) {
			t.Errorf("%s has %s as the default of %s, want %v", kubernetesPage, cells[2], cells[1], want)
		}
	}
	if len(defaults) > 0 {
		t.Errorf("%s does not have the values %q", kubernetesPage, slices.Sorted(maps.Keys(defaults)))
	}
}

// docs/kubernetes.md names the version of Kubernetes that the chart needs.
func TestChartVersion(t *testing.T) {
	needed := regexp.MustCompile(`(?m)^kubeVersion: ">=(\d+\.\d+)\.0-0"$`)
	version := needed.FindStringSubmatch(lab.Read(t, filepath.Join(chartDirectory, "Chart.yaml")))
	if version == nil {
		t.Fatalf("Chart.yaml has no line that matches %s", needed)
	}
	want := "The chart needs Kubernetes " + version[1] + " or later"
	if !strings.Contains(lab.Read(t, kubernetesPage), want) {
		t.Errorf("%s does not contain %q", kubernetesPage, want)
	}
}

// The commands of README.md and docs/kubernetes.md, and the values of the latter, work. helm template renders what the
// commands would install.
func TestChartPage(t *testing.T) {
	lab.SkipWithRace(t)
	shell, program := lab.Program(t, "sh", "dash"), lab.GoProgram(t, "helm")
	dir := t.TempDir()
	chart := packageChart(t, "0.1.0")
	lab.Write(t, dir, "dist/"+filepath.Base(chart), lab.Read(t, chart))
	lab.Write(t, dir, "values.yml", pageSnippet(t, "yaml", "# values.yml"))
	plain := []string{
		"ConfigMap/shaker-exporter", "Deployment/shaker-exporter", "NetworkPolicy/shaker-exporter",
		"PodDisruptionBudget/shaker-exporter", "Service/shaker-exporter", "ServiceAccount/shaker-exporter",
	}
	for _, c := range []struct {
		page, command string
		want          []string
	}{
		{page: "../README.md", command: "`make chart VERSION=0.1.0 && helm install( [^`]*)`", want: plain},
		{page: kubernetesPage, command: `(?m)^\$ helm install( .*)$`, want: plain},
		{
			page: kubernetesPage, command: `(?m)^\$ helm upgrade --install( .*)$`,
			want: []string{
				"Probe/shaker-exporter-ingresses", "Probe/shaker-exporter-web",
				"PrometheusRule/shaker-exporter-targets",
				"ScrapeConfig/shaker-exporter-inventory", "ConfigMap/shaker-exporter-fleet",
				"ServiceMonitor/shaker-exporter",
			},
		},
	} {
		command := regexp.MustCompile(c.command).FindStringSubmatch(lab.Read(t, c.page))
		if command == nil {
			t.Errorf("%s has no command that matches %s", c.page, c.command)
			continue
		}
		cmd := exec.Command(shell, "-c", program+" template"+command[1])
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+dir, "HELM_CONFIG_HOME="+dir, "HELM_DATA_HOME="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v, want no error\n%s", command[0], err, out)
			continue
		}
		r, err := parseRelease(string(out))
		if err != nil {
			t.Errorf("decode what %s renders: %v", command[0], err)
		}
		checkReferences(t, r)
		for _, name := range c.want {
			if r[name] == nil {
				t.Errorf("%s installs %q, want also %s", command[0], slices.Sorted(maps.Keys(r)), name)
			}
		}
	}
}

// The mixin of docs/kubernetes.md renders from the directory into which jb installs it.
func TestMixinPage(t *testing.T) {
	lab.SkipWithRace(t)
	dir := t.TempDir()
	repository, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	vendored := filepath.Join(dir, "vendor/github.com/shaker-exporter")
	if err := errors.Join(os.MkdirAll(vendored, 0o755),
		os.Symlink(repository, filepath.Join(vendored, "shaker_exporter"))); err != nil {
		t.Fatal(err)
	}
	file := lab.Write(t, dir, "mixin.jsonnet", "("+pageSnippet(t, "jsonnet", "mixin.libsonnet")+").prometheusAlerts")
	out, err := exec.Command(lab.GoProgram(t, "jsonnet"), "-J", filepath.Join(dir, "vendor"), file).CombinedOutput()
	var rules rulesFile
	if err == nil {
		err = decodeStrictly(string(out), &rules)
	}
	if err != nil || len(rules.Groups) == 0 || !strings.Contains(string(out), `"severity": "critical"`) {
		t.Errorf("the mixin of %s: %v\n%s\nwant rules with the severity critical", kubernetesPage, err, out)
	}
}
