package probe

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// pathOf returns the path of a flow, with the last digits of the hops: "-" for a hop that did not answer. A hop with
// "'" was probed from another port. 9 is the target, which is open, and "9r" its RST. "2!" is an ICMP error of router 2
// that says more than that the TTL was exceeded. Other words are ignored.
func pathOf(port uint16, text string) (path shaker.Path) {
	for _, text := range strings.Fields(text) {
		if strings.Trim(text, "0123456789-r!'") != "" {
			continue
		}
		h := shaker.Hop{TTL: len(path.Hops) + 1, Local: localOf(port), Outcome: shaker.Timeout}
		if other, ok := strings.CutSuffix(text, "'"); ok {
			text, h.Local = other, localOf(1)
		}
		digits := strings.TrimRight(text, "r!")
		switch {
		case text == "-":
		case text == "9":
			h.From, h.Outcome = routerOf(digits), shaker.Open
		case text == "9r":
			h.From, h.Outcome = routerOf(digits), shaker.Refused
		case text == digits+"!":
			h.From, h.Outcome = routerOf(digits), shaker.Unreachable
			h.ICMP = shaker.ICMP{From: h.From, Type: 3, Code: 13}
		default:
			h.From = routerOf(digits)
			h.ICMP = shaker.ICMP{From: h.From, Type: 11}
		}
		path.Hops = append(path.Hops, h)
	}
	return path
}

func routerOf(digits string) netip.Addr { return netip.MustParseAddr("192.0.2." + digits) }

func localOf(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), port)
}

// flowPathOf returns the path of a flow. The flow is open if the target is its last hop, or with "o" in front. With "x"
// in front, it fails nevertheless, and with "i3" because of an ICMP error of router 3. With "l", it has lost a SYN.
func flowPathOf(port uint16, text string) FlowPath {
	path := pathOf(port, text)
	flow := Flow{Port: port, Verdict: Verdict{Result: "timeout"}}
	flow.Handshake.Local, flow.Handshake.Peer = localOf(port), netip.AddrPortFrom(routerOf("9"), 80)
	if own := ownPath(port, path).Hops; len(own) > 0 && own[len(own)-1].Outcome == shaker.Open {
		flow.Result = "open"
	}
	for _, text := range strings.Fields(text) {
		switch sender, ok := strings.CutPrefix(text, "i"); {
		case ok:
			flow.Handshake.ICMP = shaker.ICMP{From: routerOf(sender), Type: 3, Code: 13}
		case text == "x":
			flow.Result = "timeout"
		case text == "o":
			flow.Result = "open"
		case text == "l":
			flow.Handshake.SYNs = 2
		}
	}
	return newFlowPath(flow, &path, nil)
}

// flowPathsOf returns the paths of flows from port 2 on: "3 * 1 9" are three with the same hops.
func flowPathsOf(texts ...string) (paths []FlowPath) {
	for _, text := range texts {
		n := 1
		if count, path, ok := strings.Cut(text, " * "); ok {
			n, _ = strconv.Atoi(count)
			text = path
		}
		for range n {
			paths = append(paths, flowPathOf(uint16(2+len(paths)), text))
		}
	}
	return paths
}

// The hop that fails is the one where traces of failing flows end, or over which more of them lead than by chance. A
// hop that was probed from another port shows nothing: its SYN may have taken another path.
func TestPartings(t *testing.T) {
	for _, c := range []struct {
		name  string
		paths []string
		want  []string // by place: the last shared hop, the failed hop, and the ports
	}{
		{name: "no good flow", paths: []string{"1 2", "1 2"}},
		{name: "no failing flow", paths: []string{"1 2 9", "1 3 9"}},
		{name: "the only good flow fails now", paths: []string{"1 2", "o 1 3"}},

		{name: "the next hop", paths: []string{"1 2", "1 3 4 9"}, want: []string{"1, 2: port 2"}},
		{name: "the first hop", paths: []string{"2", "1 4 9"}, want: []string{"-, 2: port 2"}},
		{name: "the target is next", paths: []string{"1 2", "1 3 9"}, want: []string{"1, 2: port 2"}},
		{
			name: "a dead member of four", paths: []string{"4 * 1 2", "1 3 7 9", "3 * 1 4 7 9", "1 5 7 9", "1 4 7 9"},
			want: []string{"1, 2: ports 2 to 5"},
		},
		{
			name:  "one flow for each member",
			paths: []string{"1 2", "1 3 8 9", "1 4 8 9", "1 5 8 9", "1 6 8 9", "1 7 8 9"},
			want:  []string{"1, 2: port 2"},
		},
		{
			name: "two dead members", paths: []string{"1 3", "2 * 1 2", "1 4 7 9", "1 5 7 9", "1 3"},
			want: []string{"1, 3: ports 2, 7", "1, 2: ports 3, 4"},
		},
		{
			name: "most members are dead", paths: []string{"3 * 1 2", "3 * 1 3", "2 * 1 4", "1 5 7 9", "1 5 7 9"},
			want: []string{"1, 2: ports 2 to 4", "1, 3: ports 5 to 7", "1, 4: ports 8, 9"},
		},
		{
			name: "the second router of a path", paths: []string{"2 * 1 2 4", "1 3 5 7 9", "1 3 5 7 9"},
			want: []string{"1, 2: ports 2, 3"},
		},
		{
			name: "the second router of a path with one flow", paths: []string{"1 2 4", "1 3 5 7 9", "1 3 5 7 9"},
			want: []string{"1, -: port 2"},
		},
		{
			name:  "the second router of a path, of which the first one has other ways",
			paths: []string{"5 * 1 2 4", "1 2 5 8 9", "3 * 1 3 6 8 9", "3 * 1 7 6 8 9"},
			want:  []string{"1, 4: ports 2 to 6"},
		},
		{
			name: "behind a hop that most flows pass", paths: []string{"1 2 5", "1 3 6 9", "1 2 6 9"},
			want: []string{"2, 5: port 2"},
		},
		{
			name: "two levels", paths: []string{"1 2 5", "1 3 5", "1 2 6 7 9", "1 3 6 7 9", "1 2 6 7 9", "1 3 6 7 9"},
			want: []string{"2, 5: port 2", "3, 5: port 3"},
		},
		{name: "a longer way over a shared hop", paths: []string{"1 2 3 4", "1 3 9"}, want: []string{"3, 4: port 2"}},
		{name: "shared at another distance", paths: []string{"1 - 3 4", "1 3 9"}, want: []string{"3, 4: port 2"}},

		{name: "a silent hop", paths: []string{"1 -", "1 3 4 9"}, want: []string{"1, -: port 2"}},
		{name: "from other ports", paths: []string{"1 - 5' 9'", "1 3 4 9"}, want: []string{"1, -: port 2"}},
		{name: "nothing answered", paths: []string{"- -", "1 9"}, want: []string{"-, -: port 2"}},
		{name: "good flows have no answer there", paths: []string{"1 2", "1 - 9"}, want: []string{"1, -: port 2"}},
		{name: "silent before the difference", paths: []string{"1 2 3", "1 - 4 9"}, want: []string{"1, 3: port 2"}},
		{
			name: "a hop that answers few", paths: []string{"1 2", "- 3 9", "- 4 9", "- - 9", "- 3 9"},
			want: []string{"-, 2: port 2"},
		},
		{
			name:  "one flow for each member, two routers long, and the hop behind answers few",
			paths: []string{"1 2 4", "1 3 5 8 9", "1 6 7 - 9"},
			want:  []string{"1, -: port 2"},
		},
		{
			name:  "one flow for each member, and the hop behind answers few",
			paths: []string{"1 2", "1 3 8 9", "1 4 - 9", "1 5 8 9", "1 6 - 9", "1 7 8 9"},
			want:  []string{"1, -: port 2"},
		},
		{
			name:  "many flows over a dead member, and the hop behind answers few",
			paths: []string{"4 * 1 2", "1 3 8 9", "1 4 - 9", "1 5 8 9", "1 4 - 9", "1 3 8 9"},
			want:  []string{"1, 2: ports 2 to 5"},
		},
		{
			name:  "many flows over a dead member that answers few",
			paths: []string{"4 * 1 2", "2 * 1", "5 * 1 3 8 9"},
			want:  []string{"1, 2: ports 2 to 5", "1, -: ports 6, 7"},
		},

		{
			name:  "the target drops a flow, one flow for each member",
			paths: []string{"1 2 8", "1 3 8 9", "1 4 8 9", "1 5 8 9", "1 6 8 9", "1 7 8 9"},
			want:  []string{"8, -: port 2"},
		},
		{
			name:  "the target drops some flows",
			paths: []string{"1 2 8", "1 3 8", "1 4 8", "1 2 8 9", "1 3 8 9", "1 4 8 9", "1 3 8 9", "1 5 8 9"},
			want:  []string{"8, -: ports 2 to 4"},
		},
		{
			name:  "the target drops all flows over one member, which forwards them",
			paths: []string{"4 * 1 2 8", "4 * 1 3 8 9", "4 * 1 4 8 9"},
			want:  []string{"8, -: ports 2 to 5"},
		},
		{
			name:  "the target drops a flow, and the router before it answers from the address of each link",
			paths: []string{"1 2 12", "1 3 13 9", "1 4 14 9", "1 5 15 9", "1 6 16 9"},
			want:  []string{"1, -: port 2"},
		},
		{
			name: "the target drops some flows, and the router before it answers from the address of each link",
			paths: []string{"2 * 1 2 12", "1 3 13", "2 * 1 4 14", "1 5 15",
				"1 3 13 9", "2 * 1 4 14 9", "1 5 15 9", "3 * 1 6 16 9"},
			want: []string{"1, -: ports 2, 3", "14, -: ports 5, 6", "13, -: port 4", "15, -: port 7"},
		},
		{
			name:  "the last router drops some flows",
			paths: []string{"2 * 1 2", "1 3", "1 4", "2 * 1 3 8 9", "1 4 8 9", "2 * 1 5 8 9"},
			want:  []string{"1, -: ports 2, 3", "3, -: port 4", "4, -: port 5"},
		},
		{
			name:  "the target rejects a flow",
			paths: []string{"1 2 8 9r", "1 3 8 9", "1 4 8 9", "1 5 8 9", "1 6 8 9", "1 7 8 9"},
			want:  []string{"8, -: port 2"},
		},
		{
			name:  "the target rejects a flow, behind a silent router",
			paths: []string{"1 2 - 9r", "1 3 8 9", "1 4 8 9", "1 5 8 9"},
			want:  []string{"1, -: port 2"},
		},
		{name: "one way for all", paths: []string{"1 2 3", "4 * 1 2 3 9"}, want: []string{"3, -: port 2"}},
		{name: "random loss", paths: []string{"x 1 2 8 9", "1 3 8 9", "1 4 8 9", "1 5 8 9"}},
		{
			name:  "random loss, and a dead member",
			paths: []string{"x 1 3 8 9", "1 2", "1 2", "1 3 8 9", "1 4 8 9"},
			want:  []string{"1, 2: ports 3, 4"},
		},

		{
			name:  "a member that loses half, good flows pass it as well",
			paths: []string{"2 * 1 2", "1 2 8", "x 1 2 8 9", "1 2 8 9", "4 * 1 3 8 9", "3 * 1 4 8 9"},
			want:  []string{"1, 2: ports 2 to 5"},
		},
		{
			name:  "a member that loses some, and the traces get through",
			paths: []string{"4 * x 1 2 8 9", "1 2 8 9", "4 * 1 3 8 9", "4 * 1 4 8 9"},
			want:  []string{"1, 2: ports 2 to 5"},
		},
		{
			name:  "a member that loses half, and flows with a retransmission show it",
			paths: []string{"2 * x 1 2 8 9", "2 * l 1 2 8 9", "1 2 8 9", "4 * 1 3 8 9", "4 * 1 4 8 9"},
			want:  []string{"1, 2: ports 2, 3"},
		},
		{
			name:  "too little to show that a member loses half",
			paths: []string{"2 * x 1 2 8 9", "1 2 8 9", "4 * 1 3 8 9", "4 * 1 4 8 9"},
		},
		{
			name:  "all good flows have lost a SYN",
			paths: []string{"1 2", "l 1 3 8 9", "l 1 4 8 9"},
			want:  []string{"1, 2: port 2"},
		},
		{
			name: "a member that loses half, and the router behind it answers from the address of each link",
			paths: []string{"2 * 1 2", "3 * 1 2 12", "x 1 2 12 9", "1 2 - 9", "1 2 12 9",
				"3 * 1 3 13 9", "3 * 1 4 14 9"},
			want: []string{"1, 2: ports 2 to 7"},
		},
		{
			name:  "a member that loses half, and a good flow has no answer from the router behind it",
			paths: []string{"4 * 1 2 12", "1 2 - 9", "4 * 1 3 13 9", "3 * 1 4 14 9"},
			want:  []string{"1, 2: ports 2 to 5"},
		},
		{
			name:  "one of two members loses half",
			paths: []string{"3 * 1 2", "1 2 8", "x 1 2 8 9", "3 * 1 2", "2 * 1 2 8 9", "6 * 1 3 8 9"},
			want:  []string{"1, 2: ports 2 to 9"},
		},

		{
			name: "a member rejects by RST", paths: []string{"2 * 1 2 9r", "1 3 8 9", "1 4 8 9", "1 5 8 9"},
			want: []string{"1, 2: ports 2, 3"},
		},
		{
			name: "a member rejects by ICMP", paths: []string{"2 * i2 1 2 2!", "1 3 8 9", "1 4 8 9", "1 5 8 9"},
			want: []string{"1, 2: ports 2, 3"},
		},
		{
			name:  "the trace does not show the member that rejects",
			paths: []string{"i2 -", "i2 1", "1 3 8 9", "1 4 8 9"},
			want:  []string{"1, 2: ports 2, 3"},
		},
		{
			name: "the handshake does not show it", paths: []string{"1 2 2!", "1 3 8 9", "1 4 8 9", "1 5 8 9"},
			want: []string{"1, 2: port 2"},
		},
		{
			name: "a router that all flows pass rejects some", paths: []string{"i8 1 2 8 8!", "1 2 8 9", "1 4 8 9"},
			want: []string{"2, 8: port 2"},
		},
		{
			name: "only the trace shows it", paths: []string{"1 2 8 8!", "1 2 8 9", "1 4 8 9"},
			want: []string{"2, 8: port 2"},
		},
		{
			name: "the target rejects by ICMP", paths: []string{"i9 1 2 8", "1 3 8 9", "1 4 8 9", "1 5 8 9"},
			want: []string{"8, -: port 2"},
		},
	} {
		r := &Report{Request: &Request{}}
		r.Module.TCP.ValidResults = []string{"open"}
		r.FlowPaths = flowPathsOf(c.paths...)
		var got []string
		for _, p := range r.Partings() {
			name := func(h shaker.Hop) string {
				if !h.From.IsValid() {
					return "-"
				}
				return strings.TrimPrefix(h.From.String(), "192.0.2.")
			}
			got = append(got, fmt.Sprintf("%s, %s: %s", name(p.Shared), name(p.Failed), ListPorts(p.Ports)))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: the paths %q part at %q, want %q", c.name, c.paths, got, c.want)
		}
	}
}

// Of many flows, the ones to trace are good flows without a retransmission, and flows that fail or have lost a SYN.
func TestFlowsToCompare(t *testing.T) {
	for _, c := range []struct{ name, flows, want string }{
		{name: "all fail", flows: "xxx", want: "[]"},
		{name: "none fails", flows: "ooo", want: "[]"},
		{name: "one fails", flows: "oxo", want: "[0 2]"},
		{name: "good and failing ones in turns", flows: "xoxxo", want: "[1 2 4 3]"},
		{name: "with retransmissions", flows: "xlolo", want: "[2 1 4 3]"},
		{name: "only with retransmissions", flows: "xll", want: "[1 2]"},
		{name: "failing ones before retransmissions", flows: "xlxo", want: "[3 2 1]"},
		{
			name: "limits", flows: strings.Repeat("x", 20) + strings.Repeat("l", 20) + strings.Repeat("o", 20),
			want: "[40 1 41 2 42 3 43 4 44 5 45 6 46 7 47]",
		},
	} {
		r := &Report{Request: &Request{}}
		r.Module.TCP.ValidResults = []string{"open"}
		for i, kind := range c.flows {
			flow := flowPathOf(uint16(1+i), map[rune]string{'x': "1", 'o': "9", 'l': "l 9"}[kind]).Flow
			r.Flows = append(r.Flows, flow)
			if r.Result == "" || kind == 'x' && r.Result == "open" {
				r.Verdict.Result, r.Handshake = flow.Result, flow.Handshake
			}
		}
		got := []int{}
		for _, f := range r.flowsToCompare() {
			got = append(got, int(f.Port)-1)
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: of the flows %s, the ones to compare are %d, want %s", c.name, c.flows, got, c.want)
		}
	}
}

// A trace counts those hops of a flow that were probed from its port.
func TestCount(t *testing.T) {
	for _, c := range []struct {
		path, want string
		raw        bool
		err        error
	}{
		{path: "1 2 9", want: "1/1 1/1 1/1"},
		{path: "1 - 9", want: "1/1 0/1 1/1"},
		{path: "1 2", want: "1/1 1/1 0/1"},
		{path: "1 2 -", want: "1/1 1/1 0/1"},
		{path: "1 - 3' 9'", want: "1/1 0/1"},
		{path: "1 2' 3' 9'", want: "1/1"},
		{path: "", want: "0/1"},
		{path: "1 2 3 4", want: "1/1 1/1 1/1 1/1"}, // the last one that was probed
		{path: "1 2", want: "1/1 1/1 0/1 0/1", raw: true},
		{path: "1 9", want: "1/1 1/1", raw: true},
		{path: "1 2", want: "1/1 1/1", err: context.DeadlineExceeded},
	} {
		path := pathOf(2, c.path)
		p := newFlowPath(Flow{Port: 2}, &path, c.err)
		p.count(&path, &shaker.TraceOptions{MaxHops: 4}, c.raw)
		var got []string
		for _, n := range p.Counts {
			got = append(got, fmt.Sprintf("%d/%d", n.Answers, n.Probes))
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("the path %q, raw: %t, error %v: answers %s, want %s", c.path, c.raw, c.err, text, c.want)
		}
	}
	sum := AddCounts([]HopCount{{Probes: 1, Answers: 1}}, []HopCount{{Probes: 2, Answers: 1}, {Probes: 1}})
	if fmt.Sprint(sum) != "[{3 2} {1 0}]" {
		t.Errorf("the sum of the counts is %v, want [{3 2} {1 0}]", sum)
	}
}

func TestDescribeFlows(t *testing.T) {
	for _, c := range []struct{ results, want string }{
		{results: "oooo", want: "all 4 flows succeeded"},
		{results: "xx", want: "both flows failed"},
		{results: "oo", want: "both flows succeeded"},
		{results: " o", want: "the only flow succeeded"},
		{results: "xxx", want: "all 3 flows failed"},
		{results: "oxoo", want: "1 of 4 flows failed: port 20001"},
		{results: "xxoxo xxx", want: "6 of 8 flows failed: ports 20000, 20001, 20003, 20006 to 20008"},
	} {
		f := &history.Flows{}
		for i, result := range c.results {
			if result != ' ' {
				f.Add(history.Flow{Port: 20000 + uint16(i), Success: result == 'o'})
			}
		}
		if got := DescribeFailedFlows(f); got != c.want {
			t.Errorf("DescribeFailedFlows of %q = %q, want %q", c.results, got, c.want)
		}
		if want, _, _ := strings.Cut(c.want, ":"); DescribeFlows(f) != want {
			t.Errorf("DescribeFlows of %q = %q, want %q", c.results, DescribeFlows(f), want)
		}
	}
}
