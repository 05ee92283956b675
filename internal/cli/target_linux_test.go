package cli

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// If the command is interrupted while it traces the path, the result is known already, and it counts.
func TestInterruptedTrace(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.5", simnet.SYNACK()).Behind("198.51.100.1", "", "", "198.51.100.4")
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	conf := config.Default()
	request, err := probe.NewRequest(conf, "192.0.2.5:80", config.DefaultModule)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	request.TracePath(func(shaker.Hop) { interrupt() })
	command := &ProbeCommand{flags: probeFlags{output: "text"}}
	target := &target{ProbeCommand: command, text: "192.0.2.5:80", request: request}
	request.CountSent(&target.tally.sent)
	prober := probe.New(probe.Options{Shaker: engine, Config: conf})
	target.run(ctx, prober, newTerminal(file, true))
	printed, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(printed), "192.0.2.5:80: seq=1 open time=") || ctx.Err() == nil {
		t.Errorf("a probe that was interrupted at the first hop printed %q, want its result", printed)
	}
	if got := target.tally.String(); !strings.HasPrefix(got, "1 sent, 1 open, 0 lost; ") {
		t.Errorf("the summary of a probe that was interrupted at the first hop is %q, want 1 sent, 1 open, 0 lost", got)
	}
}
