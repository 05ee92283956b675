package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// A reloader reloads the configuration file on SIGHUP and on a request to /-/reload. An invalid file
// changes nothing.
type reloader struct {
	file   string // "" if the built-in configuration is active
	prober *probe.Prober
	logger *slog.Logger

	mu         sync.Mutex // serializes reloads
	successful prometheus.Gauge
	when       prometheus.Gauge
}

// newReloader returns a reloader for a file that has just been loaded.
func newReloader(file string, prober *probe.Prober, logger *slog.Logger) *reloader {
	r := &reloader{
		file:   file,
		prober: prober,
		logger: logger,
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shaker_exporter_config_last_reload_successful",
			Help: "Whether the last configuration reload attempt was successful."}),
		when: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shaker_exporter_config_last_reload_success_timestamp_seconds",
			Help: "Timestamp of the last successful configuration reload."}),
	}
	r.successful.Set(1)
	r.when.SetToCurrentTime()
	return r
}

// Describe implements prometheus.Collector.
func (r *reloader) Describe(ch chan<- *prometheus.Desc) {
	r.successful.Describe(ch)
	r.when.Describe(ch)
}

// Collect implements prometheus.Collector.
func (r *reloader) Collect(ch chan<- prometheus.Metric) {
	r.successful.Collect(ch)
	r.when.Collect(ch)
}

// noFile is the response to a reload without a configuration file.
const noFile = "Nothing to reload: without --config.file, the built-in modules are active"

// reload loads the configuration file and makes it the active configuration. If the file is invalid, or if there is
// none, nothing changes.
func (r *reloader) reload() error {
	if r.file == "" {
		r.logger.Info(noFile)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	conf, warnings, err := config.Load(r.file)
	if err != nil {
		r.successful.Set(0)
		r.logger.Error("Configuration rejected, keeping the current one", "err", err)
		return err
	}
	warn(r.logger, warnings)
	logForeign(r.logger, conf)
	r.prober.Configure(conf)
	r.successful.Set(1)
	r.when.SetToCurrentTime()
	r.logger.Info("Configuration reloaded", "file", r.file, "modules", len(conf.Modules))
	return nil
}

// follow reloads on every signal until the context ends.
func (r *reloader) follow(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-signals:
			_ = r.reload() // logs the error
		case <-ctx.Done():
			return
		}
	}
}

// ServeHTTP reloads and responds with the error, if there is one.
func (r *reloader) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if err := r.reload(); err != nil {
		http.Error(w, "configuration rejected, keeping the current one:\n"+err.Error(), http.StatusInternalServerError)
		return
	}
	if r.file == "" {
		fmt.Fprintln(w, noFile)
		return
	}
	fmt.Fprintln(w, "configuration reloaded")
}

// logForeign logs which modules of a configuration are left to blackbox_exporter, if there are any.
func logForeign(logger *slog.Logger, conf *config.Config) {
	if len(conf.Foreign) > 0 {
		logger.Info("Modules left to blackbox_exporter", "modules", strings.Join(config.Names(conf.Foreign), ", "))
	}
}

// warn logs the warnings about a configuration.
func warn(logger *slog.Logger, warnings []string) {
	for _, warning := range warnings {
		logger.Warn("Configuration warning", "warning", warning)
	}
}
