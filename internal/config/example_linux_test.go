package config

import (
	"net/netip"
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
	others, _, err := Parse("others.yml", []byte("modules: {tcp_watch: {prober: tcp, watch: {}}, "+
		"redis_held: {prober: hold}, path_idle: {prober: idle}}"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{Modules: others.Modules}
	want.Modules[DefaultModule] = Default().Modules[DefaultModule]
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
	text = uncommented(text)
	c, warnings, err := Parse("shaker.yml", text)
	if err != nil || len(warnings) != 3 { // source_ip_address, source_ports with flows, and interface
		t.Fatalf("%s with every key: warnings %q, error %v, want 3 warnings", example, warnings, err)
	}
	for name, keys := range map[string][2][]string{
		"the file": {keysAt(t, text), names(configKeys)},
		"targets":  {keysAt(t, text, "targets"), names(targetsKeys)},
		"module": {
			append(keysAt(t, text, "modules", DefaultModule), "watch", "hold", "idle"), names(moduleKeys),
		},
		"tcp":       {keysAt(t, text, "modules", DefaultModule, "tcp"), names(tcpKeys)},
		"watch":     {keysAt(t, text, "modules", "tcp_watch", "watch"), names(watchKeys)},
		"hold":      {keysAt(t, text, "modules", "redis_held", "hold"), names(holdKeys)},
		"keepalive": {keysAt(t, text, "modules", "redis_held", "hold", "keepalive"), names(keepAliveKeys)},
		"heartbeat": {keysAt(t, text, "modules", "redis_held", "hold", "heartbeat"), names(heartbeatKeys)},
		"reconnect": {keysAt(t, text, "modules", "redis_held", "hold", "reconnect"), names(reconnectKeys)},
		"idle":      {keysAt(t, text, "modules", "path_idle", "idle"), names(idleKeys)},
		"probe":     {keysAt(t, text, "modules", "path_idle", "idle", "probe"), names(idleProbeKeys)},
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
	for module, section := range map[string]string{"tcp_watch": "watch", "redis_held": "hold", "path_idle": "idle"} {
		want := []string{"prober", "timeout", "tcp", section}
		if got := keysAt(t, shown, "modules", module); !slices.Equal(got, want) {
			t.Errorf("%s with every key, encoded again: %s has the keys %s, want %s", example, module, got, want)
		}
	}
}

// The jobs of the example for Prometheus, also those that are commented out, use modules of the example.
func TestExampleHasTheModulesOfJobs(t *testing.T) {
	lab.Need(t)
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := Parse("shaker.yml", uncommented(text))
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := os.ReadFile("../../examples/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	jobs = regexp.MustCompile(`(?m)^  #(- job_name|  )`).ReplaceAll(jobs, []byte("  $1"))
	var prometheus struct {
		Jobs []struct {
			Name   string              `yaml:"job_name"`
			Params map[string][]string `yaml:"params"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(jobs, &prometheus); err != nil {
		t.Fatalf("the example for Prometheus with all jobs: %v, want no error:\n%s", err, jobs)
	}
	used := make(map[string]string)
	for _, job := range prometheus.Jobs {
		for _, module := range job.Params["module"] {
			if _, ok := c.Modules[module]; !ok {
				t.Errorf("job %s uses module %s, which %s lacks", job.Name, module, example)
			}
			used[module] = job.Name
		}
	}
	if used["tcp_flows"] != "shaker_flows" || used["path_idle"] != "shaker_idle" {
		t.Errorf("the jobs use the modules %v, want tcp_flows and path_idle among them", used)
	}
	if flows := c.Modules["tcp_flows"].TCP; flows.Flows != 16 || flows.Path != OnFailure {
		t.Errorf("module tcp_flows has flows %d and path %s, want 16 and on_failure", flows.Flows, flows.Path)
	}
}

// uncommented returns the text of the example with the keys, and the entries of lists, that are commented out.
func uncommented(text []byte) []byte {
	return regexp.MustCompile(`(?m)^( *)#(\w|- )`).ReplaceAll(text, []byte("$1$2"))
}

// The rules of the examples deny the metadata services of cloud providers, in every form, and nothing else.
func TestExamplesDenyMetadata(t *testing.T) {
	lab.Need(t)
	read := func(name string) []byte {
		text, err := os.ReadFile("../../examples/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var configMap struct{ Data map[string]string }
	if err := yaml.Unmarshal(read("kubernetes/configmap.yml"), &configMap); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"shaker.yml":         regexp.MustCompile(`(?m)^ *allow:.*$`).ReplaceAll(uncommented(read("shaker.yml")), nil),
		"compose/shaker.yml": read("compose/shaker.yml"),
		"configmap.yml":      []byte(configMap.Data["shaker.yml"]),
	} {
		c, _, err := Parse(name, text)
		if err != nil {
			t.Errorf("Parse(%s) = %v, want no error", name, err)
			continue
		}
		for _, addr := range []string{
			"169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
			"fd00:c1::a9fe:a9fe", "fe80::a9fe:a9fe%eth0", "169.254.42.42", "fd00:42::42", "100.100.100.200",
			"168.63.129.16", "64:ff9b::a9fe:a9fe", "::ffff:169.254.169.254", "2002:a9fe:a9fe::1",
		} {
			if c.Targets.Check(netip.AddrPortFrom(netip.MustParseAddr(addr), 80)) == nil {
				t.Errorf("%s permits %s, want it denied", name, addr)
			}
		}
		for _, addr := range []string{"169.253.0.1", "10.0.0.1", "fd00:ec2::253", "fe80::1%eth0", "2001:db8::1"} {
			if err := c.Targets.Check(netip.AddrPortFrom(netip.MustParseAddr(addr), 80)); err != nil {
				t.Errorf("%s denies %s: %v, want it permitted", name, addr, err)
			}
		}
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
