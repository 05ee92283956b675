package collector

import (
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// writeStory writes for a person what happened in a probe and how the probe was meant to
// be done. The metrics follow it.
func (r *report) writeStory(w io.Writer) {
	fmt.Fprintf(w, "# Log\n\n")
	at := func(when time.Duration, format string, args ...any) {
		fmt.Fprintf(w, "%12s  %s\n", when.Round(time.Microsecond), fmt.Sprintf(format, args...))
	}
	at(0, "probe of %s with module %s, timeout %v", r.text, r.module, r.timeout)
	if r.name != "" {
		r.writeResolution(at)
	}
	h, sent := &r.handshake, r.resolution.took
	switch {
	case !h.Peer.IsValid():
	case h.Local.IsValid():
		at(sent, "SYN from %v to %v", h.Local, h.Peer)
		if h.SYNRetransmits > 0 {
			at(r.duration, "by now the SYN was sent again, %d times", h.SYNRetransmits)
		}
	default:
		at(sent, "no SYN could be sent to %v", h.Peer)
	}
	switch {
	case h.Outcome == shaker.Open:
		at(sent+h.Handshake, "SYN-ACK after %v (kernel: %v), MSS %d bytes", h.Handshake, h.RTT, h.MSS)
		at(sent+h.Handshake+h.ResetLag, "RST, last ACK sent: %t", h.ACKSent)
	case h.Outcome != 0:
		at(r.duration, "%v", h.Err())
	}
	at(r.duration, "verdict: %s", strings.TrimSpace(r.result+" "+r.errno))

	fmt.Fprintf(w, "\n# Module %s\n\n", r.module)
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	encoder.Encode(r.moduleData)
	encoder.Close()
	fmt.Fprintf(w, "\n# Metrics\n\n")
}

func (r *report) writeResolution(at func(when time.Duration, format string, args ...any)) {
	if r.resolution.result != "" {
		at(r.resolution.took, "%s: %v", r.name, r.resolution.err)
		return
	}
	addrs := make([]string, len(r.resolution.addrs))
	for i, addr := range r.resolution.addrs {
		addrs[i] = addr.String()
	}
	at(r.resolution.took, "%s is %s; taking %v", r.name, strings.Join(addrs, ", "), r.resolution.addr)
}
