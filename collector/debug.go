package collector

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// writeDebug writes what happened in a probe, step by step, and the module that it used. The metrics
// follow it.
func writeDebug(w io.Writer, answer answer) {
	r := answer.Report
	if r.Module.MeasuresIdle() {
		writeIdleDebug(w, answer)
		return
	}
	if answer.hold != nil {
		writeHeld(w, r, answer.hold)
	} else if answer.Watch != nil && !answer.Probed {
		turns, last := "", "the last one, of"
		if r.Flows != nil {
			turns, last = ", of each flow in turn", "the last one of each flow, the latest of"
		}
		fmt.Fprintf(w, "# Watched since %s, with a handshake every %v%s. What follows is %s %s.\n\n",
			answer.Watch.Registered.UTC().Format(time.RFC3339), answer.Watch.Interval, turns, last,
			answer.Watch.LastHandshake.UTC().Format("15:04:05.000"))
	}
	fmt.Fprintf(w, "# Log\n\n")
	at := logTo(w)
	at(0, "probe of %s with module %s, timeout %v", r.Text, config.Name(r.ModuleName), r.Timeout)
	writeResolution(at, r)
	for _, v := range r.Each() {
		writeVerdict(at, r, &v)
	}
	writePath(at, r)
	writeParting(at, r)
	result := "failure: the result is "
	if r.Success() {
		result = "success: the result is "
	}
	result += strings.TrimSpace(r.Result + " " + r.Errno)
	if n := len(r.Flows); n > 0 {
		result += fmt.Sprintf(", the worst of %d flows", n)
	}
	if n := len(r.Verdicts); n > 1 {
		result += fmt.Sprintf(", the worst of %d addresses", n)
	}
	if answer.hold == nil { // the result of a held target is not that of its last connect
		at(r.Duration, "%s; valid results: %s", result, strings.Join(r.Module.TCP.ValidResults, ", "))
	}
	writeModule(w, r)
}

// writeModule writes the module of a probe, and the heading of its metrics.
func writeModule(w io.Writer, r *probe.Report) {
	fmt.Fprintf(w, "\n# Module %s\n\n", config.Name(r.ModuleName))
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	encoder.Encode(r.Module)
	encoder.Close()
	fmt.Fprintf(w, "\n# Metrics\n\n")
}

// writeHeld writes the state of a held connection.
func writeHeld(w io.Writer, r *probe.Report, s *hold.Snapshot) {
	at := func(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
	fmt.Fprintf(w, "# Held since %s. ", at(s.Registered))
	if s.Established.IsZero() {
		fmt.Fprint(w, "The target is not connected now.\n")
	} else {
		fmt.Fprintf(w, "The present connection was established at %s.\n", at(s.Established))
	}
	if h := s.Heartbeat; h != nil && h.Last != 0 {
		outcome := "failed: " + h.Last.String()
		if h.Last == shaker.Open {
			outcome = "was answered as expected"
		}
		fmt.Fprintf(w, "# The last heartbeat %s.\n", outcome)
	}
	if s.Reason != "" {
		fmt.Fprintf(w, "# The last failure was at %s, %v ago: %s.\n",
			at(s.Failed), time.Since(s.Failed).Round(time.Millisecond), s.Reason)
	}
	outcome := "failure"
	if r.Success() {
		outcome = "success"
	}
	fmt.Fprintf(w, "# %s: the result is %s now.\n# What follows is the last connect.\n\n",
		outcome, strings.TrimSpace(r.Result+" "+r.Errno))
}

// logLine writes a line of the log: the time since the start of the probe, and what happened then.
type logLine = func(when time.Duration, format string, args ...any)

// logTo returns a function that writes lines of the log.
func logTo(w io.Writer) logLine {
	return func(when time.Duration, format string, args ...any) {
		fmt.Fprintf(w, "%12s  %s\n", when.Round(time.Microsecond), fmt.Sprintf(format, args...))
	}
}

// writeResolution writes the result of name resolution: nothing if the target was an address.
func writeResolution(at logLine, r *probe.Report) {
	took := r.Resolution.Took
	for _, server := range r.Resolution.Silent {
		at(took, "DNS server %s did not reply in its share of the time", server)
	}
	if len(r.Resolution.Addrs) > 0 {
		addrs := make([]string, len(r.Resolution.Addrs))
		for i, addr := range r.Resolution.Addrs {
			addrs[i] = addr.String()
		}
		probing := "none"
		if r.Verdicts != nil {
			probing = fmt.Sprintf("%d of them", len(r.Verdicts))
		} else if addr := r.Handshake.Peer.Addr(); addr.IsValid() {
			probing = addr.String()
		}
		at(took, "%s resolves to %s; probing %s", r.Name, strings.Join(addrs, ", "), probing)
	}
	for _, err := range r.Resolution.LeftOut {
		at(took, "left out: %v", err)
	}
}

// writeVerdict writes what happened in the handshakes with an address, which run at the same time, in the order of
// time.
func writeVerdict(at logLine, r *probe.Report, v *probe.Verdict) {
	type line struct {
		when time.Duration
		text string
	}
	var lines []line
	later := func(when time.Duration, format string, args ...any) {
		lines = append(lines, line{when: when, text: fmt.Sprintf(format, args...)})
	}
	if v.Handshake.Peer.IsValid() {
		writeHandshake(later, r, v)
	}
	writeFlows(later, r, v)
	if v.Err != nil {
		later(v.At, "%s: %v", r.Name, v.Err)
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.when, b.when) })
	for _, l := range lines {
		at(l.when, "%s", l.text)
	}
}

// writeHandshake writes the packets and the result of a handshake. What was not measured is left out.
func writeHandshake(at logLine, r *probe.Report, v *probe.Verdict) {
	h, sent := &v.Handshake, r.Resolution.Took
	answered := v.At
	if h.Outcome == shaker.Open {
		answered = sent + h.Handshake
	}
	if h.Local.IsValid() {
		at(sent, "SYN from %v to %v", h.Local, h.Peer)
	} else {
		at(sent, "no SYN could be sent to %v", h.Peer)
	}
	if n := h.SYNs - 1; n > 0 {
		at(answered, "SYN retransmissions so far: %d", n)
	}
	if h.Outcome != shaker.Open {
		if h.Outcome != 0 {
			at(answered, "%v", h.Err())
		}
		return
	}
	synack := fmt.Sprintf("SYN-ACK from %v after %v", h.Peer, h.Handshake)
	if h.RTT > 0 {
		synack += fmt.Sprintf(" (kernel: %v)", h.RTT)
	}
	if h.MSS > 0 {
		synack += fmt.Sprintf(", MSS %d bytes", h.MSS)
	}
	if h.TTL > 0 {
		synack += fmt.Sprintf(", TTL %d", h.TTL)
	}
	at(answered, "%s", synack)
	if r.Module.Held() {
		return // the connection stays
	}
	end, ack := "RST", "unknown"
	if r.Module.TCP.Close == config.FIN {
		end = "FIN"
	}
	if h.ACKSent || h.ACKWithheld {
		ack = strconv.FormatBool(h.ACKSent)
	}
	at(answered+h.ResetLag, "%s, final ACK sent: %s", end, ack)
}

// writeFlows writes the results of the flows of a verdict, whose handshake is that of the worst one.
func writeFlows(at logLine, r *probe.Report, v *probe.Verdict) {
	for _, f := range v.Flows {
		text := strings.TrimSpace(f.Result + " " + f.Errno)
		if rtt := f.Handshake.Latency(); rtt > 0 {
			text += fmt.Sprintf(", RTT %v", rtt)
		}
		if n := f.Handshake.SYNs - 1; n > 0 {
			text += fmt.Sprintf(", SYN retransmissions: %d", n)
		}
		at(f.At, "flow from port %d: %s", f.Port, text)
	}
	if flows := r.HistoryFlows(v); flows != nil {
		to := ""
		if len(r.Verdicts) > 1 {
			to = v.Handshake.Peer.Addr().String() + ": "
		}
		at(v.At, "%s%s", to, probe.DescribeFailedFlows(flows))
	}
}

// writeParting writes the paths of the flows that were compared, and where those that fail part from the others.
func writeParting(at logLine, r *probe.Report) {
	p := r.Parting
	if p == nil {
		return
	}
	for _, path := range p.Paths {
		at(r.Duration, "path of port %d, %s: %s", path.Port, path.Result, probe.DescribeHops(path.Hops))
	}
	at(r.Duration, "%s: %v", probe.ListPorts(p.Ports), p)
}

// writePath writes the hops of the path.
func writePath(at logLine, r *probe.Report) {
	if r.PathErr != nil {
		at(r.Duration, "path: %v", r.PathErr)
	}
	if r.Path == nil {
		return
	}
	for _, hop := range r.Path.Hops {
		at(r.Duration, "path: %s", probe.DescribeHop(hop))
	}
	switch {
	case r.Flows != nil && !r.Path.SameFlow:
		at(r.Duration, "path: the hops behind were traced from other ports, and are left out")
		return
	case r.Path.Reached == 0:
		at(r.Duration, "path: no reply from here on")
	}
	if !r.Path.SameFlow {
		at(r.Duration, "path: not all SYNs had the source port of the handshake; "+
			"routers that balance load may have sent them along another path")
	}
}
