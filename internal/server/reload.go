package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// A reloader reloads the configuration file on SIGHUP, on a request to /-/reload and, with
// --config.enable-auto-reload, when its content has changed. An invalid file changes nothing.
type reloader struct {
	file   string               // "" if the built-in configuration is active
	apply  func(*config.Config) // makes a configuration the active one
	logger *slog.Logger

	mu         sync.Mutex // serializes reloads
	last       content    // what was loaded last, valid or not
	successful prometheus.Gauge
	when       prometheus.Gauge
}

// A content is the content of the configuration file at some time.
type content struct {
	text []byte
	err  error // why it could not be read
}

// read reads the configuration file.
func read(file string) content {
	text, err := config.Read(file)
	return content{text: text, err: err}
}

// load validates the content of a configuration file. Without a file, it returns the built-in configuration.
func (c content) load(file string) (conf *config.Config, warnings []string, err error) {
	switch {
	case file == "":
		return config.Load(file)
	case c.err != nil:
		return nil, nil, c.err
	}
	return config.Parse(file, c.text)
}

// equal reports whether there is nothing new to load. A file that still cannot be read for the same reason is not
// new.
func (c content) equal(other content) bool {
	return bytes.Equal(c.text, other.text) && fmt.Sprint(c.err) == fmt.Sprint(other.err)
}

// newReloader returns a reloader for a file whose content has just been loaded.
func newReloader(file string, loaded content, apply func(*config.Config), logger *slog.Logger) *reloader {
	r := &reloader{
		file:   file,
		last:   loaded,
		apply:  apply,
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
	return r.activate(read(r.file))
}

// reloadIfChanged reloads the file if its content is not the one that was loaded last. Thus an invalid file is
// rejected and logged once, however often it is read. The comparison needs no change of the modification time, and
// works for a symbolic link whose target is replaced, as the kubelet does for a ConfigMap.
func (r *reloader) reloadIfChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := read(r.file); !now.equal(r.last) {
		_ = r.activate(now) // logs the error
	}
}

// activate makes the content of the file the active configuration if it is valid.
func (r *reloader) activate(c content) error {
	r.last = c
	conf, warnings, err := c.load(r.file)
	if err != nil {
		r.successful.Set(0)
		r.logger.Error("Configuration rejected, keeping the current one", "err", err)
		return err
	}
	warn(r.logger, warnings)
	logForeign(r.logger, conf)
	r.apply(conf)
	r.successful.Set(1)
	r.when.SetToCurrentTime()
	r.logger.Info("Configuration reloaded", "file", r.file, "modules", len(conf.Modules))
	return nil
}

// follow reloads on every signal until the context ends. If the interval is not 0, it also looks for changes of the
// file after every interval.
func (r *reloader) follow(ctx context.Context, signals <-chan os.Signal, interval time.Duration) {
	var ticks <-chan time.Time // nil, which is never ready, without an interval
	if interval > 0 {
		ticks = time.Tick(interval)
	}
	for {
		select {
		case <-signals:
			_ = r.reload() // logs the error
		case <-ticks:
			r.reloadIfChanged()
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
