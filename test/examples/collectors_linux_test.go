package examples

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/alloy/syntax/ast"
	"github.com/grafana/alloy/syntax/parser"
	"github.com/grafana/alloy/syntax/vm"
	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

const (
	otelFile  = "collectors/otel-collector.yml"
	alloyFile = "collectors/config.alloy"
)

// The configuration of the receiver, after the Collector has replaced the escapes, is one with which a real Prometheus
// gets the results of the exporter. The pipeline names the receiver and the exporter that the file defines. The control
// is the text with its escapes, in which a label is wrong.
func TestOTelCollector(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	text := lab.Read(t, otelFile)
	var content struct {
		Receivers struct{ Prometheus struct{ Config any } }
		Exporters map[string]struct {
			Endpoint         string
			DisableScopeInfo bool `yaml:"disable_scope_info"`
		}
		Service struct {
			Pipelines struct {
				Metrics struct{ Receivers, Exporters []string }
			}
		}
	}
	decoder := yaml.NewDecoder(strings.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&content); err != nil {
		t.Fatalf("decode %s: %v", otelFile, err)
	}
	metrics := content.Service.Pipelines.Metrics
	exporters := slices.Collect(maps.Keys(content.Exporters))
	if !slices.Equal(metrics.Receivers, []string{"prometheus"}) || !slices.Equal(metrics.Exporters, exporters) {
		t.Errorf("the pipeline has the receivers %q and the exporters %q, want prometheus and %q",
			metrics.Receivers, metrics.Exporters, exporters)
	}
	escaped, err := yaml.Marshal(content.Receivers.Prometheus.Config)
	if err != nil {
		t.Fatal(err)
	}
	if rest := strings.ReplaceAll(string(escaped), "$$", ""); strings.Contains(rest, "$") {
		t.Errorf("%s has a $ that is not escaped, which the Collector may replace:\n%s", otelFile, escaped)
	}
	exporter.Start(t)
	ports := func(port int, config string) (ports []string) {
		p := process.Prometheus3.Start(t, port, lab.Write(t, t.TempDir(), "prometheus.yml",
			strings.ReplaceAll(config, "scrape_interval: 15s", "scrape_interval: 1s")))
		lab.Eventually(t, "all targets have a result, and the exporter is scraped", func() bool {
			return len(p.Query(`probe_result_info{instance="localhost:10115", result="open"}`)) == 1 &&
				len(p.Query(`probe_result_info{instance="localhost:1", result="refused"}`)) == 1 &&
				len(p.Query(`shaker_exporter_build_info{job="shaker_exporter"}`)) == 1
		})
		for _, s := range p.Query(`probe_success{job="shaker"}`) {
			ports = append(ports, s.Labels["port"])
		}
		slices.Sort(ports)
		return ports
	}
	want := []string{"1", "10115"}
	if got := ports(9090, strings.ReplaceAll(string(escaped), "$$", "$")); !slices.Equal(got, want) {
		t.Errorf("the label port of the targets is %q, want %q", got, want)
	}
	if got := ports(9091, string(escaped)); slices.Equal(got, want) {
		t.Errorf("with the escapes, the label port of the targets is %q, want another", got)
	}
}

// Alloy's parser accepts the file. Each name that an argument uses is a component of the file, and the relabelling is
// that of prometheus.yml.
func TestAlloy(t *testing.T) {
	blocks, err := parseAlloy(lab.Read(t, alloyFile))
	if err != nil {
		t.Fatalf("decode %s: %v", alloyFile, err)
	}
	components := slices.Sorted(maps.Keys(blocks))
	want := []string{
		"discovery.relabel.shaker", "prometheus.remote_write.default", "prometheus.scrape.shaker",
		"prometheus.scrape.shaker_exporter",
	}
	if !slices.Equal(components, want) {
		t.Fatalf("%s has the components %q, want %q", alloyFile, components, want)
	}
	used := regexp.MustCompile(`\b(?:discovery|prometheus)(?:\.\w+)+\b`)
	for _, line := range strings.Split(lab.Read(t, alloyFile), "\n") {
		_, value, isArgument := strings.Cut(line, "=")
		if !isArgument || strings.HasPrefix(line, "//") {
			continue
		}
		for _, name := range used.FindAllString(value, -1) {
			component := name[:strings.LastIndex(name, ".")]
			if !slices.Contains(components, component) && !strings.Contains(line, "://"+name) {
				t.Errorf("%s uses %s, and has no component %s", alloyFile, name, component)
			}
		}
	}

	var rules []map[string]any
	for _, statement := range blocks["discovery.relabel.shaker"].Body {
		if rule, ok := statement.(*ast.BlockStmt); ok && rule.GetBlockName() == "rule" {
			rules = append(rules, alloyArguments(t, rule))
		}
	}
	var example struct {
		ScrapeConfigs []struct {
			JobName        string `yaml:"job_name"`
			MetricsPath    string `yaml:"metrics_path"`
			Params         map[string]any
			RelabelConfigs []map[string]any `yaml:"relabel_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(lab.Read(t, "prometheus.yml")), &example); err != nil {
		t.Fatalf("prometheus.yml: %v", err)
	}
	job := example.ScrapeConfigs[0]
	if !reflect.DeepEqual(rules, job.RelabelConfigs) {
		t.Errorf("the rules of %s are\n%v\nwant those of prometheus.yml,\n%v", alloyFile, rules, job.RelabelConfigs)
	}
	scrape := alloyArguments(t, blocks["prometheus.scrape.shaker"])
	for name, want := range map[string]any{
		"job_name": job.JobName, "metrics_path": job.MetricsPath, "params": job.Params, "scrape_interval": "15s",
	} {
		if !reflect.DeepEqual(scrape[name], want) {
			t.Errorf("%s of prometheus.scrape.shaker is %v, want %v", name, scrape[name], want)
		}
	}
	if got := alloyArguments(t, blocks["prometheus.scrape.shaker_exporter"])["job_name"]; got != exporterName {
		t.Errorf("job_name of prometheus.scrape.shaker_exporter is %v, want %s, as the rules expect", got, exporterName)
	}

	// The control: invalid files.
	for _, text := range []string{`prometheus.scrape "a" {`, `prometheus.scrape "a" { targets = [ }`} {
		if _, err := parseAlloy(text); err == nil {
			t.Errorf("Alloy's parser accepts %q, want an error", text)
		}
	}
}

// parseAlloy returns the blocks of a file of Alloy by their names and labels.
func parseAlloy(text string) (map[string]*ast.BlockStmt, error) {
	file, err := parser.ParseFile(alloyFile, []byte(text))
	if err != nil {
		return nil, err
	}
	blocks := make(map[string]*ast.BlockStmt)
	for _, statement := range file.Body {
		if block, ok := statement.(*ast.BlockStmt); ok {
			blocks[block.GetBlockName()+"."+block.Label] = block
		}
	}
	return blocks, nil
}

// alloyArguments returns the arguments of a block, except for those that use other components.
func alloyArguments(t *testing.T, block *ast.BlockStmt) map[string]any {
	t.Helper()
	arguments := make(map[string]any)
	for _, statement := range block.Body {
		attribute, ok := statement.(*ast.AttributeStmt)
		if !ok {
			continue
		}
		var value any
		if err := vm.New(attribute.Value).Evaluate(nil, &value); err == nil {
			arguments[attribute.Name.Name] = value
		}
	}
	return arguments
}
