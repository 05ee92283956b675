package probe

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
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
	case h.ICMP.String() == TTLExceeded:
		return fmt.Sprintf("%2d  %v  %s ms", h.TTL, h.From, Milliseconds(h.RTT))
	case h.ICMP.From.IsValid():
		return fmt.Sprintf("%2d  %v  %s ms  %v", h.TTL, h.From, Milliseconds(h.RTT), h.ICMP)
	}
	return fmt.Sprintf("%2d  %v  %s ms  %v", h.TTL, h.From, Milliseconds(h.RTT), h.Outcome)
}

// DescribeHops lists hops in one line: "1 192.0.2.1, 2 *, 3 192.0.2.9 open".
func DescribeHops(hops []shaker.Hop) string {
	if len(hops) == 0 {
		return "no hop has answered"
	}
	var list []string
	for _, h := range hops {
		switch {
		case !h.From.IsValid():
			list = append(list, fmt.Sprintf("%d *", h.TTL))
		case h.ICMP.String() == TTLExceeded:
			list = append(list, fmt.Sprintf("%d %v", h.TTL, h.From))
		case h.ICMP.From.IsValid():
			list = append(list, fmt.Sprintf("%d %v %v", h.TTL, h.From, h.ICMP))
		default:
			list = append(list, fmt.Sprintf("%d %v %v", h.TTL, h.From, h.Outcome))
		}
	}
	return strings.Join(list, ", ")
}

// DescribeFlows says how many flows failed.
func DescribeFlows(f *history.Flows) string {
	failed, all := f.Failed(), f.Len()
	outcome := "failed"
	if failed == 0 {
		outcome = "succeeded"
	}
	switch {
	case 0 < failed && failed < all:
		return fmt.Sprintf("%d of %d flows failed", failed, all)
	case all == 1: // the ports of the others are in use
		return "the only flow " + outcome
	case all == 2:
		return "both flows " + outcome
	}
	return fmt.Sprintf("all %d flows %s", all, outcome)
}

// DescribeFailedFlows is [DescribeFlows] with the ports of the flows that failed, unless that is all or none of them,
// and with those of the flows that were left out.
func DescribeFailedFlows(f *history.Flows) string {
	text := DescribeFlows(f)
	if n := f.Failed(); 0 < n && n < f.Len() {
		text += ": " + ListPorts(f.FailedPorts())
	}
	if leftOut := DescribeLeftOut(f); leftOut != "" {
		text += "; " + leftOut
	}
	return text
}

// DescribeLeftOut says from which ports no flow was performed because other programs have them, "" if there are none.
func DescribeLeftOut(f *history.Flows) string {
	switch n := len(f.LeftOut); n {
	case 0:
		return ""
	case 1:
		return "1 left out, because another program has its port: " + portRanges(f.LeftOut)
	default:
		return fmt.Sprintf("%d left out, because other programs have their ports: %s", n, portRanges(f.LeftOut))
	}
}

// ListPorts lists ports, which are in their order: "ports 1, 2, 4 to 6".
func ListPorts(ports []uint16) string {
	if len(ports) == 1 {
		return "port " + portRanges(ports)
	}
	return "ports " + portRanges(ports)
}

func portRanges(ports []uint16) string {
	var list []string
	for i := 0; i < len(ports); {
		end := i
		for end+1 < len(ports) && ports[end+1] == ports[end]+1 {
			end++
		}
		text := strconv.Itoa(int(ports[i]))
		if end == i+1 {
			end = i // two ports are not a range
		}
		if end > i {
			text += " to " + strconv.Itoa(int(ports[end]))
		}
		list = append(list, text)
		i = end + 1
	}
	return strings.Join(list, ", ")
}

// DescribeParting says where flows that fail part from those that do not, given the last hop that they share, and the
// one at or behind which flows fail. Either may be missing.
func DescribeParting(shared, failed history.Hop) string {
	hop := func(h history.Hop) string { return fmt.Sprintf("%v (hop %d)", h.Address, h.TTL) }
	switch {
	case shared.Address.IsValid() && failed.Address.IsValid():
		return fmt.Sprintf("paths part after %s: flows fail at or behind %s", hop(shared), hop(failed))
	case failed.Address.IsValid():
		return fmt.Sprintf("flows fail at or behind %s, and pass no known hop before that others pass", hop(failed))
	case shared.Address.IsValid():
		return fmt.Sprintf("flows fail behind %s, which others pass", hop(shared))
	}
	return "where the paths part is unknown: no hop is known that flows with and without a failure pass"
}

// TTLExceeded is the ICMP error of a router on the path.
const TTLExceeded = "ttl_exceeded"

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
