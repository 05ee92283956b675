package idle

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const (
	// shortestIdle is the shortest idle time that can be measured: the kernel sends no keepalive before it. A
	// connection that ends sooner was not accepted.
	shortestIdle = time.Second

	// judgedAfter is how long an answer to a keepalive may take until the connection is looked at, and the time
	// between two looks.
	judgedAfter = time.Second

	// tick is the resolution of the times that the kernel reports, and how late it sends a keepalive.
	tick = 10 * time.Millisecond

	// between is the time between two connects of a round.
	between = 100 * time.Millisecond
)

// tolerance is how late a connection may be checked: it was idle for longer than its step then.
func tolerance(step time.Duration) time.Duration { return max(time.Second, step/20) }

// lag is by how much later a server may end one connection than another one.
func lag(age time.Duration) time.Duration { return max(3*time.Second, age/20) }

// A Finding is what one connection of a round has shown.
type Finding struct {
	Step time.Duration // for how long it should be idle
	Idle time.Duration // for how long it was. 0 if it was skipped
	Kind Kind

	// Outcome and Errno are how the connection ended. Outcome is Open if it survived, and 0 if it was skipped.
	Outcome shaker.Outcome
	Errno   shaker.Errno

	Skipped Reason // why, if it was skipped
}

// A Kind says what a connection has shown.
type Kind uint8

// Kinds of findings.
const (
	Survived Kind = iota + 1 // the peer answered after the idle time
	Lost                     // it did not, or with an RST
	Told                     // a FIN or RST arrived before, without being asked for
	Skipped                  // nothing about the idle time
)

func (f *Finding) lost() bool { return f.Kind == Lost || f.Kind == Told }

// A Reason says why a connection shows nothing about the idle time.
type Reason uint8

// Reasons to skip a connection.
const (
	Late          Reason = iota // this host was suspended, or the process stopped: it was idle for too long
	Busy                        // the peer sent data again and again, or keepalives
	Interrupted                 // the control connection had no answer either
	NotConnected                // it could not be established
	LocalError                  // a local error
	numberReasons = iota
)

// String returns the reason as the label has it.
func (r Reason) String() string {
	return [...]string{"late", "busy", "interrupted", "not_connected", "fault"}[r]
}

// A Control is what became of the control connection.
type Control struct {
	Outcome shaker.Outcome // Open if it was still established at the end of the round
	Errno   shaker.Errno
	Age     time.Duration // at its end, or at the end of the round
}

// A result is that of a round.
type result struct {
	findings []Finding
	control  *Control // nil if there is no control connection

	// connect is the handshake of the first connection, or of the first one that could not be established. If the peer
	// closed that one in the first second, its Outcome says so.
	connect shaker.Result
}

// A round measures several idle times at once. One goroutine runs it.
type round struct {
	ctx         context.Context
	target      *target
	peer        netip.AddrPort
	settings    config.Idle
	options     shaker.HoldOptions
	connected   func(*shaker.Result) // called when all connections have been established
	connections []*connection
	control     *connection // one of the connections; nil if there is none
	poked       bool        // it sends keepalives each second
	result      result
	running     int       // steps without a finding
	turn        time.Time // when the loop looked last
	fault       error     // ends the round

	mu     sync.Mutex
	events []happened
	signal chan struct{} // has a value if there are events
}

type happened struct {
	of    *connection
	event shaker.ConnectionEvent
}

// A connection is one of a round.
type connection struct {
	finding   Finding
	state     state
	conn      *shaker.Connection
	due       time.Time // when to do something about it, zero if there is nothing to do
	since     time.Time // when it was established
	suspended time.Duration
	empty     int           // segments without data, when it was established
	idle      time.Duration // when it was checked, at least
	longest   time.Duration // and at most
	checked   time.Time
}

type state uint8

const (
	waiting state = iota
	queued
	connecting
	established
	checking
	ended
)

// run runs the round. An error means that this host could not perform it, or that the context has ended. All
// connections are closed in the end.
func (r *round) run(steps []time.Duration) (*result, error) {
	r.signal = make(chan struct{}, 1)
	r.running = len(steps)
	if r.settings.Control > 0 {
		r.control = &connection{}
		r.connections = append(r.connections, r.control)
	}
	for _, step := range steps {
		r.connections = append(r.connections, &connection{finding: Finding{Step: step}})
	}
	defer r.close()
	r.connections[0].due = time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for r.turn = time.Now(); (r.running > 0 || r.awaitsControl()) && r.fault == nil; {
		timer.Reset(r.pause())
		select {
		case <-r.ctx.Done():
			return nil, r.ctx.Err()
		case <-r.signal:
		case <-timer.C:
		}
		now := time.Now()
		r.takeEvents(now)
		for _, c := range r.connections {
			if !c.due.IsZero() && !now.Before(c.due) {
				c.due = time.Time{}
				r.act(c)
			}
		}
		r.turn = now
	}
	if r.fault != nil {
		return nil, r.fault
	}
	for _, c := range r.connections {
		if c != r.control {
			r.result.findings = append(r.result.findings, c.finding)
		}
	}
	if c := r.control; c != nil && c.state == established {
		r.result.control = &Control{Outcome: shaker.Open, Age: c.age(time.Now())}
	}
	return &r.result, nil
}

// pause returns how long there is nothing to do. It is limited, so that the round finds out if the process was stopped.
func (r *round) pause() time.Duration {
	pause := time.Second
	for _, c := range r.connections {
		if !c.due.IsZero() {
			pause = min(pause, time.Until(c.due))
		}
	}
	return pause
}

// awaitsControl reports whether the control connection may still end for the same reason as a connection that a FIN or
// RST has ended unasked. A server does not end all connections at exactly the same age: Redis looks at them once a
// second, and counts full seconds.
func (r *round) awaitsControl() bool {
	c := r.control
	if c == nil || c.state != established {
		return false
	}
	age := c.age(time.Now())
	for _, other := range r.connections {
		if f := &other.finding; f.Kind == Told && age < f.Idle+lag(f.Idle) {
			return true
		}
	}
	return false
}

func (r *round) close() {
	for _, c := range r.connections {
		if c.conn != nil {
			c.conn.Close()
		}
	}
}

// happen takes an event of a connection. It does not wait.
func (r *round) happen(c *connection, e shaker.ConnectionEvent) {
	if e.Kind != shaker.Established && e.Kind != shaker.Ended {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, happened{of: c, event: e})
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

func (r *round) takeEvents(now time.Time) {
	r.mu.Lock()
	events := r.events
	r.events = nil
	r.mu.Unlock()
	for _, h := range events {
		switch c, e := h.of, &h.event; {
		case c.state == ended: // by this side
		case e.Kind == shaker.Established:
			r.begin(c, e)
		default:
			r.end(c, e, now)
		}
	}
}

// act does what is due about a connection.
func (r *round) act(c *connection) {
	switch c.state {
	case waiting:
		c.state, c.due = queued, r.target.meter.turn()
	case queued:
		r.connect(c)
	case established:
		r.check(c)
	case checking:
		r.look(c)
	}
}

func (r *round) connect(c *connection) {
	options := r.options
	if c == r.control {
		options.KeepAlive = r.busy(r.settings.Control)
	}
	c.state = connecting
	var err error
	c.conn, err = r.target.meter.options.Shaker.Hold(r.peer, options,
		func(_ *shaker.Connection, e shaker.ConnectionEvent) { r.happen(c, e) })
	if err != nil {
		r.fault = err
	}
}

// begin is called when a connection is established.
func (r *round) begin(c *connection, e *shaker.ConnectionEvent) {
	c.state, c.since, c.suspended = established, e.Time, suspended()
	if s, err := c.conn.State(); err == nil {
		c.empty = s.EmptySegments
	}
	if c != r.control {
		c.due = c.since.Add(c.finding.Step)
	}
	if c == r.connections[0] { // the target is there: connect the others
		r.result.connect = e.Result
		for i, other := range r.connections[1:] {
			other.due = time.Now().Add(between * time.Duration(i+1))
		}
	}
	for _, other := range r.connections {
		if other.state < established {
			return
		}
	}
	r.connected(&r.result.connect)
}

// check checks a connection whose step is over. If the peer has sent data meanwhile, the idle time begins again. If the
// peer sends keepalives, the connection is never idle, although the kernel does not report when they arrived.
func (r *round) check(c *connection) {
	s, err := c.conn.State()
	if err != nil {
		return // the event of its end is about to come
	}
	last := c.lastHeard(&s)
	c.checked = time.Now()
	c.idle = c.since.Add(c.age(c.checked)).Sub(last)
	switch {
	case s.EmptySegments > c.empty:
		r.skip(c, Busy)
		return
	case c.idle >= c.finding.Step-tick:
	case c.checked.Sub(c.since) > 2*c.finding.Step:
		r.skip(c, Busy)
		return
	default:
		c.due = last.Add(c.finding.Step)
		return
	}
	c.state = checking
	r.poke()
	err = c.conn.SetKeepAlive(shaker.KeepAlive{
		Idle: time.Second, Interval: r.settings.Probe.Interval, Count: r.settings.Probe.Count})
	switch {
	case errors.Is(err, shaker.ErrEnded):
		return
	case err != nil:
		r.skip(c, LocalError)
		return
	}
	sent := time.Now()
	c.longest = c.since.Add(c.age(sent)).Sub(last) + tick
	c.due = sent.Add(judgedAfter)
}

// lastHeard returns when the peer was heard last.
func (c *connection) lastHeard(s *shaker.ConnectionState) time.Time {
	last := c.since
	for _, at := range []time.Time{s.LastAnswer, s.LastData} {
		if at.After(last) {
			last = at
		}
	}
	return last
}

// age returns how old the connection is, including the time for which this host was suspended.
func (c *connection) age(now time.Time) time.Duration {
	return now.Sub(c.since) + suspended() - c.suspended
}

// answered reports whether the peer was heard after the connection was checked. An RST does not count.
func (c *connection) answered(s *shaker.ConnectionState) bool {
	return s.LastAnswer.After(c.checked.Add(-tick))
}

// look looks whether the peer has answered a keepalive.
func (r *round) look(c *connection) {
	s, err := c.conn.State()
	now := time.Now()
	keepAlive := time.Duration(r.settings.Probe.Count) * r.settings.Probe.Interval
	switch {
	case err != nil: // the event of its end is about to come
	case c.answered(&s):
		r.find(c, Finding{Kind: Survived, Idle: c.idle, Outcome: shaker.Open})
	case s.LastAnswer.IsZero() && now.Sub(c.checked) > keepAlive+2*judgedAfter:
		// This system reports only the end of a connection, and there was none.
		r.find(c, Finding{Kind: Survived, Idle: c.idle, Outcome: shaker.Open})
	default:
		c.due = now.Add(judgedAfter)
	}
}

// end is called when a connection has ended without this side.
func (r *round) end(c *connection, e *shaker.ConnectionEvent, now time.Time) {
	before, age := c.state, time.Duration(0)
	if !c.since.IsZero() {
		age = c.age(e.Time)
	}
	c.due = time.Time{}
	switch {
	case before <= connecting && e.Err != nil:
		r.fault = e.Err
	case before <= connecting:
		r.refuse(c, e.Result)
	case age < shortestIdle && e.Err == nil:
		refused := r.result.connect
		refused.Outcome, refused.Errno = e.Outcome, e.Errno
		r.refuse(c, refused)
	case c == r.control:
		c.state = ended
		r.result.control = &Control{Outcome: cmp.Or(e.Outcome, shaker.Failed), Errno: e.Errno, Age: age}
	case e.Err != nil:
		r.skip(c, LocalError)
	case before == checking && (e.Outcome == shaker.Closed || c.answered(&e.State)):
		// The answer, or the FIN, came through. The end has nothing to do with it.
		r.find(c, Finding{Kind: Survived, Idle: c.idle, Outcome: shaker.Open})
	case before == established || e.Time.Before(c.checked):
		if now.Sub(r.turn)-time.Second > tolerance(age) { // the process was stopped: when it arrived is not known
			r.skip(c, Late)
			return
		}
		r.find(c, Finding{Kind: Told, Idle: age, Outcome: e.Outcome, Errno: e.Errno})
	case c.longest == 0 || c.longest-c.finding.Step > tolerance(c.finding.Step):
		r.skip(c, Late)
	case e.Outcome != shaker.Reset && r.isInterrupted(c):
		r.skip(c, Interrupted)
	default:
		r.find(c, Finding{Kind: Lost, Idle: c.longest, Outcome: e.Outcome, Errno: e.Errno})
	}
}

// refuse notes that a connection could not be established, or was closed at once. Without the first one, there is no
// round.
func (r *round) refuse(c *connection, h shaker.Result) {
	if r.result.connect.Outcome == shaker.Open || c == r.connections[0] {
		r.result.connect = h
		r.connected(&h)
	}
	if c == r.connections[0] {
		c.state = ended
		for _, other := range r.connections {
			if other.state != ended && other != r.control {
				r.skip(other, NotConnected)
			}
		}
	}
	if c != r.control {
		r.skip(c, NotConnected)
	}
}

func (r *round) skip(c *connection, reason Reason) {
	r.find(c, Finding{Kind: Skipped, Skipped: reason})
}

// find notes what a connection has shown, and closes it.
func (r *round) find(c *connection, f Finding) {
	f.Step = c.finding.Step
	c.finding, c.state, c.due = f, ended, time.Time{}
	if c.conn != nil {
		c.conn.Close()
	}
	r.running--
	r.calm()
}

// poke lets the control connection send keepalives each second, so that it shows whether the path is interrupted while
// another connection is checked.
func (r *round) poke() {
	if !r.poked {
		r.poked = true
		r.setControl(time.Second)
	}
}

// calm undoes poke, unless a connection is being checked.
func (r *round) calm() {
	if !r.poked {
		return
	}
	for _, c := range r.connections {
		if c.state == checking {
			return
		}
	}
	r.poked = false
	r.setControl(r.settings.Control)
}

func (r *round) setControl(idle time.Duration) {
	if r.control == nil || r.control.state != established || r.settings.Control <= time.Second {
		return // each call would send a keepalive, and use up the count
	}
	// An error means that it has ended, of which there is an event.
	_ = r.control.conn.SetKeepAlive(r.busy(idle))
}

// busy returns the keepalive of the control connection. It outlives an interruption of the path that ends a connection
// which is being checked, so that it can still serve as a control later in the round.
func (r *round) busy(idle time.Duration) shaker.KeepAlive {
	const most = 127 // of the kernel
	return shaker.KeepAlive{
		Idle: idle, Interval: r.settings.Probe.Interval, Count: min(3*r.settings.Probe.Count, most)}
}

// isInterrupted reports whether the control connection had no answer while a connection was checked.
func (r *round) isInterrupted(c *connection) bool {
	if r.control == nil {
		return false
	}
	if r.control.state == established {
		s, err := r.control.conn.State()
		if err == nil {
			return s.KeepAlivesUnanswered > 0 || !s.LastAnswer.IsZero() && s.LastAnswer.Before(c.checked)
		}
		return true // it has ended just now
	}
	// An application or a proxy that closes it shows that the path is not interrupted.
	end := r.result.control
	return end != nil && end.Outcome != shaker.Closed && end.Outcome != shaker.Reset
}
