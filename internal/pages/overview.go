package pages

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// maxRows limits the number of rows on the page.
const maxRows = 200

// An overview is the content of the page.
type overview struct {
	Now      time.Time
	Groups   []group // of all targets, whatever the filter
	Targets  int     // number of targets in all groups
	Filter   string  // words that each row must match, "" for all targets
	Matching int     // number of targets that match the filter
	Rows     []row   // the first of the matching targets
	Omitted  int     // number of matching targets without a row
}

// A group summarizes the targets with the same status.
type group struct {
	Status  status
	Count   int
	Results string // the results of the targets, with their numbers if there are several
}

// A status summarizes the latest result of a target. The values are in display order.
type status int

const (
	failing status = iota
	succeeding
	unprobed // not probed recently, whatever the latest result
)

// Class returns the CSS class of the status.
func (s status) Class() string { return [...]string{"failing", "succeeding", "unprobed"}[s] }

func (s status) String() string {
	return [...]string{"failing", "succeeding", "not probed recently"}[s]
}

// A row is the line of one target.
type row struct {
	history.Track
	Status    status
	Probed    string // time since the latest probe
	For       string // time since the result last changed, as far as is known
	SinceText string // the same in words
	Latency   string // in milliseconds, "" if there was no SYN-ACK
	Clock     string // the clock that measured the latency
	Spark     template.HTML
	Recent    tally // of the probes in the sparkline
}

// Why explains the verdict, "" if it needs no explanation.
func (r *row) Why() string { return why(r.Last()) }

// ICMP describes the ICMP error that ended the latest probe, "" if there was none.
func (r *row) ICMP() string { return icmp(r.Last()) }

// Address returns the probed address, "" if it is part of the target.
func (r *row) Address() string {
	if a := r.Last().Address; a.IsValid() && !strings.Contains(r.Target, a.String()) {
		return a.String()
	}
	return ""
}

// Retransmits returns the number of SYN retransmissions of the latest probe, "" if no SYN was sent or
// if the number is unknown.
func (r *row) Retransmits() string { return retransmits(r.Last()) }

// newOverview returns an overview of the targets, with rows for those that match the filter.
func newOverview(tracks []history.Track, filter string, now time.Time) *overview {
	o := &overview{Now: now, Targets: len(tracks), Filter: strings.TrimSpace(filter)}
	slices.SortFunc(tracks, func(a, b history.Track) int { return order(&a, &b, now) })
	o.group(tracks)
	tracks = filtered(tracks, filter)
	o.Matching = len(tracks)
	shown := tracks[:min(len(tracks), maxRows)]
	o.Omitted = len(tracks) - len(shown)
	for _, track := range shown {
		o.Rows = append(o.Rows, newRow(track, now))
	}
	return o
}

// order compares two targets for sorting: by status first, failing targets then by their last change
// with the latest first, and all targets by name.
func order(a, b *history.Track, now time.Time) int {
	s := statusOf(a, now)
	first := cmp.Compare(s, statusOf(b, now))
	if s == failing {
		first = cmp.Or(first, b.Since.Compare(a.Since))
	}
	return cmp.Or(first, cmp.Compare(a.Target, b.Target), cmp.Compare(a.Module, b.Module))
}

// recently is the time for which a probe, or the loss of a target, counts as recent.
const recently = 10 * time.Minute

// statusOf returns the status of a target. A target is unprobed after ten minutes without a probe,
// or, if it is probed less often, after three times the interval between its last two probes. The
// interval is unknown if the history no longer has the second-to-last probe.
func statusOf(t *history.Track, now time.Time) status {
	limit := recently
	if n := len(t.Records); n-2 >= t.Complete {
		limit = max(limit, 3*t.Records[n-1].Time.Sub(t.Records[n-2].Time))
	}
	switch {
	case now.Sub(t.Last().Time) > limit:
		return unprobed
	case t.Last().Success:
		return succeeding
	default:
		return failing
	}
}

// group sets the groups of the targets.
func (o *overview) group(tracks []history.Track) {
	counts := make(map[status]map[string]int)
	for i := range tracks {
		s := statusOf(&tracks[i], o.Now)
		if counts[s] == nil {
			counts[s] = make(map[string]int)
		}
		counts[s][tracks[i].Last().Result]++
	}
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		g := group{Status: s}
		results := slices.SortedFunc(maps.Keys(counts[s]), func(a, b string) int {
			return cmp.Or(cmp.Compare(counts[s][b], counts[s][a]), cmp.Compare(a, b))
		})
		var parts []string
		for _, result := range results {
			g.Count += counts[s][result]
			parts = append(parts, fmt.Sprintf("%d %s", counts[s][result], words(result)))
		}
		g.Results = strings.Join(parts, ", ")
		if len(results) == 1 {
			g.Results = words(results[0])
		}
		o.Groups = append(o.Groups, g)
	}
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

func newRow(t history.Track, now time.Time) row {
	last := t.Last()
	r := row{
		Track:  t,
		Status: statusOf(&t, now),
		Probed: span(now.Sub(last.Time)),
	}
	r.For = span(now.Sub(t.Since))
	r.SinceText = fmt.Sprintf("%s since %s", words(last.Result), timestamp(t.Since))
	if !t.Changed {
		if r.For != span(0) {
			r.For = "over " + r.For
		}
		r.SinceText = fmt.Sprintf("%s since the first probe at %s", words(last.Result), timestamp(t.Since))
	}
	switch {
	case last.RTT > 0:
		r.Latency, r.Clock = probe.Milliseconds(last.RTT), "RTT on the kernel's clock"
	case last.Handshake > 0:
		r.Latency, r.Clock = probe.Milliseconds(last.Handshake), "handshake on the exporter's clock"
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
	percent := t.Successes * 100 / t.Probes
	if percent == 0 && t.Successes > 0 {
		percent = 1
	}
	return fmt.Sprintf("%d %%", percent)
}
