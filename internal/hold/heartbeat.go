package hold

import (
	"regexp"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A beat is the state of the heartbeats of one connection.
type beat struct {
	awaitsGreeting bool
	answers        uint64         // how many heartbeats were answered as expected
	missing        shaker.Outcome // Silent or Timeout while the greeting or an answer is missing, 0 if none is
	last           shaker.Outcome // of the last heartbeat, Open if it was answered as expected, 0 if there was none
	checking       bool           // a frame is being matched
	waiting        func()         // checks the last frame that has arrived meanwhile, nil if none has
}

// greeted takes the greeting. Its caller holds mu.
func (t *target) greeted(e *shaker.ConnectionEvent) {
	t.beat.awaitsGreeting, t.beat.missing = false, 0
	t.check(t.Module.Hold.Greeting, e, func(matches bool) {
		switch {
		case matches && t.hasHeartbeat():
			return // the first heartbeat is on its way
		case matches:
			t.recover(e.Time)
			return
		}
		t.death = &death{outcome: shaker.Mismatch, at: e.Time, age: t.holder.at(e.Time).sub(t.established)}
		t.close()
		t.buried(shaker.Mismatch, 0, shaker.ICMP{})
		t.retry()
	})
}

// answered takes the answer to a heartbeat. A heartbeat whose answer is late has been counted already. Its caller holds
// mu.
func (t *target) answered(e *shaker.ConnectionEvent) {
	observe(&t.latency, latencyBounds, e.Latency)
	late := t.beat.missing != 0
	if !late {
		t.heartbeats++
	}
	t.beat.missing = 0
	t.check(t.Module.Hold.Heartbeat.Expect, e, func(matches bool) {
		t.beat.last = shaker.Mismatch
		if matches {
			t.beat.answers++
			t.beat.last = shaker.Open
		}
		switch {
		case matches && t.beat.missing == 0:
			t.recover(e.Time)
		case !matches:
			if !late {
				t.heartbeatFailures.add(shaker.Mismatch, 0)
			}
			if t.beat.missing == 0 {
				t.fail(shaker.Mismatch.String(), 0, shaker.ICMP{}, e.Time, "unexpected answer to a heartbeat")
			}
		}
	})
}

// unanswered notes that the greeting, or the answer to a heartbeat, is missing. Its caller holds mu.
func (t *target) unanswered(e *shaker.ConnectionEvent) {
	what := "no greeting"
	if !t.beat.awaitsGreeting {
		what = "no answer to a heartbeat"
		t.heartbeats++
		t.heartbeatFailures.add(e.Outcome, 0)
		t.beat.last = e.Outcome
	}
	t.beat.missing = e.Outcome
	t.fail(e.Outcome.String(), e.Errno, shaker.ICMP{}, e.Time, what)
}

// check matches a frame against a pattern in a goroutine of its own, because a slow expression must not hold up the
// events of other targets, and calls then with mu, unless the connection has ended. Its caller holds mu. Of the frames
// that arrive while an earlier one is being matched, only the last one is matched afterwards.
func (t *target) check(pattern *regexp.Regexp, e *shaker.ConnectionEvent, then func(matches bool)) {
	switch {
	case t.beat.checking:
		t.beat.waiting = func() { t.check(pattern, e, then) }
		return
	case pattern == nil:
		then(true)
		return
	}
	t.beat.checking = true
	conn, frame := t.conn, e.Frame
	go func() {
		matches := pattern.Match(frame)
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.conn != conn {
			return
		}
		t.beat.checking = false
		then(matches)
		if waiting := t.beat.waiting; waiting != nil && t.conn == conn {
			t.beat.waiting = nil
			waiting()
		}
	}()
}
