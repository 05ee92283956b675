package pages

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
)

// mostRows is how many targets the page shows.
const mostRows = 200

// An overview is what the page says of all targets.
type overview struct {
	Now      time.Time
	Groups   []group // those that there are, whatever the filter
	Targets  int     // in all groups
	Filter   string  // words that are wanted in every row, "" if all targets are
	Matching int     // targets that have these words
	Rows     []row   // of the first of those: targets that fail, then those that do not, then the others
	Omitted  int     // matching targets that have no row
}

// A group is the targets of which the same is to be said.
type group struct {
	Standing standing
	Count    int
	Results  string // which, and how many of each if there are several
}

// A standing is how a target stands. The worst comes first.
type standing int

const (
	failing standing = iota
	succeeding
	unprobed // lately: nothing can be said
)

// Class returns the name of its colour.
func (s standing) Class() string { return [...]string{"failing", "succeeding", "unprobed"}[s] }

func (s standing) String() string {
	return [...]string{"failing", "succeeding", "not probed lately"}[s]
}

// A row is what the page says of one target.
type row struct {
	collector.Track
	Standing standing
	Probed   string    // how long ago it was, the latest time
	For      string    // how long the result has been the same
	Since    time.Time // when it became that, as far as is known
	Story    string    // the same in words
	Latency  string    // in milliseconds, "" if there was none
	Clock    string    // on which that was measured
	Spark    template.HTML
	Recent   tally
}

// Why says in words why the verdict is what it is, "" if that goes without saying.
func (r *row) Why() string { return why(r.Last()) }

// ICMP says which ICMP error ended the latest probe, "" if none did.
func (r *row) ICMP() string { return icmp(r.Last()) }

// Address is the one that was probed, "" if the target tells it.
func (r *row) Address() string {
	if a := r.Last().Address; a.IsValid() && !strings.Contains(r.Target, a.String()) {
		return a.String()
	}
	return ""
}

// Retransmits returns how many SYNs the latest probe sent again, "" if that is not known.
func (r *row) Retransmits() string { return retransmits(r.Last()) }

// newOverview makes an overview of the targets, with rows of those that match the filter.
func newOverview(tracks []collector.Track, filter string, now time.Time) *overview {
	o := &overview{Now: now, Targets: len(tracks), Filter: strings.TrimSpace(filter)}
	slices.SortFunc(tracks, func(a, b collector.Track) int { return order(&a, &b, now) })
	o.group(tracks)
	tracks = filtered(tracks, filter)
	o.Matching = len(tracks)
	shown := tracks[:min(len(tracks), mostRows)]
	o.Omitted = len(tracks) - len(shown)
	for _, track := range shown {
		o.Rows = append(o.Rows, newRow(track, now))
	}
	return o
}

// order says which of two targets comes first. Of those that fail it is the one that
// changed last, for it is news; all others are in the order of their names.
func order(a, b *collector.Track, now time.Time) int {
	standing := standingOf(a, now)
	first := cmp.Compare(standing, standingOf(b, now))
	if standing == failing {
		first = cmp.Or(first, since(b).Compare(since(a)))
	}
	return cmp.Or(first, cmp.Compare(a.Target, b.Target), cmp.Compare(a.Module, b.Module))
}

// lately is how long a target may not have been probed at least before it counts as unprobed.
const lately = 10 * time.Minute

// standingOf says how a target stands. It is unprobed after ten minutes without a probe, or
// if it is probed more rarely, after three times as long as it was between the last two.
func standingOf(t *collector.Track, now time.Time) standing {
	patience := lately
	if n := len(t.Records); n > 1 {
		patience = max(patience, 3*t.Records[n-1].Time.Sub(t.Records[n-2].Time))
	}
	switch {
	case now.Sub(t.Last().Time) > patience:
		return unprobed
	case t.Last().Success:
		return succeeding
	default:
		return failing
	}
}

// since returns from when on the result has been the same, as far as is known.
func since(t *collector.Track) time.Time {
	if t.Changed.IsZero() {
		return t.First
	}
	return t.Changed
}

// group counts the targets, which are in order.
func (o *overview) group(tracks []collector.Track) {
	counts := make(map[standing]map[string]int)
	for i := range tracks {
		s := standingOf(&tracks[i], o.Now)
		if counts[s] == nil {
			counts[s] = make(map[string]int)
		}
		counts[s][tracks[i].Last().Result]++
	}
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		g := group{Standing: s}
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

// Title says how the targets stand, in a few words.
func (o *overview) Title() string {
	var parts []string
	for _, g := range o.Groups {
		if g.Standing != unprobed {
			parts = append(parts, fmt.Sprintf("%d %v", g.Count, g.Standing))
		}
	}
	return strings.Join(parts, ", ")
}

func newRow(t collector.Track, now time.Time) row {
	last := t.Last()
	r := row{
		Track:    t,
		Standing: standingOf(&t, now),
		Probed:   span(now.Sub(last.Time)),
		Since:    since(&t),
	}
	r.For = span(now.Sub(r.Since))
	r.Story = fmt.Sprintf("%s since %s", words(last.Result), exact(r.Since))
	if t.Changed.IsZero() {
		r.For = "over " + r.For
		r.Story = fmt.Sprintf("%s ever since it was first probed at %s", words(last.Result), exact(r.Since))
	}
	switch {
	case last.RTT > 0:
		r.Latency, r.Clock = collector.Milliseconds(last.RTT), "RTT on the kernel's clock"
	case last.Handshake > 0:
		r.Latency, r.Clock = collector.Milliseconds(last.Handshake), "handshake on the exporter's clock"
	}
	recent := recentOf(&t)
	r.Recent = tallyOf(recent)
	r.Spark = sparkline(recent)
	return r
}

// recentOf returns the records of the time in which none is missing. Since failures are
// kept longer than successes, those before it would make the target look worse than it was.
func recentOf(t *collector.Track) []collector.Record {
	all := t.Records
	return all[max(0, slices.IndexFunc(all, func(r collector.Record) bool { return r.Time.After(t.Whole) })):]
}

// A tally counts probes.
type tally struct{ Successes, Probes int }

func tallyOf(records []collector.Record) tally {
	t := tally{Probes: len(records)}
	for _, r := range records {
		if r.Success {
			t.Successes++
		}
	}
	return t
}

// String returns the share of successes in whole percents: 100 % and 0 % are exact.
func (t tally) String() string {
	percent := t.Successes * 100 / t.Probes
	if percent == 0 && t.Successes > 0 {
		percent = 1
	}
	return fmt.Sprintf("%d %%", percent)
}
