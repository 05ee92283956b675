package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/engine"
)

// flags are the flags of the serve command.
type flags struct {
	web           *web.FlagConfig
	externalURL   string
	routePrefix   string
	enablePprof   bool
	configCheck   bool
	enableReload  bool
	reloadSeconds int
	timeoutOffset float64
	engine        engine.Flags
	maxInFlight   int
	watchTargets  int
	watchRate     float64
	heldMost      int
	historyLimit  int
	logProber     string
}

// register adds the flags to the command.
func (f *flags) register(cmd *kingpin.CmdClause) {
	cmd.Flag("config.check", "Check the configuration file, report its errors, and exit.").BoolVar(&f.configCheck)
	cmd.Flag("config.enable-auto-reload", "Reload the configuration file when its content has changed.").
		BoolVar(&f.enableReload)
	cmd.Flag("config.auto-reload-interval",
		"Seconds between two checks whether the configuration file has changed, with --config.enable-auto-reload.").
		Default("30").SetValue((*config.Integer)(&f.reloadSeconds))
	cmd.Flag("timeout-offset",
		"Seconds to subtract from Prometheus' scrape timeout, so that the response arrives in time.").
		Default("0.5").Float64Var(&f.timeoutOffset)
	f.engine.Register(cmd)
	cmd.Flag("probe.max-in-flight",
		"Maximum number of concurrent handshakes, as far as the memory limit permits it. "+
			"0 derives it from the limits of open files and memory.").
		Default("0").SetValue((*config.Integer)(&f.maxInFlight))
	cmd.Flag("watch.max-targets", "Maximum number of watched targets, as far as the memory limit permits it. "+
		"0 means 20000 or what the memory limit permits, whichever is less.").
		Default("0").SetValue((*config.Integer)(&f.watchTargets))
	cmd.Flag("watch.max-rate",
		"Maximum number of handshakes per second with all watched targets. 0 means no limit.").
		Default("20000").Float64Var(&f.watchRate)
	cmd.Flag("hold.max-connections",
		"Maximum number of held connections, as far as the limits of open files and memory permit it. "+
			"0 means a third of the open files, or as many as --probe.max-in-flight leaves, whichever is more.").
		Default("0").SetValue((*config.Integer)(&f.heldMost))
	cmd.Flag("history.limit",
		"Number of probe results to keep for the status page and /logs, over all targets. 0 disables the history.").
		Default("10000").SetValue((*config.Integer)(&f.historyLimit))
	cmd.Flag("log.prober", "Log level for failed probes; none does not log them. "+
		"One of: [none, debug, info, warn, error]").
		Default("debug").EnumVar(&f.logProber, "none", "debug", "info", "warn", "error")
	f.web = kingpinflag.AddFlags(cmd, ":10115")
	cmd.Flag("web.external-url",
		"URL at which the exporter is reachable from outside, for example through a reverse proxy, or only its path.").
		PlaceHolder("<url>").StringVar(&f.externalURL)
	cmd.Flag("web.route-prefix", "Prefix of all HTTP endpoints. Defaults to the path of --web.external-url.").
		PlaceHolder("<path>").StringVar(&f.routePrefix)
	cmd.Flag("web.enable-pprof", "Serve profiles of the exporter below /debug/pprof/.").BoolVar(&f.enablePprof)
}

// validate returns a usage error if a value is out of range.
func (f *flags) validate(configFile string) error {
	if !(f.timeoutOffset >= 0 && f.timeoutOffset <= 3600) { // rejects NaN, too
		return fmt.Errorf("--timeout-offset is %v, want 0 to 3600 seconds", f.timeoutOffset)
	}
	if err := f.engine.Validate(); err != nil {
		return err
	}
	if f.maxInFlight < 0 {
		return fmt.Errorf("--probe.max-in-flight is %d, want 0 or more", f.maxInFlight)
	}
	if f.watchTargets < 0 {
		return fmt.Errorf("--watch.max-targets is %d, want 0 or more", f.watchTargets)
	}
	if !(f.watchRate >= 0) { // rejects NaN, too
		return fmt.Errorf("--watch.max-rate is %v, want 0 or more", f.watchRate)
	}
	if f.heldMost < 0 {
		return fmt.Errorf("--hold.max-connections is %d, want 0 or more", f.heldMost)
	}
	if f.historyLimit < 0 {
		return fmt.Errorf("--history.limit is %d, want 0 or more", f.historyLimit)
	}
	external, err := parseExternalURL(f.externalURL)
	if err != nil {
		return err
	}
	if f.routePrefix == "" {
		f.routePrefix = external.Path
	}
	f.routePrefix = path.Clean("/" + f.routePrefix)
	if strings.ContainsAny(f.routePrefix, "{} ?#") {
		return fmt.Errorf("--web.route-prefix is %q, want a path such as /shaker", f.routePrefix)
	}
	if f.configCheck && configFile == "" {
		return errors.New("--config.check requires --config.file")
	}
	if f.reloadSeconds < 1 || f.reloadSeconds > 86400 {
		return fmt.Errorf("--config.auto-reload-interval is %d, want 1 to 86400 seconds", f.reloadSeconds)
	}
	if f.enableReload && configFile == "" {
		return errors.New("--config.enable-auto-reload requires --config.file")
	}
	if file, err := os.Stat(configFile); f.enableReload && err == nil && !file.Mode().IsRegular() {
		return fmt.Errorf("--config.enable-auto-reload requires a regular file, which can be read again: "+
			"--config.file is %q", configFile)
	}
	return nil
}

// parseExternalURL parses a URL, or only its path, as blackbox_exporter does.
func parseExternalURL(text string) (*url.URL, error) {
	external, err := url.Parse(text)
	if err != nil || text != "" && !isExternal(external) {
		return nil, fmt.Errorf("--web.external-url is %q, want a URL such as https://example.com/shaker/, "+
			"or a path such as /shaker/", text)
	}
	return external, nil
}

func isExternal(u *url.URL) bool {
	if u.Scheme == "" && u.Host == "" {
		return strings.HasPrefix(u.Path, "/")
	}
	return u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")
}

// failureLevel returns the log level of failed probes.
func (f *flags) failureLevel() slog.Level {
	var level slog.Level
	if level.UnmarshalText([]byte(f.logProber)) != nil {
		return slog.LevelDebug - 1 // none: below the lowest level that --log.level permits
	}
	return level
}

// home returns the URL or the path of the status page.
func (f *flags) home() string {
	if f.externalURL != "" {
		return strings.TrimSuffix(f.externalURL, "/") + "/"
	}
	return strings.TrimSuffix(f.routePrefix, "/") + "/"
}

// autoReload returns the interval at which to look for changes of the configuration file, 0 for never.
func (f *flags) autoReload() time.Duration {
	if !f.enableReload {
		return 0
	}
	return time.Duration(f.reloadSeconds) * time.Second
}
