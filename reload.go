package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// A reloader reads the configuration file again when it is told to, and puts it in force if
// there is nothing wrong with it.
type reloader struct {
	file   string // "" if the built-in configuration is in force
	prober *collector.Prober
	logger *slog.Logger

	mu         sync.Mutex // one after the other
	successful prometheus.Gauge
	when       prometheus.Gauge
}

// newReloader returns a reloader for a file that has just been loaded.
func newReloader(file string, prober *collector.Prober, logger *slog.Logger) *reloader {
	r := &reloader{
		file:   file,
		prober: prober,
		logger: logger,
		successful: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shaker_exporter_config_last_reload_successful",
			Help: "1 if the configuration was loaded when that was last asked for, 0 if it was refused."}),
		when: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shaker_exporter_config_last_reload_success_timestamp_seconds",
			Help: "When the configuration in force was loaded."}),
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

// reload puts the configuration file in force as it is now. If it is refused, nothing changes.
func (r *reloader) reload() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	conf, warnings, err := loadConfig(r.file)
	if err != nil {
		r.successful.Set(0)
		r.logger.Error("The configuration is refused, the former one stays in force", "err", err)
		return err
	}
	warn(r.logger, warnings)
	r.prober.Configure(conf)
	r.successful.Set(1)
	r.when.SetToCurrentTime()
	r.logger.Info("The configuration is in force", "file", r.file, "modules", len(conf.Modules))
	return nil
}

// follow reloads on every signal.
func (r *reloader) follow(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-signals:
			_ = r.reload() // which has logged it
		case <-ctx.Done():
			return
		}
	}
}

// ServeHTTP reloads.
func (r *reloader) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if err := r.reload(); err != nil {
		http.Error(w, "the configuration is refused, the former one stays in force:\n"+err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "the configuration is in force")
}

// loadConfig loads a configuration file, or the built-in configuration if there is none. The
// warnings say what to beware of.
func loadConfig(file string) (conf *config.Config, warnings []string, err error) {
	if file == "" {
		return config.Default(), nil, nil
	}
	return config.Load(file)
}

func warn(logger *slog.Logger, warnings []string) {
	for _, warning := range warnings {
		logger.Warn("The configuration may not work as it is meant", "warning", warning)
	}
}
