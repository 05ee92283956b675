package pages

import (
	"fmt"
	"net/netip"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A trace is the last traced path to a target, as the page shows it.
type trace struct {
	Summary string
	Hops    []hop
	Good    []hop // the last good path, if the target fails and its path was traced since; otherwise none
}

// Empty reports whether there is no hop to show.
func (t *trace) Empty() bool { return len(t.Hops) == 0 && len(t.Good) == 0 }

// A hop is one line of a path.
type hop struct {
	Text    string
	Differs bool // whether this is the first hop that differs from the last good path
}

// Trace returns the last traced path to the target, nil if no path was traced.
func (r *row) Trace() *trace {
	success := r.Last().Success
	switch {
	case r.Path == nil:
		return nil
	case success && r.Path != r.GoodPath: // the latest probe was not traced
		return &trace{Summary: summary("path of an earlier failure", r.Path), Hops: hops(r.Path, 0)}
	case !success && r.Path == r.GoodPath: // the latest probe was not traced
		return &trace{Summary: summary("last good path", r.Path), Hops: hops(r.Path, 0)}
	case success || r.GoodPath == nil:
		return &trace{Summary: summary("path", r.Path), Hops: hops(r.Path, 0)}
	default:
		return &trace{
			Summary: summary("path", r.Path),
			Hops:    hops(r.Path, differsAt(r.Path, r.GoodPath)),
			Good:    hops(r.GoodPath, 0),
		}
	}
}

// summary describes the length of a path in words.
func summary(name string, p *shaker.Path) string {
	n := fmt.Sprintf("%d hops", len(p.Hops))
	switch {
	case len(p.Hops) == 0:
		return name + ": no hop answered"
	case len(p.Hops) == 1:
		n = "1 hop"
	}
	if p.Reached == 0 {
		return fmt.Sprintf("%s ends after %s", name, n)
	}
	return fmt.Sprintf("%s: %s", name, n)
}

// hops returns the lines of a path. The hop with the TTL differsAt is marked; 0 marks no hop.
func hops(p *shaker.Path, differsAt int) []hop {
	var lines []hop
	for _, h := range p.Hops {
		lines = append(lines, hop{Text: probe.DescribeHop(h), Differs: h.TTL == differsAt})
	}
	return lines
}

// differsAt returns the first TTL at which the two paths have different hops, 0 if there is none.
// A hop that did not answer does not differ from any other.
func differsAt(now, good *shaker.Path) int {
	goodHops := make(map[int]netip.Addr)
	for _, h := range good.Hops {
		goodHops[h.TTL] = h.From
	}
	for _, h := range now.Hops {
		if from := goodHops[h.TTL]; h.From.IsValid() && from.IsValid() && h.From != from {
			return h.TTL
		}
	}
	return 0
}
