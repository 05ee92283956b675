// Package history keeps the latest results of probes in memory, for the status page and /logs. The package
// stores records and does not depend on how probes are performed.
package history

import (
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Record is one probe result in the history.
type Record struct {
	Time           time.Time // start of the probe
	Success        bool
	AfterGap       bool          // whether probes between the previous record and this one have no records
	Result, Errno  string        // as in probe_result_info
	Reason         string        // the resolver's error, or which event of a held connection it is; often ""
	Duration       time.Duration // from the start of the probe to the verdict
	Handshake, RTT time.Duration // 0 if not measured
	Sent           bool          // whether a SYN left this host, as far as is known
	SYNRetransmits int           // -1 if no SYN was sent, or if the platform does not count them
	Address        netip.Addr    // the probed address, invalid if there was none
	ICMP           shaker.ICMP   // the ICMP error that ended the probe; From is invalid if there was none
	Flows          *Flows        // nil if the module has no flows
}

// Latency returns the time from SYN to SYN-ACK, 0 if there was no SYN-ACK. It prefers the
// kernel's clock.
func (r *Record) Latency() time.Duration { return cmp.Or(r.RTT, r.Handshake) }

// A Track is the history of one target, probed with one module.
type Track struct {
	Target, Module string
	Since          time.Time // start of the first probe with the current result, as far as is known
	Changed        bool      // whether there was another result before Since
	Records        []Record  // oldest first, at least one

	// Ended reports whether the target was watched, held or measured in the background until that ended, and has not
	// had a record since then.
	Ended bool

	// Complete is the index of the first record after which none is missing. Between the records
	// before it there were other probes, whose records have been dropped.
	Complete int

	// Path is the last traced path, and GoodPath the last one traced by a successful probe;
	// nil if there is none.
	Path, GoodPath *shaker.Path
}

// Last returns the latest record.
func (t *Track) Last() *Record { return &t.Records[len(t.Records)-1] }

const (
	// perTarget limits the successes of a target, and also its failures.
	perTarget = 60

	// idle is how long a target may go unprobed before a full history drops it first.
	idle = 24 * time.Hour
)

// A History holds the latest probe results: up to 60 successes and 60 failures of each target,
// and no more than its limit over all targets. Successes do not push out failures, so last
// night's outage is still there after hours of success.
//
// A full history makes room for a new record as follows. The earlier records of a target are all of
// its records except the latest one.
//
//   - If a target has not been probed for a day, the history drops this target.
//   - Otherwise it drops an earlier record: a success, or a failure if the history has more earlier
//     failures than earlier successes. It drops the oldest one of the target that has most of them.
//     This divides the limit evenly between targets, however often each of them is probed.
//   - If no target has an earlier record, the history drops the least recently probed target.
//
// A History is safe for concurrent use.
type History struct {
	limit int // of records

	mu      sync.Mutex
	targets map[trackKey]*track
	byProbe list.List  // of *track, least recently probed first
	earlier [2]ranking // of the earlier records, by kind
	lost    time.Time  // see Lost
}

// A trackKey identifies a track.
type trackKey struct{ target, module string }

// A track is the internal form of a Track.
type track struct {
	trackKey
	since          time.Time
	changed        bool
	ended          bool
	latest         Record
	earlier        []Record // oldest first
	complete       int      // index into earlier; see Track.Complete
	path, goodPath *shaker.Path

	probed *list.Element    // in History.byProbe
	counts [2]int           // numbers of earlier records, by kind
	ranked [2]*list.Element // in History.earlier, by kind; not used where the count is 0
}

// A kind of record is success or failure.
type kind int

const (
	failure kind = iota
	success
)

func kindOf(r *Record) kind {
	if r.Success {
		return success
	}
	return failure
}

// A ranking orders targets by their numbers of earlier records of one kind.
type ranking struct {
	records int
	targets [perTarget + 1]list.List // of *track, by number of records; the first in a list loses a record first
}

// first returns a target with the largest number of records. There must be at least one record.
func (r *ranking) first() *track {
	n := len(r.targets) - 1
	for r.targets[n].Len() == 0 {
		n--
	}
	return r.targets[n].Front().Value.(*track)
}

// New returns a History of at most limit records. It stays empty if limit is 0.
func New(limit int) *History {
	return &History{limit: limit, targets: make(map[trackKey]*track)}
}

// Add adds the record of a probe, and its path if it was traced.
func (h *History) Add(name, module string, record Record, path *shaker.Path) {
	if h.limit == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.targets[trackKey{name, module}]
	if t == nil {
		// Clone the strings: they may be small parts of a large request.
		t = &track{trackKey: trackKey{strings.Clone(name), strings.Clone(module)}, since: record.Time}
		t.probed = h.byProbe.PushBack(t)
		h.targets[t.trackKey] = t
	} else {
		t.earlier = append(t.earlier, t.latest.condensed())
		h.count(t, kindOf(&t.latest), 1)
		h.byProbe.MoveToBack(t.probed)
		if t.latest.Result != record.Result {
			t.since, t.changed = record.Time, true
		}
	}
	t.latest, t.ended = record, false
	if record.AfterGap {
		t.complete = len(t.earlier)
		t.since, t.changed = record.Time, false
	}
	if path != nil {
		t.path = path
		if record.Success {
			t.goodPath = path
		}
	}
	if k := kindOf(&record); t.counts[k] == perTarget {
		h.drop(t, k)
	}
	if len(h.targets)+h.earlier[success].records+h.earlier[failure].records > h.limit {
		h.makeRoom(record.Time)
	}
}

// End notes that a target is no longer watched, held or measured, until the next record is added.
func (h *History) End(name, module string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.targets[trackKey{name, module}]; t != nil {
		t.ended = true
	}
}

// count adds n to the number of a target's earlier records of a kind, and ranks the target.
func (h *History) count(t *track, k kind, n int) {
	r := &h.earlier[k]
	r.records += n
	if before := t.counts[k]; before > 0 {
		r.targets[before].Remove(t.ranked[k])
	}
	t.counts[k] += n
	if after := t.counts[k]; after > 0 {
		t.ranked[k] = r.targets[after].PushBack(t)
	}
}

// makeRoom drops one record or more, as described at History.
func (h *History) makeRoom(now time.Time) {
	oldest := h.byProbe.Front().Value.(*track)
	k := success
	if h.earlier[failure].records > h.earlier[success].records {
		k = failure
	}
	switch {
	case now.Sub(oldest.latest.Time) > idle:
		h.forget(oldest)
	case h.earlier[k].records > 0:
		h.drop(h.earlier[k].first(), k)
	default:
		h.forget(oldest)
		h.lost = now
	}
}

// drop drops the oldest of a target's earlier records of a kind.
func (h *History) drop(t *track, k kind) {
	i := slices.IndexFunc(t.earlier, func(r Record) bool { return kindOf(&r) == k })
	t.earlier = slices.Delete(t.earlier, i, i+1)
	if cap(t.earlier) > 2*len(t.earlier)+8 {
		t.earlier = slices.Clone(t.earlier) // free the rest
	}
	t.complete = max(i, t.complete-1)
	h.count(t, k, -1)
}

// forget drops a target with all of its records.
func (h *History) forget(t *track) {
	for k, n := range t.counts {
		h.count(t, kind(k), -n)
	}
	h.byProbe.Remove(t.probed)
	delete(h.targets, t.trackKey)
}

// Lost returns when the history last dropped a target that had been probed within a day, because
// there are more targets than the limit. It is zero if that never happened.
func (h *History) Lost() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lost
}

// Tracks returns the history of one target, or of all targets if target is "", limited to one
// module unless module is "". The order is undefined.
func (h *History) Tracks(target, module string) []Track {
	h.mu.Lock()
	defer h.mu.Unlock()
	var tracks []Track
	for key, t := range h.targets {
		if target != "" && key.target != target || module != "" && key.module != module {
			continue
		}
		tracks = append(tracks, Track{
			Target:   key.target,
			Module:   key.module,
			Since:    t.since,
			Changed:  t.changed,
			Ended:    t.ended,
			Records:  slices.Concat(t.earlier, []Record{t.latest}),
			Complete: t.complete,
			Path:     t.path,
			GoodPath: t.goodPath,
		})
	}
	return tracks
}
