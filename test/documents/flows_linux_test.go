package documents

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The snippet of docs/flows.md is a valid file, and the scrape by hand prints what the page shows: the flows of odd
// ports take a path on which they get lost.
func TestFlowsTranscript(t *testing.T) {
	network := simnet.NewNetwork(t)
	good := network.Hidden(simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2")
	broken := network.Hidden().Behind("198.51.100.1", "198.51.100.3")
	network.At("192.0.2.1").Over(func(syn simnet.Segment) *simnet.Host {
		return []*simnet.Host{good, broken}[syn.Src.Port()%2]
	})
	file := lab.Write(t, t.TempDir(), "shaker.yml", snippetWith(t, flowsPage, "yaml", "modules:"))
	exporter.Start(t, "--config.file="+file)
	for _, s := range snippets(t, "console", flowsPage) {
		tryTranscript(t, s, func(text string) string { return text })
	}
}

// The table of docs/flows.md has the numbers that its formula gives. The probabilities are rounded down.
func TestFlowsThatFindABrokenPath(t *testing.T) {
	table := rows(t, flowsPage, "paths")
	const least, most = 2, 16
	if len(table) != most-least+1 {
		t.Errorf("%s has %d rows about paths, want one for each of %d to %d", flowsPage, len(table), least, most)
	}
	for n := least; n <= most; n++ {
		missed := 1 - 1/float64(n) // by one flow
		want := []string{fmt.Sprint(math.Ceil(math.Log(0.01) / math.Log(missed)))}
		for flows := 2; flows <= config.MaxFlows; flows *= 2 {
			found := 1 - math.Pow(missed, float64(flows))
			cell := fmt.Sprintf("%.1f%%", math.Floor(1000*found)/10)
			if found > 0.999 {
				cell = "> 99.9%"
			}
			want = append(want, cell)
		}
		if got := table[strconv.Itoa(n)]; strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: with %d paths, the table has %q, want %q", flowsPage, n, got, want)
		}
	}
}
