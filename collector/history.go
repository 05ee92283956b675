package collector

import (
	"cmp"
	"container/list"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Record is what the history keeps of a probe.
type Record struct {
	Time           time.Time // when the probe began
	Success        bool
	Result, Errno  string        // as probe_result_info has them
	Reason         string        // what the resolver said, if there is no address
	Duration       time.Duration // from the beginning of the probe to the verdict
	Handshake, RTT time.Duration // 0 if not measured
	Sent           bool          // a SYN left this host, as far as is known
	SYNRetransmits int           // -1 if no SYN was sent, or the platform does not tell
	Address        netip.Addr    // that was probed, invalid if there was none
	ICMP           shaker.ICMP   // that ended the probe; its From is invalid if there was none
}

// Latency returns the time from SYN to SYN-ACK, on the kernel's clock if that has it, 0 if
// there was no SYN-ACK.
func (r *Record) Latency() time.Duration { return cmp.Or(r.RTT, r.Handshake) }

// Milliseconds writes a time for people, in milliseconds with three digits, as ping(8) does it.
func Milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 1:
		return fmt.Sprintf("%.3f", ms)
	case ms < 10:
		return fmt.Sprintf("%.2f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	default:
		return fmt.Sprintf("%.0f", ms)
	}
}

// A Track is the history of one target, probed by one module.
type Track struct {
	Target, Module string
	First          time.Time // when it was first probed, as far as is known
	Changed        time.Time // when its result last became another one; zero if it never did
	Whole          time.Time // none later than this was forgotten; zero if none was at all
	Records        []Record  // oldest first

	// Path is the last one that was traced, and GoodPath the last one with a success;
	// nil if there is none.
	Path, GoodPath *shaker.Path
}

// Last returns the latest record.
func (t *Track) Last() *Record { return &t.Records[len(t.Records)-1] }

// perTrack is how many successes, and how many failures, are kept of one target.
const perTrack = 60

// A History holds the latest records of the targets that were probed lately. Failures are
// kept longer than successes: of each target up to 60 of either, and of all targets together
// successes go first, until failures have half of the room. The last record of a target goes
// after those of which there are others. It is safe for use by any number of goroutines.
type History struct {
	limit int // of records

	mu        sync.Mutex
	tracks    map[trackKey]*track // those that have a record
	successes list.List           // of *entry, the next to be forgotten first
	failures  list.List           // likewise
	lost      time.Time           // when the last record of a target was last forgotten; zero if never
}

type trackKey struct{ target, module string }

type track struct {
	trackKey
	first, changed time.Time
	whole          time.Time
	last           string // result
	path, goodPath *shaker.Path
	entries        []*list.Element // oldest first
}

type entry struct {
	Record
	track *track
}

// NewHistory returns a History of so many records at most, 0 for none.
func NewHistory(limit int) *History {
	return &History{limit: limit, tracks: make(map[trackKey]*track)}
}

// add adds the record of a probe, and the path, nil if it was not traced.
func (h *History) add(target, module string, record Record, path *shaker.Path) {
	if h.limit == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tracks[trackKey{target, module}]
	if t == nil {
		// A string of a request may be a small part of a large one.
		t = &track{trackKey: trackKey{strings.Clone(target), strings.Clone(module)}, first: record.Time, last: record.Result}
		h.tracks[t.trackKey] = t
	}
	if t.last != record.Result {
		t.last, t.changed = record.Result, record.Time
	}
	if path != nil {
		t.path = path
		if record.Success {
			t.goodPath = path
		}
	}
	t.entries = append(t.entries, h.list(record.Success).PushBack(&entry{record, t}))
	t.limit(h, record.Success)
	if h.successes.Len()+h.failures.Len() > h.limit {
		h.forgetOne(h.list(h.failures.Len() <= (h.limit+1)/2))
	}
}

// lastChances is how many records are passed over because they are the last of their targets,
// before one is forgotten nevertheless: then there is hardly room for more than one of each.
const lastChances = 64

// forgetOne forgets the first record of a list that is not the last one of its target.
func (h *History) forgetOne(of *list.List) {
	for range lastChances {
		first := of.Front()
		if len(first.Value.(*entry).track.entries) > 1 {
			h.forget(first)
			return
		}
		of.MoveToBack(first)
	}
	h.forget(of.Front())
}

// Lost returns when a target was last forgotten for want of room, zero if none ever was.
func (h *History) Lost() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lost
}

// list returns the list that has the successes, or the failures.
func (h *History) list(success bool) *list.List {
	if success {
		return &h.successes
	}
	return &h.failures
}

// limit forgets the oldest success, or the oldest failure, if there are too many of them.
func (t *track) limit(h *History, success bool) {
	n, oldest := 0, (*list.Element)(nil)
	for _, e := range slices.Backward(t.entries) {
		if e.Value.(*entry).Success == success {
			n, oldest = n+1, e
		}
	}
	if n > perTrack {
		h.forget(oldest)
	}
}

// forget forgets a record, and its target with the last one.
func (h *History) forget(element *list.Element) {
	e := element.Value.(*entry)
	h.list(e.Success).Remove(element)
	if e.Time.After(e.track.whole) {
		e.track.whole = e.Time
	}
	i := slices.Index(e.track.entries, element)
	e.track.entries = slices.Delete(e.track.entries, i, i+1)
	if len(e.track.entries) == 0 {
		delete(h.tracks, e.track.trackKey)
		h.lost = time.Now()
	}
}

// Tracks returns the history of every target that is the given one, or of all if that is
// "", and likewise of every module. They are in no order.
func (h *History) Tracks(target, module string) []Track {
	h.mu.Lock()
	defer h.mu.Unlock()
	var tracks []Track
	for _, t := range h.tracks {
		if target != "" && t.target != target || module != "" && t.module != module {
			continue
		}
		records := make([]Record, len(t.entries))
		for i, e := range t.entries {
			records[i] = e.Value.(*entry).Record
		}
		tracks = append(tracks, Track{t.target, t.module, t.first, t.changed, t.whole, records, t.path, t.goodPath})
	}
	return tracks
}
