package endtoend

import (
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

const nothingToReload = "Nothing to reload: without --config.file, the built-in modules are active\n"

// Every endpoint of the exporter, and the status that it responds with.
func TestEndpoints(t *testing.T) {
	exporter.Start(t)
	for path, want := range map[string]struct {
		status int
		body   string // a part of it
	}{
		"/":                             {status: 200, body: `<form action="probe"`},
		"/-/healthy":                    {status: 200, body: "Healthy\n"},
		"/-/ready":                      {status: 200, body: "Ready\n"},
		"/-/reload":                     {status: 405},
		"/config":                       {status: 200, body: "tcp_connect_ip4:"},
		"/logs?target=absent:1":         {status: 404, body: "no results in the history"},
		"/metrics":                      {status: 200, body: "shaker_exporter_build_info{"},
		"/probe":                        {status: 400, body: "missing target"},
		"/probe?target=localhost:10115": {status: 200, body: "probe_success 1\n"},
		"/nothing":                      {status: 404, body: "404 page not found\n"},
		"/debug/pprof/":                 {status: 404},
	} {
		if status, body := exporter.Get(t, path); status != want.status || !strings.Contains(body, want.body) {
			t.Errorf("GET %s = %d %s\nwant %d and %q in it", path, status, body, want.status, want.body)
		}
	}
	if status, body := reload(t, "POST"); status != 200 || body != nothingToReload {
		t.Errorf("POST /-/reload without --config.file = %d %q, want 200 %q", status, body, nothingToReload)
	}
	const path = "/probe?target=localhost:10115"
	response, err := lab.Client.Do(exporter.NewRequest(t, "POST", exporter.Port, path))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if allow := response.Header.Get("Allow"); response.StatusCode != 405 || allow != "GET, HEAD" {
		t.Errorf("POST %s = %d with Allow: %q, want 405 with \"GET, HEAD\"", path, response.StatusCode, allow)
	}
}
