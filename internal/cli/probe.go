package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/engine"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A ProbeCommand is the probe command.
type ProbeCommand struct {
	name  string // of the program
	flags probeFlags
}

// probeFlags are the flags and arguments of the probe command.
type probeFlags struct {
	targets  []string
	module   string
	named    bool // whether the module is given
	count    int
	interval time.Duration
	timeout  time.Duration
	output   string
	path     bool
	engine   engine.Flags
	flows    int
	ports    sourcePorts
}

// sourcePorts are the value of a flag such as 20000-20015.
type sourcePorts shaker.PortRange

// Set implements kingpin.Value.
func (p *sourcePorts) Set(text string) error {
	ports, ok := config.ParsePorts(text)
	if !ok {
		return errors.New("want FIRST-LAST, from 1 to 65535, such as 20000-20015")
	}
	*p = sourcePorts(ports)
	return nil
}

func (p *sourcePorts) String() string {
	if *p == (sourcePorts{}) {
		return ""
	}
	return shaker.PortRange(*p).String()
}

// RegisterProbe adds the probe command to the application.
func RegisterProbe(app *kingpin.Application) *ProbeCommand {
	c := &ProbeCommand{name: app.Name}
	c.flags.register(app.Command(Probe, "Probe targets from the command line. Exit status: "+
		"0 if all results are valid, 1 if not, 2 for a usage error."))
	return c
}

// register adds the flags and the arguments to the command.
func (f *probeFlags) register(cmd *kingpin.CmdClause) {
	cmd.Flag("count", "Number of probes of each target. 0 continues until interrupted.").
		Default("1").SetValue((*config.Integer)(&f.count))
	cmd.Flag("interval", "Time between the starts of two probes of a target.").Default("1s").DurationVar(&f.interval)
	cmd.Flag("timeout",
		"Timeout of a probe, including name resolution and path. 0 uses the timeout of the module.").
		Default("0s").DurationVar(&f.timeout)
	cmd.Flag("module", "Module to probe with.").Default(config.DefaultModule).IsSetByUser(&f.named).StringVar(&f.module)
	cmd.Flag("output", "Output format: text, json (one object per line and result), or openmetrics "+
		"(the metrics of each target's last probe). One of: [text, json, openmetrics]").
		Default("text").EnumVar(&f.output, "text", "json", "openmetrics")
	f.engine.Register(cmd)
	cmd.Flag("path", "Trace the path to each target and print its hops as they answer.").BoolVar(&f.path)
	cmd.Flag("flows", "Number of handshakes of each probe, 2 to 64, from as many source ports. "+
		"With --path, the path of each is traced, after the timeout. 0 uses the flows of the module.").
		Default("0").SetValue((*config.Integer)(&f.flows))
	cmd.Flag("source-ports", "Source ports, in place of tcp.source_ports of the module; flows use the first ones. "+
		"To use those that a running exporter has reserved, run as its user.").PlaceHolder("<ports>").SetValue(&f.ports)
	cmd.Arg("target", "Targets to probe, such as example.com:443, 192.0.2.1:443 or [2001:db8::1]:443.").
		Required().StringsVar(&f.targets)
}

// validate returns a usage error if a value is out of range, or the module is not for handshakes.
func (f *probeFlags) validate(c *config.Config) error {
	module := c.Modules[f.module]
	switch {
	case module.Held():
		return fmt.Errorf("module %s has prober hold, want a module with prober tcp, or the command %s",
			config.Name(f.module), Hold)
	case module.MeasuresIdle():
		return fmt.Errorf("module %s has prober idle, want a module with prober tcp", config.Name(f.module))
	}
	if err := f.engine.Validate(); err != nil {
		return err
	}
	if f.count < 0 {
		return fmt.Errorf("--count is %d, want 0 or more", f.count)
	}
	if f.interval < 0 {
		return fmt.Errorf("--interval is %v, want 0 or more", f.interval)
	}
	if f.timeout < 0 || f.timeout > config.MaxTimeout {
		return fmt.Errorf("--timeout is %v, want 0s to %v", f.timeout, config.MaxTimeout)
	}
	if err := f.checkFlows(&module.TCP); err != nil {
		return err
	}
	for i, target := range f.targets {
		if slices.Contains(f.targets[:i], target) {
			return fmt.Errorf("target %q given twice", target)
		}
	}
	return nil
}

// checkFlows checks the number of flows, which have to fit into the source ports of the module.
func (f *probeFlags) checkFlows(module *config.TCP) error {
	if f.flows != 0 && (f.flows < 2 || f.flows > config.MaxFlows) {
		return fmt.Errorf("--flows is %d, want 2 to %d, or 0 for the flows of the module", f.flows, config.MaxFlows)
	}
	ports, owner := module.SourcePorts, "module "+config.Name(f.module)+" has tcp.source_ports"
	if f.ports != (sourcePorts{}) {
		ports, owner = shaker.PortRange(f.ports), "--source-ports is"
	}
	flows := cmp.Or(f.flows, int(module.Flows))
	switch have := int(ports.Last) - int(ports.First) + 1; {
	case ports == shaker.PortRange{}:
	case flows == 0 && f.ports != (sourcePorts{}): // the kernel chooses one of them
		if err := (&shaker.Options{SourcePorts: ports}).Check(); err != nil {
			return fmt.Errorf("--source-ports: %w, want ports within it, or --flows, with which any port can be used",
				err)
		}
	case have < flows && f.flows > 0 && have < 2:
		return fmt.Errorf("--flows is %d, but %s %v, want at least %[1]d ports", flows, owner, ports)
	case have < flows && f.flows > 0:
		return fmt.Errorf("--flows is %d, but %s %v, want at most %d flows, or more ports", flows, owner, ports, have)
	case have < flows:
		return fmt.Errorf("%s %v, but module %s has tcp.flows %d, want at least as many ports",
			owner, ports, config.Name(f.module), flows)
	default:
		if err := (&shaker.Options{SourcePort: ports.First}).Check(); errors.Is(err, syscall.EACCES) {
			return fmt.Errorf("%s %v, %w: ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE, "+
				"want other ports", owner, ports, err)
		}
	}
	return nil
}

// request returns a request to probe a target with a module, which the flags may change.
func (f *probeFlags) request(conf *config.Config, target, module string) (*probe.Request, error) {
	r, err := probe.NewRequest(conf, target, module)
	if err != nil {
		return nil, err
	}
	if f.timeout > 0 {
		r.Timeout = f.timeout
	}
	if f.flows > 0 {
		// The place after those of other modules is only for as many flows as the module has.
		r.Module.TCP.Flows, r.Module.TCP.FlowsBefore = uint8(f.flows), 0
	}
	if f.ports != (sourcePorts{}) {
		r.Module.TCP.SourcePorts = shaker.PortRange(f.ports)
	}
	return r, nil
}

// Run probes the targets with the modules in a configuration file, or with the built-in modules if
// configFile is "", until it has performed as many probes as requested or SIGINT or SIGTERM arrives. It
// returns the exit status of the program.
func (c *ProbeCommand) Run(configFile string) (status int) {
	conf, err := load(c.name, configFile, c.flags.module)
	if err != nil {
		return fail(c.name, statusUsage, err)
	}
	if err := c.flags.validate(conf); err != nil {
		return fail(c.name, statusUsage, err)
	}
	s, warnings, err := c.flags.engine.Start()
	if err != nil {
		return fail(c.name, statusFailed, err)
	}
	defer s.Close()
	for _, warning := range warnings {
		fmt.Fprintf(os.Stderr, "%s: warning: %s\n", c.name, warning)
	}
	prober := probe.New(probe.Options{Shaker: s, Config: conf})
	module := c.flags.module
	if !c.flags.named {
		module = "" // so that an error says so
	}
	var all []*target
	for _, text := range c.flags.targets {
		request, err := c.flags.request(conf, text, module)
		if err != nil {
			return fail(c.name, statusUsage, err)
		}
		t := &target{ProbeCommand: c, text: text, request: request}
		request.CountSent(&t.tally.sent)
		request.ReportPart(t.keep)
		all = append(all, t)
	}
	ctx, stop := untilInterrupted()
	defer stop()
	out := newTerminal(os.Stdout, c.flags.output == "text")
	defer onQuit(func() { printStatistics(all, out) })()
	var probing sync.WaitGroup
	for _, t := range all {
		switch {
		case c.flags.path && t.request.Module.TCP.Flows > 0:
			t.request.TraceFlows(t.tracing)
		case c.flags.path:
			t.request.TracePath(func(hop shaker.Hop) { t.printHop(out, hop) })
		}
		probing.Go(func() { t.run(ctx, prober, out) })
	}
	probing.Wait()
	status = c.summarize(all, out)
	if err := out.close(); err != nil {
		return fail(c.name, statusFailed, err)
	}
	return status
}

// printStatistics prints the statistics so far to stderr, as ping(8) does on Ctrl-\.
func printStatistics(all []*target, out *terminal) {
	var text strings.Builder
	for _, t := range all {
		fmt.Fprintf(&text, "%s: %s\n%s", t.text, &t.tally, t.tally.lossByFlow())
	}
	out.note(text.String())
}

// summarize prints the summary of all probes and returns the exit status.
func (c *ProbeCommand) summarize(all []*target, out io.Writer) (status int) {
	var reports []*probe.Report
	for _, t := range all {
		if !t.tally.valid() || t.report == nil { // interrupted before the first one had a result
			status = statusFailed
		}
		if t.report != nil {
			reports = append(reports, t.report)
		}
		if c.flags.output == "text" {
			fmt.Fprintf(out, "\n--- %s ---\n%s\n%s", t.text, &t.tally, t.tally.lossByFlow())
		}
	}
	if c.flags.output == "openmetrics" {
		collector.WriteOpenMetrics(out, reports) // the terminal keeps the error, and close returns it
	}
	return status
}
