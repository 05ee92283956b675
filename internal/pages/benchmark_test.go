package pages

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
)

// BenchmarkWatched renders the status page with 100,000 watched targets, of which a thousand have lost SYNs.
//
//	go test -run '^$' -bench Watched -benchmem ./internal/pages
func BenchmarkWatched(b *testing.B) {
	var watched []*watch.Status
	for i := range 100_000 {
		s := watchedTarget(fmt.Sprintf("web-%d.prod.example:443", i), 0)
		if i%100 == 0 {
			s.LastMinute.Lost = uint64(1 + i%60)
		}
		watched = append(watched, s)
	}
	p := withWatched(newPages(), watched...)
	for name, query := range map[string]string{"all": "", "filtered": "filter=web-99999"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				get(p.Home, query)
			}
		})
	}
}

// BenchmarkPages renders the pages of a full history, 500 targets with 20 results each, and reports their sizes. The
// longest filter has as many words as the page accepts, and no target has the last one of them.
//
//	go test -run '^$' -bench Pages ./internal/pages
func BenchmarkPages(b *testing.B) {
	var tracks []history.Track
	for i := range 500 {
		name, age := fmt.Sprintf("web-%d.prod.example:443", i), time.Duration(i)*time.Millisecond
		tracks = append(tracks, track(name, strings.Repeat("or", 10), age))
	}
	p := newPages(tracks...)
	filler := strings.Repeat("prod.example ", maxFilterWords-1)
	longest := url.Values{"filter": {filler + strings.Repeat("x", maxFilterLength-len(filler))}}.Encode()
	for name, get := range map[string]func() int{
		"status page":    func() int { return get(p.Home, "").Body.Len() },
		"longest filter": func() int { return get(p.Home, longest).Body.Len() },
		"logs as text":   func() int { return get(p.Logs, "").Body.Len() },
		"logs as HTML":   func() int { return browse(p, "").Body.Len() },
	} {
		b.Run(name, func(b *testing.B) {
			size := 0
			for b.Loop() {
				size = get()
			}
			b.ReportMetric(float64(size), "B-sent")
		})
	}
}
