// Shaker_exporter is a Prometheus exporter that says whether a TCP port answers, how fast,
// and if not exactly why, with a handshake that the server's application never sees.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"
)

const (
	name        = "shaker_exporter"
	description = "Says whether a TCP port answers, how fast, and if not exactly why."
)

// flags are the command line.
type flags struct {
	configFile string
	log        promslog.Config
	serve      serveFlags
	probe      probeFlags
}

// serveFlags are those of the exporter itself.
type serveFlags struct {
	web           *web.FlagConfig
	externalURL   string
	routePrefix   string
	enablePprof   bool
	configCheck   bool
	timeoutOffset float64
	maxInFlight   int
	historyLimit  int
	logProber     string
}

// register adds the flags and commands to the application.
func (f *flags) register(app *kingpin.Application) {
	app.Flag("config.file", "Configuration file; without one the built-in modules are in force.").StringVar(&f.configFile)
	promslogflag.AddFlags(app, &f.log)
	app.Version(version.Print(name))
	app.HelpFlag.Short('h')
	app.UsageTemplate(kingpin.LongHelpTemplate) // the flags of every command

	serve := app.Command("serve", "Answer Prometheus. This is what is done if no command is given.").Default()
	s := &f.serve
	serve.Flag("config.check", "Check the configuration file, say what is wrong with it, and exit.").BoolVar(&s.configCheck)
	serve.Flag("timeout-offset", "Seconds taken off Prometheus' scrape timeout, for the answer's way back.").
		Default("0.5").Float64Var(&s.timeoutOffset)
	serve.Flag("probe.max-in-flight", "Handshakes that may run at once; 0 derives it from the limit of open files.").
		Default("0").IntVar(&s.maxInFlight)
	serve.Flag("history.limit", "Results kept in memory for the page and /logs, of all targets together; 0 keeps none.").
		Default("10000").IntVar(&s.historyLimit)
	serve.Flag("log.prober", "Level at which failed probes are logged, which are no errors of the exporter. One of: [debug, info]").
		Default("debug").EnumVar(&s.logProber, "debug", "info")
	s.web = kingpinflag.AddFlags(serve, ":10115")
	serve.Flag("web.external-url", "URL under which the exporter is reached, if a proxy is in front of it. Its path is the default of --web.route-prefix.").
		PlaceHolder("<url>").StringVar(&s.externalURL)
	serve.Flag("web.route-prefix", "Path below which all endpoints are.").PlaceHolder("<path>").StringVar(&s.routePrefix)
	serve.Flag("web.enable-pprof", "Serve profiles of the exporter below /debug/pprof/.").BoolVar(&s.enablePprof)

	f.probe.register(app.Command("probe", "Shake hands from the terminal. Exits with 0 if all targets did what the module wants, 1 if not, 2 if called wrongly."))
}

// check refuses values that cannot be meant.
func (f *serveFlags) check() error {
	if !(f.timeoutOffset >= 0 && f.timeoutOffset <= 3600) { // NaN is neither
		return fmt.Errorf("--timeout-offset is %v, want 0 to 3600 seconds", f.timeoutOffset)
	}
	if f.maxInFlight < 0 {
		return fmt.Errorf("--probe.max-in-flight is %d, want 0 or more", f.maxInFlight)
	}
	if f.historyLimit < 0 {
		return fmt.Errorf("--history.limit is %d, want 0 or more", f.historyLimit)
	}
	external, err := url.Parse(f.externalURL)
	if err != nil || f.externalURL != "" && (external.Host == "" || external.Scheme != "http" && external.Scheme != "https") {
		return fmt.Errorf("--web.external-url is %q, want a URL such as https://example.com/shaker/", f.externalURL)
	}
	if f.routePrefix == "" {
		f.routePrefix = external.Path
	}
	f.routePrefix = path.Clean("/" + f.routePrefix)
	if strings.ContainsAny(f.routePrefix, "{} ?#") {
		return fmt.Errorf("--web.route-prefix is %q, want a path such as /shaker", f.routePrefix)
	}
	return nil
}

// failureLevel is the level at which failed probes are logged.
func (f *serveFlags) failureLevel() slog.Level {
	if f.logProber == "info" {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// home is where the page is.
func (f *serveFlags) home() string {
	if f.externalURL != "" {
		return strings.TrimSuffix(f.externalURL, "/") + "/"
	}
	return strings.TrimSuffix(f.routePrefix, "/") + "/"
}

// blame says more about an error of the command line: which flag it is about, or which
// command was left out.
func blame(app *kingpin.Application, err error) error {
	line, unreadable := app.ParseContext(os.Args[1:])
	if word, ok := strings.CutPrefix(err.Error(), "unexpected "); ok && strings.Contains(word, ":") {
		return fmt.Errorf("%w (is \"%s probe %s\" meant?)", err, name, word)
	}
	if unreadable != nil {
		return err
	}
	for _, e := range line.Elements {
		if f, ok := e.Clause.(*kingpin.FlagClause); ok && e.Value != nil && f.Model().Value.Set(*e.Value) != nil {
			return fmt.Errorf("--%s is %q: %w", f.Model().Name, *e.Value, err)
		}
	}
	return err
}

func main() {
	if build, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = build.Main.Version // of a build that was told none
		for _, setting := range build.Settings {
			if setting.Key == "vcs.time" {
				version.BuildDate = setting.Value // the commit's, as in a release
			}
		}
	}
	var f flags
	app := kingpin.New(name, description)
	f.register(app)
	command, err := app.Parse(os.Args[1:])
	exitIf := func(code int, err error) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(code)
		}
	}
	if err != nil {
		exitIf(misuse, blame(app, err))
	}
	logger := promslog.New(&f.log)
	conf, warnings, err := loadConfig(f.configFile)
	if command == "probe" {
		exitIf(misuse, err)
		for _, warning := range warnings {
			if strings.Contains(warning, ": module "+f.probe.module+": ") {
				fmt.Fprintf(os.Stderr, "%s: %s\n", name, warning)
			}
		}
		os.Exit(shakeHands(&f.probe, conf, logger))
	}
	exitIf(misuse, f.serve.check())
	if f.serve.configCheck && f.configFile == "" {
		exitIf(misuse, errors.New("--config.check wants --config.file"))
	}
	exitIf(1, err)
	exitIf(1, web.Validate(*f.serve.web.WebConfigFile))
	warn(logger, warnings)
	if f.serve.configCheck {
		fmt.Printf("%s is valid. Its modules: %s\n", f.configFile, strings.Join(slices.Sorted(maps.Keys(conf.Modules)), ", "))
		return
	}
	if err := serve(&f, conf, logger); err != nil {
		logger.Error("Cannot serve", "err", err)
		os.Exit(1)
	}
}
