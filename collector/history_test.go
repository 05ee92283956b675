package collector

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// outcomes adds records to the history, a second apart: o is open, anything else not.
func outcomes(h *History, start int, target, results string) {
	for i, r := range results {
		record := Record{Time: time.Unix(int64(start+i), 0), Result: "open", Success: true}
		if r != 'o' {
			record.Result, record.Success = string(r), false
		}
		h.add(target, "tcp_connect", record, nil)
	}
}

// kept returns the results that the history has of a target, oldest first.
func kept(t *testing.T, h *History, target string) string {
	t.Helper()
	var text string
	for _, track := range h.Tracks(target, "") {
		for _, record := range track.Records {
			text += record.Result[:1]
		}
	}
	return text
}

func TestHistory(t *testing.T) {
	h := NewHistory(1000)
	outcomes(h, 100, "a:1", "oort")
	outcomes(h, 200, "b:1", "o")
	h.add("b:1", "other", Record{Time: time.Unix(300, 0), Result: "timeout"}, nil)

	if got := len(h.Tracks("", "")); got != 3 {
		t.Errorf("there are %d tracks, want 3", got)
	}
	if got := len(h.Tracks("b:1", "")); got != 2 {
		t.Errorf("there are %d tracks of b:1, want 2", got)
	}
	if got := len(h.Tracks("", "other")); got != 1 {
		t.Errorf("there are %d tracks of module other, want 1", got)
	}
	if got := len(h.Tracks("c:1", "")); got != 0 {
		t.Errorf("there are %d tracks of c:1, which was never probed", got)
	}
	if got, want := kept(t, h, "a:1"), "oort"; got != want {
		t.Errorf("the results of a:1 are %s, want %s", got, want)
	}
	a, b := h.Tracks("a:1", "")[0], h.Tracks("b:1", "tcp_connect")[0]
	if a.First.Unix() != 100 || a.Changed.Unix() != 103 || a.Last().Result != "t" {
		t.Errorf("a:1 was first probed at %d, last changed at %d to %s; want 100, 103, t", a.First.Unix(), a.Changed.Unix(), a.Last().Result)
	}
	if !a.Whole.IsZero() || !h.Lost().IsZero() {
		t.Errorf("until %v records of a:1 were forgotten, and at %v a target; want none", a.Whole, h.Lost())
	}
	if !b.Changed.IsZero() {
		t.Errorf("b:1 changed at %v, want never", b.Changed)
	}
}

// What is forgotten first.
func TestHistoryForgets(t *testing.T) {
	const many = 200
	for _, test := range []struct {
		name  string
		limit int
		fill  func(h *History)
		want  map[string]string
	}{
		{"nothing is kept", 0,
			func(h *History) { outcomes(h, 0, "a:1", "oro") },
			map[string]string{"a:1": ""}},
		{"successes before failures that are older", 4,
			func(h *History) { outcomes(h, 0, "a:1", "rrooooooooo") },
			map[string]string{"a:1": "rroo"}},
		{"of all targets, the oldest success of which there is another", 4,
			func(h *History) {
				outcomes(h, 0, "a:1", "oo")
				outcomes(h, 10, "b:1", "r")
				outcomes(h, 20, "c:1", "oo")
				outcomes(h, 30, "d:1", "o")
			},
			map[string]string{"a:1": "o", "b:1": "r", "c:1": "o", "d:1": "o"}},
		{"failures that have more than half of the room", 4,
			func(h *History) {
				outcomes(h, 0, "a:1", "r")
				outcomes(h, 10, "b:1", "oo")
				outcomes(h, 20, "c:1", "tttt")
			},
			map[string]string{"a:1": "r", "b:1": "oo", "c:1": "t"}},
		{"the only record of a target after those of others", 4,
			func(h *History) {
				outcomes(h, 0, "a:1", "o")
				outcomes(h, 10, "b:1", "ooooo")
				outcomes(h, 20, "c:1", "r")
			},
			map[string]string{"a:1": "o", "b:1": "oo", "c:1": "r"}},
		{"targets, where there is no room for more", 2,
			func(h *History) {
				outcomes(h, 0, "a:1", "o")
				outcomes(h, 10, "b:1", "o")
				outcomes(h, 20, "c:1", "o")
			},
			map[string]string{"c:1": "o"}},
		{"a target's own successes, not its failures", many * 10,
			func(h *History) {
				outcomes(h, 0, "a:1", "rt")
				for i := range many {
					outcomes(h, 10+i, "a:1", "o")
				}
				outcomes(h, 1000, "b:1", "o")
			},
			map[string]string{"a:1": "rt" + letters("o", perTrack), "b:1": "o"}},
		{"a target's own failures, not its successes", many * 10,
			func(h *History) {
				outcomes(h, 0, "a:1", "o")
				for i := range many {
					outcomes(h, 10+i, "a:1", "r")
				}
			},
			map[string]string{"a:1": "o" + letters("r", perTrack)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := NewHistory(test.limit)
			test.fill(h)
			for target, want := range test.want {
				if got := kept(t, h, target); got != want {
					t.Errorf("the results of %s are %q, want %q", target, got, want)
				}
			}
		})
	}
}

func letters(letter string, n int) string {
	return string(slices.Repeat([]byte(letter), n))
}

// It is known since when the history of a target is whole, and that a target was lost.
func TestHistoryTellsWhatIsMissing(t *testing.T) {
	h := NewHistory(100)
	outcomes(h, 1000, "a:1", "r"+letters("o", perTrack+3))
	if got := h.Tracks("a:1", "")[0].Whole.Unix(); got != 1003 {
		t.Errorf("whole since %d, want the third success, 1003", got)
	}
	h = NewHistory(1)
	outcomes(h, 1000, "a:1", "o")
	outcomes(h, 1001, "b:1", "o")
	if h.Lost().IsZero() || kept(t, h, "b:1") == kept(t, h, "a:1") {
		t.Errorf("lost: %v", h.Lost())
	}
}

// Whatever is added, there are never more records than may be, and no target without one.
func TestHistoryIsBounded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for _, limit := range []int{1, 2, 3, 50, 777} {
		h := NewHistory(limit)
		for i := range 5000 {
			outcomes(h, i, fmt.Sprintf("%d:1", random.IntN(40)*random.IntN(40)), string("oort"[random.IntN(4)]))
			n := 0
			for _, track := range h.Tracks("", "") {
				n += len(track.Records)
				if !slices.IsSortedFunc(track.Records, func(a, b Record) int { return a.Time.Compare(b.Time) }) || len(track.Records) == 0 {
					t.Fatalf("limit %d: %s has the records %v", limit, track.Target, track.Records)
				}
			}
			if n > limit || i == 0 && n != 1 {
				t.Fatalf("limit %d: there are %d records after %d", limit, n, i+1)
			}
		}
	}
}
