package pages

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// pathOf returns a path with the given addresses of hops, "-" for a hop that did not answer. The last
// address may end with "!" for the target, or with "#" for a router that reports host unreachable.
func pathOf(addresses string) *shaker.Path {
	p := &shaker.Path{}
	for i, a := range strings.Fields(addresses) {
		h := shaker.Hop{TTL: i + 1}
		if a != "-" {
			h.From, h.RTT = netip.MustParseAddr(strings.TrimRight(a, "!#")), time.Duration(i+1)*time.Millisecond
			h.ICMP = shaker.ICMP{From: h.From, Type: 11}
		}
		switch a[len(a)-1] {
		case '!':
			h.ICMP, h.Outcome, p.Reached = shaker.ICMP{}, shaker.Open, h.TTL
		case '#':
			h.ICMP = shaker.ICMP{From: h.From, Type: 3, Code: 1}
		}
		p.Hops = append(p.Hops, h)
	}
	return p
}

func TestTrace(t *testing.T) {
	const same = "same" // the same path as last
	const (
		up   = "10.0.0.1 10.0.0.2 10.0.0.3!"
		half = "10.0.0.1 10.0.0.2"
	)
	for _, test := range []struct {
		name, results string
		last, good    string // "" if there is none
		summary       string
		differs       int  // TTL of the marked hop, 0 for none
		both          bool // whether both paths are shown
	}{
		{name: "a success", results: "o", last: up, good: same, summary: "path: 3 hops"},
		{name: "a failure", results: "r", last: half, summary: "path ends after 2 hops"},
		{name: "one hop", results: "o", last: "10.0.0.1!", good: same, summary: "path: 1 hop"},
		{name: "one router", results: "r", last: "10.0.0.1#", summary: "path ends after 1 hop"},
		{name: "no answer at all", results: "r", last: " ", summary: "path: no hop answered"},
		{
			name: "a failure that was not traced", results: "or",
			last: "10.0.0.1!", good: same, summary: "last good path: 1 hop",
		},
		{
			name: "a success that was not traced", results: "ro",
			last: half, summary: "path of an earlier failure ends after 2 hops",
		},
		{
			name: "a success that was not traced, after one that was", results: "oro",
			last: half, good: "10.0.0.1!", summary: "path of an earlier failure ends after 2 hops",
		},
		{
			name: "two hops differ", results: "or",
			last: "10.0.0.1 10.0.1.2 10.0.1.3", good: up, summary: "path ends after 3 hops", differs: 2, both: true,
		},
		{
			name: "the same hops, but shorter", results: "or",
			last: half, good: up, summary: "path ends after 2 hops", both: true,
		},
		{
			name: "another error of the same router", results: "or",
			last: "10.0.0.1 10.0.0.2#", good: up, summary: "path ends after 2 hops", both: true,
		},
		{
			name: "a hop that no longer answers", results: "or",
			last: "10.0.0.1 - 10.0.1.3", good: up, summary: "path ends after 3 hops", differs: 3, both: true,
		},
		{
			name: "a hop that did not answer then", results: "or",
			last: "10.0.0.1 10.0.0.2 10.0.1.3", good: "10.0.0.1 - 10.0.0.3!",
			summary: "path ends after 3 hops", differs: 3, both: true,
		},
		{
			name: "a longer path", results: "or",
			last: "10.0.0.1 10.0.0.2 10.0.1.3", good: half, summary: "path ends after 3 hops", both: true,
		},
		{
			name: "another path to the target", results: "or",
			last: "10.0.1.1 10.0.0.3!", good: "10.0.0.1 10.0.0.3!", summary: "path: 2 hops", differs: 1, both: true,
		},
		{
			name: "no answer any more", results: "or",
			last: " ", good: "10.0.0.1!", summary: "path: no hop answered", both: true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			tr := track("a:1", test.results, 0)
			tr.Path = pathOf(test.last)
			switch test.good {
			case "":
			case same:
				tr.GoodPath = tr.Path
			default:
				tr.GoodPath = pathOf(test.good)
			}
			r := rowOf(tr)
			got := r.Trace()
			differs := 1 + slices.IndexFunc(got.Hops, func(h hop) bool { return h.Differs })
			if got.Summary != test.summary || differs != test.differs || (got.Good != nil) != test.both {
				t.Errorf("Trace() has the summary %q, marks hop %d, shows both paths: %t; want %q, %d, %t",
					got.Summary, differs, got.Good != nil, test.summary, test.differs, test.both)
			}
			if len(got.Hops) != len(tr.Path.Hops) {
				t.Errorf("Trace() has %d hops, want %d", len(got.Hops), len(tr.Path.Hops))
			}
			if test.both && len(got.Good) != len(tr.GoodPath.Hops) {
				t.Errorf("Trace() has %d good hops, want %d", len(got.Good), len(tr.GoodPath.Hops))
			}
			unmarked := func(h hop) bool { return !h.Differs }
			if marked := slices.DeleteFunc(slices.Concat(got.Hops, got.Good), unmarked); len(marked) > 1 {
				t.Errorf("Trace() marks the hops %v, want one at most", marked)
			}
		})
	}
	r := rowOf(track("a:1", "o", 0))
	if got := r.Trace(); got != nil {
		t.Errorf("Trace() = %+v for a target without a traced path, want nil", got)
	}
}

// The page shows both paths of a failing target, one hop per line, and no path of a target that was
// not traced.
func TestPaths(t *testing.T) {
	down := track("down:1", "or", 0)
	down.Path, down.GoodPath = pathOf("10.0.0.1 - 10.0.1.3#"), pathOf("10.0.0.1 10.0.0.2 10.0.0.3!")
	body := home(t, newPages(down, track("up:1", "o", 0)))
	const want = `
          <details>
            <summary>path ends after 3 hops</summary>
            <div class="paths">
              <div><b>now</b>
<ul class="hops" role="list">
  <li> 1  10.0.0.1  1.00 ms</li>
  <li> 2  *</li>
  <li class="differs"> 3  10.0.1.3  3.00 ms  host_unreachable  <b>differs from here</b></li>
</ul></div>
              <div><b>last good</b>
<ul class="hops" role="list">
  <li> 1  10.0.0.1  1.00 ms</li>
  <li> 2  10.0.0.2  2.00 ms</li>
  <li> 3  10.0.0.3  3.00 ms  open</li>
</ul></div>
            </div>
          </details>`
	if !strings.Contains(body, want) {
		t.Errorf("the page does not contain%s\nIt is:\n%s", want, body)
	}
	if n := strings.Count(body, "<details"); n != 1 {
		t.Errorf("the page shows the paths of %d targets, want 1", n)
	}
}

// A path on which no hop answered has nothing to unfold, unless there is a good path to compare it with.
func TestPathsWithoutHops(t *testing.T) {
	const (
		line    = `<span class="why">path: no hop answered</span>`
		details = `
          <details>
            <summary>path: no hop answered</summary>
            <div class="paths">
              <div><b>last good</b>
<ul class="hops" role="list">
  <li> 1  10.0.0.1  1.00 ms  open</li>
</ul></div>
            </div>
          </details>`
	)
	for _, test := range []struct {
		name, good   string
		want, unwant string
	}{
		{name: "no path at all", good: "", want: line, unwant: "<details>"},
		{name: "an earlier path without hops", good: " ", want: line, unwant: "<details>"},
		{name: "an earlier path", good: "10.0.0.1!", want: details, unwant: line},
	} {
		t.Run(test.name, func(t *testing.T) {
			down := track("down:1", "or", 0)
			down.Path = pathOf(" ")
			if test.good != "" {
				down.GoodPath = pathOf(test.good)
			}
			body := home(t, newPages(down))
			if !strings.Contains(body, test.want) || strings.Contains(body, test.unwant) {
				t.Errorf("the page does not contain %s\nor does contain %s\nIt is:\n%s", test.want, test.unwant, body)
			}
		})
	}
}
