package probe

import (
	"fmt"
	"strconv"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Milliseconds formats a duration in milliseconds with three significant digits, as ping(8) does.
func Milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 1:
		return fmt.Sprintf("%.3f", ms)
	case ms < 10:
		return fmt.Sprintf("%.2f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	default:
		return fmt.Sprintf("%.0f", ms)
	}
}

// DescribeHop formats a hop in one line, as traceroute(8) does.
func DescribeHop(h shaker.Hop) string {
	switch {
	case !h.From.IsValid():
		return fmt.Sprintf("%2d  *", h.TTL)
	case h.ICMP.String() == ttlExceeded:
		return fmt.Sprintf("%2d  %v  %s ms", h.TTL, h.From, Milliseconds(h.RTT))
	case h.ICMP.From.IsValid():
		return fmt.Sprintf("%2d  %v  %s ms  %v", h.TTL, h.From, Milliseconds(h.RTT), h.ICMP)
	}
	return fmt.Sprintf("%2d  %v  %s ms  %v", h.TTL, h.From, Milliseconds(h.RTT), h.Outcome)
}

// ttlExceeded is the ICMP error of a router on the path.
const ttlExceeded = "ttl_exceeded"

// Quote quotes a text of a caller for a message, and shortens it.
func Quote(text string) string { return strconv.Quote(Shorten(text)) }

// Shorten shortens a text of a caller to 80 characters.
func Shorten(text string) string {
	n := 0
	for i := range text {
		if n++; n > 80 {
			return text[:i] + "..." // not an ellipsis, which not every terminal has
		}
	}
	return text
}
