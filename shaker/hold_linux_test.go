package shaker

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
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
	lab.Need(t)
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
		for range 2 {
			if e := h.next(Unanswered); e.Outcome != Silent || e.Errno != 0 {
				t.Errorf("Unanswered: %v, errno %v, want Silent", e.Outcome, e.Errno)
			}
		}
		write(t, conn, "PONG\n")
		if e := h.next(Answered); e.Latency < 900*time.Millisecond {
			t.Errorf("Answered late, with a latency of %v, want 900ms or more", e.Latency)
		}
		if state := h.mustState(); state.LastData.IsZero() || state.LastAnswer.IsZero() || state.Established.IsZero() {
			t.Errorf("State = %+v, want the time of the last answer and data", state)
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
