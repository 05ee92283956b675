package collector

import (
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// writeStory writes for a person what happened in a probe and how the probe was meant to
// be done. The metrics follow it.
func (r *Report) writeStory(w io.Writer) {
	fmt.Fprintf(w, "# Log\n\n")
	var at tell = func(when time.Duration, format string, args ...any) {
		fmt.Fprintf(w, "%12s  %s\n", when.Round(time.Microsecond), fmt.Sprintf(format, args...))
	}
	at(0, "probe of %s with module %s, timeout %v", r.text, r.module, r.timeout)
	if r.name != "" {
		r.writeResolution(at)
	}
	for _, v := range r.each() {
		if v.handshake.Peer.IsValid() {
			r.writeHandshake(at, &v)
		}
	}
	r.writePath(at)
	said := strings.TrimSpace(r.result + " " + r.errno)
	if n := len(r.verdicts); n > 1 {
		said += fmt.Sprintf(", the worst of %d addresses", n)
	}
	at(r.duration, "verdict: %s; wanted is %s: %s", said, strings.Join(r.moduleData.TCP.ValidResults, " or "),
		map[bool]string{true: "success", false: "failure"}[r.success()])

	fmt.Fprintf(w, "\n# Module %s\n\n", r.module)
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	encoder.Encode(r.moduleData)
	encoder.Close()
	fmt.Fprintf(w, "\n# Metrics\n\n")
}

// tell is how a line of the story is written: when it happened, after the beginning, and what.
type tell = func(when time.Duration, format string, args ...any)

func (r *Report) writeResolution(at tell) {
	took := r.resolution.took
	if len(r.resolution.addrs) > 0 {
		addrs := make([]string, len(r.resolution.addrs))
		for i, addr := range r.resolution.addrs {
			addrs[i] = addr.String()
		}
		taking := "none"
		if r.verdicts != nil {
			taking = fmt.Sprintf("%d of them", len(r.verdicts))
		} else if addr := r.handshake.Peer.Addr(); addr.IsValid() {
			taking = addr.String()
		}
		at(took, "%s is %s; taking %s", r.name, strings.Join(addrs, ", "), taking)
	}
	for _, addr := range r.resolution.addrs {
		if err := r.check(addr); err != nil {
			at(took, "%v", err)
		}
	}
	if r.resolution.err != nil {
		at(took, "%s: %v", r.name, r.resolution.err)
	}
}

func (r *Report) writeHandshake(at tell, v *verdict) {
	h, sent := &v.handshake, r.resolution.took
	if h.Local.IsValid() {
		at(sent, "SYN from %v to %v", h.Local, h.Peer)
		if h.SYNRetransmits > 0 {
			at(v.at, "by now the SYN to %v was sent again, %d times", h.Peer, h.SYNRetransmits)
		}
	} else {
		at(sent, "no SYN could be sent to %v", h.Peer)
	}
	if h.Outcome != shaker.Open {
		at(v.at, "%v", h.Err())
		return
	}
	at(sent+h.Handshake, "SYN-ACK from %v after %v (kernel: %v), MSS %d bytes", h.Peer, h.Handshake, h.RTT, h.MSS)
	end := "RST"
	if r.moduleData.TCP.Close == config.FIN {
		end = "FIN"
	}
	at(sent+h.Handshake+h.ResetLag, "%s, last ACK sent: %t", end, h.ACKSent)
}
