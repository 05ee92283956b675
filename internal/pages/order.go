package pages

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
)

// An entry is a target, with what the page groups and sorts it by.
type entry struct {
	*history.Track               // of a live target: its last result only
	watch          *watch.Status // nil if the target is not watched
	hold           *hold.Status  // nil if the target is not held
	idle           *idle.Status  // nil if its idle timeout is not measured
	live           live          // its zero value for a target that is not live
	logged         bool          // whether the history has results of the target
	status         status
	name           name
}

// isLive reports whether the exporter deals with the target between scrapes.
func (e *entry) isLive() bool { return e.watch != nil || e.hold != nil || e.idle != nil }

// live has what all live targets have in common: those with which the exporter deals between scrapes.
type live struct {
	client           string // the last one that scraped the target
	scraped, expires time.Time
	trouble          float64 // how unstable the target is, from 0 to 1
	stale            error   // why there is no recent result because of this host, nil if there is one
}

// newEntry returns the entry of a target that is not watched.
func newEntry(t *history.Track, now time.Time) entry {
	return entry{Track: t, logged: true, status: statusOf(t, now), name: parseName(t.Target)}
}

// why explains the status of the target, "" if it needs no explanation.
func (e *entry) why() string {
	if e.live.stale != nil {
		return e.live.stale.Error()
	}
	if e.Ended {
		return "no longer measured"
	}
	return why(e.Last())
}

// compareNames compares two entries by target and module.
func compareNames(a, b *entry) int {
	return cmp.Or(a.name.compare(&b.name), cmp.Compare(a.Module, b.Module))
}

// An order sorts the targets of the page. Its value is that of the parameter sort.
type order string

const (
	// byStatus sorts by status, failing targets then by their last change with the latest first, unstable targets
	// by how unstable they are, and all targets by name.
	byStatus order = ""

	// byLatency sorts by the latency of the latest probe, the longest first. Targets without a recent
	// latency follow by status.
	byLatency order = "latency"
)

// String describes the order to the user of the page.
func (o order) String() string {
	if o == byLatency {
		return "slowest first"
	}
	return "failing first"
}

// compare compares two entries for sorting.
func (o order) compare(a, b entry) int {
	first := 0
	if o == byLatency {
		first = cmp.Compare(b.recentLatency(), a.recentLatency())
	}
	first = cmp.Or(first, cmp.Compare(a.status, b.status))
	switch {
	case first != 0:
	case a.status == failing:
		first = b.Since.Compare(a.Since)
	case a.status == unstable:
		first = cmp.Compare(b.live.trouble, a.live.trouble)
	}
	return cmp.Or(first, compareNames(&a, &b))
}

// A shortlist keeps the first of many entries, so that the memory for a page does not grow with their number.
type shortlist struct {
	order   order
	limit   int
	added   int
	entries []entry
	cut     bool // whether the first entries, as many as the limit, are sorted and no dropped one belongs before them
}

// add adds an entry.
func (s *shortlist) add(e entry) {
	s.added++
	if s.cut && s.order.compare(e, s.entries[s.limit-1]) > 0 {
		return
	}
	s.entries = append(s.entries, e)
	if len(s.entries) == 2*s.limit {
		s.first()
	}
}

// first returns the first entries in order, at most as many as the limit.
func (s *shortlist) first() []entry {
	slices.SortFunc(s.entries, s.order.compare)
	if len(s.entries) >= s.limit {
		s.entries, s.cut = slices.Delete(s.entries, s.limit, len(s.entries)), true
	}
	return s.entries
}

// recentLatency returns the latency of the latest probe, 0 if it has none or is not recent.
func (e *entry) recentLatency() time.Duration {
	if e.status == unprobed {
		return 0
	}
	return e.Last().Latency()
}

// A name is a target in the form in which it is compared.
type name struct {
	target string
	host   string
	addr   netip.Addr // invalid if the host is not an address
	port   uint64
}

func parseName(target string) name {
	n := name{target: target, host: target}
	if host, port, err := net.SplitHostPort(target); err == nil {
		n.host = host
		n.port, _ = strconv.ParseUint(port, 10, 16)
	}
	n.addr, _ = netip.ParseAddr(n.host)
	return n
}

// compare compares two targets for sorting: addresses come first, in numerical order, then host names.
// Ports are in numerical order.
func (n *name) compare(other *name) int {
	switch {
	case n.addr.IsValid() && !other.addr.IsValid():
		return -1
	case !n.addr.IsValid() && other.addr.IsValid():
		return 1
	}
	return cmp.Or(
		n.addr.Compare(other.addr),
		strings.Compare(n.host, other.host),
		cmp.Compare(n.port, other.port),
		strings.Compare(n.target, other.target))
}
