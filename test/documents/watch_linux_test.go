package documents

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

// The snippet of docs/watch.md is a valid file, which replaces the built-in modules, and the scrape by hand prints what
// the page shows.
func TestWatchTranscript(t *testing.T) {
	file := lab.Write(t, t.TempDir(), "shaker.yml", snippetWith(t, watchPage, "yaml", "modules:"))
	exporter.Start(t, "--config.file="+file)
	for _, s := range snippets(t, "console", watchPage) {
		tryTranscript(t, s, func(text string) string { return text })
	}
	if status, body := exporter.Get(t, "/probe?target=localhost:10115"); status != 400 {
		t.Errorf("/probe without a module = %d %s, want 400: the file does not have tcp_connect", status, body)
	}
}

// The table of docs/watch.md has the numbers that its formula gives, for a relative error of 30%.
func TestHandshakesForALossRate(t *testing.T) {
	const e = 0.3
	intervals := []time.Duration{time.Second, 200 * time.Millisecond, 15 * time.Second}
	table := rows(t, watchPage, "loss")
	if len(table) != 3 {
		t.Fatalf("%s has %d rows about loss rates, want 3", watchPage, len(table))
	}
	for loss, cells := range table {
		percent, err := strconv.ParseFloat(strings.TrimSuffix(loss, "%"), 64)
		if err != nil {
			t.Fatalf("%s: loss %q: %v", watchPage, loss, err)
		}
		p := percent / 100
		n := (1 - p) / (p * e * e)
		got, err := strconv.ParseFloat(strings.ReplaceAll(cells[0], ",", ""), 64)
		if err != nil || math.Abs(got/n-1) > 0.005 {
			t.Errorf("%s: a loss of %s needs %s handshakes, want %.0f", watchPage, loss, cells[0], n)
		}
		for i, interval := range intervals {
			d, err := time.ParseDuration(cells[i+1])
			want := time.Duration(n * float64(interval))
			if err != nil || math.Abs(d.Seconds()/want.Seconds()-1) > 0.01 {
				t.Errorf("%s: a loss of %s takes %s at an interval of %v, want %v",
					watchPage, loss, cells[i+1], interval, want)
			}
		}
	}
}
