package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// probeFlags are those of the command that shakes hands from the terminal.
type probeFlags struct {
	targets  []string
	module   string
	count    int
	interval time.Duration
	timeout  time.Duration
	output   string
	path     bool
}

func (f *probeFlags) register(cmd *kingpin.CmdClause) {
	cmd.Flag("count", "Handshakes with each target; 0 goes on until interrupted.").Default("1").IntVar(&f.count)
	cmd.Flag("interval", "Time from one handshake with a target to the next.").Default("1s").DurationVar(&f.interval)
	cmd.Flag("timeout", "How long a handshake may take, name resolution and path included; 0 is the module's timeout.").Default("0s").DurationVar(&f.timeout)
	cmd.Flag("module", "Module to probe with.").Default(config.DefaultModule).StringVar(&f.module)
	cmd.Flag("output", "What to print: text; json, an object on a line for each handshake; openmetrics, the metrics of each target's last probe. One of: [text, json, openmetrics]").
		Default("text").EnumVar(&f.output, "text", "json", "openmetrics")
	cmd.Flag("path", "Trace the path to each target, and print its hops as they answer.").BoolVar(&f.path)
	cmd.Arg("target", "What to shake hands with, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443.").Required().StringsVar(&f.targets)
}

// The exit codes of the command.
const (
	allWell = 0
	notAll  = 1 // some target is not what the module wants, or could not be probed
	misuse  = 2
)

// shakeHands shakes hands with the targets and prints what comes of it, until there were as many
// handshakes as were asked for or SIGINT or SIGTERM comes. It returns the exit code.
func shakeHands(f *probeFlags, conf *config.Config, logger *slog.Logger) int {
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return misuse
	}
	if f.count < 0 {
		return fail(fmt.Errorf("--count is %d, want 0 or more", f.count))
	}
	if f.interval < 0 {
		return fail(fmt.Errorf("--interval is %v, want 0 or more", f.interval))
	}
	if f.timeout < 0 || f.timeout > config.MaxTimeout {
		return fail(fmt.Errorf("--timeout is %v, want up to %v", f.timeout, config.MaxTimeout))
	}
	engine, err := shaker.New(nil)
	if err != nil {
		fail(err)
		return notAll
	}
	defer engine.Close()
	prober := collector.NewProber(collector.Options{Shaker: engine, Config: conf, Logger: logger})
	var all []*shakes
	for i, target := range f.targets {
		if slices.Contains(f.targets[:i], target) {
			return fail(fmt.Errorf("target %q is given twice", target))
		}
		request, err := prober.Request(target, f.module)
		if err != nil {
			return fail(err)
		}
		if f.timeout > 0 {
			request.SetTimeout(f.timeout)
		}
		all = append(all, &shakes{probeFlags: f, target: target, request: request})
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	out := newTerminal(os.Stdout, f.output == "text")
	var probing sync.WaitGroup
	for _, s := range all {
		if f.path {
			s.request.TracePath(func(hop shaker.Hop) { s.printHop(out, hop) })
		}
		probing.Go(func() { s.run(ctx, prober, out) })
	}
	probing.Wait()
	code := f.conclude(all, out)
	if err := out.close(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return notAll
	}
	return code
}

// conclude prints what is left to be said when all handshakes were made.
func (f *probeFlags) conclude(all []*shakes, out io.Writer) int {
	code := allWell
	var reports []*collector.Report
	for _, s := range all {
		if !s.tally.well() {
			code = notAll
		}
		if s.report != nil {
			reports = append(reports, s.report)
		}
		if f.output == "text" {
			fmt.Fprintf(out, "\n--- %s ---\n%s\n", s.target, &s.tally)
		}
	}
	if f.output == "openmetrics" {
		collector.WriteOpenMetrics(out, reports) // the terminal keeps the error
	}
	return code
}

// shakes are the handshakes with one target.
type shakes struct {
	*probeFlags
	target  string
	request *collector.Request

	report *collector.Report // of the last one; nil if it came to no verdict
	tally  tally
	silent []shaker.Hop // the last ones of the path, so far
}

// run makes the handshakes and prints what comes of each.
func (s *shakes) run(ctx context.Context, prober *collector.Prober, out *terminal) {
	for seq := 1; ; seq++ {
		next := time.Now().Add(s.interval)
		done := out.wait(s.target)
		report, err := prober.Probe(ctx, s.request)
		done()
		s.printEnd(out)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.report = nil
			s.tally.unprobed++
			s.printError(out, seq, err)
		default:
			s.report = report
			for _, record := range report.Records() {
				s.tally.add(&record)
				s.print(out, seq, &record, report.PathTo(record.Address))
			}
		}
		if seq == s.count {
			return
		}
		select {
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
			return
		}
	}
}

// print prints what became of a handshake. The path is nil if it was not traced.
func (s *shakes) print(out *terminal, seq int, r *collector.Record, path *shaker.Path) {
	switch s.output {
	case "text":
		out.line(fmt.Sprintf("%s: seq=%d", s.named(r.Address), seq), r.Result, r.Success, details(r))
	case "json":
		json.NewEncoder(out).Encode(newJSONLine(s, seq, r, path))
	}
}

// printHop prints a hop of the path. Those that stay silent are kept until there is one
// behind them that does not.
func (s *shakes) printHop(out *terminal, hop shaker.Hop) {
	s.silent = append(s.silent, hop)
	if s.output != "text" || !hop.From.IsValid() {
		return
	}
	for _, hop := range s.silent {
		fmt.Fprintf(out, "%s: %s\n", s.target, collector.DescribeHop(hop))
	}
	s.silent = nil
}

// printEnd prints that the path ends in silence, if it does.
func (s *shakes) printEnd(out *terminal) {
	if s.output == "text" && len(s.silent) > 0 {
		fmt.Fprintf(out, "%s: %s, and nobody beyond\n", s.target, collector.DescribeHop(s.silent[0]))
	}
	s.silent = nil
}

// printError prints why there is no verdict.
func (s *shakes) printError(out *terminal, seq int, err error) {
	switch s.output {
	case "text":
		out.line(fmt.Sprintf("%s: seq=%d", s.target, seq), "not probed", false, ": "+err.Error())
	case "json":
		json.NewEncoder(out).Encode(jsonLine{Time: time.Now(), Target: s.target, Module: s.module, Seq: seq, Error: err.Error()})
	default:
		fmt.Fprintf(os.Stderr, "%s: %s: %v\n", name, s.target, err)
	}
}

// named returns the target and the address, if that is not the same.
func (s *shakes) named(addr netip.Addr) string {
	if host, _, _ := net.SplitHostPort(s.target); !addr.IsValid() || host == addr.String() {
		return s.target
	}
	return fmt.Sprintf("%s (%v)", s.target, addr)
}

// details returns what there is to say of a handshake besides its result.
func details(r *collector.Record) string {
	var text strings.Builder
	if latency := r.Latency(); latency > 0 {
		fmt.Fprintf(&text, " time=%s ms", collector.Milliseconds(latency))
	} else if r.Errno != "" {
		fmt.Fprintf(&text, " %s after %s ms", r.Errno, collector.Milliseconds(r.Duration))
	} else if r.Reason != "" {
		fmt.Fprintf(&text, ": %s", r.Reason)
	}
	if r.SYNRetransmits > 0 {
		fmt.Fprintf(&text, ", SYN sent again %d×", r.SYNRetransmits)
	}
	if r.ICMP.From.IsValid() {
		fmt.Fprintf(&text, ", ICMP %v from %v", r.ICMP, r.ICMP.From)
	}
	return text.String()
}

// jsonLine is what is printed as JSON of each handshake. What was not measured is left out.
type jsonLine struct {
	Time           time.Time `json:"time"` // when the probe began
	Target         string    `json:"target"`
	Module         string    `json:"module"`
	Seq            int       `json:"seq"`
	Address        string    `json:"address,omitempty"`
	Success        bool      `json:"success"`
	Result         string    `json:"result,omitempty"`
	Errno          string    `json:"errno,omitempty"`
	Reason         string    `json:"reason,omitempty"` // why there is no address
	Duration       float64   `json:"duration_seconds,omitempty"`
	Handshake      float64   `json:"handshake_seconds,omitempty"`
	RTT            float64   `json:"rtt_seconds,omitempty"`
	SYNRetransmits *int      `json:"syn_retransmits,omitempty"`
	ICMP           *jsonICMP `json:"icmp,omitempty"`
	Path           []jsonHop `json:"path,omitempty"`
	Error          string    `json:"error,omitempty"` // why there is no verdict
}

type jsonICMP struct {
	From string `json:"from"`
	Type uint8  `json:"type"`
	Code uint8  `json:"code"`
	Name string `json:"name"`
}

// jsonHop is what is printed as JSON of a hop; only the number if it stayed silent.
type jsonHop struct {
	Hop     int     `json:"hop"`
	Address string  `json:"address,omitempty"`
	ICMP    string  `json:"icmp,omitempty"`
	RTT     float64 `json:"rtt_seconds,omitempty"`
}

func newJSONLine(s *shakes, seq int, r *collector.Record, path *shaker.Path) jsonLine {
	line := jsonLine{
		Time: r.Time, Target: s.target, Module: s.module, Seq: seq,
		Success: r.Success, Result: r.Result, Errno: r.Errno, Reason: r.Reason,
		Duration: r.Duration.Seconds(), Handshake: r.Handshake.Seconds(), RTT: r.RTT.Seconds(),
	}
	if r.Address.IsValid() {
		line.Address = r.Address.String()
	}
	if r.SYNRetransmits >= 0 {
		line.SYNRetransmits = &r.SYNRetransmits
	}
	if icmp := r.ICMP; icmp.From.IsValid() {
		line.ICMP = &jsonICMP{icmp.From.String(), icmp.Type, icmp.Code, icmp.String()}
	}
	if path != nil {
		for _, h := range path.Hops {
			hop := jsonHop{Hop: h.TTL, RTT: h.RTT.Seconds()}
			if h.From.IsValid() {
				hop.Address = h.From.String()
			}
			if h.ICMP.From.IsValid() {
				hop.ICMP = h.ICMP.String()
			}
			line.Path = append(line.Path, hop)
		}
	}
	return line
}
