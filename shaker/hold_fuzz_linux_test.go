package shaker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The events of a connection are what a peer does, whatever that is: in order, complete, and none after the end.
func FuzzHeartbeats(f *testing.F) {
	framings := []Framing{
		{Delimiter: "\n"}, {Delimiter: "aab"}, {Length: 1}, {Length: 2}, {Length: 4},
		{Length: 1, LittleEndian: true}, {Length: 2, LittleEndian: true}, {Length: 4, LittleEndian: true},
	}
	const (
		newline, aab, length2, length4, little2 = 0, 1, 3, 4, 6

		greeting, beats, fin, long = 1, 2, 4, 8
	)
	for _, seed := range []struct {
		framing, options, closeAt uint8
		script                    []byte
	}{
		{framing: newline, options: beats, script: []byte{doAnswer, 3, doAnswer, 0, doAnswer, 7}},
		{framing: newline, options: beats | fin, script: []byte{doAnswerSlowly, 3, doAnswerSlowly, 5}},
		{framing: aab, options: beats, script: []byte{doAnswerSlowly, 3, doAnswerTwice, 5}},
		{framing: length4, options: beats, script: []byte{doAnswerTwice, 3, doAnswerSlowly, 2}},
		{framing: little2, options: beats, script: []byte{doAnswerSlowly, 3, doAnswerTwice, 2}},
		{framing: newline, options: greeting | beats, script: []byte{doSend, 5, doAnswer, 1, doClose}},
		{framing: newline, options: greeting | beats, script: []byte{doAnswerLate, 5, doAnswerLate, 1, doClose}},
		{framing: newline, options: greeting, script: []byte{doAnswerLate, 5, doSend, 2, doCloseWriting}},
		{framing: newline, options: greeting, script: []byte{doReset}},
		{framing: newline, options: beats, script: []byte{doAnswerLate, 5, doAnswer, 2, doReset}},
		{framing: newline, options: beats, script: []byte{doSend, 1, doSend, 2, doAnswer, 3, doCloseWriting}},
		{framing: newline, options: beats, script: []byte{doAnswer, 1, doSendLong, 2, doSend, 3}},
		{framing: length2, options: beats, script: []byte{doAnswer, 1, doSendLong, 2, doClose}},
		{framing: little2, script: []byte{doSendGarbage, 3, 'S', 'S', 'H', doSend, 3}},
		{framing: newline, script: []byte{doSendPart, 3, doPause, 9, doSend, 3, doSendPart, 5, doClose}},
		{framing: length2, options: beats, script: []byte{doSendPart, 3, doAnswerLate, 3, doSendPart, 5, doReset}},
		{framing: newline, options: beats, script: []byte{doStopReading, doPause, 19, doSend, 1, doPause, 19, doClose}},
		{framing: newline, options: beats | long,
			script: []byte{doStopReading, doAnswerLate, 1, doAnswerLate, 2, doReadOn, doAnswer, 1}},
		{framing: newline, options: beats | long, script: []byte{doStopReading, doAnswerLate, 1, doReset}},
		{framing: newline, options: beats, closeAt: 1, script: []byte{doAnswer, 1, doClose}},
		{framing: newline, options: beats, closeAt: 3, script: []byte{doAnswer, 1, doAnswerTwice, 2, doReset}},
		{framing: newline, closeAt: 2, script: append([]byte{doSendGarbage, 8}, "\n\n\n\n\n\n\n\n"...)},
		{framing: newline, options: beats | fin, closeAt: 2, script: []byte{doAnswerLate, 1}},
	} {
		f.Add(seed.framing, seed.options, seed.closeAt, seed.script)
	}
	s, _ := startOne(f)
	closed := closedPort(f)
	f.Fuzz(func(t *testing.T, framing, options, closeAt uint8, script []byte) {
		life := &life{t: t, closeAt: int(closeAt % 8), changed: make(chan struct{})}
		life.options.Options = Options{Timeout: time.Minute, FIN: options&fin != 0}
		life.options.Framing = framings[int(framing)%len(framings)]
		life.options.Framing.Max = 10
		if options&greeting != 0 {
			life.options.Greeting = 10 * time.Millisecond
		}
		if options&beats != 0 {
			life.options.Heartbeat = ping(15*time.Millisecond, 8*time.Millisecond)
		}
		if options&(beats|long) == beats|long {
			life.options.Heartbeat.Send = bytes.Repeat([]byte("PING"), longestSend/4)
		}
		p := servePeer(t, listenWithLittleRoom(t))
		before := lab.Descriptors(t)

		c, err := s.Hold(p.target, life.options, life.happen)
		if err != nil {
			t.Fatalf("Hold(%v, %+v): %v", p.target, life.options, err)
		}
		defer c.Close()
		life.await("Established", func() bool { return len(life.events) > 0 })
		peer := &scriptedPeer{life: life, conn: p.accept()}
		peer.run(script)
		straggler := 0
		if peer.awaitEnd(); !life.isOver() {
			c.Close()
			straggler = 1 // a call that was running already
		}
		passed := life.count()
		peer.finish()

		// The same goroutine passes on this event after all of the others.
		barrier := mustHold(t, s, closed, HoldOptions{})
		barrier.next(Ended)
		if more := life.count() - passed; more > straggler {
			t.Errorf("%d events after the end, want %d at most: %v", more, straggler, life)
		}
		if _, err := c.State(); err != ErrEnded {
			t.Errorf("State after the end: error %v, want %v", err, ErrEnded)
		}
		if n := c.Unread(); n != 0 {
			t.Errorf("%d events were dropped, want 0", n)
		}
		if after := lab.Descriptors(t); after != before {
			t.Errorf("%d descriptors are open after the end, want %d as before", after, before)
		}
		if n := s.engine.backlog.Load(); n != 0 {
			t.Errorf("%d bytes of events wait after all have been passed on, want 0", n)
		}
		life.check(peer)
	})
}

// listenWithLittleRoom listens on a port whose connections take no more than a part of the longest heartbeat if the
// application does not read.
func listenWithLittleRoom(t *testing.T) net.Listener {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048) })
	}}
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A life is the events of a connection.
type life struct {
	t       *testing.T
	options HoldOptions
	closeAt int // the number of the event whose function closes the connection; 0 is none

	mu      sync.Mutex
	changed chan struct{} // closed at the next event
	events  []ConnectionEvent
	closed  bool // by the function
	ended   bool
}

func (l *life) happen(c *Connection, e ConnectionEvent) {
	l.mu.Lock()
	number := len(l.events)
	l.mu.Unlock()
	closed := l.closeAt > 0 && number == l.closeAt
	if closed {
		c.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	l.closed = l.closed || closed
	l.ended = l.ended || e.Kind == Ended
	close(l.changed)
	l.changed = make(chan struct{})
}

// await waits until a condition is true, or until the connection is over.
func (l *life) await(what string, is func() bool) {
	l.t.Helper()
	timeout := time.After(time.Minute)
	for {
		l.mu.Lock()
		done, changed := is() || l.closed || l.ended, l.changed
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			l.t.Fatalf("not true within a minute: %s; the events are %v", what, l)
		}
	}
}

func (l *life) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || l.ended
}

func (l *life) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events)
}

// unanswered returns how many events are Unanswered. Its caller holds mu.
func (l *life) unanswered() (n int) {
	for _, e := range l.events {
		if e.Kind == Unanswered {
			n++
		}
	}
	return n
}

// frames returns the frames of the events. Its caller holds mu.
func (l *life) frames() (frames [][]byte) {
	for _, e := range l.events {
		if e.Kind == Greeted || e.Kind == Answered || e.Kind == Received {
			frames = append(frames, e.Frame)
		}
	}
	return frames
}

func (l *life) String() (text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		text += fmt.Sprintf("\n%v %q latency %v outcome %v errno %s error %v",
			e.Kind, e.Frame, e.Latency, e.Outcome, ErrnoName(e.Errno), e.Err)
	}
	return text
}

// What a peer does. An argument follows some of them in the script.
const (
	doSend         = iota // a frame; the argument is its length
	doAnswer              // wait for a heartbeat, then send a frame
	doAnswerSlowly        // the same, byte by byte
	doAnswerTwice         // the same, two frames at once
	doAnswerLate          // wait until the answer is missing, then send a frame
	doSendPart            // the beginning of a frame
	doSendGarbage         // bytes of the script; the argument is their number
	doSendLong            // a frame that is too long
	doStopReading
	doReadOn
	doPause // the argument is a number of milliseconds
	doCloseWriting
	doClose
	doReset
	peerActions
)

// A scriptedPeer is the other end of a connection. It does what a script says.
type scriptedPeer struct {
	*life
	conn   *net.TCPConn
	sent   []byte // all data
	number int    // of frames
	ended  int    // doCloseWriting, doClose or doReset; 0 if it has done nothing of this kind

	stopped bool // reading has ever been stopped

	// Only the goroutine that reads uses read until it has ended.
	reading   sync.WaitGroup
	read      []byte        // heartbeats
	heartbeat chan struct{} // has room for one value, which means that data was read
	readOn    chan struct{} // ends a stop; closed when there will be none
}

// longestScript limits the actions of a peer: there is room for the frames of all of them.
const longestScript = 7

func (p *scriptedPeer) run(script []byte) {
	p.heartbeat, p.readOn = make(chan struct{}, 1), make(chan struct{}, longestScript)
	p.reading.Go(p.receive)
	paused := false
	next := func() (b byte) {
		if len(script) > 0 {
			b, script = script[0], script[1:]
		}
		return b
	}
	for range longestScript {
		if len(script) == 0 || p.ended != 0 || p.isOver() {
			break
		}
		switch action := int(next()) % peerActions; action {
		case doSend:
			p.send(p.frame(next()))
		case doAnswer:
			p.awaitHeartbeat()
			p.send(p.frame(next()))
		case doAnswerSlowly:
			p.awaitHeartbeat()
			for _, b := range p.frame(next()) {
				p.send([]byte{b})
			}
		case doAnswerTwice:
			p.awaitHeartbeat()
			length := next()
			p.send(append(p.frame(length), p.frame(length+1)...))
		case doAnswerLate:
			p.awaitUnanswered()
			p.send(p.frame(next()))
		case doSendPart:
			frame := p.frame(next())
			p.send(frame[:(len(frame)+1)/2])
		case doSendGarbage:
			n := min(int(next()%9), len(script))
			p.send(script[:n])
			script = script[n:]
		case doSendLong:
			p.send(p.frameOf(p.options.Framing.Max + 1 + int(next()%8)))
		case doStopReading:
			if !paused {
				paused, p.stopped = true, true
				p.conn.SetReadDeadline(time.Unix(1, 0))
			}
		case doReadOn:
			if paused {
				paused = false
				p.conn.SetReadDeadline(time.Time{})
				p.readOn <- struct{}{}
			}
		case doPause:
			time.Sleep(time.Duration(next()%20) * time.Millisecond)
		case doCloseWriting:
			p.ended = action
			p.conn.CloseWrite()
		case doClose, doReset:
			p.ended = action
			if action == doReset {
				p.conn.SetLinger(0)
			}
			p.conn.Close()
		}
	}
	p.conn.SetReadDeadline(time.Now().Add(time.Minute))
	close(p.readOn)
}

// receive reads heartbeats until the connection ends.
func (p *scriptedPeer) receive() {
	data := make([]byte, 4096)
	for last := false; ; {
		n, err := p.conn.Read(data)
		p.read = append(p.read, data[:n]...)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !last:
			_, more := <-p.readOn
			last = !more
			continue
		case err != nil:
			return
		}
		select {
		case p.heartbeat <- struct{}{}:
		default:
		}
	}
}

func (p *scriptedPeer) send(data []byte) {
	p.conn.SetWriteDeadline(time.Now().Add(time.Minute))
	n, _ := p.conn.Write(data) // an error means that the connection is over
	p.sent = append(p.sent, data[:n]...)
}

// frame returns a frame of 0 to 10 bytes.
func (p *scriptedPeer) frame(length byte) []byte { return p.frameOf(int(length % 11)) }

// frameOf returns a frame that differs from those before.
func (p *scriptedPeer) frameOf(length int) []byte {
	content := bytes.Repeat([]byte{'a' + byte(p.number%26)}, length)
	p.number++
	f := p.options.Framing
	if f.Delimiter != "" {
		return append(content, f.Delimiter...)
	}
	number := binary.BigEndian.AppendUint64(nil, uint64(length))[8-f.Length:]
	if f.LittleEndian {
		slices.Reverse(number)
	}
	return append(number, content...)
}

// awaitHeartbeat waits for data, but not for longer than for two heartbeats: none may be due.
func (p *scriptedPeer) awaitHeartbeat() {
	select {
	case <-p.heartbeat:
	case <-time.After(2 * p.options.Heartbeat.Interval):
	}
}

// awaitUnanswered waits for the next event that says that a greeting or an answer is missing, if there has to be one.
func (p *scriptedPeer) awaitUnanswered() {
	p.mu.Lock()
	before := p.unanswered()
	p.mu.Unlock()
	frames, _ := naive(p.options.Framing, p.sent)
	onlyGreeting := p.options.Greeting > 0 && len(frames) == 0 && before == 0
	if p.options.Heartbeat.Interval > 0 || onlyGreeting {
		p.await("Unanswered", func() bool { return p.unanswered() > before })
	}
}

// awaitEnd waits until all that the peer has sent has been passed on, and the end if there has to be one.
func (p *scriptedPeer) awaitEnd() {
	frames, long := naive(p.options.Framing, p.sent)
	if p.ended != 0 || long {
		p.await("Ended", func() bool { return false })
		return
	}
	p.await(fmt.Sprintf("%d frames", len(frames)), func() bool { return len(p.frames()) >= len(frames) })
}

// finish reads what there is until the other side's end, and closes the connection.
func (p *scriptedPeer) finish() {
	p.reading.Wait()
	p.conn.Close()
}

// check compares the events with what the peer has done.
func (l *life) check(p *scriptedPeer) {
	l.t.Helper()
	wrong := func(format string, args ...any) {
		l.t.Helper()
		l.t.Errorf("%s\noptions %+v, the peer has sent %q, read %d bytes; the events are %v",
			fmt.Sprintf(format, args...), l.options, p.sent, len(p.read), l)
	}
	awaited := l.options.Heartbeat.Timeout // by Unanswered
	greeted := l.options.Greeting == 0
	if !greeted {
		awaited = l.options.Greeting
	}
	answered, missing := 0, 0 // missing counts the Unanswered since the last frame that was awaited
	for i, e := range l.events {
		if (i == 0) != (e.Kind == Established) {
			wrong("event %d is %v, want Established first, and only then", i, e.Kind)
		}
		if l.closed && i > l.closeAt {
			wrong("event %d is %v, after the function closed the connection at event %d", i, e.Kind, l.closeAt)
		}
		if i > 0 && l.events[i-1].Kind == Ended {
			wrong("event %d is %v, after Ended", i, e.Kind)
		}
		switch e.Kind {
		case Greeted, Answered:
			if e.Kind == Greeted && greeted || e.Kind == Answered && !greeted {
				wrong("event %d is %v, want the greeting once, and before every answer", i, e.Kind)
			}
			least := time.Duration(0)
			if missing > 0 {
				least = awaited + time.Duration(missing-1)*l.options.Heartbeat.Interval
			}
			if e.Latency < least {
				wrong("event %d, after %d Unanswered: latency %v, want %v or more", i, missing, e.Latency, least)
			}
			if e.Kind == Answered {
				answered++
			}
			greeted, missing, awaited = true, 0, l.options.Heartbeat.Timeout
		case Received:
			if !greeted {
				wrong("event %d is %v, want Greeted before it", i, e.Kind)
			}
		case Unanswered:
			// The peer's kernel may delay the ACK of a heartbeat.
			silent := e.Outcome == Silent && e.Errno == 0
			if !silent && (!greeted || e.Outcome != Timeout || e.Errno != unix.ETIMEDOUT) {
				wrong("event %d is Unanswered: %v, errno %s, want Silent", i, e.Outcome, ErrnoName(e.Errno))
			}
			missing++
		case Ended:
			if e.Err != nil || !slices.Contains(p.ends(), e.Outcome) {
				wrong("event %d is Ended: %v, error %v, want one of %v", i, e.Outcome, e.Err, p.ends())
			}
			if isReset := e.Outcome == Reset; isReset != (e.Errno == unix.ECONNRESET) || !isReset && e.Errno != 0 {
				wrong("event %d is Ended: %v, errno %s", i, e.Outcome, ErrnoName(e.Errno))
			}
			if e.State.Established.IsZero() {
				wrong("event %d is Ended, with the state %+v, want the time of the handshake", i, e.State)
			}
		}
	}
	l.checkFrames(p, wrong)

	send := l.options.Heartbeat.Send
	if len(send) == 0 {
		if answered > 0 || len(p.read) > 0 || missing > 1 || missing > 0 && greeted {
			wrong("%d answers, %d bytes of heartbeats, %d times unanswered, want none", answered, len(p.read), missing)
		}
		return
	}
	for i, b := range p.read {
		if b != send[i%len(send)] {
			wrong("byte %d of the heartbeats is %q, want %q", i, b, send[i%len(send)])
			break
		}
	}
	seen := (len(p.read) + len(send) - 1) / len(send)
	if !l.closed && seen > answered+1 {
		wrong("%d heartbeats for %d answers, want one more than answers at most", seen, answered)
	}
	// What the peer has not read cannot be counted.
	if p.ended == doClose || p.ended == doReset || p.stopped || l.closed || len(send) == longestSend {
		return
	}
	if answered > seen {
		wrong("%d answers to %d heartbeats", answered, seen)
	}
	if greeted && missing > 0 && seen == answered {
		wrong("%d times unanswered after the answer to the last heartbeat", missing)
	}
}

// checkFrames compares the frames of the events with those that the peer has sent: an RST and Close may lose the last
// ones.
func (l *life) checkFrames(p *scriptedPeer, wrong func(string, ...any)) {
	got := l.frames()
	want, _ := naive(l.options.Framing, p.sent)
	last := l.events[len(l.events)-1]
	if lossy := l.closed || last.Outcome == Reset; lossy {
		want = want[:min(len(got), len(want))]
	}
	if !slices.EqualFunc(got, want, bytes.Equal) {
		wrong("the frames are %q, want %q", got, want)
	}
	if first := slices.IndexFunc(l.events, func(e ConnectionEvent) bool { return e.Frame != nil }); first >= 0 {
		if kind := l.events[first].Kind; (kind == Greeted) != (l.options.Greeting > 0) {
			wrong("the first frame is %v, with %v for the greeting", kind, l.options.Greeting)
		}
	}
}

// ends returns the outcomes that what the peer has done may have.
func (p *scriptedPeer) ends() (outcomes []Outcome) {
	_, long := naive(p.options.Framing, p.sent)
	switch p.ended {
	case doCloseWriting:
		outcomes = []Outcome{Closed}
	case doClose:
		outcomes = []Outcome{Closed}
		if p.options.Heartbeat.Interval > 0 {
			outcomes = append(outcomes, Reset) // one was not read
		}
	case doReset:
		outcomes = []Outcome{Reset}
	}
	if long { // what follows the frame does not count, but an RST may lose the frame
		outcomes = slices.DeleteFunc(outcomes, func(o Outcome) bool { return o == Closed })
		outcomes = append(outcomes, Mismatch)
	}
	return outcomes
}
