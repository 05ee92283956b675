package pages

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// newHeldEntry returns the entry of a held target.
func newHeldEntry(s *hold.Status, now time.Time) entry {
	r := history.Record{
		Time:           latest(s.Registered, s.Established, s.LastAnswer, s.LastData, s.FailureAt),
		Success:        s.Result == shaker.Open.String(),
		Result:         s.Result,
		Errno:          s.Errno,
		Reason:         s.Reason,
		SYNRetransmits: -1,
		Address:        s.Address.Addr(),
		ICMP:           s.ICMP,
	}
	if !s.Established.IsZero() {
		r.Handshake, r.RTT = s.Handshake, s.RTT
	}
	t := &history.Track{
		Target:  s.Target,
		Module:  s.Module,
		Since:   s.Since,
		Changed: s.Changed,
		Records: []history.Record{r},
	}
	if t.Since.IsZero() {
		t.Since = s.Registered
	}
	e := entry{Track: t, hold: s, status: statusOfHeld(s, now), name: parseName(s.Target), live: live{
		client:  s.Client,
		scraped: s.Scraped,
		expires: s.Expires,
	}}
	if s.Fault != nil {
		e.live.stale = fmt.Errorf("%w: %w", hold.ErrFault, s.Fault)
	}
	if e.status == unstable {
		e.live.trouble = troubleOfHeld(s, now)
	}
	return e
}

// latest returns the latest of some times.
func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// statusOfHeld returns the status of a held target. It is unstable if its connection has failed recently, even if it
// has been established again, and while the target does not answer keepalives.
func statusOfHeld(s *hold.Status, now time.Time) status {
	switch {
	case s.Fault != nil:
		return unprobed
	case s.Result == "":
		return pending
	case s.Result != shaker.Open.String():
		return failing
	case s.KeepAlivesUnanswered > 0, s.Failure != "" && now.Sub(s.FailureAt) < recently:
		return unstable
	default:
		return succeeding
	}
}

// troubleOfHeld returns how unstable a held target is: the more so, the later its last failure was, or the nearer the
// connection is to its end.
func troubleOfHeld(s *hold.Status, now time.Time) float64 {
	var trouble float64
	if s.Failure != "" {
		trouble = 1 - now.Sub(s.FailureAt).Seconds()/recently.Seconds()
	}
	return min(max(trouble, float64(s.KeepAlivesUnanswered)/float64(max(s.KeepAlive.Count, 1))), 1)
}

// held is what the row of a held target has in addition.
type held struct {
	*hold.Status
	now time.Time
}

func newHeld(s *hold.Status, now time.Time) *held { return &held{Status: s, now: now} }

// Age returns the age of the connection.
func (h *held) Age() string { return ago(h.now, h.Established) }

// Answer returns the time since the kernel of the target was heard last, "" if it was not.
func (h *held) Answer() string { return h.since(h.LastAnswer) }

// Data returns the time since the application of the target was heard last, "" if it was not.
func (h *held) Data() string { return h.since(h.LastData) }

func (h *held) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return ago(h.now, t)
}

// Holding returns the time since registration.
func (h *held) Holding() string { return ago(h.now, h.Registered) }

// Next says when the target is connected again, "" if it is being connected now, or if that is not known.
func (h *held) Next() string {
	if !h.NextConnect.After(h.now) {
		return ""
	}
	return "next attempt in " + ago(h.NextConnect, h.now)
}

// ConnectReasons counts the connects by result.
func (h *held) ConnectReasons() string { return counted(h.Connects) }

// CloseReasons counts the ends of connections by result, "" if none has ended.
func (h *held) CloseReasons() string { return counted(h.Closes) }

// HeartbeatReasons counts the failed heartbeats by result, "" if there are none.
func (h *held) HeartbeatReasons() string { return counted(h.HeartbeatFailures) }

// HeartbeatsFailed returns the number of failed heartbeats.
func (h *held) HeartbeatsFailed() (n uint64) {
	for _, c := range h.HeartbeatFailures {
		n += c.Total
	}
	return n
}

// Life returns the median of the lifetimes, "" if no connection has ended.
func (h *held) Life() string {
	switch d := h.Lifetime; {
	case d == 0:
		return ""
	case d < time.Second:
		return unbroken(d.Round(time.Millisecond).String())
	default:
		return unbroken(span(nearest(d)))
	}
}

// counted returns the numbers of events by result, the most frequent first: "3 closed, 1 reset (ECONNRESET)".
func counted(counts []hold.ResultCount) string {
	counts = slices.Clone(counts)
	slices.SortStableFunc(counts, func(a, b hold.ResultCount) int { return cmp.Compare(b.Total, a.Total) })
	var parts []string
	for _, c := range counts {
		part := fmt.Sprintf("%d %s", c.Total, words(c.Result))
		if c.Errno != "" {
			part += fmt.Sprintf(" (%s)", c.Errno)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}
