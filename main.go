// Shaker_exporter is a Prometheus exporter that says whether a TCP port answers, how fast,
// and if not exactly why, with a handshake that the server's application never sees.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const (
	name        = "shaker_exporter"
	description = "Says whether a TCP port answers, how fast, and if not exactly why."
)

// flags are the command line.
type flags struct {
	web           *web.FlagConfig
	log           promslog.Config
	timeoutOffset float64
	maxInFlight   int
}

func (f *flags) register(app *kingpin.Application) {
	f.web = kingpinflag.AddFlags(app, ":10115")
	app.Flag("timeout-offset", "Seconds taken off Prometheus' scrape timeout, for the answer's way back.").
		Default("0.5").Float64Var(&f.timeoutOffset)
	app.Flag("probe.max-in-flight", "Probes that may run at once; 0 derives it from the limit of open files.").
		Default("0").IntVar(&f.maxInFlight)
	promslogflag.AddFlags(app, &f.log)
	app.Version(version.Print(name))
	app.HelpFlag.Short('h')
}

// check refuses values that cannot be meant.
func (f *flags) check() error {
	if !(f.timeoutOffset >= 0 && f.timeoutOffset <= 3600) { // NaN is neither
		return fmt.Errorf("--timeout-offset is %v, want 0 to 3600 seconds", f.timeoutOffset)
	}
	if f.maxInFlight < 0 {
		return fmt.Errorf("--probe.max-in-flight is %d, want 0 or more", f.maxInFlight)
	}
	return nil
}

func main() {
	if build, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = build.Main.Version // of a build that was told none
	}
	var f flags
	app := kingpin.New(name, description)
	f.register(app)
	kingpin.MustParse(app.Parse(os.Args[1:]))
	app.FatalIfError(f.check(), "")

	if os.Getenv("GOGC") == "" {
		// Collect garbage when it is three quarters of the rest, as Prometheus does, not
		// when it is as much: less memory, for a little CPU time.
		debug.SetGCPercent(75)
	}
	logger := promslog.New(&f.log)
	if err := serve(&f, logger); err != nil {
		logger.Error("Cannot serve", "err", err)
		os.Exit(1)
	}
}

// serve serves until SIGTERM or SIGINT, and then until the running probes have ended. A
// second signal ends the process at once.
func serve(f *flags, logger *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	engine, err := shaker.New(nil)
	if err != nil {
		return err
	}
	defer engine.Close()
	if f.maxInFlight == 0 {
		f.maxInFlight = defaultMaxInFlight()
	}
	logger.Info("Starting", "version", version.Info(), "build_context", version.BuildContext(), "max_in_flight", f.maxInFlight)
	conf := config.Default()
	prober := collector.NewProber(collector.Options{
		Shaker:        engine,
		Config:        conf,
		Logger:        logger,
		TimeoutOffset: time.Duration(f.timeoutOffset * float64(time.Second)),
		MaxInFlight:   f.maxInFlight,
	})
	handler, err := routes(prober)
	if err != nil {
		return err
	}
	limit := requestLimit(conf)
	server := newServer(handler, limit, logger)

	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-ctx.Done()
		stop() // from now on a signal has its usual effect
		logger.Info("Shutting down, waiting for the running probes")
		if err := drain(server, limit); err != nil {
			logger.Warn("Shutting down though there are clients that do not take their answers", "err", err)
		}
	}()
	if err := web.ListenAndServe(server, f.web, logger); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-drained
	return nil
}

// requestLimit returns how long a request may take: as long as the longest probe, and then
// some for a client that is slow.
func requestLimit(conf *config.Config) time.Duration {
	var longest time.Duration
	for _, module := range conf.Modules {
		longest = max(longest, module.Timeout)
	}
	return longest + 5*time.Second
}

// newServer returns a server that lets no client hold a connection for ever, whatever it
// does not send or does not read. The limit is that of a request.
func newServer(handler http.Handler, limit time.Duration, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ReadTimeout:    limit,           // from the header's first byte to the body's last, which no handler waits for
		WriteTimeout:   limit,           // from the header's end to the answer's: the probe is in between
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

// routes returns the exporter's endpoints.
func routes(prober *collector.Prober) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prober,
		versioncollector.NewCollector(name),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name:        name,
		Description: description,
		Version:     version.Version,
		Profiling:   "false",
		Form: web.LandingForm{Action: "probe", Inputs: []web.LandingFormInput{
			{Label: "Target", Type: "text", Name: "target", Placeholder: "host:port"},
			{Label: "Module", Type: "text", Name: "module", Value: config.DefaultModule},
			{Label: "Debug", Type: "text", Name: "debug", Value: "true"},
		}},
		Links: []web.LandingLinks{
			{Address: "metrics", Text: "Metrics", Description: "of the exporter itself"},
			{Address: "-/healthy", Text: "Healthy"},
			{Address: "-/ready", Text: "Ready"},
		},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", landing)
	mux.Handle("GET /probe", prober)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		EnableOpenMetrics:  true,
		Registry:           registry,
		DisableCompression: true, // a compressor stays in memory
	}))
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "Healthy") })
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "Ready") })
	return mux, nil
}
