package hold

import (
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Snapshot is what is known about the connections to a target.
type Snapshot struct {
	Registered time.Time

	// Established is when the present connection was established, zero if there is none.
	Established time.Time

	// LastAnswer is when the kernel of the target was heard last, and LastData its application, on the present
	// connection or, if there is none, on the last one. They are zero if they were not heard, or if the system does not
	// report it.
	LastAnswer, LastData time.Time

	// Failed is when the target failed last, and Reason what has failed then; zero if nothing has. Both are about the
	// past if the result is open.
	Failed time.Time
	Reason string

	KeepAlivesUnanswered int // in a row, on the present connection

	Connects, Closes []ResultCount
	Lifetime         *dto.Histogram // of the connections that have ended by themselves

	Heartbeat *HeartbeatSnapshot // nil if the module has no heartbeats

	// HasName reports whether the target is a name, and AddressCurrent whether the name still has the address of the
	// connection, as far as is known.
	HasName, AddressCurrent bool
}

// A HeartbeatSnapshot is what is known about heartbeats.
type HeartbeatSnapshot struct {
	Total    uint64 // those that were answered, or not in time
	Failures []ResultCount
	Latency  *dto.Histogram

	// Last is the outcome of the last one on the present connection, or on the last one: Open if it was answered as
	// expected, 0 if there was none.
	Last shaker.Outcome
}

// A ResultCount is the number of events with a result.
type ResultCount struct {
	Result, Errno string
	Total         uint64
}

// answer answers a scrape from memory. If there is a connection, it asks the kernel about it.
func (t *target) answer(req *probe.Request) (Answer, error) {
	state, connected := t.state()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.stopped:
		return Answer{}, t.holder.errStopped()
	case t.fault != nil: // also during the next connect, which has no result yet
		return Answer{}, errFault{t.fault}
	}
	answered := *req
	answered.Timeout = t.Module.Timeout
	report := t.report(&answered)
	report.Result, report.Errno = t.verdict(&state, connected)
	if report.Result == "" { // the scrape has waited long enough for a connect
		report.Result, report.Errno = shaker.Timeout.String(), "ETIMEDOUT"
		report.Handshake.Peer = t.peer
	}
	return Answer{Report: report, Hold: t.snapshot(&state)}, nil
}

// errFault is an [ErrFault] with its cause.
type errFault struct{ cause error }

func (e errFault) Error() string   { return ErrFault.Error() + ": " + e.cause.Error() }
func (e errFault) Unwrap() []error { return []error{ErrFault, e.cause} }

// state returns what the kernel knows about the connection. connected is false if none is established.
func (t *target) state() (state shaker.ConnectionState, connected bool) {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn == nil {
		return shaker.ConnectionState{}, false
	}
	state, err := conn.State()
	return state, err == nil && !state.Established.IsZero()
}

// verdict returns the present result and errno, given what the kernel knows about the connection. Its caller holds mu.
func (t *target) verdict(state *shaker.ConnectionState, connected bool) (result, errno string) {
	if connected && t.result == open && t.isOverdue(state) {
		return shaker.Timeout.String(), "ETIMEDOUT"
	}
	return t.result, shaker.ErrnoName(t.errno)
}

// isOverdue reports whether the peer has been silent for so long that the connection is about to end: the kernel needs
// some more time for that.
func (t *target) isOverdue(s *shaker.ConnectionState) bool {
	most := t.Module.Hold.KeepAlive.DeadAfter()
	return most > 0 && !s.LastAnswer.IsZero() && time.Since(s.LastAnswer) > most &&
		(s.KeepAlivesUnanswered > 0 || s.Unacknowledged > 0)
}

// report returns a report with the present result, and with the measurements of the last connect. Its caller holds mu.
func (t *target) report(req *probe.Request) *probe.Report {
	r := &probe.Report{Request: req, Start: t.holder.wall(t.started)}
	if t.resolution != nil {
		r.Resolution = *t.resolution
	}
	r.Verdict = probe.Verdict{
		Result:    t.result,
		Errno:     shaker.ErrnoName(t.errno),
		Handshake: t.connect,
		At:        r.Resolution.Took + t.connect.Waited,
	}
	if t.icmp.From.IsValid() {
		r.Handshake.ICMP = t.icmp
	}
	if t.gone != nil && t.result == t.gone.Result {
		r.Err = t.gone.Err
	}
	r.Duration = r.At
	return r
}

// snapshot returns what is known about the target, given what the kernel knows about its connection. Its caller holds
// mu.
func (t *target) snapshot(state *shaker.ConnectionState) *Snapshot {
	s := &Snapshot{
		Registered:           t.registered,
		Established:          t.holder.wall(t.established),
		Failed:               t.holder.wall(t.failure.at),
		Reason:               t.failure.what,
		KeepAlivesUnanswered: state.KeepAlivesUnanswered,
		Connects:             t.connects.results(),
		Closes:               t.closes.results(),
		Lifetime:             write(t.lifetime, lifetimeBounds, t.registered),
		HasName:              t.resolution != nil,
		AddressCurrent:       t.isCurrent(),
	}
	if t.established != 0 && !state.Established.IsZero() {
		s.Established = state.Established // which is the same each time
	}
	s.LastAnswer, s.LastData = t.heard(state)
	if t.hasHeartbeat() {
		s.Heartbeat = &HeartbeatSnapshot{
			Total:    t.heartbeats,
			Failures: t.heartbeatFailures.results(),
			Latency:  write(t.latency, latencyBounds, t.registered),
			Last:     t.beat.last,
		}
	}
	return s
}

// heard returns when the peer was heard last. Its caller holds mu.
func (t *target) heard(state *shaker.ConnectionState) (answer, data time.Time) {
	if t.established == 0 {
		return t.holder.wall(t.lastAnswer), t.holder.wall(t.lastData)
	}
	return state.LastAnswer, state.LastData
}

func (c counts) results() []ResultCount {
	all := make([]ResultCount, len(c))
	for i, e := range c {
		all[i] = ResultCount{Result: e.outcome.String(), Errno: shaker.ErrnoName(e.errno), Total: e.n}
	}
	return all
}
