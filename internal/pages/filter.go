package pages

import (
	"slices"
	"strings"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
)

// filtered returns the tracks that match each word of the filter, all tracks if the filter has no
// words. It reuses the given slice.
func filtered(tracks []history.Track, filter string) []history.Track {
	filterWords := strings.Fields(strings.ToLower(filter))
	if len(filterWords) == 0 {
		return tracks
	}
	return slices.DeleteFunc(tracks, func(t history.Track) bool {
		text := searchable(&t)
		return slices.ContainsFunc(filterWords, func(word string) bool { return !strings.Contains(text, word) })
	})
}

// searchable returns the text in which the filter finds a target, in lower case: what the page
// shows of the target, and the corresponding label values of the metrics.
func searchable(t *history.Track) string {
	last := t.Last()
	parts := []string{t.Target, t.Module, last.Result, words(last.Result), why(last), icmp(last)}
	if last.Address.IsValid() {
		parts = append(parts, last.Address.String())
	}
	if last.ICMP.From.IsValid() {
		parts = append(parts, last.ICMP.String())
	}
	return strings.ToLower(strings.Join(parts, "\n"))
}
