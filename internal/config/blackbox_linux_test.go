package config

import (
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// Of the file that blackbox_exporter comes with, this exporter names exactly the modules
// that do more than a handshake. Without them it takes the file as it is.
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
		t.Fatal("nothing in it is refused")
	}
	foreign := 0
	for module, m := range theirs.Modules {
		section, _ := m.Rest["tcp"].(map[string]any)
		queries, _ := section["query_response"].([]any)
		plain := m.Prober == "tcp" && len(queries) == 0 && section["tls"] != true
		if named := strings.Contains(err.Error(), " module "+module+": "); named == plain {
			t.Errorf("module %s: plain %t, refused %t", module, plain, named)
		}
		if !plain {
			foreign++
			delete(theirs.Modules, module)
		}
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if !strings.HasSuffix(line, keepThere) {
			t.Errorf("%s", line)
		}
	}
	if foreign == 0 || len(theirs.Modules) == 0 {
		t.Errorf("%d modules that do more than a handshake, %d that do not", foreign, len(theirs.Modules))
	}
	plain, err := yaml.Marshal(theirs)
	if err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Parse("plain.yml", plain)
	if err != nil || warnings != nil {
		t.Fatalf("%q, %v", warnings, err)
	}
	for name := range theirs.Modules {
		if _, ok := c.Modules[name]; !ok {
			t.Errorf("module %s is missing", name)
		}
	}
}
