package shaker

import (
	"net/netip"
	"slices"
	"time"
)

// repeating is the part of a Repetition that a loop drives. The Repetition is a task whose time comes once in an
// interval: then it hands the loop a tick, which is a handshake.
type repeating struct {
	options sharedOptions // never changes
	loop    *loop
	ticket  ticket
	wire    *wire // of the loop; nil if the handshakes use sockets

	// Only the loop uses these.
	target  netip.AddrPort
	scope   uint32      // the interface index of the target's zone
	ports   PortRange   // to send from in turns; never changes
	source  *rawAddress // nil if there is none
	pace    pace
	due     time.Duration
	running []ticket // the ticks that have not ended
}

// What callers tell a Repetition.
type (
	newTarget struct {
		target netip.AddrPort
		scope  uint32
	}
	newInterval time.Duration
	// stopping is closed when the Repetition has ended.
	stopping chan struct{}
)

// repeat hands a Repetition to a loop. The scope is the interface index of the target's IPv6 zone.
func (e *engine) repeat(r *Repetition, target netip.AddrPort, scope uint32, schedule Schedule) error {
	source, err := e.source(&schedule.Options)
	if err != nil {
		return err
	}
	e.results.start()
	r.repeating = repeating{
		options: schedule.Options.share(),
		target:  target, scope: scope, ports: schedule.SourcePorts,
		pace: pace{interval: schedule.Interval, offset: schedule.Offset},
	}
	if source != (rawAddress{}) {
		r.source = &source
	}
	if r.loop = e.rawLoop(&schedule); r.loop != nil {
		r.wire = r.loop.wire
		r.load(1)
	} else {
		r.loop = e.nextLoop(false)
	}
	return r.loop.submitAs(&r.ticket, r, interactive, 0)
}

// rawLoop returns the loop for a Repetition that sends SYNs without a socket, nil if it uses sockets. A wire only hears
// what is sent to its own ports.
func (e *engine) rawLoop(s *Schedule) *loop {
	ports := s.SourcePorts
	if port := s.Options.SourcePort; port != 0 {
		ports = PortRange{First: port, Last: port}
	}
	switch {
	case !e.isRaw(&s.Options):
		return nil
	case ports == PortRange{}:
		return e.choose(s.Interval)
	}
	for _, l := range e.able(true) {
		if own := l.wire.ports(); own.has(ports.First) && own.has(ports.Last) {
			return l
		}
	}
	return nil
}

// pass passes the result of a Repetition on to its function.
func (r Repeated) pass() {
	if !r.repetition.over.Load() {
		r.repetition.each(r)
	}
}

func (r *Repetition) setTarget(target netip.AddrPort, scope uint32) {
	r.loop.tell(r.ticket, newTarget{target: target, scope: scope})
}

func (r *Repetition) setInterval(interval time.Duration) {
	r.loop.tell(r.ticket, newInterval(interval))
}

func (r *Repetition) stop() {
	ended := make(stopping)
	r.loop.tell(r.ticket, ended)
	select {
	case <-ended:
	case <-r.loop.stopped: // and with it all of its tasks
	}
}

func (r *Repetition) handle(l *loop, own ticket, e event) {
	switch e.kind {
	case eventStart:
		r.setNext(l, own)
	case eventDue:
		r.tick(l)
		r.setNext(l, own)
	case eventTold:
		switch m := e.message.(type) {
		case newTarget:
			r.target, r.scope = m.target, m.scope
		case newInterval:
			r.load(-1)
			r.pace.interval = time.Duration(m)
			r.load(1)
			r.setNext(l, own)
		case stopping:
			for _, tick := range slices.Clone(r.running) {
				l.call(tick, event{kind: eventTold, message: ErrClosed})
			}
			r.load(-1)
			l.finish(own, nil)
			close(m)
		}
	case eventClosing:
		l.finish(own, nil)
	}
}

// load adds the Repetition to what its wire has to do, or takes it off.
func (r *Repetition) load(times int64) {
	if r.wire != nil {
		r.wire.load.Add(times * perHour(r.pace.interval))
	}
}

// setNext sets the time of the next tick.
func (r *Repetition) setNext(l *loop, own ticket) {
	r.due = r.pace.next(l.now)
	l.setDue(own, r.due)
}

// tick starts the handshake that was due last. It skips it, and those that were due before, if it is too late for them.
func (r *Repetition) tick(l *loop) {
	missed := (l.now - r.due) / r.pace.interval
	r.late.Add(uint64(missed))
	due := r.due + missed*r.pace.interval
	port := r.portAt(due)
	switch {
	case r.isTooLate(due, l.now):
		r.late.Add(1)
	case len(r.running) >= maxOverlap || port != 0 && r.isUsing(l, port):
		r.overlapping.Add(1)
	default:
		t := l.newTick()
		t.of, t.due = r, due
		t.withholdACK = r.shaker.engine.withholdACK
		t.aim(r.target, r.scope)
		t.options, t.source, t.raw.wire = r.options.get(), rawAddress{}, r.wire
		if port != 0 {
			t.options.SourcePort = port
		}
		if r.source != nil {
			t.source = *r.source
		}
		r.running = append(r.running, l.enqueue(t, background))
	}
}

// portAt returns the port whose turn is at the time at which a handshake is due, 0 if there are no ports. It depends on
// nothing else: handshakes that are skipped do not change the turns of the others.
func (r *Repetition) portAt(due time.Duration) uint16 {
	if r.ports == (PortRange{}) {
		return 0
	}
	n := time.Duration(r.ports.Last-r.ports.First) + 1
	return r.ports.First + uint16(due/r.pace.interval%n)
}

// isUsing reports whether a handshake with the target from a port is running.
func (r *Repetition) isUsing(l *loop, port uint16) bool {
	for _, running := range r.running {
		t := l.slots.find(running).task.(*tick)
		if t.options.SourcePort == port && t.result.Peer == r.target {
			return true
		}
	}
	return false
}

func (r *Repetition) isTooLate(due, now time.Duration) bool { return now-due > r.pace.tolerance() }

// A tick is one handshake of a Repetition.
type tick struct {
	handshake
	of  *Repetition
	due time.Duration // on the loop's clock
}

// newTick returns a tick that has ended, or a new one.
func (l *loop) newTick() *tick {
	if last := len(l.idle) - 1; last >= 0 {
		t := l.idle[last]
		l.idle = l.idle[:last]
		return t
	}
	t := &tick{}
	t.inBackground = true
	t.ended = t.complete
	return t
}

func (t *tick) handle(l *loop, own ticket, e event) {
	if e.kind == eventStart {
		now := l.clock()
		if t.of.isTooLate(t.due, now) {
			t.of.late.Add(1)
			t.own = own
			t.drop(l)
			return
		}
		t.called, t.deadline = now, now+t.options.Timeout
		l.setDue(own, t.deadline)
	}
	t.handshake.handle(l, own, e)
}

// complete is called when the handshake has ended.
func (t *tick) complete(l *loop) {
	sent := t.sent
	if sent < t.called { // it failed before
		sent = t.called
	}
	result := t.result
	result.options = t.options.ofRoute().share()
	repeated := Repeated{
		Result: result, Err: t.describe(), Sent: l.epoch.Add(sent), Lag: sent - t.due, repetition: t.of,
	}
	if t.of.ports != (PortRange{}) {
		repeated.SourcePort = t.options.SourcePort
	}
	l.outbox = append(l.outbox, repeated)
	t.drop(l)
}

// describe returns the error of the handshake as that of Shake, without the target.
func (t *tick) describe() error {
	if t.err == nil {
		return nil
	}
	return &opError{what: "repeat", err: t.err, local: true}
}

// drop ends the tick, and keeps its memory for another one.
func (t *tick) drop(l *loop) {
	running := t.of.running
	i := slices.Index(running, t.own)
	last := len(running) - 1
	running[i] = running[last]
	t.of.running = running[:last]
	t.of = nil
	l.finish(t.own, nil)
	l.idle = append(l.idle, t)
}

// enqueue lets the loop start a task of its own. The caller is a task.
func (l *loop) enqueue(t task, u urgency) ticket {
	l.mu.Lock()
	own := l.tickets.take()
	l.mu.Unlock()
	l.seat(arrival{ticket: own, task: t, urgency: u})
	return own
}

// deliverResults puts results of Repetitions into the mailbox.
func (l *loop) deliverResults() {
	if len(l.outbox) == 0 {
		return
	}
	accepted := l.results.put(l.outbox)
	for _, lost := range l.outbox[accepted:] {
		lost.repetition.unread.Add(1)
	}
	clear(l.outbox)
	l.outbox = l.outbox[:0]
}
