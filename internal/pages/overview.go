package pages

import (
	"cmp"
	"fmt"
	"html/template"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// maxRows limits the number of rows on the page.
const maxRows = 200

// A view is what a request for the page selects.
type view struct {
	filter filter
	order  order
}

// parseView returns the view that a query selects.
func parseView(rawQuery string) (view, error) {
	query, err := parseQuery(rawQuery, "filter", "sort")
	if err != nil {
		return view{}, err
	}
	v := view{order: order(query.Get("sort"))}
	if v.order != byStatus && v.order != byLatency {
		return view{}, fmt.Errorf("sort is %s, want %q or none", probe.Quote(string(v.order)), string(byLatency))
	}
	v.filter, err = parseFilter(query.Get("filter"))
	return v, err
}

// An overview is the content of the page.
type overview struct {
	Now      time.Time
	Groups   []group // of all targets, whatever the filter
	Targets  int     // number of targets in all groups
	Filter   string  // words that each row must match, "" for all targets
	Order    order
	Matching int   // number of targets that match the filter
	Rows     []row // the first of the matching targets
	Omitted  int   // number of matching targets without a row
}

// Link returns the relative URL of the page with another filter and order.
func (o *overview) Link(filter string, order order) string {
	query := url.Values{}
	if filter != "" {
		query.Set("filter", filter)
	}
	if order != byStatus {
		query.Set("sort", string(order))
	}
	if len(query) == 0 {
		return "./"
	}
	return "?" + query.Encode()
}

// Sort returns the value of the parameter sort, "" for the default order.
func (o *overview) Sort() string { return string(o.Order) }

// Orders returns the orders between which the page offers a choice.
func (o *overview) Orders() []order { return []order{byStatus, byLatency} }

// FilterLimit is the maximum length of a filter, in characters.
func (o *overview) FilterLimit() int { return maxFilterLength }

// A group summarizes the targets with the same status.
type group struct {
	Status  status
	Count   int
	Results []resultCount // most frequent first
}

// Filter returns the filter that selects the targets of the group.
func (g *group) Filter() string { return statusLabel(g.Status) }

// A resultCount is the number of targets of a group with a result.
type resultCount struct {
	Result string
	Count  int
	Filter string // selects these targets
}

// A status summarizes the latest result of a target. The values are in display order.
type status int

const (
	failing  status = iota
	unstable        // a watched or held target that succeeds, but has failed or lost SYNs a short time ago
	succeeding
	pending  // a target that has no result yet
	unprobed // not probed recently, whatever the latest result
)

// Class returns the CSS class of the status.
func (s status) Class() string {
	return [...]string{"failing", "unstable", "succeeding", "pending", "unprobed"}[s]
}

func (s status) String() string {
	return [...]string{"failing", "unstable", "succeeding", "pending", "not probed recently"}[s]
}

// A row is the line of one target.
type row struct {
	*entry
	Status    status
	Probed    string // time since the latest probe
	For       string // time since the result last changed, as far as is known
	SinceText string // the same in words
	Latency   latency
	Spark     template.HTML
	Recent    tally    // of the probes in the sparkline
	Watch     *watched // nil if the target is not watched
	Hold      *held    // nil if the target is not held
	Idle      *idled   // nil if the idle timeout of the target is not measured
	Scrapes   *scrapes // nil if the target is not live
}

// scrapes says who asks for a live target, and for how long the exporter deals with it.
type scrapes struct{ Ago, Client, ExpiresIn string }

func newScrapes(l *live, now time.Time) *scrapes {
	return &scrapes{Ago: ago(now, l.scraped), Client: l.client, ExpiresIn: ago(l.expires, now)}
}

// ago returns the time from before until now.
func ago(now, before time.Time) string { return unbroken(span(now.Sub(before))) }

// Why explains the verdict, "" if it needs no explanation.
func (r *row) Why() string { return r.why() }

// IsUnstable reports whether the target is unstable, which has a mark of its own.
func (r *row) IsUnstable() bool { return r.Status == unstable }

// Logged reports whether the history has results of the target.
func (r *row) Logged() bool { return r.logged }

// ICMP describes the ICMP error that ended the latest probe, "" if there was none.
func (r *row) ICMP() string { return icmp(r.Last()) }

// Address returns the probed address, "" if it is part of the target.
func (r *row) Address() string { return address(r.Target, r.Last()) }

// ProbedTitle explains the time since the latest probe.
func (r *row) ProbedTitle() string {
	what := "latest probe"
	switch {
	case r.hold != nil:
		what = "latest sign of life, or failure,"
	case r.idle != nil:
		what = "begin or end of a round"
	}
	return fmt.Sprintf("%s at %s", what, timestamp(r.Last().Time))
}

// Retransmits returns the number of SYN retransmissions of the latest probe, "" if no SYN was sent or
// if the number is unknown.
func (r *row) Retransmits() string { return retransmits(r.Last()) }

// newOverview returns an overview of the targets, with rows for those that the view selects. A live target is shown as
// it is now instead of by its history, which has only its failures.
func newOverview(tracks []history.Track, live iter.Seq[entry], v view, now time.Time) *overview {
	o := &overview{Now: now, Filter: v.filter.text, Order: v.order}
	counts := make(census)
	matching := shortlist{order: v.order, limit: maxRows}
	add := func(e entry) {
		o.Targets++
		counts.add(&e)
		if v.filter.matches(&e) {
			matching.add(e)
		}
	}
	type key struct{ target, module string }
	past := make(map[key]*history.Track, len(tracks))
	for i := range tracks {
		t := &tracks[i]
		past[key{t.Target, t.Module}] = t
	}
	for e := range live {
		k := key{e.Target, e.Module}
		if t := past[k]; t != nil {
			e.logged, e.GoodPath = true, t.GoodPath
		}
		add(e)
		delete(past, k)
	}
	for _, t := range past {
		add(newEntry(t, now))
	}
	o.Groups, o.Matching = counts.groups(), matching.added
	for _, e := range matching.first() {
		o.Rows = append(o.Rows, newRow(e, now))
	}
	o.Omitted = o.Matching - len(o.Rows)
	return o
}

// recently is the time for which a probe, or the loss of a target, counts as recent.
const recently = 10 * time.Minute

// statusOf returns the status of a target. A target is unprobed if it is no longer measured, after ten minutes without
// a probe, or, if it is probed less often, after three times the interval between its last two probes. The interval is
// unknown if the history no longer has the second-to-last probe.
func statusOf(t *history.Track, now time.Time) status {
	limit := recently
	if n := len(t.Records); n-2 >= t.Complete {
		limit = max(limit, 3*t.Records[n-1].Time.Sub(t.Records[n-2].Time))
	}
	switch {
	case t.Ended || now.Sub(t.Last().Time) > limit:
		return unprobed
	case t.Last().Success:
		return succeeding
	default:
		return failing
	}
}

// A census counts targets by status and result.
type census map[status]map[string]int

func (counts census) add(e *entry) {
	if counts[e.status] == nil {
		counts[e.status] = make(map[string]int)
	}
	counts[e.status][e.Last().Result]++
}

// groups returns the groups of the targets, in display order.
func (counts census) groups() []group {
	var groups []group
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		g := group{Status: s}
		for result, n := range counts[s] {
			g.Count += n
			if s == pending {
				continue
			}
			g.Results = append(g.Results, resultCount{
				Result: words(result), Count: n, Filter: g.Filter() + " " + resultLabel(result),
			})
		}
		slices.SortFunc(g.Results, func(a, b resultCount) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Result, b.Result))
		})
		groups = append(groups, g)
	}
	return groups
}

// Title summarizes the targets in a few words, "" if none was probed recently.
func (o *overview) Title() string {
	var parts []string
	for _, g := range o.Groups {
		if g.Status != unprobed {
			parts = append(parts, fmt.Sprintf("%d %v", g.Count, g.Status))
		}
	}
	return strings.Join(parts, ", ")
}

func newRow(t entry, now time.Time) row {
	last := t.Last()
	r := row{
		entry:  &t,
		Status: t.status,
		Probed: span(now.Sub(last.Time)),
	}
	r.For = span(now.Sub(t.Since))
	r.SinceText = fmt.Sprintf("%s since %s", words(last.Result), timestamp(t.Since))
	if !t.Changed && t.hold == nil && t.idle == nil {
		if r.For != span(0) {
			r.For = "over " + r.For
		}
		r.SinceText = fmt.Sprintf("%s since the first probe at %s", words(last.Result), timestamp(t.Since))
	}
	r.Latency = latencyOf(last)
	if t.isLive() {
		r.Scrapes = newScrapes(&t.live, now)
	}
	switch {
	case t.watch != nil:
		if !last.Success { // maybe with other results in between
			r.SinceText = "failing" + strings.TrimPrefix(r.SinceText, words(last.Result))
		}
		r.Watch = newWatched(t.watch, now)
		r.Recent = r.Watch.Recent()
		r.Spark = strip(t.watch)
		return r
	case t.hold != nil:
		r.Hold = newHeld(t.hold, now)
		return r
	case t.idle != nil:
		r.Idle = newIdled(t.idle, now)
		r.Recent = r.Idle.Recent()
		r.Spark = scale(t.idle)
		return r
	}
	// Older records are incomplete: failures are kept longer than successes, so they would make the
	// target look worse than it was.
	recent := t.Records[t.Complete:]
	r.Recent = tallyOf(recent)
	r.Spark = sparkline(recent)
	return r
}

// A tally counts probes.
type tally struct{ Successes, Probes int }

func tallyOf(records []history.Record) tally {
	t := tally{Probes: len(records)}
	for _, r := range records {
		if r.Success {
			t.Successes++
		}
	}
	return t
}

// String returns the share of successes as a whole percentage, rounded down. It is 100 % only if all
// probes succeeded, and 0 % only if none did.
func (t tally) String() string {
	if t.Probes == 0 {
		return "–"
	}
	percent := t.Successes * 100 / t.Probes
	if percent == 0 && t.Successes > 0 {
		percent = 1
	}
	return fmt.Sprintf("%d %%", percent)
}
