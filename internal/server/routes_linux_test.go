package server

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/pages"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// newRoutes returns the handler of all endpoints. health is the error of the engine.
func newRoutes(t *testing.T, health func() error) http.Handler {
	t.Helper()
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	logger, results := slog.New(slog.DiscardHandler), history.New(100)
	prober := probe.New(probe.Options{Shaker: engine, Config: config.Default()})
	return (&Command{name: "shaker_exporter"}).routes(endpoints{
		probe: collector.New(collector.Options{Prober: prober, Logger: logger, History: results}),
		pages: pages.New(pages.Options{
			Tracks: results.Tracks, Modules: func() []string { return nil }, Version: "1.2.3", Logger: logger,
		}),
		reload: newReloader("", content{}, prober.Configure, logger),
		config: prober.Config,
		health: health,
	})
}

// The exporter is healthy and ready until an error ends a part of its engine.
func TestHealth(t *testing.T) {
	var broken error
	routes := newRoutes(t, func() error { return broken })
	get := func(path string, status int, want string) {
		t.Helper()
		w := httptest.NewRecorder()
		routes.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != status || w.Body.String() != want {
			t.Errorf("with the error %v, GET %s = %d %q, want %d %q", broken, path, w.Code, w.Body, status, want)
		}
	}
	get("/-/healthy", 200, "Healthy\n")
	get("/-/ready", 200, "Ready\n")
	broken = errors.New("shaker: bad file descriptor")
	get("/-/healthy", 503, "probes fail until the exporter is restarted: shaker: bad file descriptor\n")
	get("/-/ready", 503, "probes fail until the exporter is restarted: shaker: bad file descriptor\n")
}

// No browser takes a response for anything other than its Content-Type, and no cache takes a response for one in
// another format.
func TestHeaders(t *testing.T) {
	routes := newRoutes(t, func() error { return nil })
	for path, vary := range map[string]string{
		"/": "", "/logs": "Accept", "/config": "", "/-/healthy": "", "/-/ready": "", "/-/reload": "", "/nothing": "",
		"/metrics": "Accept", "/probe": "", "/probe?target=127.0.0.1:1": "Accept",
		"/probe?target=127.0.0.1:1&debug=true": "Accept",
	} {
		w := httptest.NewRecorder()
		routes.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if got := w.Header().Values("X-Content-Type-Options"); len(got) != 1 || got[0] != "nosniff" {
			t.Errorf("GET %s has X-Content-Type-Options %q, want nosniff", path, got)
		}
		if got := w.Header().Get("Vary"); got != vary {
			t.Errorf("GET %s has Vary %q, want %q", path, got, vary)
		}
		if w.Header().Get("Content-Type") == "" {
			t.Errorf("GET %s has no Content-Type", path)
		}
	}
}
