package pages

import (
	"cmp"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
)

// An entry is the history of a target, with what the page groups and sorts it by.
type entry struct {
	*history.Track
	status status
	name   name
}

// newEntries returns the entries of tracks.
func newEntries(tracks []history.Track, now time.Time) []entry {
	entries := make([]entry, len(tracks))
	for i := range tracks {
		t := &tracks[i]
		entries[i] = entry{Track: t, status: statusOf(t, now), name: parseName(t.Target)}
	}
	return entries
}

// compareNames compares two entries by target and module.
func compareNames(a, b *entry) int {
	return cmp.Or(a.name.compare(&b.name), cmp.Compare(a.Module, b.Module))
}

// An order sorts the targets of the page. Its value is that of the parameter sort.
type order string

const (
	// byStatus sorts by status, failing targets then by their last change with the latest first, and all
	// targets by name.
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
	if first == 0 && a.status == failing {
		first = b.Since.Compare(a.Since)
	}
	return cmp.Or(first, compareNames(&a, &b))
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
