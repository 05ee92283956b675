package endtoend

import (
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

func TestEndpoints(t *testing.T) {
	exporter.Start(t)
	for path, want := range map[string]struct {
		status int
		body   string // a part of it
	}{
		"/":                             {200, `<form action="probe"`},
		"/-/healthy":                    {200, "Healthy\n"},
		"/-/ready":                      {200, "Ready\n"},
		"/-/reload":                     {405, ""},
		"/config":                       {200, "tcp_connect_ip4:"},
		"/logs?target=absent:1":         {404, "no results in the history"},
		"/metrics":                      {200, "shaker_exporter_build_info{"},
		"/probe":                        {400, "missing target"},
		"/probe?target=localhost:10115": {200, "probe_success 1\n"},
		"/nothing":                      {404, "404 page not found\n"},
		"/debug/pprof/":                 {404, ""},
	} {
		if status, body := exporter.Get(t, path); status != want.status || !strings.Contains(body, want.body) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	response, err := lab.Client.Do(exporter.NewRequest(t, "POST", 10115, "/probe?target=localhost:10115"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 405 || response.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, %v", response.StatusCode, response.Header)
	}
}
