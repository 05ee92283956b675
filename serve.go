package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/pages"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// requestLimit is how long a client may take to send a request, and how long it may take to
// answer. The answer to a probe may take longer, by the probe's own timeout.
const requestLimit = 2 * collector.AnswerTime

// serve answers Prometheus until SIGTERM or SIGINT, and then until the running probes have
// ended. A second signal ends the process at once. SIGHUP reloads the configuration.
func serve(f *flags, conf *config.Config, logger *slog.Logger) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	if os.Getenv("GOGC") == "" {
		// Collect garbage when it is three quarters of the rest, as Prometheus does, not
		// when it is as much: less memory, for a little CPU time.
		debug.SetGCPercent(75)
	}
	engine, err := shaker.New(nil)
	if err != nil {
		return err
	}
	defer engine.Close()
	if f.serve.maxInFlight == 0 {
		f.serve.maxInFlight = defaultMaxInFlight()
	}
	logger.Info("Starting", "version", version.Info(), "build_context", version.BuildContext(), "max_in_flight", f.serve.maxInFlight)
	history := collector.NewHistory(f.serve.historyLimit)
	prober := collector.NewProber(collector.Options{
		Shaker:        engine,
		Config:        conf,
		Logger:        logger,
		FailureLevel:  f.serve.failureLevel(),
		History:       history,
		TimeoutOffset: time.Duration(f.serve.timeoutOffset * float64(time.Second)),
		MaxInFlight:   f.serve.maxInFlight,
	})
	reloader := newReloader(f.configFile, prober, logger)
	go reloader.follow(ctx, hangups)
	shown := pages.New(pages.Options{
		Tracks:  history.Tracks,
		Lost:    history.Lost,
		Modules: func() []string { return slices.Sorted(maps.Keys(prober.Config().Modules)) },
		Version: version.Version,
		Logger:  logger,
	})
	server := newServer(f.serve.routes(prober, shown, reloader), requestLimit, logger)

	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-ctx.Done()
		stop() // from now on a signal has its usual effect
		logger.Info("Shutting down, waiting for the running probes")
		if err := drain(server, config.MaxTimeout+collector.AnswerTime); err != nil {
			logger.Warn("Shutting down though there are clients that do not take their answers", "err", err)
		}
	}()
	if err := web.ListenAndServe(server, f.serve.web, logger); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-drained
	return nil
}

// newServer returns a server that lets no client hold a connection for ever, whatever it
// does not send or does not read. The limit is that of a request.
func newServer(handler http.Handler, limit time.Duration, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ReadTimeout:    limit,           // from the header's first byte to the body's last, which no handler waits for
		WriteTimeout:   limit,           // from the header's end to the answer's
		IdleTimeout:    5 * time.Minute, // longer than the usual scrape intervals
		MaxHeaderBytes: 64 << 10,        // enough for the cookies and tokens of a proxy
		// A client of HTTP/2 can keep even the end of its request from being written.
		HTTP2:    &http.HTTP2Config{WriteByteTimeout: limit},
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// drain stops listening and waits for the running requests, no longer than one may take.
func drain(server *http.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := server.Shutdown(ctx)
	return errors.Join(err, server.Close())
}

// routes returns the exporter's endpoints, below the prefix.
func (f *serveFlags) routes(prober *collector.Prober, shown *pages.Pages, reloader *reloader) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prober, reloader,
		versioncollector.NewCollector(name),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	prefix := strings.TrimSuffix(f.routePrefix, "/")
	mux := http.NewServeMux()
	at := func(method, path string, handler http.Handler) { mux.Handle(method+" "+prefix+path, handler) }
	at("GET", "/{$}", http.HandlerFunc(shown.Home))
	at("GET", "/logs", http.HandlerFunc(shown.Logs))
	at("GET", "/probe", prober)
	at("GET", "/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		EnableOpenMetrics:  true,
		Registry:           registry,
		DisableCompression: true, // a compressor stays in memory
	}))
	at("GET", "/config", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		encoder := yaml.NewEncoder(w)
		encoder.SetIndent(2)
		encoder.Encode(prober.Config())
	}))
	at("POST", "/-/reload", reloader)
	at("PUT", "/-/reload", reloader)
	at("GET", "/-/healthy", text("Healthy"))
	at("GET", "/-/ready", text("Ready"))
	if f.enablePprof {
		for path, handler := range map[string]http.HandlerFunc{
			"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline, "/debug/pprof/profile": pprof.Profile,
			"/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
		} {
			at("GET", path, http.StripPrefix(prefix, handler))
		}
	}
	if prefix != "" {
		home := http.RedirectHandler(f.home(), http.StatusFound)
		mux.Handle("GET /{$}", home)
		mux.Handle("GET "+prefix, home) // all links of the page are relative
	}
	return mux
}

// text answers with a line of text.
func text(line string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, line) })
}
