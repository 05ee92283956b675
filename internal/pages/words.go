package pages

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
)

// words returns a result as people write it.
func words(result string) string {
	if name, ok := strings.CutPrefix(result, "dns_"); ok {
		return "DNS " + strings.ReplaceAll(name, "_", " ")
	}
	return result
}

// why says why a record's result is what it is, "" if that goes without saying.
func why(r *collector.Record) string {
	what := cmp.Or(r.Reason, reason(r))
	if r.Errno != "" {
		what = strings.TrimSpace(fmt.Sprintf("%s (%s)", what, r.Errno))
	}
	switch {
	case r.Result == "open" && r.Success:
		return ""
	case r.Success:
		return "as wanted: " + what
	default:
		return what
	}
}

func reason(r *collector.Record) string {
	byICMP := r.ICMP.From.IsValid()
	switch r.Result {
	case "open":
		return "somebody listens there, which the module does not want"
	case "refused":
		if byICMP {
			return "turned away on the way"
		}
		return "nobody listens there"
	case "reset":
		return "answered, then hung up"
	case "timeout":
		return "no answer in time"
	case "unreachable":
		switch {
		case r.Errno == "ENETUNREACH" && !byICMP:
			return "this host has no route to it"
		case r.ICMP.Own || r.Errno == "ENETDOWN":
			return "this host cannot send to it"
		}
		return "there is no way to it"
	case "prohibited":
		if byICMP {
			return "forbidden on the way"
		}
		return "forbidden on this host"
	case "dns_not_found":
		return "the name has no address"
	case "dns_timeout":
		return "no DNS server answered in time"
	case "dns_error":
		return "the DNS server has no usable answer"
	default:
		return "the kernel could not connect"
	}
}

// icmp says which ICMP error ended a record's probe, "" if none did.
func icmp(r *collector.Record) string {
	if !r.ICMP.From.IsValid() {
		return ""
	}
	return fmt.Sprintf("ICMP %s from %s", strings.ReplaceAll(r.ICMP.String(), "_", " "), r.ICMP.From)
}

// retransmits returns how many SYNs were sent again, "" if none was sent at all, or if that
// is not known.
func retransmits(r *collector.Record) string {
	if r.SYNRetransmits < 0 || !r.Address.IsValid() {
		return ""
	}
	return strconv.Itoa(r.SYNRetransmits)
}

// span returns a length of time in its largest unit, rounded down.
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
		return fmt.Sprintf("%d s", max(0, d/time.Second)) // a clock may have been set back
	}
}

// exact returns a time to the millisecond (RFC 3339, UTC).
func exact(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
