package server

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/pprof"
	"net/url"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/pages"
)

// endpoints are the parts of the exporter that serve the endpoints.
type endpoints struct {
	probe  *collector.Handler
	pages  *pages.Pages
	reload *reloader
	config func() *config.Config // the active one
	health func() error          // why probes fail for no reason that would pass, nil if they do not
}

// routes returns the handler of all endpoints, which are below the route prefix.
func (c *Command) routes(e endpoints) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(e.probe, e.reload,
		versioncollector.NewCollector(c.name),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	prefix := strings.TrimSuffix(c.flags.routePrefix, "/")
	mux := http.NewServeMux()
	at := func(method, path string, handler http.Handler) { mux.Handle(method+" "+prefix+path, handler) }
	forPeople := newGate()
	at("GET", "/{$}", forPeople.handler(http.HandlerFunc(e.pages.Home)))
	at("GET", "/logs", forPeople.handler(http.HandlerFunc(e.pages.Logs)))
	at("GET", "/config", forPeople.handler(activeConfig(e.config)))
	at("GET", "/probe", e.probe)
	at("GET", "/metrics", newGate().handler(promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		EnableOpenMetrics:  true,
		Registry:           registry,
		DisableCompression: true, // compressors would stay in memory
	})))
	at("POST", "/-/reload", e.reload)
	at("PUT", "/-/reload", e.reload)
	at("GET", "/-/healthy", health("Healthy", e.health))
	at("GET", "/-/ready", health("Ready", e.health))
	if c.flags.enablePprof {
		for path, handler := range map[string]http.HandlerFunc{
			"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline, "/debug/pprof/profile": pprof.Profile,
			"/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
		} {
			at("GET", path, http.StripPrefix(prefix, handler))
		}
	}
	if prefix != "" {
		home := http.RedirectHandler(c.flags.home(), http.StatusFound)
		mux.Handle("GET /{$}", home)
		mux.Handle("GET "+prefix, home) // all links of the page are relative
	}
	external, _ := url.Parse(c.flags.externalURL) // valid: see flags.validate
	return noSniff(sameSite(mux, external))
}

// noSniff tells browsers to believe the Content-Type, so that none of them takes text for a page or a script.
func noSniff(next http.Handler) http.Handler {
	value := []string{"nosniff"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Content-Type-Options"] = value
		next.ServeHTTP(w, r)
	})
}

// activeConfig responds with the active configuration.
func activeConfig(active func() *config.Config) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var body bytes.Buffer
		encoder := yaml.NewEncoder(&body)
		encoder.SetIndent(2)
		encoder.Encode(active())
		w.Write(body.Bytes())
	})
}

// health responds with a line of text, or with an error if the exporter cannot probe until it is restarted.
func health(line string, err func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := err(); err != nil {
			http.Error(w, "probes fail until the exporter is restarted: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, line)
	})
}
