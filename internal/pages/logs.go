package pages

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// pageLength is the number of results on a page of the history. All results of one target and module fit.
const pageLength = 200

// Logs serves the history, latest results first, in pages: to a browser as a table in HTML, to other
// clients as plain text with one line per probe. The query may select one target, one module, and the
// results before a time.
func (p *Pages) Logs(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", "Accept")
	s, err := parseSelection(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	tracks := p.options.Tracks(s.Target, s.Module)
	l := newLog(tracks, s)
	if len(l.Results) == 0 {
		status := http.StatusOK
		if s != (selection{}) {
			status = http.StatusNotFound
		}
		http.Error(w, s.noResults(), status)
		return
	}
	if l.Older > 0 {
		w.Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, l.Next()))
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		p.sendHTML(w, p.logs, struct {
			Version string
			*log
		}{p.options.Version, l})
		return
	}
	var body bytes.Buffer
	l.writeText(&body, r.URL.Path)
	p.send(w, "text/plain; charset=utf-8", &body)
}

// A selection is what a request for the history selects. The zero value of each field selects all results.
type selection struct {
	Target, Module string
	Before         time.Time // the start of the probes is before this time
}

// parseSelection returns what a query selects.
func parseSelection(rawQuery string) (selection, error) {
	query, err := parseQuery(rawQuery, "target", "module", "before")
	if err != nil {
		return selection{}, err
	}
	s := selection{Target: query.Get("target"), Module: query.Get("module")}
	if before := query.Get("before"); before != "" {
		if s.Before, err = time.Parse(time.RFC3339Nano, before); err != nil {
			return selection{}, fmt.Errorf("before is %s, want a time such as 2006-01-02T15:04:05Z",
				probe.Quote(before))
		}
	}
	return s, nil
}

// noResults says that the history has no results of the selection.
func (s selection) noResults() string {
	if s == (selection{}) {
		return "the history is empty"
	}
	text := "no results in the history"
	var names []string
	if s.Target != "" {
		names = append(names, "target "+probe.Quote(s.Target))
	}
	if s.Module != "" {
		names = append(names, "module "+probe.Quote(s.Module))
	}
	if len(names) > 0 {
		text += " for " + strings.Join(names, " and ")
	}
	if !s.Before.IsZero() {
		text += " before " + timestamp(s.Before)
	}
	return text
}

// Link returns the relative URL of the selection.
func (s selection) Link() string {
	query := url.Values{}
	if s.Target != "" {
		query.Set("target", s.Target)
	}
	if s.Module != "" {
		query.Set("module", s.Module)
	}
	if !s.Before.IsZero() {
		query.Set("before", s.Before.UTC().Format(time.RFC3339Nano))
	}
	return "logs?" + query.Encode()
}

// A log is one page of the history.
type log struct {
	selection
	Results []result // latest first
	Older   int      // number of selected results that are older than these
}

// A result is one probe in the history.
type result struct {
	*history.Track // of the target
	*history.Record
}

// Why explains the result, "" if it needs no explanation.
func (r *result) Why() string { return why(r.Record) }

// ICMP describes the ICMP error that ended the probe, "" if there was none.
func (r *result) ICMP() string { return icmp(r.Record) }

// Address returns the probed address, "" if it is part of the target.
func (r *result) Address() string { return address(r.Target, r.Record) }

// Latency returns the latency, its zero value if there was no SYN-ACK.
func (r *result) Latency() latency { return latencyOf(r.Record) }

// Duration returns the duration of the probe in milliseconds, "" for an event of a held connection, which has none.
func (r *result) Duration() string {
	if r.Record.Duration <= 0 {
		return ""
	}
	return probe.Milliseconds(r.Record.Duration)
}

// Retransmits returns the number of SYN retransmissions, "" if no SYN was sent or if the number is unknown.
func (r *result) Retransmits() string { return retransmits(r.Record) }

// newLog returns the latest results of a selection, at most pageLength. There are more if probes began
// at the same time as the last one of them, because the next page begins before that time.
func newLog(tracks []history.Track, s selection) *log {
	var results []result
	for i := range tracks {
		t := &tracks[i]
		for j := range slices.Backward(t.Records) {
			if r := &t.Records[j]; s.Before.IsZero() || r.Time.Before(s.Before) {
				results = append(results, result{t, r})
			}
		}
	}
	slices.SortStableFunc(results, func(a, b result) int {
		first := b.Time.Compare(a.Time)
		if first == 0 && a.Track != b.Track {
			x, y := parseName(a.Target), parseName(b.Target)
			first = cmp.Or(x.compare(&y), cmp.Compare(a.Module, b.Module))
		}
		return first
	})
	n := min(len(results), pageLength)
	for 0 < n && n < len(results) && results[n].Time.Equal(results[n-1].Time) {
		n++
	}
	return &log{selection: s, Results: results[:n], Older: len(results) - n}
}

// Next returns the relative URL of the next page, which has older results.
func (l *log) Next() string {
	next := l.selection
	next.Before = l.Results[len(l.Results)-1].Time
	return next.Link()
}

// Latest returns the relative URL of the first page, which has the latest results.
func (l *log) Latest() string {
	first := l.selection
	first.Before = time.Time{}
	return first.Link()
}
