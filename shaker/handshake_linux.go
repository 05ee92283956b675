package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A handshake is a task that sends a SYN, sees the reply, and sends an RST, or a FIN if the options
// say so. If it is that of a Connection, which keeps the socket, it sends neither. Its life:
//
//	start       opens the socket, sets the options and connects, which sends the SYN
//	settle      is called for the SYN-ACK, the RST, the ICMP error or the deadline. It concludes
//	            (classify_linux.go) what is known about the target
//	finish      closes the socket, which sends the RST
type handshake struct {
	// The caller sets these before it submits the handshake.
	withholdACK  bool
	inBackground bool // no caller waits for it
	keep         bool // if Open, the socket stays open, and ended takes it over; withholdACK is false
	family       int
	peer         rawAddress
	options      Options
	source       rawAddress    // options.Source, zeros if there is none
	called       time.Duration // when Shake was called, on the loop's clock
	deadline     time.Duration // on the loop's clock; 0 is none

	// Only the loop uses these.
	own ticket
	fd  int // -1 if there is no socket

	// When connect(2) was called, and when it had returned, on the loop's clock. The SYN was sent
	// in between. That may be a long time, if this process had to wait for a processor.
	sent, out  time.Duration
	connecting bool // connect(2) returned EINPROGRESS: a SYN was sent

	// What was concluded from the last soft ICMP error, after which the handshake went on, and when the error was
	// seen; zeros if there was none.
	soft     conclusion
	softSeen time.Duration

	// The caller reads these after receiving from done: a verdict or an error.
	result Result
	err    error
	done   chan struct{} // has room for one value, so that the loop never waits

	// ended is called when the socket is closed, or to be kept, and the result is known.
	ended func(*loop)

	raw rawHandshake // instead of the socket
}

// newHandshake returns a handshake without a target.
func newHandshake() *handshake {
	h := &handshake{withholdACK: true, done: make(chan struct{}, 1)}
	h.ended = func(l *loop) { l.finish(h.own, h) }
	return h
}

// aim sets the target, and forgets the previous handshake. The scope is the interface index of the target's IPv6
// zone.
func (h *handshake) aim(target netip.AddrPort, scope uint32) {
	h.peer, h.family = newRawAddress(target, scope)
	h.fd, h.connecting, h.soft, h.raw = -1, false, conclusion{}, rawHandshake{}
	h.result, h.err = Result{Peer: target}, nil
}

func (h *handshake) wake(*loop) { h.done <- struct{}{} }

func (h *handshake) handle(l *loop, own ticket, e event) {
	if h.raw.wire != nil {
		h.handleRaw(l, own, e)
		return
	}
	h.own = own
	switch e.kind {
	case eventStart:
		h.start(l)
	case eventReady:
		h.settle(l, 0, l.now)
	case eventDue:
		h.expire(l)
	case eventTold: // the context has ended
		if err := e.message.(error); errors.Is(err, context.DeadlineExceeded) {
			h.expire(l)
		} else {
			h.fail(l, err)
		}
	case eventClosing:
		h.fail(l, e.err)
	}
}

// start opens the socket and sends the SYN.
func (h *handshake) start(l *loop) {
	var err error
	h.fd, err = l.socket(h.family, tcpSocket, unix.IPPROTO_TCP)
	if err == errElsewhere {
		return
	}
	if err == nil {
		err = h.configure()
	}
	if err != nil {
		h.fail(l, err)
		return
	}
	h.sent = l.clock()
	if h.deadline != 0 && h.sent >= h.deadline {
		h.fail(l, ErrUnsent)
		return
	}
	errno := connect(h.fd, &h.peer)
	h.out = l.clock()
	h.connecting = errno == unix.EINPROGRESS
	switch {
	case errno == unix.EINPROGRESS:
		h.await(l)
	case errno == unix.EADDRNOTAVAIL && h.withoutSource():
		// This host has no address to send from, for example because IPv6 is disabled.
		// That is like a missing route, and not like a missing port.
		h.end(l, Unreachable, errno)
	case errno == unix.EINVAL && h.bound() && h.result.Peer.Addr().Zone() != "":
		h.fail(l, errZoneMismatch)
	case errno == unix.EINVAL:
		// The route is a blackhole (ip-route(8)), or no packet can be addressed to the target, as
		// in 0.0.0.0/8.
		h.end(l, Unreachable, errno)
	default:
		h.settle(l, errno, 0)
	}
}

var errZoneMismatch = fmt.Errorf("%w: zone does not match the interface or the source", ErrTarget)

// end ends the handshake with a verdict for which no SYN was sent.
func (h *handshake) end(l *loop, outcome Outcome, errno unix.Errno) {
	h.result.Outcome, h.result.Errno = outcome, errno
	h.finish(l)
}

// await waits for the reply, unless it has already arrived: a target on this host replies while
// connect(2) runs.
func (h *handshake) await(l *loop) {
	err := tcpInfo(h.fd, &l.info)
	if err == nil && l.info.State != unix.BPF_TCP_SYN_SENT && h.conclude(l, 0, l.clock()) {
		return
	}
	if err == nil {
		err = l.watch(h.own, h.fd, unix.EPOLLOUT)
	}
	if err != nil {
		h.fail(l, err)
	}
}

// bound reports whether the options restrict the handshake to one interface.
func (h *handshake) bound() bool {
	return h.options.Interface != "" || h.options.Source.Zone() != ""
}

// withoutSource reports whether this host has no address from which it can send to the peer. It
// connects a UDP socket, which needs such an address, too, and sends nothing.
func (h *handshake) withoutSource() bool {
	fd, err := socket(h.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return false
	}
	defer closeDescriptor(fd)
	return h.setRoute(fd) == nil && connect(fd, &h.peer) == unix.EADDRNOTAVAIL
}

// tcpSocket is the kind of a handshake's socket.
const tcpSocket = unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC

// configure sets the handshake's options on its socket. It also makes the socket queue ICMP errors
// together with their sender. Without the option FIN, the socket withholds the final ACK, unless it is kept, and the
// kernel sends an RST if this process is killed before closeSocket does so.
func (h *handshake) configure() (err error) {
	if h.withholdACK && !h.options.FIN {
		// The kernel then delays the ACK for up to 200 ms (TCP_DELACK_MAX), to send it
		// together with the first data of the application.
		err = setInt(h.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	if err == nil && !h.options.FIN {
		err = setLinger(h.fd, unix.Linger{Onoff: 1, Linger: 0})
	}
	if err == nil && h.family == unix.AF_INET {
		err = setInt(h.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else if err == nil {
		err = setInt(h.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	if err == nil {
		err = h.setOptions()
	}
	return err
}

func (h *handshake) expire(l *loop) {
	if h.fd < 0 {
		h.fail(l, ErrUnsent)
		return
	}
	h.settle(l, unix.ETIMEDOUT, 0)
}

// settle ends the handshake if its outcome is known. errno is the error of connect(2), ETIMEDOUT if
// the deadline has passed, or 0 after an event, when the outcome may not be known yet. seen is the
// time of the event; 0 means now.
func (h *handshake) settle(l *loop, errno unix.Errno, seen time.Duration) {
	if err := tcpInfo(h.fd, &l.info); err != nil {
		h.fail(l, err)
		return
	}
	if seen == 0 {
		seen = l.clock() // after tcpInfo: the SYN-ACK may have arrived this moment
	}
	h.conclude(l, errno, seen)
}

// conclude ends the handshake if its outcome is known from the loop's TCP_INFO and the errors of the socket. ended
// reports whether it has done so.
func (h *handshake) conclude(l *loop, errno unix.Errno, seen time.Duration) (ended bool) {
	if open, err := isOpen(l.info.State); open || err != nil {
		return h.act(l, classify(&l.info, socketErrors{}, ICMP{}), seen) // the RST does not wait for the errors
	}
	errs := socketErrors{call: errno, earlier: h.soft, tooLate: !h.isTimeout(seen)}
	// SO_ERROR before the error queue: reading the queue clears SO_ERROR.
	var icmp ICMP
	var err error
	if errs.pending, err = socketError(h.fd); err == nil {
		icmp, errs.queued = readErrorQueue(h.fd, l.control[:])
		// Look again whether the error has closed the socket. Also look again before the counters say that this
		// host drops the SYN: the kernel reads the state before it locks the socket for the counters, and the
		// SYN-ACK resets one of them (tcp_get_info in net/ipv4/tcp.c).
		if errs.pending != 0 && icmp.soft() || errno == unix.ETIMEDOUT && isDropped(&l.info) {
			err = tcpInfo(h.fd, &l.info)
		}
	}
	if err != nil {
		h.fail(l, err)
		return true
	}
	return h.act(l, classify(&l.info, errs, icmp), seen)
}

// act does what a conclusion asks for. ended reports whether it has ended the handshake.
func (h *handshake) act(l *loop, c conclusion, seen time.Duration) (ended bool) {
	switch {
	case c.err != nil:
		h.fail(l, c.err)
	case c.outcome == Open:
		h.settleOpen(l, seen)
	case c.outcome != 0 && c.soft:
		h.settleUnanswered(l, c, h.softSeen)
	case c.outcome != 0:
		h.settleUnanswered(l, c, seen)
	default:
		if c.soft {
			h.soft, h.softSeen = c, seen
		}
		return false
	}
	return true
}

// settleOpen ends the handshake after a SYN-ACK, which was seen at the given time: it reads the
// measurements and sends the RST or the FIN.
func (h *handshake) settleOpen(l *loop, seen time.Duration) {
	r := &h.result
	h.readInfo(&l.info, seen)
	if r.Local.Port() == r.Peer.Port() && getsockname(h.fd) == getpeername(h.fd) {
		// The target is a closed port of this host, and the kernel chose the same port as
		// the local one: the SYN reached its own socket (simultaneous open, RFC 9293). An
		// RST is sent even with the option FIN: a FIN would leave the port in TIME_WAIT,
		// and no process could listen on it.
		*r = Result{
			Outcome: Refused,
			Errno:   unix.ECONNREFUSED,
			SYNs:    r.SYNs,
			Local:   r.Local,
			Peer:    r.Peer,
		}
		h.finish(l)
		return
	}
	r.Outcome = Open
	r.Handshake = seen - h.sent
	h.readAnswer(&l.info)
	if h.keep {
		h.ended(l)
		return
	}
	h.closeSocket()
	if !h.options.FIN {
		r.ResetLag = h.resetLag(&l.info, seen, l.clock())
		// The kernel may have sent the ACK after TCP_INFO and before the RST.
		r.ACKWithheld = r.ACKWithheld && r.ResetLag < ackDelay
	}
	h.finish(l)
}

// settleUnanswered ends a handshake without a SYN-ACK.
func (h *handshake) settleUnanswered(l *loop, c conclusion, seen time.Duration) {
	r := &h.result
	r.Outcome, r.Errno, r.ICMP = c.outcome, c.errno, c.icmp
	h.readInfo(&l.info, seen)
	r.ICMP.Own = l.generated(c.icmp, r.Local.Addr().WithZone(""))
	if c.outcome == Reset {
		h.readAnswer(&l.info)
	}
	h.finish(l)
}

// isTimeout reports whether the SYN has been out for long enough, now that the deadline has passed. The
// deadline may be one of the context that the loop does not know.
func (h *handshake) isTimeout(now time.Duration) bool {
	end := now
	if h.deadline != 0 {
		end = min(end, h.deadline)
	}
	return isTimeout(now-h.out, end-h.called)
}

// countsSegments reports whether the kernel counts the segments that a socket has sent. Linux does so
// since 4.2, and gVisor does not.
func countsSegments(info *unix.TCPInfo) bool { return info.Segs_out > 0 }

// readInfo reads the measurements of every handshake that has sent a SYN.
func (h *handshake) readInfo(info *unix.TCPInfo, seen time.Duration) {
	if countsSegments(info) {
		h.result.SYNs = int(1 + info.Total_retrans)
	} else if !h.connecting {
		return // no SYN was sent: no route, or forbidden by this host
	}
	h.result.Waited = seen - h.sent
	h.result.Local = getsockname(h.fd).addrPort(h.result.Peer.Addr().Zone())
}

// readAnswer reads the measurements that need a SYN-ACK.
func (h *handshake) readAnswer(info *unix.TCPInfo) {
	h.result.RTT = time.Duration(info.Rtt) * time.Microsecond
	h.result.MSS = int(info.Snd_mss)
	// Every segment sent so far, except the SYNs, was an ACK.
	h.result.ACKSent = info.Segs_out > 1+info.Total_retrans || h.options.FIN || h.keep
	h.result.ACKWithheld = countsSegments(info) && !h.result.ACKSent
}

const (
	// ackDelay is the time after the SYN-ACK for which the kernel certainly withholds the ACK: 200 ms
	// (TCP_DELACK_MAX), which it counts in ticks.
	ackDelay = 200*time.Millisecond - 2*jiffy

	// jiffy is the longest time between two ticks of a kernel (CONFIG_HZ=100).
	jiffy = 10 * time.Millisecond
)

// resetLag returns the time from the arrival of the SYN-ACK to the closing of the socket. The loop may have
// seen the SYN-ACK later, if this process had to wait for a processor or was stopped. Two clocks of the
// kernel show by how much at least: the RTT, if the SYN was sent once, and the age of the last ACK, which
// is counted in ticks and starts again with each further segment of the target.
func (h *handshake) resetLag(info *unix.TCPInfo, seen, closed time.Duration) time.Duration {
	lag := closed - seen
	if info.Rtt > 0 && info.Total_retrans == 0 {
		lag = max(lag, closed-h.out-time.Duration(info.Rtt)*time.Microsecond)
	}
	age := time.Duration(info.Last_ack_recv)*time.Millisecond - jiffy
	return max(lag, min(age, closed-h.sent))
}

// fail ends the handshake with an error.
func (h *handshake) fail(l *loop, err error) {
	h.result, h.err = Result{}, err
	h.finish(l)
}

// finish closes the socket, if there is one, which sends the RST if a SYN-ACK has arrived, and ends the task.
func (h *handshake) finish(l *loop) {
	h.closeSocket()
	h.ground()
	h.ended(l)
}

// closeSocket sends the RST, or the FIN if the handshake is Open and the options say so.
func (h *handshake) closeSocket() {
	if h.fd < 0 {
		return
	}
	if h.connecting && !(h.options.FIN && h.result.Outcome == Open) {
		// Closing is not enough: a child that this process has just forked holds a copy of the
		// descriptor until its execve(2).
		disconnect(h.fd)
	}
	closeDescriptor(h.fd)
	h.fd = -1
}
