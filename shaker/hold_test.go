//go:build !plan9 && !js && !wasip1

package shaker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A held is a Connection whose events a test reads one after the other.
type held struct {
	*Connection
	tb     testing.TB
	events chan ConnectionEvent
}

// mustHold holds a connection until the test ends.
func mustHold(tb testing.TB, s *Shaker, target netip.AddrPort, options HoldOptions) *held {
	tb.Helper()
	h := &held{tb: tb, events: make(chan ConnectionEvent, 10_000)}
	c, err := s.Hold(target, options, func(_ *Connection, e ConnectionEvent) { h.events <- e })
	if err != nil {
		tb.Fatalf("Hold(%v, %+v): %v", target, options, err)
	}
	h.Connection = c
	tb.Cleanup(c.Close)
	return h
}

// next returns the next event, which has to be of a kind.
func (h *held) next(want ConnectionEventKind) ConnectionEvent {
	h.tb.Helper()
	select {
	case e := <-h.events:
		if e.Kind != want {
			h.tb.Fatalf("the next event of the connection to %v is %v: %+v, want %v", h.target, e.Kind, e, want)
		}
		return e
	case <-time.After(time.Minute):
		h.tb.Fatalf("no event of the connection to %v within a minute, want %v", h.target, want)
	}
	return ConnectionEvent{}
}

// none fails the test if there is an event that has not been read.
func (h *held) none() {
	h.tb.Helper()
	select {
	case e := <-h.events:
		h.tb.Fatalf("an event of the connection to %v: %+v, want none", h.target, e)
	default:
	}
}

// mustState returns the state of a connection that has not ended.
func (h *held) mustState() ConnectionState {
	h.tb.Helper()
	state, err := h.State()
	if err != nil {
		h.tb.Fatalf("State of the connection to %v: %v", h.target, err)
	}
	return state
}

// A peer accepts connections, and gives them to the test.
type peer struct {
	tb       testing.TB
	target   netip.AddrPort
	accepted chan *net.TCPConn
}

// newPeer listens on an address until the test ends.
func newPeer(tb testing.TB, address string) *peer {
	tb.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	return servePeer(tb, l)
}

// servePeer accepts the connections of a listener, and closes it when the test ends.
func servePeer(tb testing.TB, l net.Listener) *peer {
	p := &peer{tb: tb, target: l.Addr().(*net.TCPAddr).AddrPort(), accepted: make(chan *net.TCPConn, 1000)}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			p.accepted <- conn.(*net.TCPConn)
		}
	})
	tb.Cleanup(func() {
		l.Close()
		accepting.Wait()
		close(p.accepted)
		for conn := range p.accepted {
			conn.Close()
		}
	})
	return p
}

// accept returns the next connection, and closes it when the test ends.
func (p *peer) accept() *net.TCPConn {
	p.tb.Helper()
	select {
	case conn := <-p.accepted:
		p.tb.Cleanup(func() { conn.Close() })
		return conn
	case <-time.After(time.Minute):
		p.tb.Fatalf("no connection to %v within a minute", p.target)
	}
	return nil
}

// expect reads as many bytes as a text has, and fails the test if they are others.
func expect(tb testing.TB, conn net.Conn, text string) {
	tb.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	got := make([]byte, len(text))
	for n := 0; n < len(got); {
		more, err := conn.Read(got[n:])
		if err != nil {
			tb.Fatalf("the peer read %q, error %v, want %q", got[:n], err, text)
		}
		n += more
	}
	if string(got) != text {
		tb.Fatalf("the peer read %q, want %q", got, text)
	}
}

func write(tb testing.TB, conn net.Conn, text string) {
	tb.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		tb.Fatal(err)
	}
}

var lines = Framing{Delimiter: "\n"}

func ping(interval, timeout time.Duration) Heartbeat {
	return Heartbeat{Interval: interval, Timeout: timeout, Send: []byte("PING\n")}
}

// A life: established, greeted, heartbeats that are answered and not, and the end.
func TestHold(t *testing.T) {
	s := start(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		p := newPeer(t, address)
		h := mustHold(t, s, p.target, HoldOptions{
			Framing:   lines,
			Greeting:  time.Minute,
			Heartbeat: ping(500*time.Millisecond, 400*time.Millisecond),
		})
		conn := p.accept()
		r := h.next(Established).Result
		if r.Outcome != Open || !r.ACKSent || r.Local.String() != conn.RemoteAddr().String() {
			t.Errorf("Established with %+v, want Open with ACKSent and the local address %v", r, conn.RemoteAddr())
		}
		write(t, conn, "hello\nworld\n")
		if e := h.next(Greeted); string(e.Frame) != "hello" {
			t.Errorf("Greeted with %q, want hello", e.Frame)
		}
		if e := h.next(Received); string(e.Frame) != "world" {
			t.Errorf("Received %q, want world", e.Frame)
		}
		for range 2 {
			expect(t, conn, "PING\n")
			write(t, conn, "PONG\n")
			if e := h.next(Answered); string(e.Frame) != "PONG" || e.Latency <= 0 {
				t.Errorf("Answered with %q after %v, want PONG and a latency", e.Frame, e.Latency)
			}
		}
		expect(t, conn, "PING\n")
		state := h.mustState()
		want, errno := Timeout, syscall.ETIMEDOUT
		if linux := !state.LastAnswer.IsZero(); linux { // it knows what the peer's kernel has acknowledged
			want, errno = Silent, 0
		}
		for range 2 {
			if e := h.next(Unanswered); e.Outcome != want || e.Errno != errno {
				t.Errorf("Unanswered: %v, errno %v, want %v, errno %v", e.Outcome, e.Errno, want, errno)
			}
		}
		write(t, conn, "PONG\n")
		if e := h.next(Answered); e.Latency < 900*time.Millisecond {
			t.Errorf("Answered late, with a latency of %v, want 900ms or more", e.Latency)
		}
		if state.LastData.Before(state.Established) || state.Peer != p.target || !state.Local.IsValid() {
			t.Errorf("State = %+v, want the addresses, and the times of the handshake and of the last data", state)
		}
		conn.Close()
		if e := h.next(Ended); e.Outcome != Closed || e.Errno != 0 || e.Err != nil || e.State.LastData.IsZero() {
			t.Errorf("Ended: %+v, want Closed with the state at the end", e)
		}
		if _, err := h.State(); err != ErrEnded {
			t.Errorf("State of a connection that has ended: error %v, want %v", err, ErrEnded)
		}
	}
}

// Frames arrive byte by byte, several at once, and with either order of the length.
func TestHoldFrames(t *testing.T) {
	s := start(t)
	p := newPeer(t, "127.0.0.1:0")
	for _, c := range []struct {
		name    string
		framing Framing
		sent    string
		want    []string
	}{
		{name: "lines", framing: lines, sent: "one\ntwo\n\n", want: []string{"one", "two", ""}},
		{name: "a length", framing: Framing{Length: 2},
			sent: "\x00\x03one\x00\x00\x00\x01b", want: []string{"one", "", "b"}},
		{name: "a little-endian length", framing: Framing{Length: 2, LittleEndian: true},
			sent: "\x03\x00one\x00\x00\x01\x00b", want: []string{"one", "", "b"}},
	} {
		h := mustHold(t, s, p.target, HoldOptions{Framing: c.framing})
		h.next(Established)
		conn := p.accept()
		for _, size := range []int{1, 2, len(c.sent)} {
			for i := 0; i < len(c.sent); i += size {
				write(t, conn, c.sent[i:min(len(c.sent), i+size)])
			}
			for _, want := range c.want {
				if e := h.next(Received); string(e.Frame) != want || e.Frame == nil {
					t.Errorf("%s, in pieces of %d: frame %q, want %q", c.name, size, e.Frame, want)
				}
			}
		}
		// The rest of a frame never arrives.
		write(t, conn, c.sent[:1])
		conn.Close()
		if e := h.next(Ended); e.Outcome != Closed {
			t.Errorf("%s: the peer closes within a frame: %v, want Closed", c.name, e.Outcome)
		}
	}
}

// A frame that is too long, or garbage, ends the connection, the way that the options say.
func TestHoldMismatch(t *testing.T) {
	s := start(t)
	p := newPeer(t, "127.0.0.1:0")
	for _, c := range []struct {
		name    string
		framing Framing
		fin     bool
		sent    string
	}{
		{name: "garbage", framing: Framing{Length: 2}, sent: "HTTP/1.1 400 Bad Request\r\n"},
		{name: "a long line", framing: Framing{Delimiter: "\n", Max: 10}, fin: true, sent: "a long line\n"},
	} {
		h := mustHold(t, s, p.target, HoldOptions{Framing: c.framing, Options: Options{FIN: c.fin}})
		h.next(Established)
		conn := p.accept()
		write(t, conn, c.sent)
		if e := h.next(Ended); e.Outcome != Mismatch || e.Errno != 0 || e.Err != nil {
			t.Errorf("%s: Ended: %v, errno %v, error %v, want Mismatch", c.name, e.Outcome, e.Errno, e.Err)
		}
		assertClosed(t, conn, c.fin)
	}
}

// assertClosed fails the test if the other side of a connection has not closed it: with a FIN, or with an RST.
func assertClosed(t *testing.T, conn net.Conn, fin bool) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	_, err := conn.Read(make([]byte, 1))
	want := error(syscall.ECONNRESET)
	if fin {
		want = io.EOF
	}
	if !errors.Is(err, want) {
		t.Errorf("the peer reads: error %v, want %v", err, want)
	}
}

func TestHoldInvalid(t *testing.T) {
	s := start(t)
	valid := netip.MustParseAddrPort("127.0.0.1:80")
	beat := Heartbeat{Interval: time.Second, Timeout: time.Millisecond, Send: []byte("x")}
	with := func(change func(*Heartbeat)) HoldOptions {
		h := beat
		change(&h)
		return HoldOptions{Heartbeat: h}
	}
	for _, c := range []struct {
		target  netip.AddrPort
		options HoldOptions
		want    string
	}{
		{target: netip.AddrPort{}, want: "invalid target"},
		{target: valid, options: HoldOptions{Greeting: -1}, want: "negative greeting timeout -1ns"},
		{target: valid, options: HoldOptions{Options: Options{DSCP: 64}}, want: "DSCP is 64, want 0 to 63"},
		{target: valid, options: HoldOptions{KeepAlive: KeepAlive{Idle: time.Second, Interval: time.Second}},
			want: "keepalive count 0, want 1 to 127"},
		{target: valid, options: HoldOptions{Framing: Framing{Length: 3}},
			want: "a length of 3 bytes in front of frames, want 1, 2 or 4"},
		{target: valid, options: with(func(h *Heartbeat) { h.Interval = time.Millisecond }),
			want: "heartbeat interval 1ms, want 10ms or more"},
		{target: valid, options: with(func(h *Heartbeat) { h.Timeout = time.Second }),
			want: "heartbeat timeout 1s, want more than 0 and less than the interval 1s"},
		{target: valid, options: with(func(h *Heartbeat) { h.Send = nil }),
			want: "heartbeat of 0 bytes, want 1 to 4096"},
		{target: valid, options: with(func(h *Heartbeat) { h.Send = make([]byte, 4097) }),
			want: "heartbeat of 4097 bytes, want 1 to 4096"},
	} {
		_, err := s.Hold(c.target, c.options, nil)
		want := fmt.Sprintf("hold %v: %s", c.target, c.want)
		if err == nil || err.Error() != want || !errors.Is(err, os.ErrInvalid) || errors.Is(err, ErrLocal) {
			t.Errorf("Hold(%v, %+v): error %v, want %s", c.target, c.options, err, want)
		}
	}
	s.Close()
	if _, err := s.Hold(valid, HoldOptions{}, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Hold after Close: error %v, want %v", err, ErrClosed)
	}
}

// Closing the Shaker ends every connection. The function learns of it before Close returns.
func TestHoldShakerClose(t *testing.T) {
	s := start(t)
	p := newPeer(t, "127.0.0.1:0")
	h := mustHold(t, s, p.target, HoldOptions{})
	h.next(Established)
	conn := p.accept()
	s.Close()
	if e := h.next(Ended); !errors.Is(e.Err, ErrClosed) || e.Outcome != 0 {
		t.Errorf("Ended: %+v, want an error that wraps ErrClosed", e)
	}
	assertClosed(t, conn, false)
	if _, err := h.State(); err != ErrEnded {
		t.Errorf("State after Close of the Shaker: error %v, want %v", err, ErrEnded)
	}
}

// Close ends a connection as the options say. It is safe from the function that takes the events, in any state of the
// connection, and twice.
func TestHoldClose(t *testing.T) {
	s := start(t)
	p := newPeer(t, "127.0.0.1:0")
	for _, fin := range []bool{false, true} {
		options := HoldOptions{Options: Options{FIN: fin}}
		h := mustHold(t, s, p.target, options)
		h.next(Established)
		conn := p.accept()
		h.Close()
		assertClosed(t, conn, fin)
		conn.Close()
		h.Close()
		if err := h.SetKeepAlive(KeepAlive{}); err != ErrEnded {
			t.Errorf("SetKeepAlive after Close: error %v, want %v", err, ErrEnded)
		}
		h.none()

		own := make(chan ConnectionState, 1)
		_, err := s.Hold(p.target, options, func(c *Connection, e ConnectionEvent) {
			state, err := c.State()
			if err != nil {
				t.Errorf("State within the function: %v", err)
			}
			c.Close()
			own <- state
		})
		if err != nil {
			t.Fatal(err)
		}
		conn = p.accept()
		if state := <-own; state.Local.String() != conn.RemoteAddr().String() {
			t.Errorf("the state within the function is %+v, want that of the connection from %v",
				state, conn.RemoteAddr())
		}
		assertClosed(t, conn, fin)
		conn.Close()
	}
}
