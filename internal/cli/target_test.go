package cli

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// After the hops that answered, the command prints that there are no more, but only if it knows that.
func TestPrintEnd(t *testing.T) {
	router := shaker.Hop{TTL: 1, From: netip.MustParseAddr("198.51.100.1")}
	for _, c := range []struct {
		name   string
		hops   []shaker.Hop
		report *probe.Report
		want   string
	}{
		{
			name:   "the last hop answered",
			hops:   []shaker.Hop{router},
			report: &probe.Report{},
		},
		{
			name:   "the last hops did not answer",
			hops:   []shaker.Hop{router, {TTL: 2}, {TTL: 3}},
			report: &probe.Report{},
			want:   "a:1:  2  *  (no reply from here on)\n",
		},
		{
			name:   "the end is not known",
			hops:   []shaker.Hop{router, {TTL: 2}, {TTL: 3}},
			report: &probe.Report{PathErr: errors.New("incomplete")},
			want:   "a:1: path: incomplete\n",
		},
	} {
		file, err := os.Create(t.TempDir() + "/out")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		out := newTerminal(file, true)
		target := &target{Command: &Command{flags: flags{output: "text"}}, text: "a:1"}
		for _, hop := range c.hops {
			target.printHop(out, hop)
		}
		printed, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		target.printEnd(out, c.report)
		text, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got := string(text[len(printed):]); got != c.want {
			t.Errorf("%s: printEnd printed %q, want %q", c.name, got, c.want)
		}
	}
}
