package pages

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// pathOf returns a path of hops that are given by their addresses, - for one that is silent.
// After the last one, "!" is the target, and "#" a router that finds no host.
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
	const same = "same" // as the last path
	for _, test := range []struct {
		name, results string
		last, good    string // "" if there is none
		summary       string
		differs       int // the TTL that is marked, 0 for none
		beside        bool
	}{
		{"a success", "o", "10.0.0.1 10.0.0.2 10.0.0.3!", same, "path: 3 hops", 0, false},
		{"a failure", "r", "10.0.0.1 10.0.0.2", "", "path ends after 2 hops", 0, false},
		{"one hop", "o", "10.0.0.1!", same, "path: 1 hop", 0, false},
		{"one router", "r", "10.0.0.1#", "", "path ends after 1 hop", 0, false},
		{"nobody", "r", " ", "", "path: no hop answered", 0, false},
		{"a failure that was not traced", "or", "10.0.0.1!", same, "last good path: 1 hop", 0, false},
		{"a success that was not traced", "ro", "10.0.0.1 10.0.0.2", "", "path of an earlier failure ends after 2 hops", 0, false},
		{"likewise, after one that was", "oro", "10.0.0.1 10.0.0.2", "10.0.0.1!", "path of an earlier failure ends after 2 hops", 0, false},

		{"the first of two that differ", "or", "10.0.0.1 10.0.1.2 10.0.1.3", "10.0.0.1 10.0.0.2 10.0.0.3!", "path ends after 3 hops", 2, true},
		{"the same, as far as it goes", "or", "10.0.0.1 10.0.0.2", "10.0.0.1 10.0.0.2 10.0.0.3!", "path ends after 2 hops", 0, true},
		{"another error, of the same router", "or", "10.0.0.1 10.0.0.2#", "10.0.0.1 10.0.0.2 10.0.0.3!", "path ends after 2 hops", 0, true},
		{"silent now", "or", "10.0.0.1 - 10.0.1.3", "10.0.0.1 10.0.0.2 10.0.0.3!", "path ends after 3 hops", 3, true},
		{"silent then", "or", "10.0.0.1 10.0.0.2 10.0.1.3", "10.0.0.1 - 10.0.0.3!", "path ends after 3 hops", 3, true},
		{"longer", "or", "10.0.0.1 10.0.0.2 10.0.1.3", "10.0.0.1 10.0.0.2", "path ends after 3 hops", 0, true},
		{"another way to the target", "or", "10.0.1.1 10.0.0.3!", "10.0.0.1 10.0.0.3!", "path: 2 hops", 1, true},
		{"nobody any more", "or", " ", "10.0.0.1!", "path: no hop answered", 0, true},
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
			r := newRow(tr, noon)
			got := r.Trace()
			differs := 1 + slices.IndexFunc(got.Hops, func(h hop) bool { return h.Differs })
			if got.Summary != test.summary || differs != test.differs || (got.Good != nil) != test.beside {
				t.Errorf("%q, differs at %d, beside the good one: %t; want %q, %d, %t",
					got.Summary, differs, got.Good != nil, test.summary, test.differs, test.beside)
			}
			if len(got.Hops) != len(tr.Path.Hops) || test.beside && len(got.Good) != len(tr.GoodPath.Hops) {
				t.Errorf("%d and %d hops", len(got.Hops), len(got.Good))
			}
			if marks := slices.DeleteFunc(slices.Concat(got.Hops, got.Good), func(h hop) bool { return !h.Differs }); len(marks) > 1 {
				t.Errorf("%d hops are marked", len(marks))
			}
		})
	}
	r := newRow(track("a:1", "o", 0), noon)
	if got := r.Trace(); got != nil {
		t.Errorf("of a path that was not traced: %v", got)
	}
}

// The page shows both paths of a target that fails, a hop in each line, and none of one
// that was not traced.
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
		t.Errorf("the page lacks %s\n%s", want, body)
	}
	if n := strings.Count(body, "<details"); n != 1 {
		t.Errorf("there are %d paths", n)
	}
}
