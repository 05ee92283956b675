package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A target is probed one or more times, and its results are printed.
type target struct {
	*ProbeCommand
	text    string
	request *probe.Request

	report *probe.Report // of the last probe; nil if it had no result
	tally  tally
	silent []shaker.Hop // hops of the current path that have not been printed

	mu    sync.Mutex
	parts []*probe.Report // what is known about the current probe if it has no verdict; guarded by mu

	progress func(state string) // changes what the last line of the terminal says about the current probe
}

// run probes the target as many times as requested, or until the context ends, and prints the results.
func (t *target) run(ctx context.Context, prober *probe.Prober, out *terminal) {
	t.printPorts(out, prober)
	for seq := 1; ; seq++ {
		next := time.Now().Add(t.flags.interval)
		progress, done := out.track(t.text)
		t.progress = progress
		report, err := prober.Probe(ctx, t.request)
		done()
		t.printEnd(out, report)
		switch {
		case err == nil: // even if the context has ended since, while the path was traced
			t.report = report
			verdicts := report.Each()
			for i, record := range report.Records() {
				t.count(report, &record, &verdicts[i])
				t.print(out, seq, report, &record, &verdicts[i])
			}
			t.printFlows(out, report)
		case ctx.Err() != nil:
			t.printParts(out, seq, t.takeParts(), "interrupted")
			return
		default:
			t.report = nil
			t.tally.fail()
			parts := t.takeParts()
			if parts == nil || t.flags.output != "json" {
				t.printError(out, seq, err)
			}
			t.printParts(out, seq, parts, err.Error())
		}
		if seq == t.flags.count || ctx.Err() != nil {
			return
		}
		select {
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
			return
		}
	}
}

// count adds the handshakes of a verdict, which has a record, to the tally.
func (t *target) count(report *probe.Report, r *history.Record, v *probe.Verdict) {
	for _, handshake := range report.Handshakes(v) {
		t.tally.add(&handshake)
	}
	if r.Flows != nil {
		t.tally.addFlows(r.Flows)
	}
}

// keep keeps what is known about a probe without a verdict. It is for [probe.Request.ReportPart].
func (t *target) keep(part *probe.Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parts = append(t.parts, part)
}

// takeParts returns the parts of a probe without a verdict, and counts them.
func (t *target) takeParts() []*probe.Report {
	t.mu.Lock()
	parts := t.parts
	t.parts = nil
	t.mu.Unlock()
	for _, part := range parts {
		record := part.Record()
		t.count(part, &record, &part.Verdict)
	}
	return parts
}

// printParts prints the flows that have a result although the probe has none, because of an error.
func (t *target) printParts(out *terminal, seq int, parts []*probe.Report, err string) {
	for _, part := range parts {
		record := part.Record()
		switch t.flags.output {
		case "text":
			fmt.Fprintf(out, "%s: seq=%d %d of %d flows have a result: %s\n", named(t.text, record.Address), seq,
				record.Flows.Len(), t.request.Module.TCP.Flows, probe.DescribeFailedFlows(record.Flows))
		case "json":
			line := newJSONLine(t, seq, part, &record, &part.Verdict)
			json.NewEncoder(out).Encode(jsonLine{
				Time: line.Time, Target: line.Target, Module: line.Module, Seq: seq, Address: line.Address,
				Flows: line.Flows, Error: err,
			})
		}
	}
}

// printPorts prints the ports of the flows, if there are any and no table has them, and that they have sockets although
// the engine is raw.
func (t *target) printPorts(out *terminal, prober *probe.Prober) {
	m := &t.request.Module
	if t.flags.output != "text" || m.TCP.Flows == 0 {
		return
	}
	ports, err := prober.FlowPorts(m)
	if err != nil {
		return // the probe reports it
	}
	sockets := ""
	if prober.IsRaw() && !prober.IsRawFor(m) {
		sockets = ", with sockets, because the raw engine has other ports"
	}
	if t.flags.path && sockets == "" {
		return
	}
	fmt.Fprintf(out, "%s: %d flows from ports %v%s\n", t.text, m.TCP.Flows, ports, sockets)
}

// tracing shows how many traces of flows have ended.
func (t *target) tracing(traced, all int) {
	t.progress(fmt.Sprintf("%d of %d traces", traced, all))
}

// print prints a verdict of a report, which has a record.
func (t *target) print(out *terminal, seq int, report *probe.Report, r *history.Record, v *probe.Verdict) {
	h := &v.Handshake
	switch t.flags.output {
	case "text":
		rest := details(r)
		if r.Flows != nil {
			flows := probe.DescribeFailedFlows(r.Flows)
			if report.FlowPaths != nil { // the table has the ports
				flows = probe.DescribeFlows(r.Flows)
				if leftOut := probe.DescribeLeftOut(r.Flows); leftOut != "" {
					flows += "; " + leftOut
				}
			}
			rest += ", " + flows
		}
		if h.ACKSent && t.request.Module.TCP.Close != config.FIN { // close: fin sends the ACK on purpose
			rest += ", final ACK sent: the application may have seen a connection"
		}
		out.line(fmt.Sprintf("%s: seq=%d", named(t.text, r.Address), seq), r.Result, r.Success, rest)
	case "json":
		json.NewEncoder(out).Encode(newJSONLine(t, seq, report, r, v))
	}
}

// printFlows prints the paths of all flows if they were traced, and where those of the flows that fail part from the
// others.
func (t *target) printFlows(out *terminal, r *probe.Report) {
	if t.flags.output != "text" {
		return
	}
	var text strings.Builder
	if r.FlowPaths != nil {
		fmt.Fprintf(&text, "%s: flows by hop, x fails and o succeeds\n", named(t.text, r.Handshake.Peer.Addr()))
		newFlowTable(r).write(&text, out.width(), out.colour)
	}
	for _, p := range r.Partings() {
		fmt.Fprintf(&text, "%s: %s: %v\n", named(t.text, r.Handshake.Peer.Addr()), probe.ListPorts(p.Ports), &p)
	}
	if text.Len() > 0 {
		io.WriteString(out, text.String()) // at once, so that those of other targets are not in between
	}
}

// printHop prints a hop of the path. A silent hop is printed only when a later one answers.
func (t *target) printHop(out *terminal, hop shaker.Hop) {
	t.silent = append(t.silent, hop)
	if t.flags.output != "text" || !hop.From.IsValid() {
		return
	}
	for _, hop := range t.silent {
		fmt.Fprintf(out, "%s: %s\n", t.text, probe.DescribeHop(hop))
	}
	t.silent = nil
}

// printEnd prints that no hop answered at the end of the path, or why the end was not found. The report
// is nil if the probe had no result.
func (t *target) printEnd(out *terminal, report *probe.Report) {
	switch {
	case t.flags.output != "text":
	case report != nil && report.PathErr != nil:
		fmt.Fprintf(out, "%s: path: %v\n", t.text, report.PathErr)
	case len(t.silent) > 0:
		fmt.Fprintf(out, "%s: %s  (no reply from here on)\n", t.text, probe.DescribeHop(t.silent[0]))
	}
	t.silent = nil
}

// printError prints why a probe had no result.
func (t *target) printError(out *terminal, seq int, err error) {
	switch t.flags.output {
	case "text":
		out.line(fmt.Sprintf("%s: seq=%d", t.text, seq), "not probed", false, ": "+err.Error())
	case "json":
		line := jsonLine{Time: time.Now(), Target: t.text, Module: t.flags.module, Seq: seq, Error: err.Error()}
		json.NewEncoder(out).Encode(line)
	default:
		fmt.Fprintf(os.Stderr, "%s: %s: %v\n", t.name, t.text, err)
	}
}

// details returns what is known about a handshake in addition to its result.
func details(r *history.Record) string {
	var text strings.Builder
	if latency := r.Latency(); latency > 0 {
		fmt.Fprintf(&text, " time=%s ms", probe.Milliseconds(latency))
	} else if r.Errno != "" {
		fmt.Fprintf(&text, " %s after %s ms", r.Errno, probe.Milliseconds(r.Duration))
	} else if r.Reason != "" {
		fmt.Fprintf(&text, ": %s", r.Reason)
	}
	switch n := r.SYNRetransmits; {
	case n == 1:
		text.WriteString(", 1 SYN retransmission")
	case n > 1:
		fmt.Fprintf(&text, ", %d SYN retransmissions", n)
	}
	if r.ICMP.From.IsValid() {
		fmt.Fprintf(&text, ", ICMP %v from %v", r.ICMP, r.ICMP.From)
	}
	return text.String()
}
