package hold

import (
	"iter"
	"net/netip"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/histogram"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Status is what the status page shows of a held target.
type Status struct {
	Target, Module string

	Result, Errno string      // "" if there is no result yet
	ICMP          shaker.ICMP // the error that explains the result; From is invalid if there is none
	Since         time.Time   // when the result was another one last
	Changed       bool        // whether there was another result before Since
	Fault         error       // why this host could not connect, nil if there was a result since
	Reason        string      // what has failed if the result is a failure, "" if it is not known yet
	Failure       string      // the result of the last failure, "" if there was none
	FailureAt     time.Time

	Established          time.Time // of the present connection, zero if there is none
	NextConnect          time.Time // zero unless the target waits for it
	Handshake, RTT       time.Duration
	LastAnswer, LastData time.Time // of the present connection, or the last one; zero if there was none
	KeepAlive            shaker.KeepAlive
	KeepAlivesUnanswered int

	Address        netip.AddrPort // of the present connection, or the last one
	HasName        bool           // the target is a name
	AddressCurrent bool           // the name still has the address, as far as is known

	Registered        time.Time
	Connects, Closes  []ResultCount
	Lifetime          time.Duration // the median of the connections that have ended, 0 if none has
	HasHeartbeat      bool
	Heartbeats        uint64
	HeartbeatFailures []ResultCount
	HeartbeatP50      time.Duration // since Registered, 0 if no heartbeat was answered
	HeartbeatP99      time.Duration

	Client           string // the last one that scraped the target
	Scraped, Expires time.Time
}

// Targets returns the statuses of all held targets, in no particular order. Each of them is computed when it is its
// turn, so that neither the Holder nor any target waits for the caller.
func (h *Holder) Targets() iter.Seq[*Status] {
	return func(yield func(*Status) bool) {
		for t := range h.registry.Targets() {
			if !yield(t.status()) {
				return
			}
		}
	}
}

// status returns the status of the target.
func (t *target) status() *Status {
	state, connected := t.state()
	t.mu.Lock()
	defer t.mu.Unlock()
	scraped, client := t.holder.registry.LastScrape(t)
	s := &Status{
		Target:               t.Key.Target,
		Module:               t.Key.Module,
		ICMP:                 t.icmp,
		Since:                t.holder.wall(t.since),
		Changed:              t.changed,
		Failure:              t.failure.result,
		FailureAt:            t.holder.wall(t.failure.at),
		Established:          t.holder.wall(t.established),
		Handshake:            t.connect.Handshake,
		RTT:                  t.connect.RTT,
		KeepAlive:            t.Module.Hold.KeepAlive,
		KeepAlivesUnanswered: state.KeepAlivesUnanswered,
		Address:              t.peer,
		HasName:              t.resolution != nil,
		AddressCurrent:       t.isCurrent(),
		Registered:           t.registered,
		Connects:             t.connects.results(),
		Closes:               t.closes.results(),
		Lifetime:             quantile(t.lifetime, 0.5),
		HasHeartbeat:         t.hasHeartbeat(),
		Heartbeats:           t.heartbeats,
		HeartbeatFailures:    t.heartbeatFailures.results(),
		HeartbeatP50:         quantile(t.latency, 0.5),
		HeartbeatP99:         quantile(t.latency, 0.99),
		Client:               client,
		Scraped:              t.holder.wall(t.holder.at(scraped)),
		Fault:                t.fault,
	}
	s.LastAnswer, s.LastData = t.heard(&state)
	s.Expires = s.Scraped.Add(t.Module.Hold.Expire)
	s.Result, s.Errno = t.verdict(&state, connected)
	switch {
	case s.Result != t.result:
		s.Since, s.Changed = state.LastAnswer, true
		s.Reason = "connection about to end"
	case t.death != nil:
		s.Reason = t.death.what()
	case t.result != open && t.result == t.failure.result && t.failure.at >= t.since:
		s.Reason = t.failure.what
	}
	if t.conn == nil && t.timer != nil {
		s.NextConnect = t.holder.wall(t.connectAt)
	}
	return s
}

func quantile(h *histogram.Histogram, q float64) time.Duration {
	if h == nil {
		return 0
	}
	return h.Quantile(q)
}
