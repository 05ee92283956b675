package hold

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/shaker-exporter/shaker_exporter/internal/histogram"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A target is a target to which a connection is held. At any time one of these is true: it is stopped; it waits for the
// timer to connect; it has a conn, which is being opened or is established; its death is being examined; it is looking
// for another address; or its name has no address.
type target struct {
	registry.Registration
	holder *Holder

	mu         sync.Mutex
	stopped    bool
	registered time.Time
	settled    chan struct{} // closed when there is a first verdict, nil then

	// Name resolution
	resolution *probe.Resolution // nil if the target is an address
	gone       *probe.Verdict    // why the name has no address now, nil if it has one
	wanted     netip.Addr        // of the next connect: that of the peer if the name still has it
	lacking    bool              // this host lacks the IP version of the name's preferred address
	looking    bool              // for an address of the other IP version

	// The connection
	timer     *time.Timer // until the next connect
	connectAt moment      // when the timer ends
	conn      *shaker.Connection
	peer      netip.AddrPort // of conn, or of the last one
	started   moment         // when the last connect began, 0 if none has
	death     *death
	backoff   backoff
	beat      beat

	established          moment // 0 if it is not established
	lastAnswer, lastData moment // of the last connection, when it ended

	// The present state
	result  string // "" if there is none yet
	errno   shaker.Errno
	icmp    shaker.ICMP // the error that explains the result
	since   moment      // when the result was another one last
	changed bool        // there was another one
	fault   error       // why this host could not connect, nil if it could
	connect shaker.Result
	failure failure // the last one

	announced bool // Changed was called with the present failure

	// Counters since registered
	connects, closes, heartbeatFailures counts
	heartbeats                          uint64
	lifetime, latency                   *histogram.Histogram // nil if there are no samples
}

type failure struct {
	result string
	at     moment
	what   string
}

// counts counts results.
type counts []count

type count struct {
	outcome shaker.Outcome
	errno   shaker.Errno
	n       uint64
}

func (c *counts) add(outcome shaker.Outcome, errno shaker.Errno) {
	for i := range *c {
		if e := &(*c)[i]; e.outcome == outcome && e.errno == errno {
			e.n++
			return
		}
	}
	*c = append(*c, count{outcome: outcome, errno: errno, n: 1})
}

// Bounds of the classic buckets.
var (
	lifetimeBounds = histogram.NewBounds(1, 10, 60, 120, 300, 600, 1800, 3600, 14400, 43200, 86400)
	latencyBounds  = histogram.NewBounds(
		.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5)
)

func observe(h **histogram.Histogram, b *histogram.Bounds, d time.Duration) {
	if *h == nil {
		*h = &histogram.Histogram{}
	}
	(*h).Observe(b, d)
}

// write returns a histogram that was created at the given time. h is nil if it has no samples.
func write(h *histogram.Histogram, b *histogram.Bounds, created time.Time) *dto.Histogram {
	if h == nil {
		h = &histogram.Histogram{}
	}
	out := &dto.Histogram{}
	h.Write(b, out, created)
	return out
}

// begin starts the connect to an address. If the target has expired and is back, it continues: the delay that it was
// waiting for goes on.
func (t *target) begin(report *probe.Report, peer netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !report.Addr.IsValid() {
		t.resolved(report)
	}
	t.stopped, t.gone, t.wanted, t.lacking = false, nil, peer.Addr(), false
	if t.registered.IsZero() {
		t.registered = time.Now().Round(0) // on the wall clock
	}
	if t.result != "" || t.fault != nil {
		t.schedule(max(0, t.connectAt.sub(t.holder.now())))
		return nil
	}
	t.peer, t.started = peer, 0
	t.settled = make(chan struct{})
	t.paced()
	return nil
}

// schedule lets the target connect after a delay, and as soon as the pace permits it. Its caller holds mu.
func (t *target) schedule(delay time.Duration) {
	t.connectAt = t.holder.at(time.Now().Add(delay))
	t.timer = time.AfterFunc(delay, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.paced()
	})
}

// paced connects as soon as the pace permits it. Its caller holds mu.
func (t *target) paced() {
	if t.isBusy() {
		return
	}
	wait := t.holder.pace.reserve()
	if wait == 0 {
		t.open()
		return
	}
	t.connectAt = t.holder.at(time.Now().Add(wait))
	t.timer = time.AfterFunc(wait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.open()
	})
}

// isBusy reports whether there must not be a connect now. Its caller holds mu.
func (t *target) isBusy() bool { return t.stopped || t.conn != nil || t.death != nil || t.looking }

// open opens the connection. Its caller holds mu.
func (t *target) open() {
	if t.isBusy() {
		return
	}
	t.timer = nil
	if t.gone != nil {
		t.fail(t.gone.Result, 0, shaker.ICMP{}, time.Now(), t.gone.Err.Error())
		return // until the name has an address
	}
	peer := netip.AddrPortFrom(t.wanted, t.peer.Port())
	if t.holder.options.Prober.Config().Targets.Check(peer) != nil {
		t.retry() // the name is looked up again meanwhile
		return
	}
	t.peer, t.started = peer, t.holder.now()
	conn, err := t.holder.options.Shaker.Hold(peer, *t.holder.optionsOf(t.Module), t.take)
	if err != nil {
		t.failed(err)
		return
	}
	t.conn = conn
}

// failed notes that this host could not connect. Its caller holds mu.
func (t *target) failed(err error) {
	t.fault = err
	t.holder.options.Observe(t.Key.Module, nil, err)
	t.settle()
	t.retry()
}

// retry connects after the next delay. Its caller holds mu.
func (t *target) retry() { t.schedule(t.backoff.next(&t.Module.Hold.Reconnect)) }

// settle lets the scrapes go on that wait for a verdict. Its caller holds mu.
func (t *target) settle() {
	if t.settled != nil {
		close(t.settled)
		t.settled = nil
	}
}

// Stop implements registry.Target.
func (t *target) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped, t.looking = true, false
	if t.timer != nil {
		t.timer.Stop()
	}
	if t.conn != nil {
		t.close()
		t.result, t.errno, t.icmp, t.fault = "", 0, shaker.ICMP{}, nil
	}
	if t.death != nil {
		t.buried(t.death.outcome, t.death.errno, shaker.ICMP{})
	}
	t.holder.options.History.End(t.Key.Target, t.Key.Module)
	t.settle()
}

// close closes the connection. Its caller holds mu, and so no event arrives in the meantime: take waits for mu.
func (t *target) close() {
	if state, err := t.conn.State(); err == nil {
		t.heardLast(&state)
	}
	t.conn.Close()
	t.conn, t.established = nil, 0
}

// heardLast notes when the peer was heard last, at the end of the connection. Its caller holds mu.
func (t *target) heardLast(s *shaker.ConnectionState) {
	t.lastAnswer, t.lastData = t.holder.at(s.LastAnswer), t.holder.at(s.LastData)
}

// take takes an event of the connection.
func (t *target) take(c *shaker.Connection, e shaker.ConnectionEvent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != c {
		return // it is not the present one any more
	}
	switch e.Kind {
	case shaker.Established:
		t.opened(&e)
	case shaker.Greeted:
		t.greeted(&e)
	case shaker.Answered:
		t.answered(&e)
	case shaker.Unanswered:
		t.unanswered(&e)
	case shaker.Ended:
		t.ended(&e)
	}
}

// opened notes that the connection is established. Its caller holds mu.
func (t *target) opened(e *shaker.ConnectionEvent) {
	t.countConnect(&e.Result)
	t.established = t.holder.at(e.Time)
	t.lastAnswer, t.lastData = 0, 0
	t.beat = beat{awaitsGreeting: t.Module.Hold.Greeting != nil}
	if t.beat.awaitsGreeting || t.hasHeartbeat() {
		return // a connect is not an answer: a target that never gives one would recover with each connect
	}
	t.recover(e.Time)
}

// countConnect counts a connect that has a verdict. Its caller holds mu.
func (t *target) countConnect(r *shaker.Result) {
	t.holder.options.Observe(t.Key.Module, r, nil)
	t.connects.add(r.Outcome, r.Errno)
	t.connect = *r
}

// ended notes that the connection has ended, or could not be established. Its caller holds mu.
func (t *target) ended(e *shaker.ConnectionEvent) {
	established := t.established
	t.conn, t.established = nil, 0
	if established == 0 {
		if e.Err != nil {
			t.failed(e.Err)
			return
		}
		if t.fallsBack(&e.Result) {
			t.fallBack(e)
			return
		}
		t.refused(e)
		return
	}
	t.heardLast(&e.State)
	if e.Err != nil {
		t.failed(e.Err)
		return
	}
	t.death = &death{outcome: e.Outcome, errno: e.Errno, at: e.Time, age: t.holder.at(e.Time).sub(established)}
	if t.death.isUnexplained() {
		t.change(e.Outcome.String(), e.Errno, e.Time)
		t.holder.examine(t)
		return
	}
	t.buried(e.Outcome, e.Errno, shaker.ICMP{})
	t.retry()
}

// refused counts a connect that has failed. Its caller holds mu.
func (t *target) refused(e *shaker.ConnectionEvent) {
	t.countConnect(&e.Result)
	t.fail(e.Outcome.String(), e.Errno, e.Result.ICMP, e.Time, "connect failed")
	t.retry()
}

// buried counts the end of the connection, with the reason that has been found. Its caller holds mu.
func (t *target) buried(outcome shaker.Outcome, errno shaker.Errno, icmp shaker.ICMP) {
	d := t.death
	t.death = nil
	t.closes.add(outcome, errno)
	observe(&t.lifetime, lifetimeBounds, d.age)
	t.backoff.lived(&t.Module.Hold.Reconnect, d.age, t.beat.answers < answersOfPeer && isRejection(outcome))
	t.fail(outcome.String(), errno, icmp, d.at, d.what())
}

// isRejection reports whether an end shows that the target does not want the connection, so that it may count it as an
// error.
func isRejection(outcome shaker.Outcome) bool {
	return outcome == shaker.Closed || outcome == shaker.Reset || outcome == shaker.Mismatch
}

// change changes the result. Its caller holds mu.
func (t *target) change(result string, errno shaker.Errno, at time.Time) {
	if t.result != result {
		t.changed = t.result != ""
		t.since = t.holder.at(at)
	}
	t.result, t.errno, t.fault = result, errno, nil
	t.settle()
}

// fail notes a failure. Its caller holds mu.
func (t *target) fail(result string, errno shaker.Errno, icmp shaker.ICMP, at time.Time, what string) {
	t.change(result, errno, at)
	t.icmp = icmp
	t.failure = failure{result: result, at: t.holder.at(at), what: what}
	t.record(at, what)
	if !t.announced {
		t.announced = true
		t.holder.options.Changed(t.report(t.request()))
	}
}

// recover notes that all is well. Its caller holds mu.
func (t *target) recover(at time.Time) {
	t.change(open, 0, at)
	t.icmp = shaker.ICMP{}
	if t.announced {
		t.announced = false
		t.record(at, "")
		t.holder.options.Changed(t.report(t.request()))
	}
}

// open is the result while all is well.
var open = shaker.Open.String()

// record adds what has happened to the history. Its caller holds mu.
func (t *target) record(at time.Time, what string) {
	r := history.Record{
		Time:           at.Round(0),
		Success:        t.result == open,
		Result:         t.result,
		Errno:          shaker.ErrnoName(t.errno),
		Reason:         what,
		Sent:           true,
		SYNRetransmits: -1,
		Address:        t.peer.Addr(),
		ICMP:           t.icmp,
	}
	t.holder.options.History.Add(t.Key.Target, t.Key.Module, r, nil)
}

// hasHeartbeat reports whether heartbeats are sent.
func (t *target) hasHeartbeat() bool { return t.Module.Hold.Heartbeat.Interval > 0 }

func (t *target) isSettled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.settled == nil
}

// await returns when there is a verdict, or when the time of the scrape is over. The error says why there can be no
// verdict.
func (t *target) await(ctx context.Context, req *probe.Request) error {
	t.mu.Lock()
	settled := t.settled
	wait := t.connectAt.sub(t.holder.now())
	started := t.started != 0
	t.mu.Unlock()
	if settled == nil {
		return nil
	}
	if deadline, _ := ctx.Deadline(); !started && time.Until(deadline) < wait {
		return errPending("the connect begins in %v, because there are at most %d connects a second",
			round(wait), connectsPerSecond)
	}
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
	}
	return t.judge(req)
}

// judge returns an error if the time of a scrape was not enough for a verdict about a connect that is running.
func (t *target) judge(req *probe.Request) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch out := t.holder.now().sub(t.started); {
	case t.settled == nil:
	case t.started == 0:
		return errPending("the connect has not begun")
	case t.beat.awaitsGreeting && t.established != 0:
		return errPending("the connection is established, and the greeting has neither arrived nor is overdue")
	case t.established != 0:
		return errPending("the connection is established, and the first heartbeat is neither answered nor overdue")
	case out < req.Timeout/4*3: // the same part that a probe needs
		return errPending("the connect has been running for only %v of %v", round(out), req.Timeout)
	}
	return nil
}

// Peer implements registry.Target.
func (t *target) Peer() netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == nil {
		return netip.AddrPortFrom(t.wanted, t.peer.Port())
	}
	return t.peer
}

// request returns a request for the target.
func (t *target) request() *probe.Request {
	return &probe.Request{Target: probe.Target{Text: t.Key.Target}, ModuleName: t.Key.Module, Module: *t.Module}
}

// round rounds a duration for people.
func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
