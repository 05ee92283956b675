package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

const example = "../../examples/shaker.yml"

// The example has the default values, and is valid on every host.
func TestExampleIsTheDefaults(t *testing.T) {
	c, warnings, err := Load(example)
	if err != nil || warnings != nil {
		t.Fatalf("Load(%s) = %q, %v, want no warnings and no error", example, warnings, err)
	}
	want := &Config{Modules: map[string]Module{DefaultModule: Default().Modules[DefaultModule]}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("Load(%s) = %+v, want %+v", example, c, want)
	}
}

// With the keys that are commented out, the example has every key, in the order of the tables, and
// is valid.
func TestExampleHasEveryKey(t *testing.T) {
	lab.Need(t)
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^( *)#(\w)`).ReplaceAll(text, []byte("$1$2"))
	c, warnings, err := Parse("shaker.yml", text)
	if err != nil || len(warnings) != 2 { // source_ip_address and interface
		t.Fatalf("%s with every key: warnings %q, error %v, want 2 warnings", example, warnings, err)
	}
	for name, keys := range map[string][2][]string{
		"the file": {keysAt(t, text), names(configKeys)},
		"targets":  {keysAt(t, text, "targets"), names(targetsKeys)},
		"module":   {keysAt(t, text, "modules", DefaultModule), names(moduleKeys)},
		"tcp":      {keysAt(t, text, "modules", DefaultModule, "tcp"), names(tcpKeys)},
	} {
		if !slices.Equal(keys[0], keys[1]) {
			t.Errorf("%s: %s has the keys %s, want %s", example, name, keys[0], keys[1])
		}
	}
	// The effective configuration has all of them too.
	shown := encode(t, c)
	if got := keysAt(t, shown, "modules", DefaultModule, "tcp"); !slices.Equal(got, names(tcpKeys)) {
		t.Errorf("%s with every key, encoded again: tcp has the keys %s, want %s", example, got, names(tcpKeys))
	}
}

// keysAt returns the keys of the mapping at a path in a YAML text.
func keysAt(t testing.TB, text []byte, path ...string) (keys []string) {
	t.Helper()
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	node := document.Content[0]
	for _, name := range path {
		for i := 0; ; i += 2 {
			if i == len(node.Content) {
				t.Fatalf("%q at %s: key %s is missing", text, path, name)
			}
			if node.Content[i].Value == name {
				node = node.Content[i+1]
				break
			}
		}
	}
	for i := 0; i < len(node.Content); i += 2 {
		keys = append(keys, node.Content[i].Value)
	}
	return keys
}
