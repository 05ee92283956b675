package pages

import (
	"cmp"
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// Dimensions of a sparkline, in SVG units. A probe is 1 unit wide. The page scales all sparklines
// to the same width.
const (
	sparkHeight    = 24
	sparkMinProbes = 30 // minimum width, so that a new target does not look like an old one
)

// sparkline draws the latencies of probes as a line, the latest at the right end, scaled from 0 to
// the largest latency. Failures are vertical strokes. Successes without a latency, as of a port
// that is expected to be closed, are dots at the bottom.
func sparkline(records []history.Record) template.HTML {
	largest := time.Duration(1)
	for _, r := range records {
		largest = max(largest, r.Latency())
	}
	var line, dots, failures strings.Builder
	joined := false // whether the previous probe is a point of the line
	width := max(len(records), sparkMinProbes)
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
			y := 3 + (sparkHeight-6)*(1-float64(d)/float64(largest))
			if joined {
				fmt.Fprintf(&line, "L%d.5 %.1f", x, y)
			} else {
				fmt.Fprintf(&line, "M%d.5 %.1fh0", x, y) // h0 makes a single point visible
			}
			joined = true
		}
	}
	return svg(width, caption(records), part{class: "failures", d: failures.String()},
		part{class: "dots", d: dots.String()}, part{class: "line", d: line.String()})
}

// A part is a path of a drawing.
type part struct{ class, d string }

// svg returns a drawing with the given width in SVG units. It leaves out the parts that are empty.
func svg(width int, caption string, parts ...part) template.HTML {
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg class="spark" role="img" viewBox="0 0 %d %d" preserveAspectRatio="none"><title>%s</title>`,
		width, sparkHeight, template.HTMLEscapeString(caption))
	for _, p := range parts {
		if p.d != "" {
			fmt.Fprintf(&svg, `<path class="%s" d="%s"/>`, p.class, p.d)
		}
	}
	svg.WriteString("</svg>")
	return template.HTML(svg.String())
}

// caption describes a sparkline in words.
func caption(records []history.Record) string {
	t := tallyOf(records)
	text := fmt.Sprintf("%d of %d probes in %s succeeded", t.Successes, t.Probes,
		span(records[len(records)-1].Time.Sub(records[0].Time)))
	var smallest, largest time.Duration
	for _, r := range records {
		if d := r.Latency(); r.Success && d > 0 {
			smallest, largest = min(cmp.Or(smallest, d), d), max(largest, d)
		}
	}
	if largest > 0 {
		text += fmt.Sprintf(", with latencies from %s to %s ms",
			probe.Milliseconds(smallest), probe.Milliseconds(largest))
	}
	return text
}
