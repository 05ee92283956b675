package documents

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// goList returns the lines that go list prints.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	lab.Program(t, "go", "golang-go")
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// Packages know no more than docs/architecture.md says.
func TestArchitecture(t *testing.T) {
	const (
		module    = "github.com/shaker-exporter/shaker_exporter"
		collector = module + "/collector"
		pages     = module + "/internal/pages"
		watch     = module + "/internal/watch"
		server    = module + "/internal/server"
		cli       = module + "/internal/cli"
	)
	for _, c := range []struct {
		dir       string
		forbidden []string // prefixes of import paths
	}{
		{dir: "./shaker", forbidden: []string{module + "/", "github.com/", "go.yaml.in/", "net/http"}},
		{dir: "./internal/config", forbidden: []string{collector, module + "/internal/", "github.com/", "net/http"}},
		{dir: "./internal/engine",
			forbidden: []string{collector, module + "/internal/", "github.com/prometheus/", "net/http"}},
		{dir: "./internal/history", forbidden: []string{collector, module + "/internal/", "github.com/", "net/http"}},
		{dir: "./internal/probe", forbidden: []string{collector, pages, "github.com/prometheus/", "net/http"}},
		{dir: "./internal/registry",
			forbidden: []string{collector, pages, watch, "github.com/prometheus/", "net/http"}},
		{dir: "./internal/watch", forbidden: []string{collector, pages, server, cli, "net/http"}},
		{dir: "./internal/hold", forbidden: []string{collector, pages, watch, server, cli, "net/http"}},
		{dir: "./internal/idle", forbidden: []string{collector, pages, watch, server, cli, "net/http"}},
		{dir: "./internal/pages", forbidden: []string{collector, server, cli}},
		{dir: "./collector", forbidden: []string{pages, server, cli}},
		{dir: "./internal/cli", forbidden: []string{pages, server}},
		{dir: "./internal/usage",
			forbidden: []string{collector, module + "/internal/", module + "/shaker", "net/http"}},
	} {
		own := goList(t, c.dir)[0]
		allowed := []string{own, module + "/shaker", "github.com/dchest/siphash"}
		switch c.dir {
		case "./internal/config":
			allowed = append(allowed, "github.com/alecthomas/units")
		case "./internal/probe":
			allowed = append(allowed, module+"/internal/config", module+"/internal/history")
		}
		for _, dependency := range goList(t, "-deps", c.dir) {
			if slices.Contains(allowed, dependency) {
				continue
			}
			for _, prefix := range c.forbidden {
				if strings.HasPrefix(dependency, prefix) {
					t.Errorf("%s depends on %s, which docs/architecture.md rules out", c.dir, dependency)
				}
			}
		}
	}
}

// A program that imports package shaker does not get the dependencies of the heavy tests.
func TestModuleIsLight(t *testing.T) {
	modules := goList(t, "-m", "all")
	if len(modules) >= 70 {
		t.Errorf("go list -m all has %d modules, want less than 70", len(modules))
	}
	for _, m := range modules {
		for _, heavy := range []string{
			"k8s.io/", "sigs.k8s.io/", "github.com/prometheus-operator/", "github.com/grafana/",
		} {
			if strings.HasPrefix(m, heavy) {
				t.Errorf("the root module requires %s, want it only in the module in test/", m)
			}
		}
	}
}
