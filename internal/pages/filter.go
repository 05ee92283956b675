package pages

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/shaker-exporter/shaker_exporter/internal/idle"
)

// Limits of a filter, which bound the work that a request can cause. The longest possible target fits.
const (
	maxFilterLength = 500 // characters
	maxFilterWords  = 16
)

// A filter selects targets by words, each of which a target must match.
type filter struct {
	text  string   // as the user typed it, without surrounding spaces
	words []string // in lower case
}

// parseFilter returns the filter for a text. A text without words selects all targets.
func parseFilter(text string) (filter, error) {
	text = strings.TrimSpace(text)
	if n := utf8.RuneCountInString(text); n > maxFilterLength {
		return filter{}, fmt.Errorf("filter has %d characters, want at most %d", n, maxFilterLength)
	}
	words := strings.Fields(strings.ToLower(text))
	if n := len(words); n > maxFilterWords {
		return filter{}, fmt.Errorf("filter has %d words, want at most %d", n, maxFilterWords)
	}
	return filter{text: text, words: words}, nil
}

// matches reports whether a target matches each word of the filter.
func (f *filter) matches(e *entry) bool {
	if len(f.words) == 0 {
		return true
	}
	text := searchable(e)
	labels := []string{statusLabel(e.status), resultLabel(e.Last().Result)}
	if e.idle != nil {
		labels = append(labels, limitLabel(e.idle))
	}
	return !slices.ContainsFunc(f.words, func(word string) bool {
		return !strings.Contains(text, word) && !slices.Contains(labels, word)
	})
}

// statusLabel returns the word that selects exactly the targets with a status.
func statusLabel(s status) string { return "status=" + s.Class() }

// resultLabel returns the word that selects exactly the targets with a latest result.
func resultLabel(result string) string { return "result=" + result }

// searchable returns the text in which the filter finds a target, in lower case: what the page
// shows of the target, and the corresponding label values of the metrics.
func searchable(e *entry) string {
	last := e.Last()
	parts := []string{e.Target, e.Module, last.Result, words(last.Result), e.why(), icmp(last)}
	if e.live.client != "" {
		parts = append(parts, e.live.client)
	}
	if e.idle != nil && e.idle.Limit() > idle.None {
		parts = append(parts, limitNames[e.idle.Limit()])
	}
	if last.Address.IsValid() {
		parts = append(parts, last.Address.String())
	}
	if last.ICMP.From.IsValid() {
		parts = append(parts, last.ICMP.String())
	}
	return strings.ToLower(strings.Join(parts, "\n"))
}
