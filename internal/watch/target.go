package watch

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/histogram"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// rttBounds are the classic buckets of shaker_handshake_seconds, so that a query or a heat map can show both.
var rttBounds = histogram.NewBounds(
	.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5)

// A target is a watched target. There may be 100,000 of them, so what only some of them have is behind a pointer.
type target struct {
	registry.Registration
	watcher *Watcher

	mu         sync.Mutex
	repetition *shaker.Repetition // nil while there is no address to shake hands with
	registered int64              // Unix time in nanoseconds

	stopped    bool // it has expired, or the Watcher is closed
	changed    bool // there was another result before since
	unrecorded bool // there were successes after the last record in the history
	failing    bool // the last call of Options.Changed, or the first scrape, was about a failure

	// The handshakes
	counts      []handshakeCount
	rtt         histogram.Histogram
	retransmits uint64
	acksSent    uint64
	last        shaker.Result
	flows       *flows // nil if the module has none
	sent        moment // when the SYN of the last handshake was sent
	completed   moment // when the last one was completed
	skips       *skips // nil if none was skipped

	// For the status page, see Status
	lost    uint64 // since registration
	recent  strip
	result  string   // the present one
	since   moment   // start of the first one with this result in a row, or of the first failure in a row
	failure *failure // the last one, nil if there was none

	name *name // nil if the target is an address
}

// skips are the handshakes that this host could not perform or report.
type skips struct {
	counted Skipped // without those that the repetition counts
	noted   uint64  // those that are counted in the strip
	fault   error   // why the last handshake was not performed, nil if it was completed
}

// A failure is a result that is not valid for the module.
type failure struct {
	result string
	at     time.Time // on the wall clock, as in the history

	// The path when the target began to fail, nil if there is none, or if the target does not fail any more
	path    *shaker.Path
	pathErr error
}

// A name is what is known about the addresses of a name.
type name struct {
	resolution probe.Resolution
	gone       *probe.Verdict // why there is no address now, nil if there is one
	goneAt     time.Time      // start of the last lookup that found none
	peer       netip.AddrPort // of the repetition, or of the last one
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

// A Snapshot is what is known about a watched target. It is valid until Release.
type Snapshot struct {
	Interval                  time.Duration
	Registered, LastHandshake time.Time
	Handshakes                []HandshakeCount
	Lookups                   []registry.LookupCount // empty if the target is an address
	SYNRetransmits, ACKsSent  uint64
	Skipped                   Skipped
	RTT                       *dto.Histogram
	Flows                     []FlowCount // empty if the module has none
}

// Release lets another scrape use the memory of the Snapshot. If it is not called, nothing is lost but the memory, to
// the garbage collector.
func (s *Snapshot) Release() { released.Put(s) }

// released are the Snapshots that have been released.
var released = sync.Pool{New: func() any { return &Snapshot{RTT: new(dto.Histogram)} }}

// A HandshakeCount is the number of handshakes with a result.
type HandshakeCount struct {
	Result, Errno string
	Total         uint64
}

// begin starts the handshakes with the address of a probe, and counts the handshakes of that probe.
func (t *target) begin(report *probe.Report) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !report.Addr.IsValid() {
		t.resolved(report)
	}
	if err := t.repeat(report.Handshake.Peer); err != nil {
		return err
	}
	t.stopped = false
	if t.registered == 0 {
		t.registered = report.Start.UnixNano()
	}
	if report.Flows != nil {
		t.startFlows(report)
	} else {
		t.add(&shaker.Repeated{Result: report.Handshake, Sent: sentAt(report, &report.Verdict)})
	}
	t.unrecorded = false // the caller of Scrape adds this one to the history
	t.failing = t.isFailing()
	if t.flows != nil {
		t.flows.told, t.flows.traced, t.flows.parting = t.flows.failing, t.flows.failing, report.Parting
	}
	if t.failing {
		t.failure = &failure{
			result: report.Result, at: report.Start, path: report.Path, pathErr: report.PathErr,
		}
	}
	return nil
}

// repeat starts the handshakes with an address, or continues them with another one. Its caller holds mu.
func (t *target) repeat(peer netip.AddrPort) (err error) {
	if t.name != nil {
		t.name.gone = nil
		defer func() {
			if err == nil {
				t.name.peer = peer
			}
		}()
	}
	options := t.Module.Options()
	options.Timeout = t.Module.Timeout
	schedule := shaker.Schedule{Interval: t.Module.Watch.Interval, Offset: offset(t.Key), Options: options}
	switch {
	case t.Module.TCP.Flows > 0:
		return t.repeatFlows(peer, &schedule)
	case t.repetition != nil:
		return t.repetition.SetTarget(peer)
	}
	t.repetition, err = t.watcher.options.Shaker.Repeat(peer, schedule, t.take)
	return err
}

// repeatFlows is repeat for a module with flows. Its caller holds mu.
func (t *target) repeatFlows(peer netip.AddrPort, schedule *shaker.Schedule) (err error) {
	if t.repetition != nil && t.flows.stream.key.peer == peer {
		return nil
	}
	if schedule.SourcePorts, err = t.watcher.options.Prober.FlowPorts(t.Module); err != nil {
		return err
	}
	s, err := t.watcher.streams.join(t, peer, schedule)
	if err != nil {
		return err
	}
	since := moment(0) // the results of the probe that follows were sent before now
	var previous *probe.Report
	if t.flows != nil {
		previous = t.report(t.request())
	}
	if t.repetition != nil {
		t.pause()
		since = t.watcher.now()
	}
	if t.flows == nil || t.flows.ports != schedule.SourcePorts {
		t.flows = newFlows(schedule.SourcePorts)
	}
	t.flows.forget(since)
	t.flows.previous = previous
	t.flows.stream, t.flows.before, t.flows.begun = s, s.repetition.Skipped(), t.watcher.now()
	t.repetition = s.repetition
	return nil
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
	if t.flows != nil {
		t.watcher.streams.leave(t.flows.stream, t)
	} else {
		t.repetition.Stop()
	}
	if all := t.allSkipped(); all != (Skipped{}) {
		t.haveSkips().counted = all
	}
	t.repetition = nil
	if t.flows != nil {
		t.flows.stream, t.flows.before = nil, shaker.Skipped{}
	}
}

// haveSkips returns skips, which exist from then on. Its caller holds mu.
func (t *target) haveSkips() *skips {
	if t.skips == nil {
		t.skips = new(skips)
	}
	return t.skips
}

// allSkipped returns how many handshakes were skipped. Its caller holds mu.
func (t *target) allSkipped() Skipped {
	var all Skipped
	if t.skips != nil {
		all = t.skips.counted
	}
	if t.repetition != nil {
		now, before := t.repetition.Skipped(), shaker.Skipped{}
		if t.flows != nil {
			before = t.flows.before
		}
		all.Late += now.Late - before.Late
		all.Overlapping += now.Overlapping - before.Overlapping
		all.Unread += now.Unread - before.Unread
	}
	return all
}

// take takes the result of a handshake in the background.
func (t *target) take(r shaker.Repeated) {
	t.watcher.options.Observe(t.Key.Module, &r)
	t.takeResult(r, nil)
}

// takeResult takes the result of a handshake that belongs to a stream if the module has flows.
func (t *target) takeResult(r shaker.Repeated, s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.repetition == nil || t.flows != nil && t.flows.stream != s {
		return // it was stopped
	}
	failedBefore := t.isFailing()
	if !t.add(&r) {
		return
	}
	if !t.isValid(&r.Result) {
		sent := t.watcher.onWallClock(t.watcher.at(r.Sent))
		t.recordFailure(t.reportOf(t.request(), &r.Result, sent))
	}
	changed, untraced := t.isFailing() != t.failing || t.hasSettled(), t.isUntraced(failedBefore)
	if !changed && !untraced {
		return
	}
	report := t.report(t.request())
	t.noteChange(report)
	if untraced {
		traced := *report // Changed may keep the report
		t.sortFlows(&traced)
		t.watcher.trace(t, &traced)
	}
}

// isUntraced reports whether the path is to be traced, because the target did not fail before, or because other flows
// fail than when it was traced: perhaps all, because the target itself is down now. Its caller holds mu.
func (t *target) isUntraced(failedBefore bool) bool {
	switch {
	case t.Module.TCP.Path != config.OnFailure || !t.isFailing():
		return false
	case t.flows == nil:
		return !failedBefore
	}
	return !t.flows.tracing && (!failedBefore ||
		t.flows.failing != t.flows.traced && t.flows.isSteady() && t.watcher.canTrace())
}

// noteChange passes a report on if the target begins to fail with it, or has recovered, or if it now is certain that
// other flows fail than before. Its caller holds mu.
func (t *target) noteChange(report *probe.Report) {
	failing := !report.Success()
	if failing == t.failing && !t.hasSettled() {
		return
	}
	t.failing = failing
	if t.flows != nil {
		t.flows.told = t.flows.failing
	}
	t.watcher.options.Changed(report)
}

// recordFailure adds a failure to the history. Its caller holds mu.
func (t *target) recordFailure(report *probe.Report) {
	record := report.Record()
	if t.flows != nil && record.Flows == nil {
		record.Flows = t.historyFlows()
	}
	if t.failure == nil {
		t.failure = new(failure)
	}
	t.failure.result, t.failure.at = record.Result, record.Time
	t.record(record)
}

// record adds a record to the history. Its caller holds mu.
func (t *target) record(record history.Record) {
	record.AfterGap, t.unrecorded = t.unrecorded, false
	t.watcher.options.History.Add(t.Key.Target, t.Key.Module, record, nil)
}

// recordEnd notes in the history that the target is no longer watched. It adds the last handshake if it succeeded after
// a failure: otherwise the history would end with the failure although the target has recovered.
func (t *target) recordEnd() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure != nil && t.unrecorded && t.gone() == nil && !t.isFailing() {
		t.record(t.report(t.request()).Record())
	}
	t.watcher.options.History.End(t.Key.Target, t.Key.Module)
}

// add counts a handshake. completed reports whether there is a verdict. The last handshake, or the last one of a flow,
// is the one whose SYN was sent last: one that ends later because it waited for a lost SYN does not describe the
// present state. Its caller holds mu.
func (t *target) add(r *shaker.Repeated) (completed bool) {
	defer t.noteSkipped()
	if r.Err != nil {
		s, again := t.haveSkips(), false
		s.fault = r.Err
		if t.flows != nil {
			again = t.addFault(r)
			s.fault = t.flows.of(r.SourcePort).fault
		}
		if !again {
			s.counted.Fault++
		}
		return false
	}
	if t.skips != nil {
		t.skips.fault = nil
	}
	t.completed = t.watcher.now()
	sent := t.watcher.at(r.Sent)
	current := sent >= t.sent
	if current {
		t.last, t.sent = r.Result, sent
	}
	if t.flows != nil {
		current = t.addToFlow(r, sent)
	}
	if current {
		t.found(t.present(&r.Result), sent)
		if t.failure != nil && !t.isFailing() {
			t.failure.path, t.failure.pathErr = nil, nil
			if t.flows != nil {
				t.flows.parting = nil
			}
		}
	}
	t.count(r.Result.Outcome, r.Result.Errno)
	if r.Result.RTT > 0 {
		t.rtt.Observe(rttBounds, r.Result.RTT)
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
		now.Failed++
	}
	t.recent.add(t.watcher.now(), now)
	return true
}

// found notes the present result, and that it was found by a handshake or lookup that began at the given time. A target
// fails since its first failure in a row, whatever the kinds of the failures: those of a host that is down alternate.
// Its caller holds mu.
func (t *target) found(result string, start moment) {
	if t.result != result && (t.result == "" || t.acceptsResult(result) || t.acceptsResult(t.result)) {
		t.changed, t.since = t.result != "", start
	}
	t.result = result
}

// present returns the present result, after a handshake: that of the handshake, unless only other flows fail. Its
// caller holds mu.
func (t *target) present(last *shaker.Result) string {
	if t.flows != nil && t.flows.failing != 0 && t.isValid(last) {
		last = &t.flows.all[bits.TrailingZeros64(t.flows.failing)].last
	}
	return last.Outcome.String()
}

// lostSYN reports whether a SYN of a handshake got no reply, unless the module expects that there is none.
func (t *target) lostSYN(r *shaker.Result) bool {
	if r.Outcome == shaker.Timeout {
		return !t.isValid(r)
	}
	return r.SYNs > 1
}

// isValid reports whether the result of a handshake is valid for the module.
func (t *target) isValid(r *shaker.Result) bool { return t.accepts(r.Outcome) }

func (t *target) accepts(o shaker.Outcome) bool { return t.acceptsResult(o.String()) }

func (t *target) acceptsResult(result string) bool {
	return slices.Contains(t.Module.TCP.ValidResults, result)
}

// isFailing reports whether the result of the last handshake is not valid, or with flows that of the last handshake of
// any flow. Its caller holds mu.
func (t *target) isFailing() bool {
	if t.flows != nil && slices.ContainsFunc(t.flows.all, func(f flow) bool { return f.last.Outcome != 0 }) {
		return t.failingFlows() != 0
	}
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
	if t.name != nil {
		return t.name.peer
	}
	return t.last.Peer
}

// answer answers a scrape from memory.
func (t *target) answer(req *probe.Request) (Answer, error) {
	snapshot := t.snapshot()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone() == nil {
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
	intervals := time.Duration(3)
	if t.flows != nil { // perhaps only one of them has a port that no other program uses
		intervals = time.Duration(len(t.flows.all)) + 2
	}
	most := intervals*t.Module.Watch.Interval + t.Module.Timeout
	age := time.Duration(t.watcher.now() - t.completed)
	if age <= most {
		if t.flows != nil {
			return t.staleFlow()
		}
		return nil
	}
	cause := errBusy
	if t.skips != nil && t.skips.fault != nil {
		cause = t.skips.fault
	}
	return fmt.Errorf("%w: none was completed for %v: %w", ErrStale, age.Round(time.Millisecond), cause)
}

// errBusy is the reason why handshakes were not performed if no handshake has shown another one.
var errBusy = errors.New("it is overloaded, or the exporter was stopped")

// gone returns why the target's name has no address now, nil if it has one. Its caller holds mu.
func (t *target) gone() *probe.Verdict {
	if t.name == nil {
		return nil
	}
	return t.name.gone
}

// report returns the report of the last handshake, or of the last one of each flow, or of name resolution if the name
// has no address now. Its caller holds mu.
func (t *target) report(req *probe.Request) *probe.Report {
	if gone := t.gone(); gone != nil {
		resolution := t.name.resolution
		return &probe.Report{
			Request: req, Start: time.Now(), Duration: resolution.Took, Resolution: resolution, Verdict: *gone,
		}
	}
	if p := t.previous(); p != nil {
		r := *p
		r.Request = req
		return &r
	}
	r := t.reportOf(req, &t.last, t.watcher.onWallClock(t.sent))
	if t.flows != nil {
		t.addFlows(r)
	}
	if t.failure != nil {
		r.Path, r.PathErr = t.failure.path, t.failure.pathErr
	}
	return r
}

// previous returns what was known about the previous address of a name as long as it is not known whether the present
// one fails, nil if that is known. Its caller holds mu.
func (t *target) previous() *probe.Report {
	if t.flows == nil || t.flows.failing != 0 {
		return nil
	}
	return t.flows.previous
}

// reportOf returns the report of a handshake whose SYN was sent at the given time on the wall clock, without a path.
// Its caller holds mu.
func (t *target) reportOf(req *probe.Request, h *shaker.Result, sent time.Time) *probe.Report {
	r := &probe.Report{Request: req, Start: sent}
	if t.name != nil {
		r.Resolution = t.name.resolution
	}
	r.Verdict = verdictOf(h, &r.Resolution)
	r.Duration = r.At
	return r
}

func verdictOf(h *shaker.Result, resolution *probe.Resolution) probe.Verdict {
	return probe.Verdict{
		Result:    h.Outcome.String(),
		Errno:     shaker.ErrnoName(h.Errno),
		Handshake: *h,
		At:        resolution.Took + h.Waited,
	}
}

// snapshot returns what is known about the target.
func (t *target) snapshot() *Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := released.Get().(*Snapshot)
	*s = Snapshot{
		Interval:       t.Module.Watch.Interval,
		Registered:     time.Unix(0, t.registered),
		LastHandshake:  t.watcher.onWallClock(t.sent),
		SYNRetransmits: t.retransmits,
		ACKsSent:       t.acksSent,
		Skipped:        t.allSkipped(),
		Lookups:        t.Lookups(),
		RTT:            s.RTT,
		Handshakes:     s.Handshakes[:0],
		Flows:          s.Flows[:0],
	}
	t.rtt.Write(rttBounds, s.RTT, s.Registered)
	for _, c := range t.counts {
		s.Handshakes = append(s.Handshakes,
			HandshakeCount{Result: c.outcome.String(), Errno: shaker.ErrnoName(c.errno), Total: c.n})
	}
	if t.flows != nil {
		for i, f := range t.flows.all {
			s.Flows = append(s.Flows, FlowCount{Port: t.flows.ports.First + uint16(i), Total: f.counts})
		}
	}
	return s
}
