// Package server implements the serve command: it serves the exporter's endpoints until a signal stops it.
//
// flags.go contains the flags, routes.go the endpoints, cross_site.go which requests of browsers are refused, and
// reload.go the reload of the configuration. http_limits.go contains the limits for clients and the end of the
// running requests on shutdown, connections.go the limit of connections, gate.go that of pages, max_in_flight.go the
// default limit of concurrent handshakes, and memory.go the limits that follow from the memory of the process.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/internal/pages"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Command is the serve command.
type Command struct {
	name  string // of the program
	flags flags
}

// Register adds the serve command to the application, as its default command.
func Register(app *kingpin.Application) *Command {
	c := &Command{name: app.Name}
	c.flags.register(app.Command("serve", "Run the exporter (the default command).").Default())
	return c
}

// The exit statuses of the command.
const (
	statusFailed = 1
	statusUsage  = 2
)

// Run serves with the configuration in a file, or with the built-in configuration if configFile is "",
// and returns the exit status of the program. With --config.check it only checks the file.
func (c *Command) Run(configFile string, logger *slog.Logger) (status int) {
	fail := func(status int, err error) int {
		fmt.Fprintf(os.Stderr, "%s: %v\n", c.name, err)
		return status
	}
	if err := c.flags.validate(configFile); err != nil {
		return fail(statusUsage, err)
	}
	hangups := make(chan os.Signal, 1)
	if !c.flags.configCheck {
		// From now on, also while the file is read, SIGHUP requests a reload instead of ending the process.
		signal.Notify(hangups, syscall.SIGHUP)
	}
	loaded := read(configFile)
	conf, warnings, err := loaded.load(configFile)
	if err != nil {
		return fail(statusFailed, err)
	}
	if err := web.Validate(*c.flags.web.WebConfigFile); err != nil {
		return fail(statusFailed, fmt.Errorf("--web.config.file is %q: %w", *c.flags.web.WebConfigFile, err))
	}
	warn(logger, warnings)
	warnListening(logger, conf, *c.flags.web.WebListenAddresses)
	if c.flags.configCheck {
		modules := cmp.Or(strings.Join(config.Names(conf.Modules), ", "), "none")
		fmt.Printf("%s is valid. Its modules: %s\n", configFile, modules)
		if len(conf.Foreign) > 0 {
			fmt.Printf("Left to blackbox_exporter: %s\n", strings.Join(config.Names(conf.Foreign), ", "))
		}
		return 0
	}
	logForeign(logger, conf)
	engine, warnings, err := c.flags.engine.Start()
	if err != nil {
		return fail(statusFailed, err)
	}
	defer engine.Close()
	for _, warning := range warnings {
		logger.Warn("--probe.engine=raw may not work as it should", "reason", warning)
	}
	if err := c.serve(engine, configFile, loaded, conf, hangups, logger); err != nil {
		logger.Error("Cannot serve", "err", err)
		return statusFailed
	}
	return 0
}

// serve serves until SIGTERM or SIGINT arrives, and then until the running probes have ended. A second
// such signal ends the process at once. A hangup reloads the configuration.
func (c *Command) serve(
	engine *shaker.Shaker, configFile string, loaded content, conf *config.Config, hangups <-chan os.Signal,
	logger *slog.Logger,
) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	if os.Getenv("GOGC") == "" {
		// Collect garbage when it amounts to 50% of the live heap, instead of 100%. With 100,000 watched targets
		// the live heap is 100 MB, and their handshakes allocate nothing. Other probes allocate so little that
		// collecting takes 2% of their CPU time.
		debug.SetGCPercent(50)
	}
	memory := findMemoryLimit()
	memory.apply()
	descriptors := c.flags.engine.Descriptors()
	maxInFlight := c.flags.maxInFlight
	if maxInFlight == 0 {
		maxInFlight = defaultMaxInFlight(descriptors)
		warnOpenFiles(descriptors, logger)
	}
	maxInFlight = memory.capped("--probe.max-in-flight", maxInFlight, memory.probes(), logger)
	heldMost, spare := memory.heldConnections(c.flags.heldMost, maxInFlight, descriptors, logger)
	logger.Info("Starting", append([]any{"version", version.Info(), "build_context", version.BuildContext(),
		"max_in_flight", maxInFlight, "max_held_connections", heldMost}, c.flags.engine.Attributes(engine)...)...)
	prober := probe.New(probe.Options{
		Shaker: engine, Config: conf, MaxInFlight: maxInFlight,
		LeftOut: func(module, protocol string, ports []uint16) { logLeftOut(logger, module, protocol, ports) },
	})
	results := history.New(memory.capped("--history.limit", c.flags.historyLimit, memory.results(), logger))
	handler := collector.New(collector.Options{
		Prober:        prober,
		Shaker:        engine,
		Logger:        logger,
		FailureLevel:  c.flags.failureLevel(),
		History:       results,
		TimeoutOffset: time.Duration(c.flags.timeoutOffset * float64(time.Second)),
	})
	maxTargets := c.flags.watchTargets
	if maxTargets == 0 {
		maxTargets = memory.defaultMaxTargets()
	}
	watcher := watch.New(watch.Options{
		Shaker:     engine,
		Prober:     prober,
		MaxTargets: memory.capped("--watch.max-targets", maxTargets, memory.targets(), logger),
		MaxRate:    c.flags.watchRate,
		History:    results,
		Observe:    handler.Observe,
		Changed:    handler.LogChange,
		Parted:     handler.LogParted,
	})
	defer watcher.Close()
	handler.Watch(watcher)
	connections := probe.NewConnections(prober, heldMost, spare)
	holder := hold.New(hold.Options{
		Shaker:      engine,
		Prober:      prober,
		Connections: connections,
		History:     results,
		Observe:     handler.ObserveConnect,
		Changed:     handler.LogHeld,
	})
	defer holder.Close()
	handler.Hold(holder)
	meter := idle.New(idle.Options{
		Shaker:      engine,
		Prober:      prober,
		Connections: connections,
		History:     results,
		Changed:     handler.LogIdleChange,
		Fault:       handler.CountFault,
	})
	defer meter.Close()
	handler.MeasureIdle(meter)
	listenAddresses := *c.flags.web.WebListenAddresses
	reloader := newReloader(configFile, loaded, func(c *config.Config) {
		prober.Configure(c)
		watcher.Configure()
		holder.Configure()
		meter.Configure()
		warnListening(logger, c, listenAddresses)
		reserveFlowPorts(prober, logger)
	}, logger)
	go reloader.follow(ctx, hangups, c.flags.autoReload())
	resets := &resetWatch{logger: logger}
	go resets.follow(ctx, engine)
	statusPage := pages.New(pages.Options{
		Tracks:  results.Tracks,
		Watched: watcher.Targets,
		Held:    holder.Targets,
		Idle:    meter.Targets,
		Lost:    results.Lost,
		Modules: func() []string { return slices.Sorted(maps.Keys(prober.Config().Modules)) },

		ResetsMissing: resets.bad.Load,

		Version: version.Version,
		Engine:  c.flags.engine.Engine(),
		Logger:  logger,
	})
	routes := c.routes(endpoints{
		probe: handler, pages: statusPage, reload: reloader, config: prober.Config, health: engine.Err,
	})
	server := newServer(routes, requestLimit, logger)
	whenListening(server, func() { reserveFlowPorts(prober, logger) }) // other ports than those of the server
	if limit := maxConnections(maxInFlight, defaultMaxInFlight(descriptors)); limit > 0 {
		limitConnections(server, limit).reserved = prober.Reserved
	}

	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-ctx.Done()
		stop() // from now on, a signal has its default effect
		logger.Info("Shutting down, waiting for the running probes")
		watcher.Close()
		holder.Close()
		meter.Close()
		if err := drain(server, config.MaxTimeout+collector.AnswerTime); err != nil {
			logger.Warn("Shutdown timed out, closing the remaining connections", "err", err)
		}
	}()
	if err := web.ListenAndServe(server, c.flags.web, logger); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-drained
	return nil
}
