package shaker

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// HoldOptions say how a [Connection] is opened and held.
type HoldOptions struct {
	// Options are those of the handshake. Its Timeout limits the handshake; 0 means 5 s. Its FIN decides how this
	// side closes the connection: with a FIN, or without it with an RST, which is also what the kernel sends if this
	// process is killed.
	Options Options

	// KeepAlive is the keepalive of this connection only. Its zero value means none: if the peer's host is gone, a
	// connection without keepalive and heartbeats stays established forever.
	KeepAlive KeepAlive

	// Framing says how the data of the peer is divided into frames.
	Framing Framing

	// Greeting is how long the peer may take to send a first frame by itself, as an SMTP or MySQL server does. The
	// first heartbeat follows the greeting. 0 means that no greeting is expected.
	Greeting time.Duration

	// Heartbeat is what the application is asked again and again. Its zero value means nothing.
	Heartbeat Heartbeat
}

// A Heartbeat is a question that the peer's application has to answer: a process that is stopped or deadlocked does not
// answer it, while its kernel goes on to answer keepalives. The first frame after the heartbeat is the answer. The next
// heartbeat is not sent before that.
type Heartbeat struct {
	// Interval is the time from one heartbeat to the next, 10 ms or more. The first one is sent when the connection
	// is established, or after the greeting.
	Interval time.Duration

	// Timeout is how long the answer may take. It is shorter than Interval.
	Timeout time.Duration

	// Send is the data of a heartbeat, 1 to 4096 bytes. It must not be changed while the Connection lives.
	Send []byte
}

const (
	defaultHoldTimeout = 5 * time.Second

	// shortestHeartbeat is the lower limit of Heartbeat.Interval.
	shortestHeartbeat = 10 * time.Millisecond

	// longestSend is the limit of Heartbeat.Send in bytes. The kernel has room for it in the send buffer of every
	// new connection.
	longestSend = 4096
)

// Validate returns an error that wraps [os.ErrInvalid] for a heartbeat that is not possible.
func (h Heartbeat) Validate() error {
	switch {
	case h.Interval == 0 && h.Timeout == 0 && len(h.Send) == 0:
		return nil
	case h.Interval < shortestHeartbeat:
		return invalid("heartbeat interval %v, want %v or more", h.Interval, shortestHeartbeat)
	case h.Timeout <= 0 || h.Timeout >= h.Interval:
		return invalid("heartbeat timeout %v, want more than 0 and less than the interval %v", h.Timeout, h.Interval)
	case len(h.Send) == 0 || len(h.Send) > longestSend:
		return invalid("heartbeat of %d bytes, want 1 to %d", len(h.Send), longestSend)
	}
	return nil
}

func (o *HoldOptions) validate() error {
	if o.Greeting < 0 {
		return invalid("negative greeting timeout %v", o.Greeting)
	}
	for _, part := range []interface{ Validate() error }{o.KeepAlive, o.Framing, o.Heartbeat} {
		if err := part.Validate(); err != nil {
			return err
		}
	}
	return o.Options.validate()
}

// A ConnectionEventKind says what has happened to a [Connection].
type ConnectionEventKind uint8

const (
	// Established: the handshake is complete. Result has its measurements.
	Established ConnectionEventKind = iota + 1
	// Greeted: the peer has sent the expected greeting. Frame has it, and Latency the time since Established.
	Greeted
	// Answered: the peer has answered a heartbeat. Frame has the answer, and Latency the time since the heartbeat.
	Answered
	// Unanswered: the greeting, or the answer to a heartbeat, did not arrive in time. Outcome is Silent if the
	// peer's kernel has acknowledged the heartbeat, or cannot take it because its application does not read, and
	// Timeout if the peer's kernel has not acknowledged it. The connection stays. If the answer arrives later, there
	// is an Answered or Greeted with its true Latency. Until then, there is another Unanswered at each further
	// interval of the heartbeat, and nothing is sent.
	Unanswered
	// Received: the peer has sent a frame that is neither a greeting nor an answer. Frame has it.
	Received
	// Ended: the connection could not be established, or has ended. It is the last event. Outcome and Errno are the
	// reason, or Err if this host is the reason. State is what the kernel knew about the connection at its end. If
	// it was never established, Result is the verdict of the handshake. The descriptor is closed.
	Ended
)

var eventNames = [...]string{
	0:           "unknown",
	Established: "established",
	Greeted:     "greeted",
	Answered:    "answered",
	Unanswered:  "unanswered",
	Received:    "received",
	Ended:       "ended",
}

// String returns the kind in lower case, such as "established".
func (k ConnectionEventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("ConnectionEventKind(%d)", uint8(k))
}

// A ConnectionEvent is something that has happened to a [Connection]. Kind says which of the other fields are set.
type ConnectionEvent struct {
	Kind ConnectionEventKind

	// Time is when it happened: when the kernel reported it, or the data arrived.
	Time time.Time

	// Result is that of the handshake, as [Shaker.Shake] returns it: in Established, and in an Ended without an
	// Established and without an Err.
	Result Result

	// Outcome and Errno are the reason of an Ended or Unanswered:
	//
	//	Closed       the peer has closed the connection, or its writing side: a FIN arrived
	//	Reset        an RST arrived: the peer's process was killed with unread data, or the peer has no such
	//	             connection any more, or a middlebox says so
	//	Timeout      the peer did not acknowledge keepalives, or data (ETIMEDOUT)
	//	Unreachable, Prohibited, Refused
	//	             the same, and the kernel had seen an ICMP error for data; or, before Established, as in Shake
	//	Silent       only in Unanswered: the kernel acknowledged, the application did not answer
	//	Mismatch     the peer sent a frame that is longer than Framing.Max
	Outcome Outcome
	Errno   Errno

	// Err is set in Ended if this host is the reason: a local resource is exhausted, an option is not permitted, or
	// the Shaker was closed ([ErrClosed]). It wraps [ErrLocal]. Outcome is 0 then.
	Err error

	// Frame is the frame of a Greeted, Answered or Received. It belongs to the receiver.
	Frame []byte

	// Latency is the time from Established to the greeting, or from the heartbeat to its answer, on this process's
	// clock. If this process was delayed and read the answer later, the kernel's clock shows when it arrived, with a
	// resolution of some milliseconds. The kernel's own tcpi_rtt would include the peer's delayed ACKs.
	Latency time.Duration

	// State is that of an Ended, at the end: for example how many keepalives were not answered.
	State ConnectionState
}

// A ConnectionState is what the kernel knows about a [Connection]. What it does not report is zero. Systems other than
// Linux report only Established, LastData, Local and Peer.
type ConnectionState struct {
	// Established is when the handshake was complete. It is zero until then.
	Established time.Time

	// LastAnswer is when the peer's kernel was heard last: any segment, such as the answer to a keepalive
	// (tcpi_last_ack_recv in tcp(7)). LastData is when the peer's application was heard last: data arrived
	// (tcpi_last_data_recv). It is zero if none ever has. Both have a resolution of some milliseconds.
	LastAnswer, LastData time.Time

	// KeepAlivesUnanswered is the number of keepalives in a row that the peer has not answered (tcpi_probes). The
	// kernel sends none while data is not acknowledged.
	KeepAlivesUnanswered int

	// Unacknowledged is the number of segments that were sent and that the peer has not acknowledged
	// (tcpi_unacked). Unsent is the number of bytes that wait to be sent (tcpi_notsent_bytes).
	Unacknowledged, Unsent int

	// WindowClosed reports whether the peer takes no data, because its application does not read what has arrived
	// (tcpi_snd_wnd is 0).
	WindowClosed bool

	// EmptySegments is the number of segments without data that have arrived (tcpi_segs_in - tcpi_data_segs_in): the
	// SYN-ACK, ACKs, and keepalives that the peer has sent by itself, which LastAnswer does not include.
	EmptySegments int

	// RTT is the kernel's estimate of the round trip time (tcpi_rtt). Keepalives do not change it, and heartbeats
	// include the time for which the peer delays ACKs.
	RTT time.Duration

	// Local is the address and port of this side, and Peer that of the other side.
	Local, Peer netip.AddrPort
}

// ErrEnded is returned by the methods of a [Connection] that has ended. It wraps [os.ErrClosed].
var ErrEnded error = &sentinel{text: "the connection has ended", general: os.ErrClosed}

const (
	// unreadFrames limits how many frames of a Connection that are not greetings or answers wait to be passed on.
	unreadFrames = 64

	// unreadBytes limits the memory of the events of all Connections of a Shaker that wait to be passed on. Events
	// that begin or end a Connection do not count.
	unreadBytes = 64 << 20

	// eventBytes is the memory of an event without its frame.
	eventBytes = 128
)

// A Connection is a TCP connection that is held: the handshake, then keepalives and heartbeats until it ends. It is
// never opened again. It is safe for concurrent use.
type Connection struct {
	each   func(*Connection, ConnectionEvent)
	target netip.AddrPort

	keepAlive KeepAlive // changed by SetKeepAlive
	framing   Framing
	greeting  time.Duration
	heartbeat Heartbeat
	fin       bool

	over    atomic.Bool   // Close was called
	unread  atomic.Uint64 // see Unread
	pending atomic.Int32  // frames of Received events that have not been passed on

	holding
}

// Hold opens a connection to the target, holds it, and calls each with every event of its life. Hold does not wait:
// the first event is Established or Ended.
//
// One goroutine makes the calls, for all Connections of the Shaker, in the order of the events of each of them. A
// function that takes long has to hand the events on. It must not call [Shaker.Close]. Events for which there is no
// room until the function takes them are dropped and counted ([Connection.Unread]): there is room for 64 frames of a
// Connection that are neither greetings nor answers, and for 64 MiB of events in total. Established and Ended are
// never dropped. On systems other than Linux, the connection waits for the function instead.
//
// A Connection has no goroutine and no timer of its own on Linux. Handshakes of [Shaker.Shake] go first: data that
// arrives is read in pieces of 4 KiB, a few of them between two looks for SYN-ACKs.
//
// The error is that of [Shaker.Shake] for a target or options that are invalid, or [ErrClosed].
func (s *Shaker) Hold(target netip.AddrPort, options HoldOptions, each func(*Connection, ConnectionEvent)) (
	*Connection, error,
) {
	if options.Options.Timeout == 0 {
		options.Options.Timeout = defaultHoldTimeout
	}
	c := &Connection{
		each:      each,
		keepAlive: options.KeepAlive,
		framing:   options.Framing,
		greeting:  options.Greeting,
		heartbeat: options.Heartbeat,
		fin:       options.Options.FIN,
	}
	err := options.validate()
	if err == nil {
		var scope uint32
		if c.target, scope, err = s.destination(target, &options.Options); err == nil {
			err = s.engine.hold(c, scope, &options.Options)
		}
	}
	if err != nil {
		return nil, newOpError(context.Background(), fmt.Sprintf("hold %v", target), err)
	}
	return c, nil
}

// State returns what the kernel knows about the connection now. On Linux it takes one system call for the connection
// (TCP_INFO in tcp(7)). The error is [ErrEnded] if the connection has ended.
func (c *Connection) State() (ConnectionState, error) {
	return c.state()
}

// SetKeepAlive changes the keepalive of the connection. The kernel counts Idle from when the peer was heard last: if
// that is longer ago, it sends a keepalive at once. The error wraps [os.ErrInvalid] for values that are not possible,
// and [ErrEnded] if the connection has ended.
func (c *Connection) SetKeepAlive(k KeepAlive) error {
	err := k.Validate()
	if err == nil {
		err = c.setKeepAlive(k)
	}
	if err != nil && err != ErrEnded {
		err = c.describe(err)
	}
	return err
}

// Close ends the connection, with a FIN if the options have FIN, otherwise with an RST. When Close returns, the
// descriptor is closed, and no further event is passed on, not even an Ended: only a call that is running already may
// return later. A second Close does nothing.
func (c *Connection) Close() {
	if !c.over.Swap(true) {
		c.stop()
	}
}

// Unread returns how many events were dropped because the function that takes them was too slow.
func (c *Connection) Unread() uint64 { return c.unread.Load() }

// pass passes an event on, unless Close was called.
func (c *Connection) pass(e ConnectionEvent) {
	if !c.over.Load() {
		c.each(c, e)
	}
}

func (c *Connection) describe(err error) error {
	return newOpError(context.Background(), fmt.Sprintf("hold %v", c.target), err)
}

// next returns the first time after now at which a heartbeat is due, given when one was sent.
func (h *Heartbeat) next(last, now time.Duration) time.Duration {
	return last + ((now-last)/h.Interval+1)*h.Interval
}
