package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/alecthomas/kingpin/v2"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A HoldCommand is the hold command.
type HoldCommand struct {
	name  string // of the program
	flags holdFlags
}

// RegisterHold adds the hold command to the application.
func RegisterHold(app *kingpin.Application) *HoldCommand {
	c := &HoldCommand{name: app.Name}
	c.flags.register(app.Command(Hold, "Hold connections from the command line, and print what happens to them. "+
		"The targets' applications see them. Exit status: 0 if all connections are well at the end, 1 if not, "+
		"2 for a usage error."))
	return c
}

// Run holds a connection to each target until there have been as many as requested, the requested time is over, or
// SIGINT or SIGTERM arrives. It returns the exit status of the program.
func (c *HoldCommand) Run(configFile string) (status int) {
	if configFile == "" && c.flags.module != "" {
		return fail(c.name, statusUsage, fmt.Errorf("--module=%s: no built-in module holds connections, "+
			"want --config.file with a module with prober hold", config.Name(c.flags.module)))
	}
	conf, err := load(c.name, configFile, c.flags.module)
	if err != nil {
		return fail(c.name, statusUsage, err)
	}
	if err := c.flags.validate(); err != nil {
		return fail(c.name, statusUsage, err)
	}
	out := newTerminal(os.Stdout, c.flags.output == "text")
	engine, err := shaker.New(nil)
	if err != nil {
		return fail(c.name, statusFailed, err)
	}
	defer engine.Close()
	prober := probe.New(probe.Options{Shaker: engine, Config: conf})
	var all []*holder
	for _, text := range c.flags.targets {
		request, err := c.request(conf, text)
		if err != nil {
			return fail(c.name, statusUsage, err)
		}
		all = append(all, &holder{
			HoldCommand: c, text: text, request: request, prober: prober, engine: engine, out: out,
		})
	}
	ctx, stop := untilInterrupted()
	defer stop()
	if c.flags.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.flags.duration)
		defer cancel()
	}
	defer onQuit(func() {
		var text strings.Builder
		for _, h := range all {
			fmt.Fprintf(&text, "%s: %s\n", h.text, &h.tally)
		}
		out.note(text.String())
	})()
	var holding sync.WaitGroup
	for _, h := range all {
		holding.Go(func() { h.run(ctx) })
	}
	holding.Wait()
	for _, h := range all {
		if !h.tally.isWell() {
			status = statusFailed
		}
		h.printSummary()
	}
	if err := out.close(); err != nil {
		return fail(c.name, statusFailed, err)
	}
	return status
}

// request returns a request whose module has the values of the flags. Its target is what the connections are to.
func (c *HoldCommand) request(conf *config.Config, target string) (*probe.Request, error) {
	name := c.flags.module
	if _, ok := conf.Modules[name]; name != "" && !ok {
		_, err := probe.NewRequest(conf, target, name) // says which modules there are
		return nil, err
	}
	module, err := c.flags.holdModule(conf)
	if err != nil {
		return nil, err
	}
	name = cmp.Or(name, config.DefaultModule)
	only := *conf
	only.Modules = map[string]config.Module{name: module}
	return probe.NewRequest(&only, target, name)
}
