package shaker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A handshake is a task that sends a SYN, sees the reply, and sends an RST, or a FIN if the options
// say so. Its life:
//
//	start       opens the socket, sets the options and connects, which sends the SYN
//	ready       is called for the SYN-ACK, the RST or the ICMP error; settle decides the outcome
//	expire      the deadline has passed; settle decides the outcome
//	finish      closes the socket, which sends the RST
type handshake struct {
	// The caller sets these before it submits the handshake.
	withholdACK bool
	family      int
	peer        rawAddress
	options     Options
	source      rawAddress    // options.Source, zeros if there is none
	called      time.Duration // when Shake was called, on the loop's clock

	// Only the loop uses these.
	slot *slot // nil when the handshake has ended
	fd   int   // -1 if there is no socket
	info unix.TCPInfo

	// When connect(2) was called, and when it had returned, on the loop's clock. The SYN was sent
	// in between. That may be a long time, if this process had to wait for a processor.
	sent, out  time.Duration
	connecting bool // connect(2) returned EINPROGRESS: a SYN was sent

	// The last ICMP error after which the handshake went on, its errno, and when it was seen; zeros if
	// there was none.
	soft      ICMP
	softErrno unix.Errno
	softSeen  time.Duration

	// The caller reads these after receiving from done: a verdict or an error.
	result Result
	err    error
	done   chan struct{} // has room for one value, so that the loop never waits
}

func (h *handshake) seat(s *slot) { h.slot, h.fd, h.connecting = s, -1, false }

func (h *handshake) wake(*loop) { h.done <- struct{}{} }

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
	if deadline := h.slot.deadline; deadline != 0 && h.sent >= deadline {
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
		h.fail(l, fmt.Errorf("%w: zone does not match the interface or the source", ErrTarget))
	case errno == unix.EINVAL:
		// The route is a blackhole (ip-route(8)), or no packet can be addressed to the target, as
		// in 0.0.0.0/8.
		h.end(l, Unreachable, errno)
	default:
		h.settle(l, errno, 0)
	}
}

// end ends the handshake with a verdict for which no SYN was sent.
func (h *handshake) end(l *loop, outcome Outcome, errno unix.Errno) {
	h.result.Outcome, h.result.Errno = outcome, errno
	h.finish(l)
}

// await waits for the reply, unless it has already arrived: a target on this host replies while
// connect(2) runs.
func (h *handshake) await(l *loop) {
	if err := tcpInfo(h.fd, &h.info); err != nil {
		h.fail(l, err)
		return
	}
	if h.info.State != unix.BPF_TCP_SYN_SENT {
		h.decide(l, 0, l.clock())
	}
	if h.slot == nil {
		return
	}
	if err := l.watch(h.slot, h.fd, unix.EPOLLOUT); err != nil {
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
// together with their sender. Without the option FIN, the socket withholds the final ACK, and the kernel
// sends an RST if this process is killed before closeSocket does so.
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

func (h *handshake) ready(l *loop, _ uint32) { h.settle(l, 0, l.now) }

func (h *handshake) expire(l *loop) {
	if h.fd < 0 {
		h.fail(l, ErrUnsent)
		return
	}
	h.settle(l, unix.ETIMEDOUT, 0)
}

func (h *handshake) abandon(l *loop, err error) {
	if h.slot == nil {
		return
	}
	if errors.Is(err, context.DeadlineExceeded) {
		h.expire(l)
		return
	}
	h.fail(l, err)
}

// settle ends the handshake if its outcome is known. errno is the error of connect(2), ETIMEDOUT if
// the deadline has passed, or 0 after an event, when the outcome may not be known yet. seen is the
// time of the event; 0 means now.
func (h *handshake) settle(l *loop, errno unix.Errno, seen time.Duration) {
	if err := tcpInfo(h.fd, &h.info); err != nil {
		h.fail(l, err)
		return
	}
	if seen == 0 {
		seen = l.clock() // after tcpInfo: the SYN-ACK may have arrived this moment
	}
	h.decide(l, errno, seen)
}

// decide ends the handshake if its outcome is known from info and errno. The state of the
// connection counts first: an ICMP error for one SYN does not undo the SYN-ACK for another one. The
// socket's error counts next, and errno last.
func (h *handshake) decide(l *loop, errno unix.Errno, seen time.Duration) {
	switch open, err := isOpen(h.info.State); {
	case err != nil:
		h.fail(l, err)
	case open:
		h.settleOpen(l, seen)
	default:
		h.settleUnanswered(l, errno, seen)
	}
}

// isOpen reports whether a connection in the given state of TCP_INFO has got a SYN-ACK, and has not failed
// since. Only these states are possible for a socket that has called connect(2) and nothing else. Any
// other state, such as 0 from a kernel that does not fill TCP_INFO, says nothing about the target.
func isOpen(state uint8) (bool, error) {
	switch state { // package unix has only the BPF names of the states
	case unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_CLOSE_WAIT:
		return true, nil
	case unix.BPF_TCP_SYN_SENT, unix.BPF_TCP_SYN_RECV, unix.BPF_TCP_CLOSE:
		return false, nil
	}
	return false, fmt.Errorf("TCP_INFO: this kernel does not report the state of the connection: it is %d", state)
}

// settleOpen ends the handshake after a SYN-ACK, which was seen at the given time: it reads the
// measurements and sends the RST or the FIN.
func (h *handshake) settleOpen(l *loop, seen time.Duration) {
	r := &h.result
	h.readInfo(seen)
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
	h.readAnswer()
	h.closeSocket()
	if !h.options.FIN {
		r.ResetLag = h.resetLag(seen, l.clock())
		// The kernel may have sent the ACK after TCP_INFO and before the RST.
		r.ACKWithheld = r.ACKWithheld && r.ResetLag < ackDelay
	}
	h.finish(l)
}

// settleUnanswered ends a handshake without a SYN-ACK, if there is a reason for its absence yet.
//
// An ICMP error ends the handshake: the kernel closes a socket in SYN-SENT for every ICMP error
// (RFC 5461), and a prompt verdict with the sender of the error is worth more than waiting for
// another SYN. Only an error that arrives while connect(2) has the socket locked leaves the socket
// open. If such an error is soft (RFC 1122), the next SYN may be answered: the handshake goes on,
// and the error becomes the verdict at the deadline.
func (h *handshake) settleUnanswered(l *loop, errno unix.Errno, seen time.Duration) {
	// SO_ERROR before the error queue: reading the queue clears SO_ERROR.
	pending, err := socketError(h.fd)
	if err != nil {
		h.fail(l, err)
		return
	}
	icmp, icmpErrno := readErrorQueue(h.fd)
	if pending == 0 {
		pending = icmpErrno // it arrived between the two calls above
	}
	if pending != 0 && errno == 0 && icmp.soft() {
		if err := tcpInfo(h.fd, &h.info); err != nil {
			h.fail(l, err)
			return
		}
		if h.info.State == unix.BPF_TCP_SYN_SENT {
			h.soft, h.softErrno, h.softSeen = icmp, pending, seen
			return
		}
	}
	switch {
	case pending != 0:
		errno = pending
	case errno == unix.ETIMEDOUT && h.softErrno != 0:
		icmp, errno, seen = h.soft, h.softErrno, h.softSeen
	case errno == unix.ETIMEDOUT && h.dropped():
		h.fail(l, errDropped)
		return
	case errno == unix.ETIMEDOUT && !h.isTimeout(seen):
		h.fail(l, ErrUnsent)
		return
	case errno == 0 && h.info.State == unix.BPF_TCP_CLOSE:
		errno = unix.ECONNABORTED // like connect(2) in this case
	case errno == 0:
		return // no reason yet
	}
	outcome, ok := verdict(errno, icmp)
	if !ok {
		h.fail(l, check("connect", errno))
		return
	}
	r := &h.result
	r.Outcome, r.Errno, r.ICMP = outcome, errno, icmp
	h.readInfo(seen)
	r.ICMP.Own = icmp.From.IsValid() && icmp.From == r.Local.Addr().WithZone("")
	if outcome == Reset {
		h.readAnswer()
	}
	h.finish(l)
}

// errDropped is the error of a handshake whose SYNs do not leave this host. connect(2) reports success in this
// case, and other sockets get EPERM.
var errDropped = fmt.Errorf("this host drops the SYN: output firewall rule, or full queue: %w", unix.EPERM)

// dropped reports whether the last SYN was dropped on its way out of this host: the kernel counts the attempts
// to retransmit it (tcpi_total_retrans), and whether the last attempt has succeeded (tcpi_retrans). It does not
// report what became of the first SYN.
func (h *handshake) dropped() bool { return h.info.Total_retrans > 0 && h.info.Retrans == 0 }

// isTimeout reports whether the SYN has been out for long enough, now that the deadline has passed. The
// deadline may be one of the context that the loop does not know.
func (h *handshake) isTimeout(now time.Duration) bool {
	end := now
	if h.slot.deadline != 0 {
		end = min(end, h.slot.deadline)
	}
	return isTimeout(now-h.out, end-h.called)
}

// countsSegments reports whether the kernel counts the segments that the socket has sent. Linux does so
// since 4.2, and gVisor does not.
func (h *handshake) countsSegments() bool { return h.info.Segs_out > 0 }

// readInfo reads the measurements of every handshake that has sent a SYN.
func (h *handshake) readInfo(seen time.Duration) {
	if h.countsSegments() {
		h.result.SYNs = int(1 + h.info.Total_retrans)
	} else if !h.connecting {
		return // no SYN was sent: no route, or forbidden by this host
	}
	h.result.Waited = seen - h.sent
	h.result.Local = getsockname(h.fd).addrPort(h.result.Peer.Addr().Zone())
}

// readAnswer reads the measurements that need a SYN-ACK.
func (h *handshake) readAnswer() {
	h.result.RTT = time.Duration(h.info.Rtt) * time.Microsecond
	h.result.MSS = int(h.info.Snd_mss)
	// Every segment sent so far, except the SYNs, was an ACK.
	h.result.ACKSent = h.info.Segs_out > 1+h.info.Total_retrans || h.options.FIN
	h.result.ACKWithheld = h.countsSegments() && !h.result.ACKSent
}

const (
	// ackDelay is the time after the SYN-ACK for which the kernel certainly withholds the ACK: 200 ms
	// (TCP_DELACK_MAX), which it counts in ticks.
	ackDelay = 200*time.Millisecond - 2*tick

	// tick is the longest time between two ticks of a kernel (CONFIG_HZ=100).
	tick = 10 * time.Millisecond
)

// resetLag returns the time from the arrival of the SYN-ACK to the closing of the socket. The loop may have
// seen the SYN-ACK later, if this process had to wait for a processor or was stopped. Two clocks of the
// kernel show by how much at least: the RTT, if the SYN was sent once, and the age of the last ACK, which
// is counted in ticks and starts again with each further segment of the target.
func (h *handshake) resetLag(seen, closed time.Duration) time.Duration {
	lag := closed - seen
	if h.info.Rtt > 0 && h.info.Total_retrans == 0 {
		lag = max(lag, closed-h.out-time.Duration(h.info.Rtt)*time.Microsecond)
	}
	age := time.Duration(h.info.Last_ack_recv)*time.Millisecond - tick
	return max(lag, min(age, closed-h.sent))
}

// fail ends the handshake with an error.
func (h *handshake) fail(l *loop, err error) {
	h.result, h.err = Result{}, err
	h.finish(l)
}

// finish closes the socket, which sends the RST if a SYN-ACK has arrived, and ends the task.
func (h *handshake) finish(l *loop) {
	h.closeSocket()
	l.finish(h.slot)
	h.slot = nil
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
