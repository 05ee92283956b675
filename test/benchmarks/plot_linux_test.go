package benchmarks

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// A panel is the part of a plot that shows one state of the machine.
type panel struct {
	title     string
	latencies map[string][]latency // by the name of the report
}

// clouds are the point clouds of a panel, the one in front last.
var clouds = []struct{ name, label, color string }{
	{name: "blackbox", label: "blackbox_exporter: probe_duration_seconds", color: "#d55e00"},
	{name: "handshake", label: "shaker_exporter: probe_tcp_handshake_seconds", color: "#0072b2"},
	{name: "rtt", label: "shaker_exporter: probe_tcp_rtt_seconds", color: "#009e73"},
}

// An axis is logarithmic and covers whole decades. Its ends are powers of ten, in microseconds.
type axis struct{ first, last int }

// Lengths in a plot, in pixels.
const (
	decade = 110
	left   = 76  // left of each panel, for its y-axis
	above  = 156 // above the panels, for title and legend
	below  = 60  // below the panels, for their x-axes
	right  = 24  // right of the last panel
)

// mostPoints is the maximum number of points drawn of a cloud. More points would only make the file larger.
const mostPoints = 350

// writePlot writes an SVG file that plots reported latencies over latencies on the wire. The panels are side by side.
func writePlot(file string, panels []panel) error {
	x, y := axes(panels)
	width, height := len(panels)*(left+x.length())+right, above+y.length()+below
	var svg bytes.Buffer
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" `+
		`font-family="sans-serif" font-size="13" fill="#24292f">`+"\n", width, height)
	fmt.Fprintln(&svg, `<rect width="100%" height="100%" fill="#fff"/>`) // for readers with a dark background
	drawLegend(&svg)
	for i, p := range panels {
		fmt.Fprintf(&svg, `<g transform="translate(%d %d)">`+"\n", left+i*(left+x.length()), above)
		drawAxes(&svg, x, y, p.title)
		drawPoints(&svg, x, y, p.latencies)
		fmt.Fprintln(&svg, `</g>`)
	}
	fmt.Fprintln(&svg, `</svg>`)
	return os.WriteFile(file, svg.Bytes(), 0o644)
}

// axes returns the axes that cover all points of all panels.
func axes(panels []panel) (x, y axis) {
	var wire, reported []time.Duration
	for _, p := range panels {
		for _, c := range clouds {
			for _, l := range p.latencies[c.name] {
				wire, reported = append(wire, l.wire), append(reported, l.reported)
			}
		}
	}
	return axisOf(wire), axisOf(reported)
}

func axisOf(values []time.Duration) axis {
	return axis{
		first: int(math.Floor(math.Log10(microseconds(slices.Min(values))))),
		last:  int(math.Ceil(math.Log10(microseconds(slices.Max(values))))),
	}
}

func (a axis) length() int { return decade * (a.last - a.first) }

// at returns the position of a value on the axis, in pixels.
func (a axis) at(d time.Duration) float64 {
	return decade * (math.Log10(microseconds(d)) - float64(a.first))
}

// exactLine is the style of the line on which the reported latency equals the latency on the wire.
const exactLine = `stroke="#57606a" stroke-dasharray="5 4"`

func drawLegend(svg *bytes.Buffer) {
	fmt.Fprintf(svg, `<text x="%d" y="30" font-size="16" font-weight="bold">`+
		`Latency of a TCP handshake: reported, and on the wire</text>`+"\n", left)
	y := 54
	for _, c := range clouds {
		fmt.Fprintf(svg, `<circle cx="%d" cy="%d" r="5" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			left+8, y-5, c.color, left+24, y, c.label)
		y += 20
	}
	fmt.Fprintf(svg, `<path d="M%d %dh16" %s/><text x="%d" y="%d">reported as on the wire</text>`+"\n",
		left, y-5, exactLine, left+24, y)
}

func drawAxes(svg *bytes.Buffer, x, y axis, title string) {
	width, height := x.length(), y.length()
	fmt.Fprintf(svg, `<text x="%d" y="-10" text-anchor="middle" font-weight="bold">%s</text>`+"\n", width/2, title)
	for i := x.first; i <= x.last; i++ {
		at := decade * (i - x.first)
		fmt.Fprintf(svg, `<path d="M%d 0v%d" stroke="#d0d7de"/>`+
			`<text x="%[1]d" y="%[3]d" text-anchor="middle">%v</text>`+"\n",
			at, height, height+18, math.Pow10(i))
	}
	for i := y.first; i <= y.last; i++ {
		at := height - decade*(i-y.first)
		fmt.Fprintf(svg, `<path d="M0 %dh%d" stroke="#d0d7de"/><text x="-8" y="%d" text-anchor="end">%v</text>`+"\n",
			at, width, at+4, math.Pow10(i))
	}
	fmt.Fprintf(svg, `<text x="%d" y="%d" text-anchor="middle">on the wire, µs</text>`+"\n", width/2, height+42)
	fmt.Fprintf(svg, `<text transform="translate(-56 %d) rotate(-90)" text-anchor="middle">reported, µs</text>`+"\n",
		height/2)
	from, to := max(x.first, y.first), min(x.last, y.last)
	fmt.Fprintf(svg, `<path d="M%d %dL%d %d" %s/>`+"\n",
		decade*(from-x.first), height-decade*(from-y.first), decade*(to-x.first), height-decade*(to-y.first), exactLine)
}

func drawPoints(svg *bytes.Buffer, x, y axis, latencies map[string][]latency) {
	for _, c := range clouds {
		fmt.Fprintf(svg, `<g fill="%s" fill-opacity=".3">`+"\n", c.color)
		all := latencies[c.name]
		for i := 0; i < len(all); i += len(all)/mostPoints + 1 {
			fmt.Fprintf(svg, `<circle cx="%.1f" cy="%.1f" r="2"/>`+"\n",
				x.at(all[i].wire), float64(y.length())-y.at(all[i].reported))
		}
		fmt.Fprintln(svg, `</g>`)
	}
}
