// Package cli implements the commands probe and hold: they probe targets, or hold connections to them, from the command
// line, and print what happens.
package cli

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// The names of the commands.
const (
	Probe = "probe"
	Hold  = "hold"
)

// The exit statuses of the commands.
const (
	statusValid  = 0
	statusFailed = 1 // a result is not valid for the module, or a target could not be probed
	statusUsage  = 2
)

// fail prints an error of the program and returns the exit status.
func fail(program string, status int, err error) int {
	fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
	return status
}

// load reads the configuration file, and prints its warnings about the module.
func load(program, configFile, module string) (*config.Config, error) {
	conf, warnings, err := config.Load(configFile)
	if err != nil {
		return nil, err
	}
	for _, warning := range warnings {
		if strings.Contains(warning, ": module "+module+": ") || len(conf.Modules) == 0 {
			fmt.Fprintf(os.Stderr, "%s: warning: %s\n", program, warning)
		}
	}
	return conf, nil
}

// untilInterrupted returns a context that ends at the first SIGINT or SIGTERM. The second one ends the program at once,
// even if it waits for a terminal that takes no output.
func untilInterrupted() (ctx context.Context, stop func()) {
	ctx, stop = signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// onQuit calls a function for each SIGQUIT, which is Ctrl-\, until stop is called.
func onQuit(call func()) (stop func()) {
	quits := make(chan os.Signal, 1)
	signal.Notify(quits, syscall.SIGQUIT)
	go func() {
		for range quits {
			call()
		}
	}()
	return func() {
		signal.Stop(quits)
		close(quits)
	}
}

// named returns the target, followed by the address unless the target contains it.
func named(target string, addr netip.Addr) string {
	if host, _, _ := net.SplitHostPort(target); !addr.IsValid() || host == addr.String() {
		return target
	}
	return fmt.Sprintf("%s (%v)", target, addr)
}
