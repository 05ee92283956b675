package shaker

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// holding is the part of a Connection that a loop drives. The Connection is a task. Its life:
//
//	open        starts the handshake, which is driven with the Connection's events and ends in opened
//	opened      takes the socket over from the handshake
//	next        is when the loop looks after the connection: beat sends a heartbeat, or judge finds that there is
//	            no answer
//	read        divides what has arrived into frames, or finds the end
//	end         closes the socket
//
// The kernel does not send keepalives while data is not acknowledged. That could go on for a quarter of an hour, so
// survive ends the connection when the keepalive would have ended it.
type holding struct {
	loop   *loop
	ticket ticket // stored before the loop calls the task
	engine *engine

	// Only the loop uses the fields below.

	opening *handshake // nil when it has ended
	fd      int        // -1 if there is no socket
	local   netip.AddrPort
	since   time.Time // when the connection was established

	splitter splitter
	unsent   []byte // of the last heartbeat: there was no room for it

	asked    time.Duration // since when a greeting or an answer is missing, on the loop's clock; 0 if none is
	sent     time.Duration // when the last heartbeat was sent
	next     time.Duration // when the next heartbeat is due or, while an answer is missing, its judgement; 0 is never
	deadline time.Duration // when survive is called; 0 is never
	ready    time.Duration // when the event of the data was seen that has not been read; 0 if there is none
	data     time.Duration // when the data arrived that was read last; 0 if there was none

	broken unix.Errno // of send, which ends the connection when everything has been read; 0 if there is none

	greeted  bool // no greeting is missing
	reading  bool // readLater was called
	hangup   bool // the data ends with a FIN or an error
	windowed bool // the kernel reports the peer's window
}

// A happening is an event of a Connection on its way from the loop to the Connection's function. It is smaller than a
// ConnectionEvent, because many connections may end in the same moment.
type happening struct {
	of      *Connection
	kind    ConnectionEventKind
	outcome Outcome
	errno   unix.Errno
	at      time.Duration // on the loop's clock
	latency time.Duration
	frame   []byte
	rare    *rareEvent // nil unless the kind is Established or Ended
}

type rareEvent struct {
	result Result
	err    error
	state  ConnectionState
	at     time.Time
}

// hold hands a Connection to a loop. The scope is the interface index of the target's IPv6 zone.
func (e *engine) hold(c *Connection, scope uint32, options *Options) error {
	source, err := e.source(options)
	if err != nil {
		return err
	}
	e.events.start()
	h := &handshake{keep: true}
	h.aim(c.target, scope)
	h.options, h.source = *options, source
	h.ended = c.opened
	c.holding = holding{loop: e.nextLoop(false), engine: e, opening: h, fd: -1}
	return c.loop.submitAs(&c.ticket, c, background, 0)
}

func (c *Connection) handle(l *loop, _ ticket, e event) {
	switch {
	case e.kind == eventTold:
		c.answer(l, e.message.(*question))
	case c.opening != nil:
		c.open(l, e)
	case e.kind == eventReady:
		c.see(l, e.ready)
	case e.kind == eventRead:
		c.reading = false
		c.read(l)
	case e.kind == eventDue:
		c.lookAfter(l)
	case e.kind == eventClosing:
		c.end(l, 0, 0, e.err)
	}
}

// open passes an event on to the handshake.
func (c *Connection) open(l *loop, e event) {
	h := c.opening
	if e.kind == eventStart {
		h.called = l.clock()
		h.deadline = h.called + h.options.Timeout
		l.setDue(c.ticket, h.deadline)
	}
	h.handle(l, c.ticket, e)
}

// opened is called when the handshake has ended.
func (c *Connection) opened(l *loop) {
	h := c.opening
	h.result.options = h.options.ofRoute().share()
	c.local = h.result.Local
	if h.err != nil || h.result.Outcome != Open {
		c.end(l, h.result.Outcome, h.result.Errno, h.err)
		return
	}
	c.opening, c.fd = nil, h.fd
	at := h.sent + h.result.Handshake
	c.since = l.wall(at)
	c.windowed = l.info.Snd_wnd > 0
	if err := c.configure(l, h.family); err != nil {
		c.end(l, 0, 0, err)
		return
	}
	c.happen(l, happening{kind: Established, at: at, rare: &rareEvent{result: h.result, at: c.since}})
	c.greeted = c.greeting == 0
	switch {
	case !c.greeted:
		c.asked, c.next = at, at+c.greeting
	case c.heartbeat.Interval > 0:
		c.next = l.now
	}
	c.setDue(l)
}

// configure makes the socket of a handshake that of a connection.
func (c *Connection) configure(l *loop, family int) error {
	// With this option, an ICMP error would become an error of the socket each time that it answers data, although
	// the connection goes on. It would not be queued.
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	if family == unix.AF_INET6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	err := setInt(c.fd, level, option, 0)
	if err == nil && c.heartbeat.Interval > 0 {
		err = setInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil && c.keepAlive != (KeepAlive{}) {
		err = setKeepAliveOf(c.fd, c.keepAlive)
	}
	if err == nil {
		err = l.watch(c.ticket, c.fd, unix.EPOLLIN|unix.EPOLLRDHUP)
	}
	return err
}

// see takes note of events of the socket. The loop lets the connection read when it is its turn.
func (c *Connection) see(l *loop, events uint32) {
	if c.ready == 0 {
		c.ready = l.now
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.hangup = true
	}
	if events&unix.EPOLLOUT != 0 && len(c.unsent) > 0 && !c.send(l) {
		return
	}
	c.readLater(l)
}

func (c *Connection) readLater(l *loop) {
	if !c.reading {
		c.reading = true
		l.readLater(c.ticket)
	}
}

// read reads as much as fits into the loop's memory. alive reports whether the connection goes on.
func (c *Connection) read(l *loop) (alive bool) {
	n, errno := receive(c.fd, l.data[:])
	switch {
	case errno == unix.EAGAIN:
		c.ready, c.hangup, c.broken = 0, false, 0
		return true
	case errno == unix.EINTR:
		c.readLater(l)
		return true
	case errno != 0:
		return c.fail(l, errno)
	case n == 0 && c.broken != 0 && c.broken != unix.EPIPE: // EPIPE comes after a FIN
		return c.fail(l, c.broken)
	case n == 0:
		c.end(l, Closed, 0, nil)
		return false
	}
	at := c.ready
	if at == 0 {
		at = l.clock()
	}
	c.data = at
	for data := l.data[:n]; ; {
		frame, rest, ok, err := c.splitter.next(&c.framing, data)
		if err != nil {
			c.end(l, Mismatch, 0, nil)
			return false
		}
		if !ok {
			break
		}
		c.take(l, frame, at)
		data = rest
	}
	if n == len(l.data) || c.hangup {
		c.readLater(l)
	} else {
		c.ready = 0
	}
	return true
}

// fail acts on an error of the socket. alive reports whether the connection goes on.
func (c *Connection) fail(l *loop, errno unix.Errno) (alive bool) {
	if err := tcpInfo(c.fd, &l.info); err == nil && l.info.State == unix.BPF_TCP_ESTABLISHED {
		c.readLater(l) // an error that has not ended the connection, such as EPOLLERR without EPOLLHUP announces
		return true
	}
	if outcome, ok := verdict(errno, ICMP{}); ok {
		c.end(l, outcome, errno, nil)
	} else {
		c.end(l, 0, 0, check("recv", errno))
	}
	return false
}

// take takes a frame that arrived at the given time.
func (c *Connection) take(l *loop, frame []byte, at time.Duration) {
	e := happening{kind: Received, at: at, frame: frame}
	if c.asked != 0 {
		e.kind = Answered
		if !c.greeted {
			e.kind = Greeted
		}
		e.latency = c.latency(l, at)
		e.at = c.asked + e.latency
		c.asked, c.greeted, c.next = 0, true, 0
		switch {
		case c.heartbeat.Interval == 0:
		case e.kind == Greeted:
			c.next = l.now
		default:
			c.next = c.heartbeat.next(c.sent, at)
		}
		c.setDue(l)
	}
	c.happen(l, e)
}

// latency returns how long the answer took of which an event was seen at the given time. If that was late, the kernel
// knows better.
func (c *Connection) latency(l *loop, at time.Duration) time.Duration {
	latency := max(0, at-c.asked)
	if latency < 2*jiffy || tcpInfo(c.fd, &l.info) != nil || !countsSegments(&l.info) {
		return latency
	}
	arrived := l.clock() - time.Duration(l.info.Last_data_recv)*time.Millisecond
	return max(0, min(latency, arrived+jiffy-c.asked))
}

// setDue sets when the loop looks after the connection.
func (c *Connection) setDue(l *loop) {
	at := c.next
	if c.deadline != 0 && (at == 0 || c.deadline < at) {
		at = c.deadline
	}
	l.setDue(c.ticket, at)
}

// lookAfter is called when next or the deadline has come.
func (c *Connection) lookAfter(l *loop) {
	if c.deadline != 0 && c.deadline <= l.now && !c.survive(l) {
		return
	}
	if c.next != 0 && c.next <= l.now {
		switch {
		case c.reading:
			// It comes after what has arrived: that may be the missing answer, and it is not the answer to a
			// later heartbeat.
		case c.asked == 0:
			if !c.beat(l) {
				return
			}
		case !c.isLate(l):
			// There may be more events than the loop has seen in this turn.
			if !c.read(l) {
				return
			}
			if c.asked != 0 && !c.reading {
				c.judge(l)
			}
		}
	}
	c.setDue(l)
}

// isLate reports whether the judgement has to wait a little, because the loop comes late to it.
func (c *Connection) isLate(l *loop) bool {
	awaited := c.heartbeat.Timeout
	if !c.greeted {
		awaited = c.greeting
	}
	grace := min(awaited/4, latestStart)
	if l.now-c.next < grace {
		return false
	}
	c.next = l.now + grace/2
	return true
}

// beat sends a heartbeat. alive reports whether the connection goes on.
func (c *Connection) beat(l *loop) (alive bool) {
	c.asked = l.clock()
	c.sent, c.next = c.asked, c.asked+c.heartbeat.Timeout
	if len(c.unsent) > 0 {
		return true // there is still no room for the rest of the last one
	}
	c.unsent = c.heartbeat.Send
	return c.send(l)
}

// send sends what has not been sent of a heartbeat. alive reports whether the connection goes on.
func (c *Connection) send(l *loop) (alive bool) {
	n, errno := send(c.fd, c.unsent)
	c.unsent = c.unsent[n:]
	switch {
	case errno == unix.EAGAIN, errno == 0 && len(c.unsent) > 0:
		if err := l.watch(c.ticket, c.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLOUT); err != nil {
			c.end(l, 0, 0, err)
			return false
		}
	case errno != 0:
		// The kernel reports the error once. What has arrived before it comes first.
		c.broken, c.hangup = errno, true
		c.readLater(l)
		return true
	}
	return c.survive(l)
}

// survive ends the connection if the peer has been silent for as long as the keepalive permits, although data is not
// acknowledged. Otherwise it sets the deadline for the next look.
func (c *Connection) survive(l *loop) (alive bool) {
	c.deadline = 0
	if c.keepAlive == (KeepAlive{}) || tcpInfo(c.fd, &l.info) != nil || !countsSegments(&l.info) ||
		l.info.State != unix.BPF_TCP_ESTABLISHED || l.info.Unacked == 0 && l.info.Notsent_bytes == 0 {
		return true
	}
	now := l.clock()
	c.deadline = now - silence(&l.info) + c.keepAlive.DeadAfter()
	if c.deadline > now {
		return true
	}
	// If an ICMP error has answered the data, or there is no route, the kernel would end the connection with that
	// errno. SO_ERROR has it already (sk_err_soft).
	errno, err := socketError(c.fd)
	outcome, ok := verdict(errno, ICMP{})
	if err != nil || errno == 0 || !ok {
		outcome, errno = Timeout, unix.ETIMEDOUT
	}
	c.end(l, outcome, errno, nil)
	return false
}

// silence returns how long ago the peer's kernel was heard last, as the kernel calculates it for keepalives. Data that
// acknowledges nothing new does not count as an ACK.
func silence(info *unix.TCPInfo) time.Duration {
	return time.Duration(min(info.Last_ack_recv, info.Last_data_recv)) * time.Millisecond
}

// judge passes on that there is no answer.
func (c *Connection) judge(l *loop) {
	if tcpInfo(c.fd, &l.info) == nil {
		e := happening{kind: Unanswered, outcome: Timeout, errno: unix.ETIMEDOUT, at: l.now}
		// If data waits and none is on its way, the window is closed. The kernel probes it, and counts the probes
		// that the peer's kernel has not answered: the last one may have been sent this moment.
		if l.info.Unacked == 0 && (l.info.Notsent_bytes == 0 || l.info.Probes < 2) {
			e.outcome, e.errno = Silent, 0
		}
		c.happen(l, e)
	}
	if c.heartbeat.Interval == 0 {
		c.next = 0
		return
	}
	c.next += ((l.now-c.next)/c.heartbeat.Interval + 1) * c.heartbeat.Interval
}

// end closes the socket, and ends the task.
func (c *Connection) end(l *loop, outcome Outcome, errno unix.Errno, err error) {
	e := happening{kind: Ended, outcome: outcome, errno: errno, at: l.clock()}
	if c.ready != 0 {
		e.at = c.ready
	}
	e.rare = &rareEvent{state: c.look(l), at: l.wall(e.at)}
	if err != nil {
		e.rare.err = c.describe(err)
	} else if c.opening != nil {
		e.rare.result = c.opening.result
	}
	c.close()
	c.happen(l, e)
	l.finish(c.ticket, nil)
}

// close closes the socket: with a FIN if the options say so, otherwise with an RST. It does not wait for copies of the
// descriptor that a child of this process holds until its execve(2).
func (c *Connection) close() {
	if c.opening != nil {
		c.opening.closeSocket()
		c.opening = nil
	}
	if c.fd < 0 {
		return
	}
	if c.fin {
		shutdownWriting(c.fd)
	} else {
		disconnect(c.fd)
	}
	closeDescriptor(c.fd)
	c.fd = -1
	c.splitter, c.unsent = splitter{}, nil
}

// happen puts an event into the mailbox, if there is room for it. The frame of the event is copied.
func (c *Connection) happen(l *loop, e happening) {
	e.of = c
	if e.rare == nil {
		size := eventBytes + int64(len(e.frame))
		if e.kind == Received && c.pending.Load() >= unreadFrames || l.backlog.Load()+size > unreadBytes {
			c.unread.Add(1)
			return
		}
		if e.kind == Received {
			c.pending.Add(1)
		}
		l.backlog.Add(size)
		if e.frame != nil {
			e.frame = append(make([]byte, 0, len(e.frame)), e.frame...)
		}
	}
	l.happened = append(l.happened, e)
}

// deliverEvents puts events of Connections into the mailbox, which has room for all of them.
func (l *loop) deliverEvents() {
	if len(l.happened) == 0 {
		return
	}
	l.events.put(l.happened)
	clear(l.happened)
	l.happened = l.happened[:0]
}

// pass passes an event on to the function of its Connection.
func (h happening) pass() {
	e := ConnectionEvent{
		Kind: h.kind, Outcome: h.outcome, Errno: h.errno, Latency: h.latency, Frame: h.frame,
	}
	if h.rare != nil {
		e.Time, e.Result, e.Err, e.State = h.rare.at, h.rare.result, h.rare.err, h.rare.state
	} else {
		e.Time = h.of.loop.wall(h.at)
		h.of.engine.backlog.Add(-eventBytes - int64(len(h.frame)))
		if h.kind == Received {
			h.of.pending.Add(-1)
		}
	}
	h.of.pass(e)
}

// wall converts a time on the loop's clock to that of the wall clock.
func (l *loop) wall(at time.Duration) time.Time { return time.Now().Add(at - l.clock()) }

// look returns what the kernel knows about the connection.
func (c *Connection) look(l *loop) ConnectionState {
	state := ConnectionState{Established: c.since, Local: c.local, Peer: c.target}
	if c.fd < 0 || tcpInfo(c.fd, &l.info) != nil || !countsSegments(&l.info) {
		return state
	}
	now, info := time.Now(), &l.info
	ago := func(ms uint32) time.Time { return now.Add(-time.Duration(ms) * time.Millisecond) }
	state.LastAnswer = ago(info.Last_ack_recv)
	if c.data != 0 || info.Data_segs_in > 0 {
		state.LastData = now.Add(-c.dataAge(l.clock(), info))
		if state.LastData.After(state.LastAnswer) {
			state.LastAnswer = state.LastData
		}
	}
	state.EmptySegments = int(info.Segs_in - info.Data_segs_in)
	state.Unacknowledged, state.Unsent = int(info.Unacked), int(info.Notsent_bytes)
	state.WindowClosed = c.windowed && info.Snd_wnd == 0
	if state.Unsent == 0 || state.Unacknowledged > 0 {
		state.KeepAlivesUnanswered = int(info.Probes) // otherwise the kernel probes the closed window
	}
	state.RTT = time.Duration(info.Rtt) * time.Microsecond
	return state
}

// dataAge returns how long ago data arrived last. The kernel counts that in 32 bits, which are full after 49 days:
// after half of them, it is the time since the data was read.
func (c *Connection) dataAge(now time.Duration, info *unix.TCPInfo) time.Duration {
	const counted = 1 << 31 * time.Millisecond
	if read := now - c.data; c.data != 0 && read > counted {
		return read
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}

// A question is what a caller tells a Connection. The caller waits for the answer.
type question struct {
	kind      questionKind
	keepAlive KeepAlive
	state     ConnectionState
	err       error
	answered  chan struct{} // has room for one value, so that the loop never waits
}

type questionKind uint8

const (
	askState questionKind = iota
	askKeepAlive
	askClose
)

var questions = sync.Pool{New: func() any { return &question{answered: make(chan struct{}, 1)} }}

func (q *question) refuse() {
	q.err = ErrEnded
	q.answered <- struct{}{}
}

// ask asks the Connection on its loop.
func (c *Connection) ask(kind questionKind, k KeepAlive) (ConnectionState, error) {
	q := questions.Get().(*question)
	q.kind, q.keepAlive, q.state, q.err = kind, k, ConnectionState{}, nil
	c.loop.tell(c.ticket, q)
	select {
	case <-q.answered:
	case <-c.loop.stopped: // and with it all of its tasks
		return ConnectionState{}, ErrEnded
	}
	state, err := q.state, q.err
	questions.Put(q)
	return state, err
}

func (c *Connection) state() (ConnectionState, error) { return c.ask(askState, KeepAlive{}) }

func (c *Connection) setKeepAlive(k KeepAlive) error {
	_, err := c.ask(askKeepAlive, k)
	return err
}

func (c *Connection) stop() { c.ask(askClose, KeepAlive{}) }

// answer answers a caller.
func (c *Connection) answer(l *loop, q *question) {
	switch q.kind {
	case askState:
		q.state = c.look(l)
	case askKeepAlive:
		if c.fd >= 0 {
			q.err = setKeepAliveOf(c.fd, q.keepAlive)
		}
		if q.err == nil {
			c.keepAlive = q.keepAlive
		}
		if q.err == nil && c.fd >= 0 && c.survive(l) {
			c.setDue(l)
		}
	case askClose:
		c.close()
		l.finish(c.ticket, nil)
	}
	q.answered <- struct{}{}
}

// setKeepAliveOf sets the keepalive of a socket. SO_KEEPALIVE comes first: when it is set, the kernel waits for the
// whole idle time, and when TCP_KEEPIDLE is set after it, for what is left of it.
func setKeepAliveOf(fd int, k KeepAlive) error {
	if k == (KeepAlive{}) {
		return setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
	}
	for _, o := range []struct {
		level, option int
		value         time.Duration
	}{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, k.Interval / time.Second},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, time.Duration(k.Count)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, k.Idle / time.Second},
	} {
		if err := setInt(fd, o.level, o.option, int32(o.value)); err != nil {
			return err
		}
	}
	return nil
}
