package cli

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// flowsReport returns a report about flows from port 20000 on. Each flow is its result and the last digits of its hops:
// "-" is a hop that did not answer, and "!" follows the target's address.
func flowsReport(flows ...string) *probe.Report {
	r := &probe.Report{Request: &probe.Request{}}
	r.Module.TCP.ValidResults = []string{"open"}
	for i, text := range flows {
		result, hops, _ := strings.Cut(text, " ")
		path := probe.FlowPath{Flow: probe.Flow{Port: 20000 + uint16(i), Verdict: probe.Verdict{Result: result}}}
		switch result {
		case "open":
			path.Handshake = shaker.Result{Outcome: shaker.Open, RTT: time.Duration(i+1) * time.Millisecond}
		case "timeout":
			path.Errno = "ETIMEDOUT"
		}
		for ttl, hop := range strings.Fields(hops) {
			h := shaker.Hop{TTL: ttl + 1}
			if target, ok := strings.CutSuffix(hop, "!"); ok {
				h.From, h.Outcome = netip.MustParseAddr("192.0.2."+target), shaker.Open
			} else if hop != "-" {
				h.From = netip.MustParseAddr("192.0.2." + hop)
				h.ICMP = shaker.ICMP{From: h.From, Type: 11}
			}
			path.Hops = append(path.Hops, h)
		}
		r.FlowPaths = append(r.FlowPaths, path)
	}
	return r
}

// withCounts adds the counts of the flows to a report.
func withCounts(r *probe.Report, counts ...[]probe.HopCount) *probe.Report {
	for i := range r.FlowPaths {
		r.FlowPaths[i].Counts = counts[i]
	}
	return r
}

// A column is a group of flows that pass the same hops with the same result. The hop that only failing flows pass,
// after one that others pass as well, is red.
func TestFlowTable(t *testing.T) {
	for _, c := range []struct {
		name   string
		report *probe.Report
		want   string
		red    []string // hops
	}{
		{
			name: "a member of three",
			report: flowsReport("open 1 11 9!", "timeout 1 12", "open 1 13 9!", "open 1 11 9!", "timeout 1 12",
				"open 1 13 9!"),
			want: `hop                  failed ABC
 1  192.0.2.1        2/6    xoo
 2  192.0.2.11       0/2     o
 2  192.0.2.12       2/2    x
 2  192.0.2.13       0/2      o
 3  192.0.2.9  open  0/4     oo
 3  *                2/2    x
A  timeout ETIMEDOUT  ports 20001, 20004
B  open  ports 20000, 20003  1.00 ms to 4.00 ms
C  open  ports 20002, 20005  3.00 ms to 6.00 ms
`,
			red: []string{" 2  192.0.2.12"},
		},
		{
			name:   "the second of two levels",
			report: flowsReport("open 1 11 21 9!", "timeout 1 11 22 32", "open 1 12 21 9!", "timeout 1 12 22 32"),
			want: `hop                  failed ABCD
 1  192.0.2.1        2/4    xxoo
 2  192.0.2.11       1/2    x o
 2  192.0.2.12       1/2     x o
 3  192.0.2.21       0/2      oo
 3  192.0.2.22       2/2    xx
 4  192.0.2.9  open  0/2      oo
 4  192.0.2.32       2/2    xx
 5  *                2/2    xx
A  timeout ETIMEDOUT  port 20001
B  timeout ETIMEDOUT  port 20003
C  open  port 20000  1.00 ms
D  open  port 20002  3.00 ms
`,
			red: []string{" 3  192.0.2.22"},
		},
		{
			name: "hops that do not answer each probe",
			report: withCounts(flowsReport("open 1 11 9!", "timeout 1 12 13", "open 1 11 9!"),
				[]probe.HopCount{{Probes: 3, Answers: 3}, {Probes: 3, Answers: 2}, {Probes: 3, Answers: 3}},
				[]probe.HopCount{
					{Probes: 3, Answers: 3}, {Probes: 3, Answers: 2}, {Probes: 2, Answers: 1}, {Probes: 1},
				},
				[]probe.HopCount{{Probes: 3, Answers: 3}, {Probes: 3, Answers: 2}, {Probes: 3, Answers: 3}}),
			want: `hop                  failed AB
 1  192.0.2.1        1/3    xo
 2  192.0.2.11       0/2     o
 2  192.0.2.12       1/1    x
 3  192.0.2.9  open  0/2     o
 3  192.0.2.13       1/1    x
 4  *                1/1    x
A  timeout ETIMEDOUT  port 20001  no answer: 1/3 at hop 2, 1/2 at hop 3
B  open  ports 20000, 20002  1.00 ms to 3.00 ms  no answer: 2/6 at hop 2
`,
		},
		{
			name:   "all fail",
			report: flowsReport("timeout 1", "timeout 1"),
			want: `hop            failed A
 1  192.0.2.1  2/2    x
 2  *          2/2    x
A  timeout ETIMEDOUT  ports 20000, 20001
`,
		},
		{
			name:   "a router that never answers",
			report: flowsReport("open - 11 9!", "timeout - - -"),
			want: `hop                  failed AB
 1  *                1/2    xo
 2  192.0.2.11       0/1     o
 3  192.0.2.9  open  0/1     o
A  timeout ETIMEDOUT  port 20001
B  open  port 20000  1.00 ms
`,
		},
	} {
		table := newFlowTable(c.report)
		var got, coloured strings.Builder
		table.write(&got, 80, false)
		table.write(&coloured, 80, true)
		if got.String() != c.want {
			t.Errorf("%s: the table is\n%s\nwant\n%s", c.name, &got, c.want)
		}
		var hops []string
		red := regexp.MustCompile(`(?m)^\x1b\[31m(.*?)\x1b\[0m`)
		for _, found := range red.FindAllStringSubmatch(coloured.String(), -1) {
			hops = append(hops, found[1])
		}
		if fmt.Sprintf("%q", hops) != fmt.Sprintf("%q", c.red) {
			t.Errorf("%s: the red hops are %q, want %q", c.name, hops, c.red)
		}
		if plain := regexp.MustCompile(`\x1b\[\d+m`).ReplaceAllString(coloured.String(), ""); plain != c.want {
			t.Errorf("%s: without its colours, the table is\n%s\nwant\n%s", c.name, plain, c.want)
		}
	}
}

// A table fits into the width, whatever the flows are: in parts, if they pass many hops.
func TestFlowTableFits(t *testing.T) {
	var flows []string
	for i := range config.MaxFlows {
		if i%2 == 0 {
			flows = append(flows, fmt.Sprintf("open 1 %d 9!", 100+i))
		} else {
			flows = append(flows, fmt.Sprintf("timeout 1 %d", 100+i))
		}
	}
	table := newFlowTable(flowsReport(flows...))
	same := make([]string, config.MaxFlows) // one group, with ports that are not a range
	for i := range same {
		same[i] = [...]string{"open 1 9!", "timeout 1"}[i%2]
	}
	for _, width := range []int{40, 80, 200} {
		var text strings.Builder
		table.write(&text, width, false)
		newFlowTable(flowsReport(same...)).write(&text, width, false)
		for line := range strings.Lines(text.String()) {
			if n := len(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("a line has %d columns, want at most %d:\n%s", n, width, line)
			}
		}
		for i := range config.MaxFlows {
			if port := fmt.Sprint(20000 + i); strings.Count(text.String(), port) != 2 { // once in each table
				t.Errorf("the table of %d columns has port %s %d times, want 2:\n%s",
					width, port, strings.Count(text.String(), port), &text)
				break
			}
			if hop := fmt.Sprintf("192.0.2.%d ", 100+i); strings.Count(text.String(), hop) != 1 {
				t.Errorf("the table of %d columns has the hop %s %d times, want 1:\n%s",
					width, hop, strings.Count(text.String(), hop), &text)
				break
			}
		}
	}
}

// --flows must be possible, and fit into the source ports of the module.
func TestCheckFlows(t *testing.T) {
	ports := shaker.PortRange{First: 20000, Last: 20003}
	for _, c := range []struct {
		flows int
		ports shaker.PortRange // of the module
		given shaker.PortRange // with --source-ports
		want  string           // "" for no error
	}{
		{flows: 0},
		{flows: 2},
		{flows: 64},
		{flows: 0, ports: ports},
		{flows: 4, ports: ports},
		{flows: 1, want: "--flows is 1, want 2 to 64, or 0 for the flows of the module"},
		{flows: 65, want: "--flows is 65, want 2 to 64, or 0 for the flows of the module"},
		{flows: -2, want: "--flows is -2, want 2 to 64, or 0 for the flows of the module"},
		{
			flows: 5, ports: ports,
			want: "--flows is 5, but module m has tcp.source_ports 20000-20003, want at most 4 flows, or more ports",
		},
		{
			flows: 4, given: shaker.PortRange{First: 20000, Last: 20000},
			want: "--flows is 4, but --source-ports is 20000-20000, want at least 4 ports",
		},
	} {
		flags := probeFlags{flows: c.flows, ports: sourcePorts(c.given), module: "m"}
		err := flags.checkFlows(&config.TCP{SourcePorts: c.ports})
		if got := fmt.Sprint(err); got != c.want && (err != nil || c.want != "") {
			t.Errorf("--flows=%d with source ports %v: %s, want %q", c.flows, c.ports, got, c.want)
		}
	}
}
