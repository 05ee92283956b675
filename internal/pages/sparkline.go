package pages

import (
	"cmp"
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
)

// Lengths in a sparkline. A probe is 1 wide; the page gives all of them the same width.
const (
	sparkHeight = 24
	sparkLeast  = 30 // probes of room, so that the line of a new target does not look old
)

// sparkline draws the latencies of probes, the latest at the right end, from 0 to the
// longest of them, and a stroke in place of each failure. Successes without a latency, as
// of a port that is meant to be closed, are dots at the bottom.
func sparkline(records []collector.Record) template.HTML {
	longest := time.Duration(1)
	for _, r := range records {
		longest = max(longest, r.Latency())
	}
	var line, dots, failures strings.Builder
	joined := false // the line goes on
	width := max(len(records), sparkLeast)
	for i, r := range records {
		x := width - len(records) + i
		switch d := r.Latency(); {
		case !r.Success:
			fmt.Fprintf(&failures, "M%d.5 2V%d", x, sparkHeight-2)
			joined = false
		case d == 0:
			fmt.Fprintf(&dots, "M%d.5 %dh0", x, sparkHeight-3)
			joined = false
		default:
			y := 3 + (sparkHeight-6)*(1-float64(d)/float64(longest))
			if joined {
				fmt.Fprintf(&line, "L%d.5 %.1f", x, y)
			} else {
				fmt.Fprintf(&line, "M%d.5 %.1fh0", x, y) // is seen even if nothing joins it
			}
			joined = true
		}
	}
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg class="spark" role="img" viewBox="0 0 %d %d" preserveAspectRatio="none"><title>%s</title>`,
		width, sparkHeight, template.HTMLEscapeString(caption(records)))
	for _, path := range []struct{ class, d string }{
		{"failures", failures.String()}, {"dots", dots.String()}, {"line", line.String()},
	} {
		if path.d != "" {
			fmt.Fprintf(&svg, `<path class="%s" d="%s"/>`, path.class, path.d)
		}
	}
	svg.WriteString("</svg>")
	return template.HTML(svg.String())
}

// caption says in words what a sparkline shows.
func caption(records []collector.Record) string {
	t := tallyOf(records)
	text := fmt.Sprintf("%d of %d probes in %s succeeded", t.Successes, t.Probes,
		span(records[len(records)-1].Time.Sub(records[0].Time)))
	var shortest, longest time.Duration
	for _, r := range records {
		if d := r.Latency(); r.Success && d > 0 {
			shortest, longest = min(cmp.Or(shortest, d), d), max(longest, d)
		}
	}
	if longest > 0 {
		text += fmt.Sprintf(", with latencies from %s to %s ms", collector.Milliseconds(shortest), collector.Milliseconds(longest))
	}
	return text
}
