package watch

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A target is a watched target.
type target struct {
	registry.Registration
	watcher *Watcher

	mu         sync.Mutex
	stopped    bool               // it has expired, or the Watcher is closed
	repetition *shaker.Repetition // nil while there is no address to shake hands with
	peer       netip.AddrPort     // of the repetition, or of the last one
	registered time.Time

	// The handshakes
	counts      []handshakeCount
	rtt         histogram
	retransmits uint64
	acksSent    uint64
	skipped     Skipped // without those that repetition counts
	last        shaker.Result
	sent        time.Time // when the SYN of the last handshake was sent
	completed   time.Time // when the last one was completed
	fault       error     // why the last one was not performed, nil if it was completed

	// For the status page, see Status
	failed, lost uint64 // since registration
	recent       strip
	noted        uint64    // skipped handshakes that are counted in recent
	result       string    // the present one
	since        time.Time // start of the first one with this result in a row
	failure      string
	failureAt    time.Time // on the wall clock, as in the history
	changed      bool      // whether there was another result before since
	unrecorded   bool      // whether there were successes after the last record in the history

	// Name resolution
	resolution *probe.Resolution // nil if the target is an address
	gone       *probe.Verdict    // why the name has no address now, nil if it has one

	// The path at the begin of the present failure, nil if there is none
	path    *shaker.Path
	pathErr error
}

type handshakeCount struct {
	outcome shaker.Outcome
	errno   shaker.Errno
	n       uint64
}

// Skipped counts handshakes that were due and that this host could not perform or report, by reason.
type Skipped struct {
	Late        uint64 // this host was too busy, or the process was stopped
	Overlapping uint64 // too many others with the same target were running
	Unread      uint64 // performed, but the exporter was too busy to count the result
	Fault       uint64 // a local error
}

// A Snapshot is what is known about a watched target.
type Snapshot struct {
	Interval                  time.Duration
	Registered, LastHandshake time.Time
	Handshakes                []HandshakeCount
	Lookups                   []registry.LookupCount // empty if the target is an address
	SYNRetransmits, ACKsSent  uint64
	Skipped                   Skipped
	RTT                       *dto.Histogram
}

// A HandshakeCount is the number of handshakes with a result.
type HandshakeCount struct {
	Result, Errno string
	Total         uint64
}

// begin starts the handshakes with the address of a probe, and counts the handshake of that probe.
func (t *target) begin(report *probe.Report) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.repeat(report.Handshake.Peer); err != nil {
		return err
	}
	if !report.Addr.IsValid() {
		t.resolved(report)
	}
	t.stopped = false
	if t.registered.IsZero() {
		t.registered = report.Start.Round(0) // on the wall clock
	}
	t.add(&shaker.Repeated{
		Result: report.Handshake,
		Sent:   report.Start.Add(max(0, report.At-report.Handshake.Waited)),
	})
	t.path, t.pathErr = report.Path, report.PathErr
	t.unrecorded = false // the caller of Scrape adds this one to the history
	if t.isFailing() {
		t.failure, t.failureAt = report.Result, report.Start
	}
	return nil
}

// repeat starts the handshakes with an address, or continues them with another one. Its caller holds mu.
func (t *target) repeat(peer netip.AddrPort) (err error) {
	t.gone = nil
	defer func() {
		if err == nil {
			t.peer = peer
		}
	}()
	if t.repetition != nil {
		return t.repetition.SetTarget(peer)
	}
	options := t.Module.Options()
	options.Timeout = t.Module.Timeout
	t.repetition, err = t.watcher.options.Shaker.Repeat(peer, shaker.Schedule{
		Interval: t.Module.Watch.Interval,
		Offset:   offset(t.Key),
		Options:  options,
	}, t.take)
	return err
}

// offset spreads the handshakes of all targets over the interval.
func offset(k registry.Key) time.Duration {
	h := fnv.New64a()
	h.Write([]byte(k.Module + "\n" + k.Target))
	return max(1, time.Duration(h.Sum64()>>1))
}

// Stop implements registry.Target.
func (t *target) Stop() {
	t.stop()
	t.recordEnd()
}

// stop stops the handshakes. The counters stay as they are.
func (t *target) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.pause()
}

// pause is stop for a caller that holds mu.
func (t *target) pause() {
	if t.repetition == nil {
		return
	}
	// No result arrives during Stop: take waits for mu, and finds out that the repetition has ended.
	t.repetition.Stop()
	t.skipped = t.allSkipped()
	t.repetition = nil
}

// allSkipped returns how many handshakes were skipped. Its caller holds mu.
func (t *target) allSkipped() Skipped {
	all := t.skipped
	if t.repetition != nil {
		now := t.repetition.Skipped()
		all.Late += now.Late
		all.Overlapping += now.Overlapping
		all.Unread += now.Unread
	}
	return all
}

// take takes the result of a handshake in the background.
func (t *target) take(r shaker.Repeated) {
	t.watcher.options.Observe(t.Key.Module, &r)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.repetition == nil {
		return // it was stopped
	}
	failedBefore := t.isFailing()
	if completed := t.add(&r); completed && !t.isValid(&r.Result) {
		t.recordFailure(t.reportOf(t.request(), &r.Result, r.Sent))
	}
	failing := t.isFailing()
	if failing == failedBefore {
		return
	}
	report := t.report(t.request())
	t.watcher.options.Changed(report)
	if failing && t.Module.TCP.Path == config.OnFailure {
		t.watcher.trace(t, report)
	}
}

// recordFailure adds a failure to the history. Its caller holds mu.
func (t *target) recordFailure(report *probe.Report) {
	record := report.Record()
	t.failure, t.failureAt = record.Result, record.Time
	t.record(record)
}

// record adds a record to the history. Its caller holds mu.
func (t *target) record(record history.Record) {
	record.AfterGap, t.unrecorded = t.unrecorded, false
	t.watcher.options.History.Add(t.Key.Target, t.Key.Module, record, nil)
}

// recordEnd adds the last handshake to the history if it succeeded after a failure: otherwise the history would end
// with the failure although the target has recovered.
func (t *target) recordEnd() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure != "" && t.unrecorded && t.gone == nil && !t.isFailing() {
		t.record(t.report(t.request()).Record())
	}
}

// add counts a handshake. completed reports whether there is a verdict. The last handshake is the one whose SYN was
// sent last: one that ends later because it waited for a lost SYN does not describe the present state. Its caller holds
// mu.
func (t *target) add(r *shaker.Repeated) (completed bool) {
	defer t.noteSkipped()
	if r.Err != nil {
		t.skipped.Fault++
		t.fault = r.Err
		return false
	}
	t.fault, t.completed = nil, time.Now()
	if !r.Sent.Before(t.sent) {
		t.last, t.sent = r.Result, r.Sent
		t.found(r.Result.Outcome.String(), r.Sent)
		if !t.isFailing() {
			t.path, t.pathErr = nil, nil
		}
	}
	t.count(r.Result.Outcome, r.Result.Errno)
	if r.Result.RTT > 0 {
		t.rtt.observe(r.Result.RTT)
	}
	t.retransmits += uint64(max(0, r.Result.SYNs-1))
	if r.Result.ACKSent {
		t.acksSent++
	}
	now := Tally{Completed: 1}
	if t.lostSYN(&r.Result) {
		t.lost++
		now.Lost++
	}
	if t.isValid(&r.Result) {
		t.unrecorded = true
	} else {
		t.failed++
		now.Failed++
	}
	t.recent.add(t.watcher.uptime(), now)
	return true
}

// found notes the present result, and that it was found by a handshake or lookup that began at the given time. Its
// caller holds mu.
func (t *target) found(result string, start time.Time) {
	if t.result != result {
		t.changed = t.result != ""
		t.result, t.since = result, start
	}
}

// lostSYN reports whether a SYN of a handshake got no reply, unless the module expects that there is none.
func (t *target) lostSYN(r *shaker.Result) bool {
	if r.Outcome == shaker.Timeout {
		return !t.isValid(r)
	}
	return r.SYNs > 1
}

// isValid reports whether the result of a handshake is valid for the module.
func (t *target) isValid(r *shaker.Result) bool {
	return slices.Contains(t.Module.TCP.ValidResults, r.Outcome.String())
}

// isFailing reports whether the result of the last handshake is not valid. Its caller holds mu.
func (t *target) isFailing() bool {
	return t.last.Outcome != 0 && !t.isValid(&t.last)
}

func (t *target) count(outcome shaker.Outcome, errno shaker.Errno) {
	for i := range t.counts {
		if c := &t.counts[i]; c.outcome == outcome && c.errno == errno {
			c.n++
			return
		}
	}
	t.counts = append(t.counts, handshakeCount{outcome: outcome, errno: errno, n: 1})
}

// Peer implements registry.Target.
func (t *target) Peer() netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peer
}

// answer answers a scrape from memory.
func (t *target) answer(req *probe.Request) (Answer, error) {
	snapshot := t.snapshot()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone == nil {
		if err := t.stale(); err != nil {
			return Answer{}, err
		}
	}
	answered := *req
	answered.Timeout = t.Module.Timeout
	return Answer{Report: t.report(&answered), Watch: snapshot}, nil
}

// stale returns an error if this host has completed no handshake for too long. Its caller holds mu.
func (t *target) stale() error {
	most := 3*t.Module.Watch.Interval + t.Module.Timeout
	age := time.Since(t.completed)
	if age <= most {
		return nil
	}
	cause := t.fault
	if cause == nil {
		cause = errors.New("it is overloaded, or the exporter was stopped")
	}
	return fmt.Errorf("%w: none was completed for %v: %w", ErrStale, age.Round(time.Millisecond), cause)
}

// report returns the report of the last handshake, or of name resolution if the name has no address now. Its caller
// holds mu.
func (t *target) report(req *probe.Request) *probe.Report {
	r := &probe.Report{Request: req}
	if t.resolution != nil {
		r.Resolution = *t.resolution
	}
	if t.gone != nil {
		r.Start = time.Now()
		r.Verdict = *t.gone
		r.Duration = r.Resolution.Took
		return r
	}
	r = t.reportOf(req, &t.last, t.sent)
	r.Path, r.PathErr = t.path, t.pathErr
	return r
}

// reportOf returns the report of a handshake whose SYN was sent at the given time, without a path. Its caller holds mu.
func (t *target) reportOf(req *probe.Request, h *shaker.Result, sent time.Time) *probe.Report {
	r := &probe.Report{Request: req, Start: onWallClock(sent)}
	if t.resolution != nil {
		r.Resolution = *t.resolution
	}
	r.Verdict = probe.Verdict{
		Result:    h.Outcome.String(),
		Errno:     shaker.ErrnoName(h.Errno),
		Handshake: *h,
		At:        r.Resolution.Took + h.Waited,
	}
	r.Duration = r.At
	return r
}

// onWallClock returns a time with a reading of the monotonic clock as the wall clock shows it now, which may have been
// set since.
func onWallClock(t time.Time) time.Time {
	now := time.Now()
	return now.Add(t.Sub(now))
}

// snapshot returns what is known about the target.
func (t *target) snapshot() *Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &Snapshot{
		Interval:       t.Module.Watch.Interval,
		Registered:     t.registered,
		LastHandshake:  onWallClock(t.sent),
		SYNRetransmits: t.retransmits,
		ACKsSent:       t.acksSent,
		Skipped:        t.allSkipped(),
		Lookups:        t.Lookups(),
		RTT:            &dto.Histogram{},
	}
	t.rtt.write(s.RTT, s.Registered)
	for _, c := range t.counts {
		s.Handshakes = append(s.Handshakes,
			HandshakeCount{Result: c.outcome.String(), Errno: shaker.ErrnoName(c.errno), Total: c.n})
	}
	return s
}
