package pages

import (
	"fmt"
	"net/netip"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A trace is what the page says of the last path to a target that was traced.
type trace struct {
	Summary string
	Hops    []hop
	Good    []hop // of the last path with a success, if the target fails and that is another one
}

// A hop is a line of a path.
type hop struct {
	Text    string
	Differs bool // it is the first that is another one on the last good path
}

// Trace returns what is to be said of the path to the target, nil if none was traced.
func (r *row) Trace() *trace {
	success := r.Last().Success
	switch {
	case r.Path == nil:
		return nil
	case success && r.Path != r.GoodPath: // this one was not traced
		return &trace{Summary: summary("path of an earlier failure", r.Path), Hops: hops(r.Path, 0)}
	case !success && r.Path == r.GoodPath: // likewise
		return &trace{Summary: summary("last good path", r.Path), Hops: hops(r.Path, 0)}
	case success || r.GoodPath == nil:
		return &trace{Summary: summary("path", r.Path), Hops: hops(r.Path, 0)}
	default:
		return &trace{summary("path", r.Path), hops(r.Path, differsAt(r.Path, r.GoodPath)), hops(r.GoodPath, 0)}
	}
}

// summary says how far a path could be seen.
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

// hops returns the lines of a path, which differs from another one at a TTL, 0 for nowhere.
func hops(p *shaker.Path, differsAt int) []hop {
	var lines []hop
	for _, h := range p.Hops {
		lines = append(lines, hop{collector.DescribeHop(h), h.TTL == differsAt})
	}
	return lines
}

// differsAt returns the first TTL at which both paths have a hop, but not the same one, 0 if
// there is none. A hop that is silent may be any.
func differsAt(now, good *shaker.Path) int {
	was := make(map[int]netip.Addr)
	for _, h := range good.Hops {
		was[h.TTL] = h.From
	}
	for _, h := range now.Hops {
		if from := was[h.TTL]; h.From.IsValid() && from.IsValid() && h.From != from {
			return h.TTL
		}
	}
	return 0
}
