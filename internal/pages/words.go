package pages

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// words returns a result in words: "DNS not found" for "dns_not_found".
func words(result string) string {
	if result == "" {
		return "no result"
	}
	if name, ok := strings.CutPrefix(result, "dns_"); ok {
		return "DNS " + strings.ReplaceAll(name, "_", " ")
	}
	return result
}

// why explains a record's result, "" if it needs no explanation.
func why(r *history.Record) string {
	what := r.Reason
	if !strings.HasPrefix(r.Result, "dns_") || what == "" {
		what = strings.TrimPrefix(what+": "+reason(r), ": ")
	}
	if r.Errno != "" {
		what = strings.TrimSpace(fmt.Sprintf("%s (%s)", what, r.Errno))
	}
	switch {
	case r.Result == "", r.Result == "open" && r.Success:
		return ""
	case r.Success:
		return "as expected: " + what
	default:
		return what
	}
}

// reason describes the usual meaning of a record's result.
func reason(r *history.Record) string {
	byICMP := r.ICMP.From.IsValid()
	switch r.Result {
	case "open":
		return "open, but expected to be closed"
	case "refused":
		if byICMP {
			return "rejected by a router or firewall"
		}
		return "nothing listens on this port"
	case "reset":
		if r.Reason != "" { // it says when
			return "an RST arrived"
		}
		return "reset after the SYN-ACK"
	case "closed":
		return "a FIN arrived"
	case "silent":
		return "the target's kernel acknowledges, but its application does not answer"
	case "mismatch":
		return "the data is not what the module expects"
	case "timeout":
		switch {
		case r.Reason == "no answer to a heartbeat":
			return "the heartbeat was not acknowledged"
		case strings.HasPrefix(r.Reason, "connection "):
			return "keepalives or data were not acknowledged"
		}
		return "no reply within the timeout"
	case "unreachable":
		switch {
		case r.Errno == "ENETUNREACH" && !byICMP:
			return "the exporter's host has no route to the target"
		case r.ICMP.Own || r.Errno == "ENETDOWN":
			return "the exporter's host cannot send to the target"
		}
		return "the network cannot deliver packets to the target"
	case "prohibited":
		if byICMP {
			return "prohibited by a router or firewall"
		}
		return "prohibited on the exporter's host"
	case "dns_not_found":
		return "the name has no address"
	case "dns_timeout":
		return "no DNS server replied within the timeout"
	case "dns_error":
		return "the DNS lookup failed"
	default:
		if r.Reason != "" {
			return "a system call failed"
		}
		return "the connection attempt failed"
	}
}

// icmp describes the ICMP error that ended a record's probe, "" if there was none.
func icmp(r *history.Record) string {
	if !r.ICMP.From.IsValid() {
		return ""
	}
	return fmt.Sprintf("ICMP %s from %s", strings.ReplaceAll(r.ICMP.String(), "_", " "), r.ICMP.From)
}

// address returns the probed address of a record, "" if there was none or if it is part of the target.
func address(target string, r *history.Record) string {
	if r.Address.IsValid() && !strings.Contains(target, r.Address.String()) {
		return r.Address.String()
	}
	return ""
}

// A latency is the time from SYN to SYN-ACK.
type latency struct {
	Text  string // in milliseconds, "" if there was no SYN-ACK
	Clock string // the clock that measured it
}

// latencyOf returns the latency of a record.
func latencyOf(r *history.Record) latency {
	switch {
	case r.RTT > 0:
		return latency{Text: probe.Milliseconds(r.RTT), Clock: "RTT on the kernel's clock"}
	case r.Handshake > 0:
		return latency{Text: probe.Milliseconds(r.Handshake), Clock: "handshake on the exporter's clock"}
	}
	return latency{}
}

// retransmits returns the number of SYN retransmissions, "" if no SYN was sent or if the number is
// unknown.
func retransmits(r *history.Record) string {
	if r.SYNRetransmits < 0 || !r.Address.IsValid() {
		return ""
	}
	return strconv.Itoa(r.SYNRetransmits)
}

// span formats a duration in its largest unit, rounded down.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d d", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	default:
		return fmt.Sprintf("%d s", max(0, d/time.Second)) // negative if the clock was set back
	}
}

// nearest rounds a duration to the unit in which span shows it.
func nearest(d time.Duration) time.Duration {
	for _, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute} {
		if d >= 2*unit {
			return d.Round(unit)
		}
	}
	return d.Round(time.Second)
}

// timestamp formats a time in UTC with milliseconds (RFC 3339).
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
