// Shaker_exporter is a Prometheus exporter that reports whether a TCP port answers, how fast, and, if it does not,
// exactly why, with a handshake that the server's application never sees.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"

	"github.com/shaker-exporter/shaker_exporter/internal/cli"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/server"
	"github.com/shaker-exporter/shaker_exporter/internal/usage"
)

const (
	name        = "shaker_exporter"
	description = "Reports whether a TCP port answers, how fast, and, if it does not, exactly why."
)

func main() {
	setVersion()
	app := kingpin.New(name, description)
	configFile := app.Flag("config.file",
		"Path to the configuration file. Without it, the built-in modules are used.").String()
	var logging promslog.Config
	promslogflag.AddFlags(app, &logging)
	app.Version(version.Print(name))
	app.HelpFlag.Short('h')
	isCommand := func(arg string) bool { return arg == cli.Probe || arg == cli.Hold }
	if !slices.ContainsFunc(os.Args[1:], isCommand) { // the default template shows the flags of one command
		app.UsageTemplate(kingpin.LongHelpTemplate) // shows the flags of all commands
	}
	serve, probe, hold := server.Register(app), cli.RegisterProbe(app), cli.RegisterHold(app)
	app.PreAction(func(line *kingpin.ParseContext) error { return checkHelp(app, line) })

	if printed, err := usage.Print(os.Stdout, app, os.Args[1:]); printed {
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		return
	}
	command, err := app.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, explain(app, err))
		os.Exit(2)
	}
	switch command {
	case cli.Probe:
		os.Exit(probe.Run(*configFile))
	case cli.Hold:
		os.Exit(hold.Run(*configFile))
	}
	os.Exit(serve.Run(*configFile, promslog.New(&logging)))
}

// setVersion sets the version from the build information if the linker did not set it. This is the case after
// go install. The tag of version 1.2.3 is v1.2.3.
func setVersion() {
	defer func() { version.Version = strings.TrimPrefix(version.Version, "v") }()
	build, ok := debug.ReadBuildInfo()
	if !ok || version.Version != "" {
		return
	}
	version.Version = build.Main.Version
	for _, setting := range build.Settings {
		if setting.Key == "vcs.time" {
			version.BuildDate = setting.Value // the time of the commit, as in a release
		}
	}
}

// checkHelp returns an error if the command help is asked about a command that does not exist.
func checkHelp(app *kingpin.Application, line *kingpin.ParseContext) error {
	if line.SelectedCommand == nil || line.SelectedCommand != app.HelpCommand {
		return nil
	}
	for _, e := range line.Elements {
		if _, ok := e.Clause.(*kingpin.ArgClause); ok && app.GetCommand(*e.Value) == nil {
			return fmt.Errorf("unexpected %s", *e.Value)
		}
	}
	return nil
}

// explain adds to an error of the command line the name of the flag and what its value should be, or the command
// or flag that is probably meant.
func explain(app *kingpin.Application, err error) error {
	line, parseErr := app.ParseContext(os.Args[1:])
	if word, ok := strings.CutPrefix(err.Error(), "unexpected "); ok {
		// The word is a target without the command, or a mistyped command, maybe before a target.
		for _, arg := range os.Args[max(0, slices.Index(os.Args, word)):] {
			if strings.Contains(arg, ":") && arg[0] != '-' {
				return fmt.Errorf("%w (did you mean \"%s %s %s\"?)", err, name, cli.Probe, arg)
			}
		}
		var commands []string
		for _, command := range app.Model().Commands {
			commands = append(commands, command.Name)
		}
		if hint := config.Hint(strings.ToLower(word), commands); hint != "" {
			return fmt.Errorf("%w%s", err, hint)
		}
		return fmt.Errorf("%w, want one of the commands %s", err, strings.Join(commands, ", "))
	}
	if flag, ok := strings.CutPrefix(err.Error(), "unknown long flag '--"); ok {
		return fmt.Errorf("%w%s", err, meantFlag(app, "--"+strings.TrimSuffix(flag, "'")))
	}
	if parseErr != nil {
		return err
	}
	for _, e := range line.Elements {
		if f, ok := e.Clause.(*kingpin.FlagClause); ok && e.Value != nil && f.Model().Value.Set(*e.Value) != nil {
			return fmt.Errorf("--%s is %q%s", f.Model().Name, *e.Value, wanted(err))
		}
	}
	return err
}

// meantFlag returns a hint for a flag that the command does not have: the command that has it, or the flag that is
// probably meant.
func meantFlag(app *kingpin.Application, unknown string) string {
	var flags []string
	for _, flag := range app.Model().Flags {
		flags = append(flags, "--"+flag.Name)
	}
	for _, command := range app.Model().Commands {
		for _, flag := range command.Flags {
			name := "--" + flag.Name
			if name == unknown {
				return fmt.Sprintf(" (it is a flag of the command %s)", command.Name)
			}
			flags = append(flags, name)
		}
	}
	return config.Hint(unknown, flags)
}

// wanted returns what the value of a flag should be, given kingpin's error about it.
func wanted(err error) string {
	var number *strconv.NumError
	choices, isChoice := strings.CutPrefix(err.Error(), "enum value must be one of ")
	switch {
	case errors.As(err, &number) && number.Func == "Atoi":
		return ", want a whole number"
	case errors.As(err, &number):
		return ", want a number"
	case isChoice:
		choices, _, _ = strings.Cut(choices, ", got ")
		return ", want one of " + strings.ReplaceAll(choices, ",", ", ")
	case strings.HasPrefix(err.Error(), "time: "):
		return ", want a duration with a unit, such as 1s or 500ms"
	case strings.HasPrefix(err.Error(), "want "):
		return ", " + err.Error()
	}
	return ": " + err.Error()
}
