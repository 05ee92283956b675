package pages

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
)

// newWatchedEntry returns the entry of a watched target.
func newWatchedEntry(s *watch.Status) entry {
	t := &history.Track{
		Target:  s.Target,
		Module:  s.Module,
		Since:   s.Since,
		Changed: s.Changed,
		Records: []history.Record{s.Last},
		Path:    s.Path,
	}
	minute := &s.LastMinute
	return entry{Track: t, watch: s, status: statusOfWatched(s), name: parseName(s.Target), live: live{
		client:  s.Client,
		scraped: s.Scraped,
		expires: s.Expires,
		trouble: float64(max(minute.Failed, minute.Lost)) / float64(max(minute.Completed, 1)),
		stale:   s.Stale,
	}}
}

// statusOfWatched returns the status of a watched target.
func statusOfWatched(s *watch.Status) status {
	switch {
	case s.Stale != nil:
		return unprobed
	case !s.Last.Success:
		return failing
	case s.Unstable():
		return unstable
	default:
		return succeeding
	}
}

// watched is what the row of a watched target has in addition.
type watched struct {
	*watch.Status
	Watching string // time since registration
}

func newWatched(s *watch.Status, now time.Time) *watched {
	return &watched{Status: s, Watching: ago(now, s.Registered)}
}

// unbroken returns a text that is not broken into lines.
func unbroken(text string) string { return strings.ReplaceAll(text, " ", "\u00a0") }

// LastMinuteLoss returns the loss in the last minute.
func (w *watched) LastMinuteLoss() string {
	return lossOf(&w.LastMinute)
}

// AllLoss returns the loss since registration.
func (w *watched) AllLoss() string { return lossOf(&w.All) }

func lossOf(t *watch.Tally) string { return unbroken(percentage(t.Lost, t.Completed)) }

// LossInLastMinute reports whether a SYN was lost in the last minute.
func (w *watched) LossInLastMinute() bool { return w.LastMinute.Lost > 0 }

// Recent counts the handshakes in the strip. Those of a name that has no address any more are over: they say nothing
// about its present state.
func (w *watched) Recent() tally {
	if w.NoAddress {
		return tally{}
	}
	t := watch.TallyOf(w.Slots)
	return tally{Successes: int(t.Completed - t.Failed), Probes: int(t.Completed)}
}

// Skipped says how many handshakes this host skipped in the time of the strip, "" if there are none.
func (w *watched) Skipped() string {
	n := watch.TallyOf(w.Slots).Skipped
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("this host skipped %d in the last %s", n, unbroken(span(stripLength(w.Status))))
}

// percentage returns a part of a whole with two significant digits, rounded down. It is 100 % only for the whole, and
// 0 % only for nothing.
func percentage(part, whole uint64) string {
	switch {
	case whole == 0:
		return "–"
	case part == 0:
		return "0 %"
	case part >= whole:
		return "100 %"
	}
	percent := 100 * float64(part) / float64(whole)
	decimals := max(0, 1-int(math.Floor(math.Log10(percent))))
	unit := math.Pow10(-decimals)
	return fmt.Sprintf("%.*f %%", decimals, math.Floor(percent/unit+1e-9)*unit)
}

// Heights in a strip, in SVG units. Above the base are the handshakes that ended, and below it those that this host
// skipped.
const (
	stripBase      = 18 // from the top
	stripSuccesses = 3
	stripLost      = 8
	stripFailed    = 11 // at least
	stripAllFailed = 18
	stripSkipped   = 22 // from the top
)

// strip draws the handshakes of the last minutes, a mark for each slot and the latest one at the right end. A slot with
// a failure is a high stroke: a single one among successes is visible, and if all of them failed, the stroke is higher
// still. A lower stroke is a lost SYN whose retransmission was answered. Handshakes that this host skipped are below.
func strip(s *watch.Status) template.HTML {
	var failed, lost, successes, skipped strings.Builder
	for i, slot := range s.Slots {
		stroke := func(b *strings.Builder, height int) { fmt.Fprintf(b, "M%d.5 %dv-%d", i, stripBase, height) }
		switch {
		case slot.Failed > 0:
			stroke(&failed, stripFailed+(stripAllFailed-stripFailed)*int(slot.Failed)/int(slot.Completed))
		case slot.Lost > 0:
			stroke(&lost, stripLost)
		case slot.Completed > 0:
			stroke(&successes, stripSuccesses)
		}
		if slot.Skipped > 0 {
			fmt.Fprintf(&skipped, "M%d %dh1", i, stripSkipped)
		}
	}
	return svg(len(s.Slots), stripCaption(s), part{class: "failed", d: failed.String()},
		part{class: "lost", d: lost.String()}, part{class: "successes", d: successes.String()},
		part{class: "skipped", d: skipped.String()})
}

// stripLength returns how much time a strip shows.
func stripLength(s *watch.Status) time.Duration { return time.Duration(len(s.Slots)) * s.SlotLength }

// stripCaption describes a strip in words.
func stripCaption(s *watch.Status) string {
	t := watch.TallyOf(s.Slots)
	text := fmt.Sprintf("last %s: %d of %d handshakes failed, %d lost a SYN",
		span(stripLength(s)), t.Failed, t.Completed, t.Lost)
	if t.Skipped > 0 {
		text += fmt.Sprintf("; this host skipped %d", t.Skipped)
	}
	return text
}
