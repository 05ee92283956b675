package pages

import (
	"slices"
	"strings"

	"github.com/shaker-exporter/shaker_exporter/collector"
)

// filtered returns those of the tracks in which each word of the filter is found, all of
// them if it has none. It uses the slice it is given.
func filtered(tracks []collector.Track, filter string) []collector.Track {
	wanted := strings.Fields(strings.ToLower(filter))
	if len(wanted) == 0 {
		return tracks
	}
	return slices.DeleteFunc(tracks, func(t collector.Track) bool {
		text := searchable(&t)
		return slices.ContainsFunc(wanted, func(word string) bool { return !strings.Contains(text, word) })
	})
}

// searchable returns what a target can be found by, in lower case: what the page says of it,
// and the names that the metrics have for that.
func searchable(t *collector.Track) string {
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
