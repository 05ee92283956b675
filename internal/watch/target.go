package watch

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A target is a watched target.
type target struct {
	watcher *Watcher
	key     key
	module  *config.Module // shared by all targets of the module
	expired time.Time      // when it expired, zero if it has not; the Watcher's mu guards it

	mu         sync.Mutex
	repetition *shaker.Repetition // nil while there is no address to shake hands with
	registered time.Time
	scraped    time.Time // by the client that scraped last
	client     string

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

	// Name resolution
	nextLookup time.Time // zero if the target is an address
	looking    bool
	lookups    []lookupCount
	resolution probe.Resolution
	gone       *probe.Verdict // why the name has no address now, nil if it has one

	// The path at the begin of the present failure, nil if there is none
	path    *shaker.Path
	pathErr error
}

type handshakeCount struct {
	outcome shaker.Outcome
	errno   shaker.Errno
	n       uint64
}

type lookupCount struct {
	result string
	n      uint64
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
	Lookups                   []LookupCount // empty if the target is an address
	SYNRetransmits, ACKsSent  uint64
	Skipped                   Skipped
	RTT                       *dto.Histogram
}

// A HandshakeCount is the number of handshakes with a result.
type HandshakeCount struct {
	Result, Errno string
	Total         uint64
}

// A LookupCount is the number of lookups with a result: resolved, or a result of a probe such as dns_timeout.
type LookupCount struct {
	Result string
	Total  uint64
}

// resolved is the result of a lookup that found an address.
const resolved = "resolved"

func newTarget(w *Watcher, k key, m *config.Module) *target {
	return &target{watcher: w, key: k, module: m, registered: time.Now().Round(0)} // on the wall clock
}

// begin starts the handshakes with the address of a probe, and counts the handshake of that probe.
func (t *target) begin(report *probe.Report) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.repeat(report.Handshake.Peer); err != nil {
		return err
	}
	if !report.Addr.IsValid() {
		t.looked(report)
	}
	t.expired = time.Time{}
	t.add(&shaker.Repeated{
		Result: report.Handshake,
		Sent:   report.Start.Add(max(0, report.At-report.Handshake.Waited)),
	})
	t.path, t.pathErr = report.Path, report.PathErr
	return nil
}

// repeat starts the handshakes with an address, or continues them with another one. Its caller holds mu.
func (t *target) repeat(peer netip.AddrPort) (err error) {
	t.gone = nil
	if t.repetition != nil {
		return t.repetition.SetTarget(peer)
	}
	options := t.module.Options()
	options.Timeout = t.module.Timeout
	t.repetition, err = t.watcher.options.Shaker.Repeat(peer, shaker.Schedule{
		Interval: t.module.Watch.Interval,
		Offset:   t.key.offset(),
		Options:  options,
	}, t.take)
	return err
}

// stop stops the handshakes. The counters stay as they are.
func (t *target) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
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
	t.watcher.options.Observe(t.key.module, &r)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.repetition == nil {
		return // it was stopped
	}
	failedBefore := t.isFailing()
	if !t.add(&r) || !t.isFailing() {
		return
	}
	report := t.report(&probe.Request{
		Target:     probe.Target{Text: t.key.text},
		ModuleName: t.key.module,
		Module:     *t.module,
	})
	t.watcher.options.History.Add(t.key.text, t.key.module, report.Record(), nil)
	if !failedBefore && t.module.TCP.Path == config.OnFailure {
		t.watcher.trace(t, report)
	}
}

// add counts a handshake. completed reports whether there is a verdict. Its caller holds mu.
func (t *target) add(r *shaker.Repeated) (completed bool) {
	if r.Err != nil {
		t.skipped.Fault++
		t.fault = r.Err
		return false
	}
	t.fault, t.last, t.sent, t.completed = nil, r.Result, r.Sent, time.Now()
	t.count(r.Result.Outcome, r.Result.Errno)
	if r.Result.RTT > 0 {
		t.rtt.observe(r.Result.RTT)
	}
	t.retransmits += uint64(max(0, r.Result.SYNs-1))
	if r.Result.ACKSent {
		t.acksSent++
	}
	if !t.isFailing() {
		t.path, t.pathErr = nil, nil
	}
	return true
}

// isFailing reports whether the result of the last handshake is not valid. Its caller holds mu.
func (t *target) isFailing() bool {
	return t.last.Outcome != 0 && !slices.Contains(t.module.TCP.ValidResults, t.last.Outcome.String())
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

// peer returns the address and port of the last handshake.
func (t *target) peer() netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last.Peer
}

// answer answers a scrape from memory.
func (t *target) answer(req *probe.Request, client string) (Answer, error) {
	snapshot := t.snapshot(client)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone == nil {
		if err := t.stale(); err != nil {
			return Answer{}, err
		}
	}
	answered := *req
	answered.Timeout = t.module.Timeout
	return Answer{Report: t.report(&answered), Watch: snapshot}, nil
}

// stale returns an error if this host has completed no handshake for too long. Its caller holds mu.
func (t *target) stale() error {
	most := 3*t.module.Watch.Interval + t.module.Timeout
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
	r := &probe.Report{Request: req, Resolution: t.resolution}
	if t.gone != nil {
		r.Start = time.Now()
		r.Verdict = *t.gone
		r.Duration = t.resolution.Took
		return r
	}
	r.Start = onWallClock(t.sent)
	r.Verdict = probe.Verdict{
		Result:    t.last.Outcome.String(),
		Errno:     shaker.ErrnoName(t.last.Errno),
		Handshake: t.last,
		At:        t.last.Waited,
	}
	r.Duration = t.last.Waited
	r.Path, r.PathErr = t.path, t.pathErr
	return r
}

// onWallClock returns a time with a reading of the monotonic clock as the wall clock shows it now, which may have been
// set since.
func onWallClock(t time.Time) time.Time { return time.Now().Add(-time.Since(t)) }

// snapshot returns what is known about the target, and notes that a client has scraped it.
func (t *target) snapshot(client string) *Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.scraped, t.client = time.Now(), client
	s := &Snapshot{
		Interval:       t.module.Watch.Interval,
		Registered:     t.registered,
		LastHandshake:  onWallClock(t.sent),
		SYNRetransmits: t.retransmits,
		ACKsSent:       t.acksSent,
		Skipped:        t.allSkipped(),
		RTT:            &dto.Histogram{},
	}
	t.rtt.write(s.RTT, s.Registered)
	for _, c := range t.counts {
		s.Handshakes = append(s.Handshakes,
			HandshakeCount{Result: c.outcome.String(), Errno: shaker.ErrnoName(c.errno), Total: c.n})
	}
	for _, c := range t.lookups {
		s.Lookups = append(s.Lookups, LookupCount{Result: c.result, Total: c.n})
	}
	return s
}
