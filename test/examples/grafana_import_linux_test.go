package examples

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The command of docs/elsewhere.md sends each dashboard in the form that Grafana's API expects, with the token. A
// dashboard has no id, no __inputs and no data source other than its variable, so that any Grafana can import it.
func TestGrafanaImport(t *testing.T) {
	lab.SkipWithRace(t)
	lab.Need(t)
	for _, program := range []string{"jq", "curl"} {
		lab.Program(t, program, program)
	}
	shell := lab.Program(t, "sh", "dash")
	command := regexp.MustCompile(`(?m)^\$ (for name in .*)$`).FindStringSubmatch(lab.Read(t, "../docs/elsewhere.md"))
	if command == nil {
		t.Fatal("docs/elsewhere.md has no command that imports the dashboards")
	}
	type request struct {
		path, token, contentType string
		Dashboard                map[string]any
		Overwrite                bool
	}
	requests := make(chan request, 10)
	url := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got := request{
			path: r.Method + " " + r.URL.Path, token: r.Header.Get("Authorization"),
			contentType: r.Header.Get("Content-Type"),
		}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Errorf("decode a request to import a dashboard: %v", err)
		}
		requests <- got
	}))
	cmd := exec.Command(shell, "-e", "-c", strings.ReplaceAll(command[1], "https://grafana.example.com", url))
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "GRAFANA_TOKEN=secret", "no_proxy=127.0.0.1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command[1], err, out)
	}
	close(requests)
	var uids []string
	for got := range requests {
		if got.path != "POST /api/dashboards/db" || got.token != "Bearer secret" || !got.Overwrite ||
			got.contentType != "application/json" {
			t.Errorf("the request is %s with %q and %q, overwrite %t, want POST /api/dashboards/db with the token, "+
				"JSON, and overwrite", got.path, got.token, got.contentType, got.Overwrite)
		}
		for _, key := range []string{"id", "__inputs", "__requires"} {
			if _, ok := got.Dashboard[key]; ok {
				t.Errorf("dashboard %v has the key %s, which belongs to one Grafana", got.Dashboard["uid"], key)
			}
		}
		uid, _ := got.Dashboard["uid"].(string)
		uids = append(uids, uid)
	}
	if !slices.Equal(uids, dashboardUIDs) {
		t.Errorf("the imported dashboards are %q, want %q", uids, dashboardUIDs)
	}
	if files := lab.Files(t, "grafana/*.json"); len(files) != len(dashboardUIDs) {
		t.Errorf("the dashboards are %q, want %d", files, len(dashboardUIDs))
	}
}
