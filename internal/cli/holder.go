package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A holder holds connections to a target, one after the other, and prints what happens to them.
type holder struct {
	*HoldCommand
	text    string
	request *probe.Request
	prober  *probe.Prober
	engine  *shaker.Shaker
	out     *terminal
	tally   holdTally
	life    life

	fellBack bool // this host lacks the IP version of the name's preferred address
}

// A life is one connection, from its connect to its end.
type life struct {
	seq         int
	addr        netip.Addr
	conn        *shaker.Connection
	established time.Time // zero until then
	greeted     bool      // no greeting is missing
	unanswered  time.Time // deadline that the current greeting or heartbeat missed; zero if it did not
	keepAlives  int       // that are not answered
	lastAnswer  time.Time // of the peer's kernel
}

// An ending is how a life ended, or why it did not begin.
type ending struct {
	event
	age   time.Duration
	final bool // another connection would end in the same way
}

// run opens and holds connections, as many as requested, or until the context ends.
func (h *holder) run(ctx context.Context) {
	reconnect := h.request.Module.Hold.Reconnect
	delay := reconnect.Min
	h.tally.heartbeats = h.request.Module.Hold.Heartbeat.Interval > 0
	for seq := 1; ; seq++ {
		h.life = life{seq: seq}
		end, interrupted := h.live(ctx)
		if interrupted {
			return
		}
		last := end.final || seq == h.flags.count || ctx.Err() != nil
		if end.age > reconnect.Max {
			delay = reconnect.Min
		}
		if !last {
			end.reconnect = delay
		}
		h.print(end.event)
		if last {
			return
		}
		done := h.out.show(h.text, "not connected")
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
		done()
		if ctx.Err() != nil {
			return
		}
		delay = min(2*delay, reconnect.Max)
	}
}

// live opens a connection and holds it until it ends. If the context ends before, the connection is closed, and
// interrupted is true.
func (h *holder) live(ctx context.Context) (end ending, interrupted bool) {
	h.tally.update(func() { h.tally.connects++ })
	done := h.out.wait(h.text)
	defer func() { done() }()
	failed := h.resolve(ctx)
	if ctx.Err() != nil {
		h.tally.update(func() { h.tally.connects-- })
		return ending{}, true
	}
	if failed != nil {
		return *failed, false
	}
	events := make(chan shaker.ConnectionEvent)
	over := make(chan struct{})
	defer close(over)
	pass := func(_ *shaker.Connection, e shaker.ConnectionEvent) {
		select {
		case events <- e:
		case <-over:
		}
	}
	conn, err := h.engine.Hold(netip.AddrPortFrom(h.life.addr, h.request.Port), h.request.Module.HoldOptions(), pass)
	if err != nil {
		return h.unopened(event{err: err}, errors.Is(err, os.ErrInvalid)), false
	}
	h.life.conn = conn
	defer conn.Close()
	watch := time.NewTicker(watchInterval)
	defer watch.Stop()
	for {
		select {
		case <-ctx.Done():
			h.close()
			return ending{}, true
		case <-watch.C:
			h.watch()
		case e := <-events:
			switch {
			case e.Kind == shaker.Ended && h.fallsBack(ctx, &e):
				done()
				done = func() {}
				h.tally.update(func() { h.tally.connects-- })
				return h.live(ctx)
			case e.Kind == shaker.Ended:
				return h.ended(e), false
			case e.Kind == shaker.Established:
				done()
				done = h.out.show(named(h.text, h.life.addr), "connected")
				h.connected(e)
			case e.Kind == shaker.Greeted && !h.greeted(e):
				conn.Close()
				end := event{result: shaker.Mismatch.String(), what: "closed, because the greeting is not as expected"}
				return h.dead(end, e.Time), false
			case e.Kind == shaker.Answered:
				h.answered(e)
			case e.Kind == shaker.Unanswered:
				h.unanswered(e)
			case e.Kind == shaker.Received:
				h.print(event{name: "received", time: e.Time, good: true, frame: e.Frame})
			}
		}
	}
}

// watchInterval is how often the state of a connection is looked at.
const watchInterval = 250 * time.Millisecond

// resolve sets the address of the life. It returns why it could not, or nil.
func (h *holder) resolve(ctx context.Context) *ending {
	if addr := h.request.Addr; addr.IsValid() {
		if err := h.request.Check(addr); err != nil {
			end := h.unopened(event{err: err}, true)
			return &end
		}
		h.life.addr = addr
		return nil
	}
	report, addrs, err := h.prober.Resolve(ctx, h.request)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		end := h.unopened(event{err: err}, false)
		return &end
	case len(addrs) == 0:
		e := event{result: report.Result}
		if !errors.Is(report.Err, context.DeadlineExceeded) { // which dns_timeout says
			e.err = report.Err
		}
		end := h.unopened(e, false)
		return &end
	}
	h.life.addr = addrs[0]
	return nil
}

// fallsBack reports whether a connect has failed because this host lacks the IP version of the address, and the name
// has an address of the other one. It makes that one the preferred one.
func (h *holder) fallsBack(ctx context.Context, e *shaker.ConnectionEvent) bool {
	if h.fellBack || e.Err != nil || !h.life.established.IsZero() || !probe.LacksFamily(&e.Result) {
		return false
	}
	other, found := h.prober.OtherVersion(ctx, h.request, h.life.addr)
	if !found {
		return false
	}
	h.fellBack = true
	h.request.Module.TCP.PreferredIPProtocol = config.IP6
	if other.Is4() {
		h.request.Module.TCP.PreferredIPProtocol = config.IP4
	}
	return true
}

// unopened returns the end of a life that has not begun.
func (h *holder) unopened(e event, final bool) ending {
	e.name, e.time = "not_connected", time.Now()
	h.tally.update(func() { count(&h.tally.failures, e.reason()) })
	return ending{event: e, final: final}
}

// ended returns the end of a life that the library has found.
func (h *holder) ended(e shaker.ConnectionEvent) ending {
	if h.life.established.IsZero() {
		end := event{err: e.Err}
		if e.Err == nil {
			end.result, end.errno, end.icmp = e.Result.Outcome.String(), nameOf(e.Result.Errno), e.Result.ICMP
			end.waited = e.Result.Waited
			if e.Result.SYNs > 1 {
				end.synRetransmits = e.Result.SYNs - 1
			}
		}
		return h.unopened(end, false)
	}
	h.noteAnswer(e.State.LastAnswer, e.Time)
	end := event{err: e.Err, state: &e.State}
	if e.Err == nil {
		end.result, end.errno = e.Outcome.String(), nameOf(e.Errno)
	}
	return h.dead(end, e.Time)
}

// dead returns the end of an established connection.
func (h *holder) dead(e event, at time.Time) ending {
	e.name, e.time, e.age = "ended", at, max(0, at.Sub(h.life.established))
	h.tally.update(func() {
		t := &h.tally
		count(&t.deaths, e.reason())
		t.ages.add(e.age)
		t.since = time.Time{}
		t.dropped += h.life.conn.Unread()
	})
	return ending{event: e, age: e.age}
}

func count(counts *map[string]int, reason string) {
	if *counts == nil {
		*counts = make(map[string]int)
	}
	(*counts)[reason]++
}

// close closes the connection because the command ends.
func (h *holder) close() {
	h.watch()
	h.life.conn.Close()
	h.tally.update(func() {
		t := &h.tally
		t.dropped += h.life.conn.Unread()
		if t.since.IsZero() {
			t.connects-- // it is not decided whether it would have been established
			return
		}
		t.closed, t.since = time.Since(t.since), time.Time{}
	})
}

func (h *holder) connected(e shaker.ConnectionEvent) {
	h.life.established, h.life.lastAnswer = e.Time, e.Time
	h.life.greeted = h.request.Module.Hold.Greeting == nil
	r := &e.Result
	latency := r.RTT
	if latency == 0 {
		latency = r.Handshake
	}
	h.tally.update(func() {
		h.tally.since = e.Time
		h.tally.unwell = !h.life.greeted
	})
	h.print(event{name: "connected", time: e.Time, good: true, latency: latency, local: r.Local.Port(),
		synRetransmits: r.SYNs - 1})
}

// greeted reports whether the greeting is as expected.
func (h *holder) greeted(e shaker.ConnectionEvent) (good bool) {
	late := !h.life.unanswered.IsZero()
	h.life.greeted, h.life.unanswered = true, time.Time{}
	pattern := h.request.Module.Hold.Greeting
	good = pattern.Match(e.Frame)
	h.tally.update(func() { h.tally.unwell = !good })
	line := event{name: "greeted", time: e.Time, good: good, latency: e.Latency, frame: e.Frame, late: late}
	if !good {
		line.result, line.pattern = shaker.Mismatch.String(), pattern.String()
	}
	h.print(line)
	return good
}

func (h *holder) answered(e shaker.ConnectionEvent) {
	late := !h.life.unanswered.IsZero()
	h.life.unanswered = time.Time{}
	pattern := h.request.Module.Hold.Heartbeat.Expect
	good := pattern == nil || pattern.Match(e.Frame)
	h.tally.update(func() {
		t := &h.tally
		t.answered++
		t.latencies.add(e.Latency)
		t.unwell = !good
		if late {
			t.late++
			t.unanswered--
		}
		if !good {
			t.wrong++
		}
	})
	line := event{name: "answered", time: e.Time, good: good, latency: e.Latency, frame: e.Frame, late: late}
	if !good {
		line.result, line.pattern = shaker.Mismatch.String(), pattern.String()
	}
	h.print(line)
}

func (h *holder) unanswered(e shaker.ConnectionEvent) {
	asked, patience := "greeting", h.request.Module.Timeout
	if h.life.greeted {
		asked, patience = "answer", h.request.Module.Hold.Heartbeat.Timeout
	}
	first := h.life.unanswered.IsZero()
	if first {
		h.life.unanswered = e.Time
	}
	h.tally.update(func() {
		h.tally.unwell = true
		if first && h.life.greeted {
			h.tally.unanswered++
		}
	})
	waited := patience + e.Time.Sub(h.life.unanswered)
	line := event{name: "unanswered", time: e.Time, result: e.Outcome.String(), errno: nameOf(e.Errno),
		what: fmt.Sprintf("no %s for %s", asked, showAge(waited)), waited: waited}
	if state, err := h.life.conn.State(); err == nil {
		line.state = &state
	}
	h.print(line)
}

// watch looks at the state of the connection, and prints a line if the number of unanswered keepalives has changed.
func (h *holder) watch() {
	if h.life.established.IsZero() {
		return
	}
	state, err := h.life.conn.State()
	if err != nil {
		return // the event of the end follows
	}
	h.noteAnswer(state.LastAnswer, time.Now())
	if state.KeepAlivesUnanswered == h.life.keepAlives || state.Unacknowledged > 0 { // then it does not change
		return
	}
	h.life.keepAlives = state.KeepAlivesUnanswered
	h.print(event{name: "keepalives", time: time.Now(), good: h.life.keepAlives == 0, keepAlives: &h.life.keepAlives,
		state: &state})
}

// noteAnswer notes when the peer's kernel was heard last.
func (h *holder) noteAnswer(last, now time.Time) {
	if last.IsZero() { // this system does not know
		return
	}
	if last.Sub(h.life.lastAnswer) < 2*resolution {
		last = h.life.lastAnswer // the same answer: its time is calculated from a coarse clock
	}
	silence := now.Sub(last)
	if gap := last.Sub(h.life.lastAnswer); gap > 2*watchInterval { // otherwise, there may have been others between them
		silence = max(silence, gap)
	}
	h.life.lastAnswer = last
	h.tally.update(func() { h.tally.silence = max(h.tally.silence, silence) })
}

// resolution is that of the times in a ConnectionState.
const resolution = 10 * time.Millisecond
