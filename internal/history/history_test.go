package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// addAll adds records to the history, a second apart. In results, o is open, and any other letter
// is a failure.
func addAll(h *History, start int, target, results string) {
	for i, r := range results {
		record := Record{Time: time.Unix(int64(start+i), 0), Result: "open", Success: true}
		if r != 'o' {
			record.Result, record.Success = string(r), false
		}
		h.Add(target, "tcp_connect", record, nil)
	}
}

// resultsOf returns the first letters of a target's results in the history, oldest first.
func resultsOf(h *History, target string) string {
	var letters string
	for _, track := range h.Tracks(target, "") {
		for _, record := range track.Records {
			letters += record.Result[:1]
		}
	}
	return letters
}

// The history returns the tracks of all targets, of one target, or of one module. A track has the records of the
// Nothing is known about the time of a gap: the records before it are incomplete, and the result may have changed.
func TestGap(t *testing.T) {
	h := New(100)
	addAll(h, 100, "a:1", "ott")
	h.Add("a:1", "tcp_connect", Record{Time: time.Unix(200, 0), Result: "timeout", AfterGap: true}, nil)
	a := h.Tracks("a:1", "")[0]
	if a.Complete != 3 || a.Since.Unix() != 200 || a.Changed {
		t.Errorf("after a gap, Complete = %d, Since = %d, Changed = %t; want 3, 200, false",
			a.Complete, a.Since.Unix(), a.Changed)
	}
	h.Add("a:1", "tcp_connect", Record{Time: time.Unix(201, 0), Result: "timeout"}, nil)
	a = h.Tracks("a:1", "")[0]
	if a.Complete != 3 || a.Since.Unix() != 200 || len(a.Records) != 5 {
		t.Errorf("after one more record, Complete = %d, Since = %d, %d records; want 3, 200, 5",
			a.Complete, a.Since.Unix(), len(a.Records))
	}
}

// target, the latest one, and the time since which the result has been the same.
func TestHistory(t *testing.T) {
	h := New(1000)
	addAll(h, 100, "a:1", "oort")
	addAll(h, 200, "b:1", "oo")
	h.Add("b:1", "other", Record{Time: time.Unix(300, 0), Result: "timeout"}, nil)

	for _, test := range []struct {
		target, module string
		want           int
	}{
		{target: "", module: "", want: 3},
		{target: "b:1", module: "", want: 2},
		{target: "", module: "other", want: 1},
		{target: "a:1", module: "other", want: 0},
		{target: "c:1", module: "", want: 0},
	} {
		if got := len(h.Tracks(test.target, test.module)); got != test.want {
			t.Errorf("Tracks(%q, %q) returned %d tracks, want %d", test.target, test.module, got, test.want)
		}
	}
	if got, want := resultsOf(h, "a:1"), "oort"; got != want {
		t.Errorf("the history of a:1 has the results %s, want %s", got, want)
	}
	a, b := h.Tracks("a:1", "")[0], h.Tracks("b:1", "tcp_connect")[0]
	if got := a.Last().Result; got != "t" {
		t.Errorf("the last result of a:1 is %s, want t", got)
	}
	if got := a.Since.Unix(); got != 103 || !a.Changed {
		t.Errorf("a:1 has Since = %d, Changed = %t; want 103, true", got, a.Changed)
	}
	if got := b.Since.Unix(); got != 200 || b.Changed {
		t.Errorf("b:1, whose result never changed, has Since = %d, Changed = %t; want 200, false", got, b.Changed)
	}
	if a.Complete != 0 || !h.Lost().IsZero() {
		t.Errorf("Complete of a:1 = %d, Lost() = %v; want 0 and zero, because nothing was dropped",
			a.Complete, h.Lost())
	}
}

// A full history drops records in the documented order.
func TestHistoryDropsRecords(t *testing.T) {
	const day = 24 * 60 * 60 // seconds
	for _, test := range []struct {
		name  string
		limit int
		fill  func(h *History)
		want  map[string]string
	}{
		{
			name:  "limit 0 keeps nothing",
			limit: 0,
			fill:  func(h *History) { addAll(h, 0, "a:1", "oro") },
			want:  map[string]string{"a:1": ""},
		},
		{
			name:  "successes before older failures",
			limit: 4,
			fill:  func(h *History) { addAll(h, 0, "a:1", "rrooooooooo") },
			want:  map[string]string{"a:1": "rroo"},
		},
		{
			name:  "successes of any target that has an earlier one",
			limit: 4,
			fill: func(h *History) {
				addAll(h, 0, "a:1", "oo")
				addAll(h, 10, "b:1", "r")
				addAll(h, 20, "c:1", "oo")
				addAll(h, 30, "d:1", "o")
			},
			want: map[string]string{"a:1": "o", "b:1": "r", "c:1": "o", "d:1": "o"},
		},
		{
			name:  "failures once there are more of them than successes",
			limit: 6,
			fill: func(h *History) {
				addAll(h, 0, "a:1", "r")
				addAll(h, 10, "b:1", "oooo")
				addAll(h, 20, "c:1", "tttttttttt")
			},
			want: map[string]string{"a:1": "r", "b:1": "oo", "c:1": "ttt"},
		},
		{
			name:  "the target that has most records, however often it is probed",
			limit: 8,
			fill: func(h *History) {
				addAll(h, 0, "slow:1", "oooo")
				addAll(h, 10, "fast:1", strings.Repeat("o", 100))
			},
			want: map[string]string{"slow:1": "oooo", "fast:1": "oooo"},
		},
		{
			name:  "the latest record of a target after the others",
			limit: 4,
			fill: func(h *History) {
				addAll(h, 0, "a:1", "o")
				addAll(h, 10, "b:1", "ooooo")
				addAll(h, 20, "c:1", "r")
			},
			want: map[string]string{"a:1": "o", "b:1": "oo", "c:1": "r"},
		},
		{
			name:  "the least recently probed target if each has one record",
			limit: 2,
			fill: func(h *History) {
				addAll(h, 0, "a:1", "o")
				addAll(h, 10, "b:1", "r")
				addAll(h, 20, "a:1", "o")
				addAll(h, 30, "c:1", "o")
			},
			want: map[string]string{"a:1": "o", "b:1": "", "c:1": "o"},
		},
		{
			name:  "a target that was not probed for a day before anything else",
			limit: 4,
			fill: func(h *History) {
				addAll(h, 0, "a:1", "rr")
				addAll(h, day+1, "b:1", "oo")
				addAll(h, day+3, "c:1", "o")
			},
			want: map[string]string{"a:1": "", "b:1": "oo", "c:1": "o"},
		},
		{
			name:  "no target for its age while there is room",
			limit: 4,
			fill: func(h *History) {
				addAll(h, 0, "a:1", "rr")
				addAll(h, 2*day, "b:1", "oo")
			},
			want: map[string]string{"a:1": "rr", "b:1": "oo"},
		},
		{
			name:  "the 61st success of a target, but not its failures",
			limit: 2000,
			fill: func(h *History) {
				addAll(h, 0, "a:1", "rt"+strings.Repeat("o", 200))
				addAll(h, 1000, "b:1", "o")
			},
			want: map[string]string{"a:1": "rt" + strings.Repeat("o", 60), "b:1": "o"},
		},
		{
			name:  "the 61st failure of a target, but not its successes",
			limit: 2000,
			fill:  func(h *History) { addAll(h, 0, "a:1", "o"+strings.Repeat("r", 200)) },
			want:  map[string]string{"a:1": "o" + strings.Repeat("r", 60)},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := New(test.limit)
			test.fill(h)
			for target, want := range test.want {
				if got := resultsOf(h, target); got != want {
					t.Errorf("the history of %s has the results %q, want %q", target, got, want)
				}
			}
		})
	}
}

// The history reports the first record after which none is missing, and when it lost a target.
func TestHistoryReportsWhatIsMissing(t *testing.T) {
	h := New(100)
	addAll(h, 1000, "a:1", "r"+strings.Repeat("o", 63))
	if track := h.Tracks("a:1", "")[0]; track.Complete != 1 || track.Records[1].Time.Unix() != 1004 {
		t.Errorf("Complete = %d, at %d; want 1, at 1004, after the three dropped successes",
			track.Complete, track.Records[track.Complete].Time.Unix())
	}

	h = New(1)
	addAll(h, 1000, "a:1", "o")
	addAll(h, 1001, "b:1", "o")
	if got := h.Lost().Unix(); got != 1001 || resultsOf(h, "a:1") != "" || resultsOf(h, "b:1") != "o" {
		t.Errorf("Lost() = %d with a:1 = %q, b:1 = %q; want 1001, none, o",
			got, resultsOf(h, "a:1"), resultsOf(h, "b:1"))
	}

	h = New(1)
	addAll(h, 1000, "a:1", "o")
	addAll(h, 200_000, "b:1", "o")
	if !h.Lost().IsZero() || resultsOf(h, "a:1") != "" {
		t.Errorf("Lost() = %v with a:1 = %q; want zero, none: a:1 was not probed for a day",
			h.Lost(), resultsOf(h, "a:1"))
	}
}

// For random probes, there are never more records than the limit, and every track is correct: it
// has the target's latest record, and from Complete on it has all records up to the latest one.
func TestHistoryIsBounded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for _, limit := range []int{1, 2, 3, 50, 777} {
		h := New(limit)
		added := make(map[string][]int64) // times of all records, by target
		for i := range 5000 {
			target := fmt.Sprintf("%d:1", random.IntN(40)*random.IntN(40))
			addAll(h, i, target, string("oort"[random.IntN(4)]))
			added[target] = append(added[target], int64(i))
			records, tracks := 0, h.Tracks("", "")
			for _, track := range tracks {
				records += len(track.Records)
				var kept []int64
				for _, r := range track.Records {
					kept = append(kept, r.Time.Unix())
				}
				all := added[track.Target]
				n := len(kept) - track.Complete
				if !slices.IsSorted(kept) || n < 1 || !slices.Equal(kept[track.Complete:], all[len(all)-n:]) {
					t.Fatalf("limit %d: %s was probed at %v, the history has %v with Complete = %d",
						limit, track.Target, all, kept, track.Complete)
				}
				if c := track.Complete; c > 0 && kept[c-1] == all[len(all)-n-1] {
					t.Fatalf("limit %d: %s was probed at %v, the history has %v with Complete = %d, want less",
						limit, track.Target, all, kept, c)
				}
			}
			if want := min(limit, len(added)); records > limit || len(tracks) < want {
				t.Fatalf("limit %d: after %d records of %d targets, the history has %d records of %d targets; "+
					"want at most %d records of at least %d targets",
					limit, i+1, len(added), records, len(tracks), limit, want)
			}
		}
	}
}

// Concurrent use is safe: the race detector finds nothing, and no record is lost.
func TestHistoryConcurrently(t *testing.T) {
	h := New(1000)
	var users sync.WaitGroup
	for i := range 10 {
		users.Go(func() {
			for j := range 20 {
				addAll(h, j, fmt.Sprintf("%d:1", j), "o")
				h.Tracks("", "")
				h.Lost()
				addAll(h, j, fmt.Sprintf("%d:2", i), "r")
			}
		})
	}
	users.Wait()
	var got int
	for _, track := range h.Tracks("", "") {
		got += len(track.Records)
	}
	if want := 10 * 20 * 2; got != want {
		t.Errorf("the history has %d records, want %d", got, want)
	}
}

// A target has ended until its next record. Without a record there is nothing to end.
func TestEnd(t *testing.T) {
	h := New(100)
	addAll(h, 100, "a:1", "ot")
	h.End("a:1", "tcp_connect")
	h.End("b:1", "tcp_connect")
	if all := h.Tracks("", ""); len(all) != 1 || !all[0].Ended {
		t.Errorf("after End, the history has %+v, want one track, which has ended", all)
	}
	addAll(h, 200, "a:1", "o")
	if all := h.Tracks("", ""); all[0].Ended {
		t.Errorf("after another record, the history has %+v, want that it has not ended", all)
	}
}
