package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// An engine is event loops, one for each processor, and the handshakes that wait to be
// used again.
type engine struct {
	loops []*loop
	next  atomic.Uint32 // of the loops, in turns
	idle  sync.Pool     // of *handshake

	// withholdACK is true but in the control of a test.
	withholdACK bool
}

func newEngine() (*engine, error) { return newEngineOf(runtime.GOMAXPROCS(0)) }

func newEngineOf(loops int) (*engine, error) {
	e := &engine{withholdACK: true}
	for range loops {
		l, err := newLoop()
		if err != nil {
			e.close()
			return nil, err
		}
		e.loops = append(e.loops, l)
	}
	return e, nil
}

func (e *engine) close() {
	for _, l := range e.loops {
		l.close()
	}
}

// shake runs one handshake on a loop and waits for it. The scope is that of the
// target's IPv6 zone. A zero deadline is none.
func (e *engine) shake(ctx context.Context, target netip.AddrPort, scope uint32, options *Options, deadline time.Time) (Result, error) {
	source, _, err := options.rawSource()
	if err != nil {
		return Result{}, err
	}
	h, ok := e.idle.Get().(*handshake)
	if !ok {
		h = &handshake{done: make(chan struct{}, 1)}
	}
	h.withholdACK = e.withholdACK
	h.peer, h.family = newRawAddress(target, scope)
	h.options, h.source = *options, source // a copy: the caller's own stays on its stack
	h.result = Result{Peer: target}
	h.soft, h.softErrno = ICMP{}, 0
	h.err = nil

	l := e.loops[e.next.Add(1)%uint32(len(e.loops))]
	var end time.Duration
	if !deadline.IsZero() {
		end = l.on(deadline)
	}
	if err := l.submit(h, end); err != nil {
		return Result{}, err
	}
	select {
	case <-h.done:
		l.woke()
		result, err := h.result, h.err
		e.idle.Put(h)
		return result, err
	case <-ctx.Done():
		l.abandon(h, ctx.Err())
		<-h.done
		l.woke()
		return h.result, h.err // h is not used again: the loop may still meet the abort
	}
}

// A handshake is the task of sending a SYN, seeing the answer and sending an RST, or
// what the options say instead.
type handshake struct {
	// What the caller set before it submitted the handshake.
	withholdACK bool
	family      int
	peer        rawAddress
	options     Options
	source      rawAddress // of the options, zeros if there is none

	// What belongs to the loop.
	slot *slot // nil once the handshake has ended
	fd   int   // -1 while there is none
	sent time.Duration
	info unix.TCPInfo

	// An ICMP error with which the handshake went on, and its errno; zeros if none did.
	soft      ICMP
	softErrno unix.Errno

	// What the caller reads when done has told it to: the verdict, or why there
	// is none.
	result Result
	err    error
	done   chan struct{} // with room for one, so that the loop never waits
}

func (h *handshake) seat(s *slot) { h.slot, h.fd = s, -1 }

func (h *handshake) wake(*loop) { h.done <- struct{}{} }

// start sends the SYN.
func (h *handshake) start(l *loop) {
	if err := h.openSocket(); err != nil {
		h.fail(l, err)
		return
	}
	h.sent = l.clock()
	switch errno := connect(h.fd, &h.peer); {
	case errno == unix.EINPROGRESS:
		h.await(l)
	case errno == unix.EADDRNOTAVAIL && h.withoutSource():
		// This host has no address to send from, as without IPv6: that is a way
		// it lacks, like a missing route, not a port.
		h.result.Outcome, h.result.Errno = Unreachable, errno
		h.finish(l)
	case errno == unix.EINVAL && h.bound() && h.result.Peer.Addr().Zone() != "":
		h.fail(l, fmt.Errorf("%w: its zone is not that of the interface or of the source", ErrTarget))
	default:
		h.settle(l, errno, 0)
	}
}

// await waits for the answer, unless it is there: a target on this host answers while
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

// bound tells whether the handshake may use one interface only.
func (h *handshake) bound() bool {
	return h.options.Interface != "" || h.options.Source.Zone() != ""
}

// withoutSource tells whether this host has no address to send to the peer from. To
// connect a UDP socket takes such an address, too, and sends nothing.
func (h *handshake) withoutSource() bool {
	fd, err := socket(h.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return false
	}
	defer closeDescriptor(fd)
	return h.setRoute(fd) == nil && connect(fd, &h.peer) == unix.EADDRNOTAVAIL
}

// openSocket opens a socket that will keep the handshake's last ACK to itself, send
// an RST when it is closed, unless the options say FIN, and queue ICMP errors with their
// sender.
func (h *handshake) openSocket() (err error) {
	h.fd, err = socket(h.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	if h.withholdACK && !h.options.FIN {
		// The kernel then delays the ACK by up to 200 ms (TCP_DELACK_MAX), so
		// that it may go with the data that an application is about to send.
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

// settle ends the handshake if its outcome is known. The errno is that of connect(2),
// ETIMEDOUT when the deadline has passed, or 0: then there may be nothing to settle yet.
// An event has told of it when it was seen; 0 is now.
func (h *handshake) settle(l *loop, errno unix.Errno, seen time.Duration) {
	if err := tcpInfo(h.fd, &h.info); err != nil {
		h.fail(l, err)
		return
	}
	if seen == 0 {
		seen = l.clock() // not before: the SYN-ACK may have come this moment
	}
	h.decide(l, errno, seen)
}

// decide ends the handshake if its outcome is known. The connection's state comes first:
// an ICMP error that a SYN met on its way does not undo the SYN-ACK that another one
// brought. Then comes the socket's error, then errno.
func (h *handshake) decide(l *loop, errno unix.Errno, seen time.Duration) {
	switch h.info.State { // package unix has the states under their BPF names only
	case unix.BPF_TCP_CLOSE, unix.BPF_TCP_SYN_SENT, unix.BPF_TCP_SYN_RECV:
		h.settleUnanswered(l, errno, seen)
	default:
		h.settleOpen(l, seen)
	}
}

// settleOpen reads what the SYN-ACK brought, which was there when it was seen, and sends
// the RST or the FIN.
func (h *handshake) settleOpen(l *loop, seen time.Duration) {
	r := &h.result
	h.readInfo(seen)
	if r.Local.Port() == r.Peer.Port() && getsockname(h.fd) == getpeername(h.fd) {
		// Nobody listened on a port of this host that the kernel then chose as
		// the local one: the SYN met its own socket (simultaneous open, RFC 9293). A FIN
		// would keep the port from whoever is to listen there.
		setLinger(h.fd, unix.Linger{Onoff: 1, Linger: 0})
		*r = Result{Outcome: Refused, Errno: unix.ECONNREFUSED, SYNRetransmits: r.SYNRetransmits, Local: r.Local, Peer: r.Peer}
		h.finish(l)
		return
	}
	r.Outcome = Open
	r.Handshake = seen - h.sent
	h.readAnswer()
	h.closeSocket()
	if !h.options.FIN {
		r.ResetLag = l.clock() - seen
	}
	h.finish(l)
}

// settleUnanswered finds out why there is no SYN-ACK, if there is a reason yet.
//
// An ICMP error ends the handshake: the kernel closes a socket in SYN-SENT for any of them,
// as RFC 5461 has it, and a prober that says at once who refused is worth more than one that
// waits. Only one that came while connect(2) had the socket locked leaves it open. If that
// is a soft one (RFC 1122), the next SYN may well be answered, so the handshake goes on, and
// the error is the verdict if nothing better comes.
func (h *handshake) settleUnanswered(l *loop, errno unix.Errno, seen time.Duration) {
	// SO_ERROR before the error queue: reading the queue clears SO_ERROR.
	pending, err := socketError(h.fd)
	if err != nil {
		h.fail(l, err)
		return
	}
	icmp, icmpErrno := readErrorQueue(h.fd)
	if pending == 0 {
		pending = icmpErrno // it came between the two calls above
	}
	if pending != 0 && errno == 0 && icmp.soft() {
		if err := tcpInfo(h.fd, &h.info); err != nil {
			h.fail(l, err)
			return
		}
		if h.info.State == unix.BPF_TCP_SYN_SENT {
			h.soft, h.softErrno = icmp, pending
			return
		}
	}
	switch {
	case pending != 0:
		errno = pending
	case errno == unix.ETIMEDOUT && h.softErrno != 0:
		icmp, errno = h.soft, h.softErrno
	case errno == 0 && h.info.State == unix.BPF_TCP_CLOSE:
		errno = unix.ECONNABORTED // what connect(2) returns in that case
	case errno == 0:
		return // nothing has happened yet
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

// readInfo reads what is known of every handshake whose SYN was sent, when it has ended.
func (h *handshake) readInfo(seen time.Duration) {
	if h.info.Segs_out == 0 {
		return // no route, or forbidden by this host
	}
	h.result.answered = seen - h.sent
	h.result.SYNRetransmits = int(h.info.Total_retrans)
	h.result.Local = getsockname(h.fd).addrPort(h.result.Peer.Addr().Zone())
}

// readAnswer reads what is known only after a SYN-ACK.
func (h *handshake) readAnswer() {
	h.result.RTT = time.Duration(h.info.Rtt) * time.Microsecond
	h.result.MSS = int(h.info.Snd_mss)
	// Every segment so far but the SYNs was an ACK.
	h.result.ACKSent = h.info.Segs_out > 1+h.info.Total_retrans
}

// fail ends the handshake without a verdict.
func (h *handshake) fail(l *loop, err error) {
	h.result, h.err = Result{}, err
	h.finish(l)
}

// finish closes the socket, which sends the RST if a SYN-ACK has come, and leaves the loop.
func (h *handshake) finish(l *loop) {
	h.closeSocket()
	l.finish(h.slot)
	h.slot = nil
}

func (h *handshake) closeSocket() {
	if h.fd >= 0 {
		closeDescriptor(h.fd)
		h.fd = -1
	}
}
