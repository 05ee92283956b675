package pages

import (
	"errors"
	"fmt"
	"html"
	"iter"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
)

// watchedTarget returns the status of a target that has been watched for an hour at noon. Of its 60 handshakes in the
// last minute, the given number is lost, the last one excepted.
func watchedTarget(target string, lost uint64) *watch.Status {
	s := &watch.Status{
		Target: target,
		Module: "tcp_watch",
		Last: history.Record{
			Time: noon.Add(-time.Second), Result: "open", Success: true, RTT: 3 * time.Millisecond,
		},
		Since:      noon.Add(-time.Hour),
		Registered: noon.Add(-time.Hour),
		All:        watch.Tally{Completed: 3600, Failed: lost, Lost: lost},
		LastMinute: watch.Tally{Completed: 60, Failed: lost, Lost: lost},
		Slots:      make([]watch.Slot, 60),
		SlotLength: 5 * time.Second,
		P50:        2 * time.Millisecond,
		P99:        40 * time.Millisecond,
		Client:     "192.0.2.77",
		Scraped:    noon.Add(-10 * time.Second),
		Expires:    noon.Add(290 * time.Second),
	}
	for i := range s.Slots {
		s.Slots[i].Completed = 5
	}
	s.Slots[59].Failed, s.Slots[59].Lost = uint8(lost), uint8(lost)
	if lost > 0 {
		s.Failure, s.FailureAt = "timeout", noon.Add(-2345*time.Millisecond)
	}
	return s
}

// fail makes the last handshake with a target fail.
func fail(s *watch.Status, since time.Duration) *watch.Status {
	s.Last.Result, s.Last.Success, s.Last.RTT = "timeout", false, 0
	s.Since, s.Changed = noon.Add(-since), true
	return s
}

// withWatched adds watched targets to Pages.
func withWatched(p *Pages, watched ...*watch.Status) *Pages {
	p.options.Watched = func() iter.Seq[*watch.Status] { return slices.Values(watched) }
	return p
}

// textOf returns the text in the main part of a page, with single spaces.
func textOf(body string) string {
	_, main, _ := strings.Cut(body, "<main>")
	text := html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(main, " "))
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), " ,", ",")
}

// A watched target is in the same table as the others, with its loss, quantiles, last failure and scrapes. Its history
// does not count: it has the failures only.
func TestWatched(t *testing.T) {
	past := track("lossy.example:443", "orrr", 30*time.Minute)
	past.Module = "tcp_watch"
	skipping := watchedTarget("skipping.example:443", 0)
	skipping.Slots[3].Skipped, skipping.Slots[40].Skipped = 4, 5
	p := withWatched(newPages(past, track("scraped.example:1", "o", 0)),
		watchedTarget("lossy.example:443", 1), skipping)
	body := home(t, p)
	text := textOf(body)
	rows := []string{"lossy.example:443", "scraped.example:1", "skipping.example:443"}
	if got := targets(body); !slices.Equal(got, rows) {
		t.Errorf("the page has the targets %q, want %q", got, rows)
	}
	for _, want := range []string{
		"1 unstable open", "2 succeeding open",
		"open over 60 min lossy.example:443 loss 1.6 % in the last minute, 0.027 % in 60 min " +
			"p50 2.00 ms, p99 40.0 ms last failure 2026-03-01T11:59:57.655Z timeout " +
			"scraped 10 s ago by 192.0.2.77, expires in 4 min 3.00 ms",
		"skipping.example:443 loss 0 % in the last minute, 0 % in 60 min",
		"this host skipped 9 in the last 5 min scraped 10 s ago",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not contain %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	for _, want := range []string{
		`title="handshakes that lost a SYN: 1 of 60 in the last minute, 1 of 3600 since 2026-03-01T11:00:00.000Z"`,
		`title="299 of 300">99 %</td>`,
		`<title>last 5 min: 1 of 300 handshakes failed, 1 lost a SYN</title>`,
		`href="logs?target=lossy.example%3a443&amp;module=tcp_watch"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not contain %s", want)
		}
	}
	const doubt = `title="unstable"><svg class="mark" viewBox="0 0 16 16" aria-hidden="true"><path d="M8 2.5v7m0 4h0"/>`
	if got := strings.Count(body, doubt); got != 1 {
		t.Errorf("the page has %d marks of unstable targets, want 1, because not everybody sees the color", got)
	}
	// It would be a link to an error.
	if wrong := `href="logs?target=skipping.example`; strings.Contains(body, wrong) {
		t.Errorf("the page contains %s although the history has nothing of this target", wrong)
	}
	if got := get(p.Logs, "target=lossy.example:443&module=tcp_watch"); got.Code != http.StatusOK {
		t.Errorf("the link to the history = %d %s, want 200", got.Code, got.Body)
	}
}

// Failing targets come first, whether they are watched or not, then the unstable ones, the worst first.
func TestOrderOfWatched(t *testing.T) {
	stale := watchedTarget("stale.example:443", 3)
	stale.Stale = errors.New("no recent handshake with the target because of this host: it is overloaded")
	retransmitting := watchedTarget("retransmitting.example:443", 0)
	retransmitting.LastMinute.Lost = 20
	watched := []*watch.Status{
		stale, watchedTarget("good.example:443", 0), watchedTarget("bad.example:443", 2),
		watchedTarget("worse.example:443", 30), retransmitting,
		fail(watchedTarget("down.example:443", 60), 10*time.Second),
		fail(watchedTarget("new.example:443", 1), time.Second),
	}
	scraped := []history.Track{track("refused.example:1", "ooooor", 4*time.Second), track("a.example:1", "o", 0)}
	p := withWatched(newPages(scraped...), watched...)
	for query, want := range map[string][]string{
		"": {
			"new.example:443", "refused.example:1", "down.example:443",
			"worse.example:443", "retransmitting.example:443", "bad.example:443",
			"a.example:1", "good.example:443", "stale.example:443",
		},
		"filter=status%3Dunstable":         {"worse.example:443", "retransmitting.example:443", "bad.example:443"},
		"filter=192.0.2.77+result=timeout": {"new.example:443", "down.example:443"},
		"filter=overloaded":                {"stale.example:443"},
		"filter=status%3Dunprobed":         {"stale.example:443"},
	} {
		body := get(p.Home, query).Body.String()
		if got := targets(body); !slices.Equal(got, want) {
			t.Errorf("the page with %q has the targets %q, want %q", query, got, want)
		}
	}
	body := textOf(home(t, p))
	for _, want := range []string{
		"3 failing 2 timeout, 1 refused 3 unstable open 2 succeeding open 1 not probed recently open",
		"stale.example:443 no recent handshake with the target because of this host: it is overloaded",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not contain %q:\n%s", want, body)
		}
	}
}

// A watched target fails since its first failure, whatever the results since then. Of a name that has no address any
// more there are no handshakes: those of the last minutes do not count as its success.
func TestFailingWatched(t *testing.T) {
	gone := fail(watchedTarget("gone.example:443", 0), time.Minute)
	gone.Last.Result, gone.NoAddress = "dns_not_found", true
	body := home(t, withWatched(newPages(), gone, fail(watchedTarget("down.example:443", 60), 10*time.Second)))
	for _, want := range []string{
		`title="failing since 2026-03-01T11:59:00.000Z">60 s</time>`,
		`title="failing since 2026-03-01T11:59:50.000Z">10 s</time>`,
		`<td role="cell" class="number success">–</td>`,
		`title="240 of 300">80 %</td>`, // the control
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not contain %s", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

// A target that is no longer watched is not failing, whatever its last result.
func TestNoLongerWatched(t *testing.T) {
	ended := track("ended.example:443", "ot", time.Second)
	ended.Ended = true
	text := textOf(home(t, newPages(ended, track("down.example:443", "ot", time.Second))))
	for _, want := range []string{
		"1 failing timeout 1 not probed recently timeout",
		"ended.example:443 no longer measured",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not contain %q:\n%s", want, text)
		}
	}
}

// However many targets are watched, the page has the 200 worst of them and all of them in its counts.
func TestManyWatched(t *testing.T) {
	var watched []*watch.Status
	for i := range 5000 {
		watched = append(watched, watchedTarget(fmt.Sprintf("w-%04d.example:443", i), 0))
	}
	for i := range 150 {
		s := watched[33*i]
		s.LastMinute.Lost = uint64(1 + i%60)
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(len(watched), func(i, j int) { watched[i], watched[j] = watched[j], watched[i] })
	o := newOverview(nil, withWatched(newPages(), watched...).live(noon), view{}, noon)
	var entries []entry
	for _, s := range watched {
		entries = append(entries, newWatchedEntry(s))
	}
	slices.SortFunc(entries, byStatus.compare)
	if len(o.Rows) != maxRows || o.Omitted != 4800 || o.Matching != 5000 || o.Targets != 5000 {
		t.Fatalf("%d rows, %d omitted, %d matching of %d; want %d, 4800, 5000 of 5000",
			len(o.Rows), o.Omitted, o.Matching, o.Targets, maxRows)
	}
	for i, r := range o.Rows {
		if r.Target != entries[i].Target {
			t.Errorf("row %d is %s, want %s, the next one of all targets", i, r.Target, entries[i].Target)
		}
	}
	if o.Groups[0].Status != unstable || o.Groups[0].Count != 150 || o.Groups[1].Count != 4850 {
		t.Errorf("the groups are %+v, want 150 unstable and 4850 succeeding", o.Groups)
	}
}

// A single lost SYN has a mark of its own, however many succeed, and so have handshakes that this host skipped.
func TestStrip(t *testing.T) {
	s := &watch.Status{SlotLength: 5 * time.Second, Slots: []watch.Slot{
		{},
		{Completed: 50},
		{Completed: 50, Failed: 1, Lost: 1},
		{Completed: 50, Failed: 50, Lost: 50},
		{Completed: 50, Lost: 1},
		{Skipped: 50},
		{Completed: 49, Failed: 1, Lost: 1, Skipped: 1},
	}}
	const want = `<svg class="spark" role="img" viewBox="0 0 7 24" preserveAspectRatio="none">` +
		`<title>last 35 s: 52 of 249 handshakes failed, 53 lost a SYN; this host skipped 51</title>` +
		`<path class="failed" d="M2.5 18v-11M3.5 18v-18M6.5 18v-11"/>` +
		`<path class="lost" d="M4.5 18v-8"/>` +
		`<path class="successes" d="M1.5 18v-3"/>` +
		`<path class="skipped" d="M5 22h1M6 22h1"/></svg>`
	if got := string(strip(s)); got != want {
		t.Errorf("the strip of %+v is\n%s\nwant\n%s", s.Slots, got, want)
	}
}

// No loss is shown as none, and no success as one.
func TestPercentage(t *testing.T) {
	for _, c := range []struct {
		part, whole uint64
		want        string
	}{
		{part: 0, whole: 0, want: "–"},
		{part: 0, whole: 60, want: "0 %"},
		{part: 1, whole: 60, want: "1.6 %"},
		{part: 1, whole: 3600, want: "0.027 %"},
		{part: 1, whole: 1_000_000_000, want: "0.00000010 %"},
		{part: 1, whole: 100, want: "1.0 %"},
		{part: 7, whole: 100, want: "7.0 %"},
		{part: 1, whole: 10, want: "10 %"},
		{part: 29, whole: 100, want: "29 %"},
		{part: 999_999, whole: 1_000_000, want: "99 %"},
		{part: 60, whole: 60, want: "100 %"},
	} {
		if got := percentage(c.part, c.whole); got != c.want {
			t.Errorf("percentage(%d, %d) = %q, want %q", c.part, c.whole, got, c.want)
		}
	}
}
