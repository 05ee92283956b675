package cli

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A flowTable shows which flows pass which hops: a row is a hop, and a column a group of flows with the same result
// that pass the same hops.
type flowTable struct {
	rows   []flowHop
	groups []flowGroup
	parted map[netip.Addr]bool // the hops at or behind which flows fail
}

// A flowHop is a router, or the target, as it has answered at a distance.
type flowHop struct {
	ttl   int
	from  netip.Addr // invalid if there was no answer
	reply string     // "" for the ICMP error of a router on the path
}

func newFlowHop(h shaker.Hop) flowHop {
	hop := flowHop{ttl: h.TTL, from: h.From}
	switch {
	case h.ICMP.From.IsValid():
		if hop.reply = h.ICMP.String(); hop.reply == probe.TTLExceeded {
			hop.reply = ""
		}
	case h.From.IsValid():
		hop.reply = h.Outcome.String()
	}
	return hop
}

// label returns the hop in one line.
func (h flowHop) label() string {
	if !h.from.IsValid() {
		return fmt.Sprintf("%2d  *", h.ttl)
	}
	return strings.TrimRight(fmt.Sprintf("%2d  %v  %s", h.ttl, h.from, h.reply), " ")
}

func (h flowHop) compare(other flowHop) int {
	silent := 0
	if h.from.IsValid() != other.from.IsValid() { // silent hops are last
		silent = 1
		if h.from.IsValid() {
			silent = -1
		}
	}
	return cmp.Or(cmp.Compare(h.ttl, other.ttl), silent, h.from.Compare(other.from), cmp.Compare(h.reply, other.reply))
}

// A flowGroup is a number of flows with the same result that pass the same hops.
type flowGroup struct {
	failed        bool
	result, errno string
	hops          []flowHop
	incomplete    bool // whether the end of the path is not known
	counts        []probe.HopCount
	ports         []uint16
	rtts          []time.Duration // of the flows that have one
}

// newFlowTable returns the table of the paths of a report.
func newFlowTable(r *probe.Report) *flowTable {
	t := &flowTable{parted: make(map[netip.Addr]bool)}
	for _, p := range r.Partings() {
		t.parted[p.Failed.From] = p.Failed.From.IsValid()
	}
	byPath := make(map[string]*flowGroup)
	for _, path := range r.FlowPaths {
		hops := flowHops(&path)
		key := fmt.Sprint(path.Result, path.Errno, path.Err != nil, hops)
		g := byPath[key]
		if g == nil {
			g = &flowGroup{
				failed: !r.Valid(path.Result),
				result: path.Result, errno: path.Errno,
				hops: hops, incomplete: path.Err != nil,
			}
			byPath[key] = g
		}
		g.ports = append(g.ports, path.Port)
		g.counts = probe.AddCounts(g.counts, path.Counts)
		if rtt := path.Handshake.Latency(); rtt > 0 {
			g.rtts = append(g.rtts, rtt)
		}
	}
	rows := make(map[flowHop]bool)
	for _, g := range byPath {
		t.groups = append(t.groups, *g)
		for _, h := range g.hops {
			rows[h] = true
		}
	}
	// Failing flows come first, and flows that pass the same hops are next to each other.
	slices.SortFunc(t.groups, func(a, b flowGroup) int {
		if a.failed != b.failed {
			if a.failed {
				return -1
			}
			return 1
		}
		return cmp.Or(slices.CompareFunc(a.hops, b.hops, flowHop.compare), cmp.Compare(a.ports[0], b.ports[0]))
	})
	t.rows = slices.SortedFunc(maps.Keys(rows), flowHop.compare)
	return t
}

// flowHops returns the hops of a path. If no hop answered at its end, the first one of those is the last one.
func flowHops(path *probe.FlowPath) []flowHop {
	var hops []flowHop
	ends := false
	for _, h := range path.Hops {
		if !h.From.IsValid() && len(hops) > 0 && !hops[len(hops)-1].from.IsValid() && !answers(path.Hops, h.TTL) {
			break
		}
		hop := newFlowHop(h)
		ends = ends || hop.reply != ""
		hops = append(hops, hop)
	}
	if last := len(hops) - 1; !ends && path.Err == nil && (last < 0 || hops[last].from.IsValid()) {
		hops = append(hops, flowHop{ttl: len(hops) + 1})
	}
	return hops
}

// answers reports whether a hop beyond the TTL has answered.
func answers(hops []shaker.Hop, ttl int) bool {
	return slices.ContainsFunc(hops, func(h shaker.Hop) bool { return h.TTL > ttl && h.From.IsValid() })
}

// groupNames are the names of the columns. There are as many as flows at most.
const groupNames = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+="

// write writes the table in lines of a width, as far as the lists of ports permit.
func (t *flowTable) write(w io.Writer, width int, colour bool) {
	paint := func(text, colourCode string) string {
		if !colour {
			return text
		}
		return colourCode + text + plain
	}
	const counts = len("  64/64  ")
	label := len("hop")
	for _, row := range t.rows {
		label = max(label, len(row.label()))
	}
	room := max(8, width-label-counts)
	first := 0
	for groups := range slices.Chunk(t.groups, room) { // one, unless the terminal is narrow
		fmt.Fprintf(w, "%-*s  %-7s%s\n", label, "hop", "failed", groupNames[first:first+len(groups)])
		for _, row := range t.rows {
			text := row.label()
			padding := strings.Repeat(" ", label-len(text))
			if t.parted[row.from] {
				text = paint(text, red)
			}
			cells, passed := t.cells(row, groups, paint)
			if passed {
				failed, all := t.count(row)
				fmt.Fprintf(w, "%s%s  %-7s%s\n", text, padding, fmt.Sprintf("%d/%d", failed, all), cells)
			}
		}
		first += len(groups)
	}
	for i, g := range t.groups {
		result := strings.TrimSpace(g.result + " " + g.errno)
		text := fmt.Sprintf("%c  %s  %s", groupNames[i], result, g.flows())
		for n, line := range wrap(text, width, 3) {
			if n == 0 {
				resultColour := green
				if g.failed {
					resultColour = red
				}
				line = strings.Replace(line, result, paint(result, resultColour), 1)
			}
			fmt.Fprintln(w, line)
		}
	}
}

// flows describes the flows of a group.
func (g *flowGroup) flows() string {
	text := probe.ListPorts(g.ports)
	if len(g.rtts) > 0 {
		text += fmt.Sprintf("  %s ms", probe.Milliseconds(slices.Min(g.rtts)))
	}
	if len(g.rtts) > 1 {
		text += fmt.Sprintf(" to %s ms", probe.Milliseconds(slices.Max(g.rtts)))
	}
	if g.incomplete {
		text += "  path incomplete"
	}
	if losses := g.losses(); losses != "" {
		text += "  no answer: " + losses
	}
	return text
}

// losses lists the hops that answered only some of the probes of these flows.
func (g *flowGroup) losses() string {
	var list []string
	for i, n := range g.counts {
		if 0 < n.Answers && n.Answers < n.Probes {
			list = append(list, fmt.Sprintf("%d/%d at hop %d", n.Probes-n.Answers, n.Probes, i+1))
		}
	}
	return strings.Join(list, ", ")
}

// wrap breaks a text into lines of a width at its spaces. All lines except the first one are indented.
func wrap(text string, width, indent int) []string {
	var lines []string
	for len(text) > width {
		at := strings.LastIndexByte(text[:width], ' ')
		if strings.TrimSpace(text[:max(at, 0)]) == "" {
			break // a word that is too long
		}
		lines = append(lines, strings.TrimRight(text[:at], " "))
		text = strings.Repeat(" ", indent) + strings.TrimLeft(text[at:], " ")
	}
	return append(lines, text)
}

// cells returns the cells of a row. passed reports whether one of the groups passes the hop.
func (t *flowTable) cells(row flowHop, groups []flowGroup, paint func(text, colour string) string) (
	cells string, passed bool,
) {
	for _, g := range groups {
		switch {
		case !slices.Contains(g.hops, row):
			cells += " "
			continue
		case g.failed:
			cells += paint("x", red)
		default:
			cells += paint("o", green)
		}
		passed = true
	}
	return strings.TrimRight(cells, " "), passed
}

// count returns how many flows pass a hop, and how many of them fail.
func (t *flowTable) count(row flowHop) (failed, all int) {
	for _, g := range t.groups {
		if !slices.Contains(g.hops, row) {
			continue
		}
		all += len(g.ports)
		if g.failed {
			failed += len(g.ports)
		}
	}
	return failed, all
}
