package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// rejectionWait is how long a handshake waits for the reason after this host has refused to send its SYN: a firewall
// that rejects a packet, and does not just drop it, sends an ICMP error or an RST.
const rejectionWait = 10 * time.Millisecond

// rawHandshake is what a handshake over a wire has in place of a socket. Its life:
//
//	startRaw     chooses the port and the sequence number and sends the SYN
//	answered     is called for the SYN-ACK or the RST, which the kernel has answered already
//	heldOff      is called for an ACK of an earlier connection
//	undelivered  is called for an ICMP error
//	dueRaw       sends the SYN again, or ends the handshake at the deadline
type rawHandshake struct {
	wire    *wire // nil if the handshake has a socket
	damaged bool  // the checksum of the SYN is wrong, so that no target answers it

	way      *way // nil if it has been released
	ear      *ear // nil while the handshake does not wait for an answer
	flow     flow
	next     *handshake // with the same flow
	source   source
	sequence uint32
	stamp    uint32        // of TCP timestamps, at time 0 of the loop's clock
	last     time.Duration // when the last SYN was sent
	lost     uint32        // segments that the ear had lost when the first SYN was sent
	tries    int           // how many SYNs were sent or could not be sent
	refused  unix.Errno    // why this host did not let the last SYN out; 0 if it did
	noRoute  unix.Errno    // why this host had no route for one of the SYNs; 0 if it had
	reopened bool          // the way has been opened again for this handshake
}

func (h *handshake) handleRaw(l *loop, own ticket, e event) {
	h.own = own
	switch e.kind {
	case eventStart:
		h.startRaw(l)
	case eventDue:
		h.dueRaw(l)
	case eventTold: // the context has ended
		if err := e.message.(error); errors.Is(err, context.DeadlineExceeded) {
			h.expireRaw(l, l.clock())
		} else {
			h.fail(l, err)
		}
	case eventClosing:
		h.fail(l, e.err)
	}
}

// startRaw sends the SYN.
func (h *handshake) startRaw(l *loop) {
	r := &h.raw
	var err error
	r.way, err = r.wire.ways.of(l, h)
	if err == errElsewhere {
		return
	}
	if err != nil {
		h.fail(l, err)
		return
	}
	heard, err := r.wire.ear(l, h.family)
	if err == errElsewhere {
		h.ground()
		return
	}
	if err != nil {
		h.fail(l, err)
		return
	}
	var errno unix.Errno
	if r.source, errno = r.way.sourceFor(h); errno != 0 {
		h.endUnsent(l, errno)
		return
	}
	to := h.peer
	if r.source.to.IsValid() {
		to, _ = newRawAddress(netip.AddrPortFrom(r.source.to, h.result.Peer.Port()), 0)
	}
	r.flow = flow{peer: to, port: h.options.SourcePort}
	if h.family == unix.AF_INET6 && !h.result.Peer.Addr().IsLinkLocalUnicast() {
		r.flow.peer.setScope(0) // as in the addresses of answers
	}
	switch {
	case r.flow.port == 0 && !r.wire.take(&r.flow):
		h.fail(l, errNoRawPort)
		return
	case r.flow.port != 0 && !h.options.tracing && r.wire.flights[r.flow] != nil:
		h.fail(l, errSameFlow)
		return
	}
	if h.options.SourcePort != 0 && !h.options.tracing {
		r.wire.given = max(r.wire.given, r.flow.port-r.wire.first+1)
	}
	heard.makeRoom(l)
	h.sent = l.clock()
	if h.deadline != 0 && h.sent >= h.deadline {
		h.fail(l, ErrUnsent)
		return
	}
	sequence, stamp := r.wire.sequences.hash(&r.flow)
	r.sequence, r.stamp = sequence+r.wire.sequences.next(h.sent), stamp
	r.ear = heard
	r.lost = r.ear.drops
	r.wire.add(h)
	h.result.Local = netip.AddrPortFrom(r.source.addr, r.flow.port)
	errno = h.sendRaw(l)
	h.out = l.clock()
	h.sent = r.last
	switch errno {
	case 0:
	case unix.EPERM:
		h.setDueRaw(l, h.out+rejectionWait)
	case unix.ENOBUFS, unix.EAGAIN, unix.ENOMEM:
		h.fail(l, check("sendto", errno))
	default:
		r.wire.ways.forget(func(_ wayKey, y *way) bool { return y == r.way })
		h.result.Local, r.tries, r.noRoute = netip.AddrPort{}, 0, 0
		if r.reopened {
			h.endUnsent(l, errno)
			return
		}
		// The route has just changed. Ask for it again, and get the reason if there is none.
		r.reopened = true
		h.ground()
		h.startRaw(l)
	}
}

var errNoRawPort = fmt.Errorf(
	"%d handshakes with this address and port are running, and each has a local port of its own: %w",
	portsPerWire, unix.EADDRINUSE)

var errSameFlow = fmt.Errorf("another handshake from this port to this target is running: %w", unix.EADDRNOTAVAIL)

// endUnsent ends the handshake because this host cannot send to the peer, or not with the options.
func (h *handshake) endUnsent(l *loop, errno unix.Errno) {
	switch {
	case errno == unix.EINVAL && h.bound() && h.result.Peer.Addr().Zone() != "":
		h.fail(l, errZoneMismatch)
		return
	case errno == unix.EADDRNOTAVAIL, errno == unix.EINVAL: // see start
		h.end(l, Unreachable, errno)
		return
	}
	if outcome, ok := verdict(errno, ICMP{}); ok {
		h.end(l, outcome, errno)
	} else {
		h.fail(l, check("connect", errno))
	}
}

// sendRaw sends the SYN, for the first time or again.
func (h *handshake) sendRaw(l *loop) unix.Errno {
	r := &h.raw
	r.last = l.clock()
	errno := h.sendSegment(syn{sequence: r.sequence, stamp: r.stamp + uint32(r.last/time.Millisecond)})
	r.tries++
	switch errno {
	case 0, unix.EPERM, unix.ENOBUFS, unix.EAGAIN, unix.ENOMEM:
		h.result.SYNs++
		r.refused = errno
	case unix.ENODEV: // the interface is gone, and its routes
		r.noRoute = unix.ENETUNREACH
	default:
		r.noRoute = errno
	}
	wait, _ := r.wire.retransmission.after(r.tries)
	h.setDueRaw(l, r.last+wait) // also after the last SYN: then the handshake ends
	return errno
}

// resetRaw sends an RST. That of the kernel takes the route without the options.
func (h *handshake) resetRaw() {
	if h.options.Interface != "" || h.options.Mark != 0 {
		h.sendSegment(syn{sequence: h.raw.sequence + 1, reset: true})
	}
}

// sendSegment sends a SYN or RST on the handshake's way.
func (h *handshake) sendSegment(s syn) unix.Errno {
	r := &h.raw
	s.from = netip.AddrPortFrom(r.source.addr, r.flow.port)
	s.to = r.flow.peer.addrPort("")
	s.mss = r.source.mtu - h.headers()
	s.ttl = r.source.ttl
	if h.options.TTL != 0 {
		s.ttl = h.options.TTL
	}
	s.dscp = h.options.DSCP
	s.label = r.stamp // any number that belongs to the flow
	s.damaged = r.damaged
	to := h.peer
	to.setPort(0) // the protocol, for IPv6 (raw(7))
	if errno := r.way.bindTo(r.source.addr); errno != 0 {
		return errno
	}
	var b [longestSYN]byte
	packet := s.append(b[:0])
	errno := sendTo(r.way.out, packet, &to)
	switch errno {
	case 0, unix.EPERM, unix.ENOBUFS, unix.EAGAIN, unix.ENOMEM:
		return errno
	}
	// It may be the pending error of the socket, of an ICMP error that anyone can send: it is cleared now.
	return sendTo(r.way.out, packet, &to)
}

// headers returns the length of the headers of a segment without options.
func (h *handshake) headers() uint16 {
	if h.family == unix.AF_INET {
		return 20 + 20
	}
	return 40 + 20
}

// setDueRaw sets the next time of the handshake, if the deadline is not sooner.
func (h *handshake) setDueRaw(l *loop, at time.Duration) {
	if h.deadline == 0 || at < h.deadline {
		l.setDue(h.own, at)
	} else {
		l.setDue(h.own, h.deadline)
	}
}

func (h *handshake) dueRaw(l *loop) {
	r := &h.raw
	switch _, again := r.wire.retransmission.after(r.tries); {
	case r.ear == nil: // it has not started
		h.fail(l, ErrUnsent)
	case h.deadline != 0 && l.now >= h.deadline:
		h.expireRaw(l, h.deadline)
	case r.refused != 0 && r.tries == 1, !again:
		h.expireRaw(l, l.now)
	default:
		h.sendRaw(l)
	}
}

// expireRaw ends the handshake at a time when there is no answer, unless one has arrived before and was not received
// yet, because this process was stopped or had to wait for a processor.
func (h *handshake) expireRaw(l *loop, end time.Duration) {
	r := &h.raw
	if r.ear == nil {
		h.fail(l, ErrUnsent)
		return
	}
	heard, own := r.ear, h.own
	heard.receiveErrors(l)
	complete := heard.receiveAll(l, end)
	if l.slots.find(own) == nil {
		return // there was one
	}
	switch {
	case r.refused == unix.EPERM:
		h.fail(l, errDropped)
	case r.refused != 0:
		h.fail(l, check("sendto", r.refused))
	case !complete || r.ear.lost(r.lost):
		h.fail(l, errUnheard)
	case r.noRoute != 0: // a socket keeps this error, too, also if the next SYN is sent
		h.result.Waited = l.clock() - h.sent
		h.endUnsent(l, r.noRoute)
	case !h.isTimeout(end) || h.missedSYN(end): // what arrived after the end does not count, and may be an answer
		h.fail(l, ErrUnsent)
	default:
		h.result.Outcome, h.result.Errno = Timeout, unix.ETIMEDOUT
		h.result.Waited = l.clock() - h.sent
		h.finish(l)
	}
}

// missedSYN reports whether another SYN should have been sent before the end. The loop was held up, while the kernel
// would have sent that of a socket.
func (h *handshake) missedSYN(end time.Duration) bool {
	const tolerance = 100 * time.Millisecond
	wait, again := h.raw.wire.retransmission.after(h.raw.tries)
	return again && h.raw.last+wait+tolerance < end
}

var errUnheard = fmt.Errorf(
	"answers were lost: this process was stopped or too slow, and the receive buffer was full: %w", unix.ENOBUFS)

// answered ends the handshake after a SYN-ACK or an RST, which arrived at a time on the loop's clock.
func (h *handshake) answered(l *loop, a *answer, at time.Duration) {
	r, res := &h.raw, &h.result
	at = arrivedAt(h.sent, at, l.clock())
	res.Waited, res.TTL = at-h.sent, a.ttl
	if a.rst {
		res.Outcome, res.Errno = Refused, unix.ECONNREFUSED
		h.finish(l)
		return
	}
	h.resetRaw()
	res.Outcome, res.ACKWithheld = Open, true
	res.Handshake = res.Waited
	switch {
	case res.SYNs == 1: // and so the target has no reason yet to send more than one SYN-ACK
		res.RTT = res.Waited
		r.wire.resets.follow(r.sequence, at)
	case a.timestamps: // they show which SYN is answered
		res.RTT = h.sampleRTT(a.echo, at)
	}
	mss := int(r.source.mtu - h.headers())
	switch {
	case a.mss != 0:
		mss = min(mss, int(a.mss))
	case h.family == unix.AF_INET:
		mss = min(mss, 536) // RFC 9293, section 3.7.1
	default:
		mss = min(mss, 1220)
	}
	if a.timestamps {
		mss -= timestampsLength
	}
	res.MSS = min(mss, a.mostOfWindow())
	h.finish(l)
}

// heldOff sends the SYN again after an ACK that does not acknowledge it: the RST of an earlier handshake from the port
// was lost, and the ACK belongs to the connection that the target keeps. The kernel has answered the ACK with an RST,
// which ends that connection. (From tcp_rcv_synsent_state_process in Linux 6.18, which also does so once.)
func (h *handshake) heldOff(l *loop, a *answer) {
	if a.acknowledged == h.raw.sequence+1 || h.raw.tries != 1 || h.raw.refused != 0 || h.raw.damaged {
		return
	}
	if soon := l.clock() + jiffy; soon < l.slots.find(h.own).due {
		h.setDueRaw(l, soon)
	}
}

// sampleRTT returns the RTT of an answer that echoes the timestamp of one of several SYNs, 0 if it is none of theirs.
func (h *handshake) sampleRTT(echo uint32, at time.Duration) time.Duration {
	r := &h.raw
	// How long before the last SYN the echoed one was sent, in milliseconds, which wrap around after 49 days.
	before := time.Duration(uint32(r.last/time.Millisecond)-(echo-r.stamp)) * time.Millisecond
	switch {
	case before == 0:
		return max(at-r.last, 0)
	case before <= r.last-h.sent+time.Millisecond:
		return at - max(h.sent, r.last.Truncate(time.Millisecond)-before)
	}
	return 0
}

// arrivedAt returns when an answer to a SYN that was sent at a time has arrived. The kernel's timestamp of the answer
// is not used if it cannot be right: the system's clock was set after the answer had arrived, or there is none.
func arrivedAt(sent, timestamp, now time.Duration) time.Duration {
	if timestamp < sent || timestamp > now {
		return now
	}
	return timestamp
}

// undelivered ends the handshake after an ICMP error. The errno is what the kernel translated it to.
func (h *handshake) undelivered(l *loop, icmp ICMP, errno unix.Errno) {
	r := &h.result
	r.Outcome, _ = verdict(errno, icmp) // an ICMP error is never a local error
	r.Errno, r.ICMP = errno, icmp
	r.Waited = l.clock() - h.sent
	r.ICMP.Own = l.generated(icmp, r.Local.Addr().WithZone(""))
	h.finish(l)
}

// ground detaches the handshake from the wire: it gets no more answers, and sends nothing more.
func (h *handshake) ground() {
	if h.raw.way != nil {
		h.raw.way.release()
		h.raw.way = nil
	}
	if h.raw.ear != nil {
		h.raw.wire.remove(h)
		h.raw.ear = nil
	}
}
