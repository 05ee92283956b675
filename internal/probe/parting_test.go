package probe

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// flowPathOf returns the path of a flow from port 1, with the last digits of the hops: "-" for a hop that did not
// answer. A hop with "'" was probed from another port.
func flowPathOf(hops string) FlowPath {
	path := &shaker.Path{}
	for i, text := range strings.Fields(hops) {
		h := shaker.Hop{TTL: i + 1, Local: netip.MustParseAddrPort("198.51.100.1:1")}
		if other, ok := strings.CutSuffix(text, "'"); ok {
			text, h.Local = other, netip.MustParseAddrPort("198.51.100.1:2")
		}
		if text != "-" {
			h.From = netip.MustParseAddr("192.0.2." + text)
			if text != "9" { // the target
				h.ICMP = shaker.ICMP{From: h.From, Type: 11}
			}
		}
		path.Hops = append(path.Hops, h)
	}
	return newFlowPath(Flow{Port: 1}, path, nil)
}

// The paths part where only those of flows that fail go on. A hop that was probed from another port shows nothing: its
// SYN may have taken another path.
func TestPart(t *testing.T) {
	for _, c := range []struct {
		name, failing string
		good          []string
		want          string
	}{
		{
			name: "the next hop", failing: "1 2", good: []string{"1 3 9"},
			want: "paths part after 192.0.2.1 (hop 1): only failing flows pass 192.0.2.2 (hop 2)",
		},
		{
			name: "the first hop", failing: "2", good: []string{"1 9"},
			want: "paths part: only failing flows pass 192.0.2.2 (hop 1)",
		},
		{
			name: "a silent hop", failing: "1 -", good: []string{"1 3 9"},
			want: "paths part after 192.0.2.1 (hop 1): the next hop of failing flows is unknown",
		},
		{
			name: "a silent hop, and others from another port", failing: "1 - 5' 9'", good: []string{"1 3 4 9"},
			want: "paths part after 192.0.2.1 (hop 1): the next hop of failing flows is unknown",
		},
		{
			name: "nothing answered", failing: "- -", good: []string{"1 9"},
			want: "paths have no known hop in common, and the first hop of failing flows is unknown",
		},
		{
			name: "a longer way over the same hop", failing: "1 2 3 4", good: []string{"1 3 9"},
			want: "paths part after 192.0.2.1 (hop 1): only failing flows pass 192.0.2.2 (hop 2)",
		},
		{
			// One good flow only would accuse hop 2, over which other good flows go.
			name: "several good flows", failing: "1 2 5", good: []string{"1 3 6 9", "1 2 6 9"},
			want: "paths part after 192.0.2.2 (hop 2): only failing flows pass 192.0.2.5 (hop 3)",
		},
		{
			name: "the good flow has a silent hop", failing: "1 2", good: []string{"1 - 9"},
			want: "paths part after 192.0.2.1 (hop 1): the next hop of failing flows is unknown",
		},
		{
			name: "a silent hop before the difference", failing: "1 2 3", good: []string{"1 - 4 9"},
			want: "paths part after 192.0.2.1 (hop 1): only failing flows pass 192.0.2.3 (hop 3)",
		},
		{
			name: "a hop that answers few", failing: "1 2", good: []string{"- 3 9", "- 4 9", "- - 9", "- 3 9"},
			want: "paths part: only failing flows pass 192.0.2.2 (hop 2)",
		},
		{
			name: "a hop that good flows have at another distance", failing: "1 - 3 4", good: []string{"1 3 9"},
			want: "paths part after 192.0.2.1 (hop 1): only failing flows pass 192.0.2.4 (hop 4)",
		},
		{
			name: "behind the end of the good paths", failing: "1 3 2", good: []string{"1 9"},
			want: "paths part after 192.0.2.1 (hop 1): only failing flows pass 192.0.2.3 (hop 2)",
		},
	} {
		var good []FlowPath
		for _, hops := range c.good {
			good = append(good, flowPathOf(hops))
		}
		var p Parting
		p.part(flowPathOf(c.failing), good...)
		if got := p.String(); got != c.want {
			t.Errorf("%s: the failing path %q and the good ones %q: %s\nwant %s",
				c.name, c.failing, c.good, got, c.want)
		}
	}
}

// A flow without an answer where others have one is traced again: its routers may have sent too many ICMP errors.
func TestSilentWhereOthersAnswer(t *testing.T) {
	for _, c := range []struct {
		paths []string
		want  string
	}{
		{paths: []string{"1 2 9", "1 3 9"}, want: "[]"},
		{paths: []string{"1 - 9", "1 - 9"}, want: "[]"}, // a router that never answers
		{paths: []string{"1 - 9", "1 2 9", "- 3 9"}, want: "[0 2]"},
		{paths: []string{"1 2", "1 3 9"}, want: "[0]"},
		{paths: []string{"1 2 5' 9'", "1 3 4 9"}, want: "[0]"},
		{paths: []string{"1 2", "1 2"}, want: "[]"}, // all fail at the same place
		{paths: []string{"1 9", "1 3 9"}, want: "[]"},
		{paths: []string{"", "1 9"}, want: "[0]"},
	} {
		r := &Report{}
		for _, hops := range c.paths {
			r.FlowPaths = append(r.FlowPaths, flowPathOf(hops))
		}
		if got := fmt.Sprint(r.silentWhereOthersAnswer()); got != c.want {
			t.Errorf("of the paths %q, the flows %s are traced again, want %s", c.paths, got, c.want)
		}
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
