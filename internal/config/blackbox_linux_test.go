package config

import (
	"os"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The file that comes with blackbox_exporter loads as it is. Exactly the modules that do more than a handshake are
// left to blackbox_exporter.
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
	c, warnings, err := Load(name)
	if err != nil || warnings != nil {
		t.Fatalf("Load(%s): warnings %q, error %v, want none", name, warnings, err)
	}
	if len(c.Foreign) == 0 || len(c.Modules) == 0 || len(c.Foreign)+len(c.Modules) != len(theirs.Modules) {
		t.Errorf("Load(%s) has %d modules and leaves %d, want some of both, and all %d of the file",
			name, len(c.Modules), len(c.Foreign), len(theirs.Modules))
	}
	for module, m := range theirs.Modules {
		section, _ := m.Rest["tcp"].(map[string]any)
		queries, _ := section["query_response"].([]any)
		plain := m.Prober == "tcp" && len(queries) == 0 && section["tls"] != true
		if _, ours := c.Modules[module]; ours != plain {
			t.Errorf("Load(%s): module %s is only a handshake: %t; loaded: %t, want the same",
				name, module, plain, ours)
		}
	}
}
