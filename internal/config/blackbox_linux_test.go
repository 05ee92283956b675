package config

import (
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// In the file that comes with blackbox_exporter, this exporter refuses exactly the modules that do
// more than a handshake. Without those modules, it accepts the file unchanged.
func TestBlackboxExportersOwnFile(t *testing.T) {
	lab.Program(t, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	const name = "/etc/prometheus/blackbox.yml"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	type module struct {
		Prober string         `yaml:"prober"`
		Rest   map[string]any `yaml:",inline"`
	}
	var theirs struct {
		Modules map[string]module `yaml:"modules"`
	}
	if err := yaml.Unmarshal(text, &theirs); err != nil {
		t.Fatal(err)
	}
	_, _, err = Load(name)
	if err == nil {
		t.Fatalf("Load(%s) has no error, want one for each module that does more than a handshake", name)
	}
	foreign := 0
	for module, m := range theirs.Modules {
		section, _ := m.Rest["tcp"].(map[string]any)
		queries, _ := section["query_response"].([]any)
		plain := m.Prober == "tcp" && len(queries) == 0 && section["tls"] != true
		if named := strings.Contains(err.Error(), " module "+module+": "); named == plain {
			t.Errorf("Load(%s): module %s is only a handshake: %t; refused: %t, want the opposite",
				name, module, plain, named)
		}
		if !plain {
			foreign++
			delete(theirs.Modules, module)
		}
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if !strings.HasSuffix(line, keepInBlackbox) {
			t.Errorf("Load(%s): error %q, want only errors that end with %q", name, line, keepInBlackbox)
		}
	}
	if foreign == 0 || len(theirs.Modules) == 0 {
		t.Errorf("%s has %d modules that do more than a handshake and %d that do not, want some of both",
			name, foreign, len(theirs.Modules))
	}
	plain, err := yaml.Marshal(theirs)
	if err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Parse("plain.yml", plain)
	if err != nil || warnings != nil {
		t.Fatalf("%s without the refused modules: warnings %q, error %v, want none", name, warnings, err)
	}
	for module := range theirs.Modules {
		if _, ok := c.Modules[module]; !ok {
			t.Errorf("%s without the refused modules: module %s is missing", name, module)
		}
	}
}
