package shaker

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// heardAtOnce is how many segments one system call receives, and callsPerTurn how many such calls a turn of the
	// loop makes.
	heardAtOnce  = 32
	callsPerTurn = 8

	// longestHeard is how much of a segment is received: an IPv4 header and a TCP header with all of their options.
	// Some hosts send data with an RST (RFC 9293, section 3.5.3).
	longestHeard = 60 + 60

	// roomForAnswers is the size of a receive buffer: for some 10,000 answers, which arrive while this process is
	// stopped. Without CAP_NET_ADMIN it is net.core.rmem_max at most.
	roomForAnswers = 16 << 20

	// stale is how long segments that no handshake waits for may fill the receive buffer before the next handshake.
	stale = 10 * time.Millisecond
)

// An ear is a raw socket that receives the answers of one IP version for a wire. It is a task of the loop, which owns
// its descriptor.
type ear struct {
	wire    *wire
	family  int
	fd      int
	own     ticket
	flights int           // handshakes that wait for an answer
	callers int           // those for which a caller waits
	drained time.Duration // everything that had arrived by then is received; on the loop's clock
	drops   uint32        // segments that found no room, as far as it is known

	messages [heardAtOnce]mmsghdr
	vectors  [heardAtOnce]unix.Iovec
	data     [heardAtOnce][longestHeard]byte
	names    [heardAtOnce]rawAddress
	controls [heardAtOnce][96]byte
}

// newEar opens an ear.
func newEar(l *loop, w *wire, family int) (e *ear, err error) {
	e = &ear{wire: w, family: family}
	e.fd, err = l.socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	if err = e.configure(); err == nil {
		e.own = l.enqueue(e, interactive)
		if err = l.watch(e.own, e.fd, unix.EPOLLONESHOT); err != nil { // for no event, until it is armed
			l.finish(e.own, nil)
		}
	}
	if err != nil {
		closeDescriptor(e.fd)
		return nil, err
	}
	for i := range e.messages {
		e.vectors[i].Base = &e.data[i][0]
		e.vectors[i].SetLen(len(e.data[i]))
		h := &e.messages[i].header
		h.Name, h.Iov, h.Control = &e.names[i][0], &e.vectors[i], &e.controls[i][0]
		h.SetIovlen(1)
	}
	return e, nil
}

// configure sets the filter first, so that no other segments get into the queue.
func (e *ear) configure() error {
	err := setFilter(e.fd, answersTo(e.wire.first, e.family))
	if err == nil {
		err = setInt(e.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1)
	}
	if err == nil && setInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomForAnswers) != nil {
		err = setInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, roomForAnswers)
	}
	switch {
	case err != nil:
		return err
	case e.family == unix.AF_INET:
		return setInt(e.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	}
	// With IPV6_CHECKSUM, the kernel would calculate the checksum of every segment of this host before the filter, and
	// count the damaged ones as lost.
	for _, option := range []int{unix.IPV6_RECVERR, unix.IPV6_RECVHOPLIMIT, unix.IPV6_RECVPKTINFO} {
		if err := setInt(e.fd, unix.IPPROTO_IPV6, option, 1); err != nil {
			return err
		}
	}
	return nil
}

// answersTo returns a program for the kernel that passes on segments with an ACK to the ports of a wire: SYN-ACKs, RSTs
// and ACKs.
func answersTo(first uint16, family int) []bpf.Instruction {
	header := bpf.Instruction(bpf.LoadConstant{Dst: bpf.RegX, Val: 0})
	if family == unix.AF_INET {
		header = bpf.LoadMemShift{Off: 0} // of IPv4: it comes first, that of IPv6 does not
	}
	return []bpf.Instruction{
		header,
		bpf.LoadIndirect{Off: 2, Size: 2}, // the destination port
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: uint32(first)},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: portsPerWire, SkipTrue: 2},
		bpf.LoadIndirect{Off: 13, Size: 1}, // the flags
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: flagACK, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1 << 16}, // all of it
	}
}

func (e *ear) handle(l *loop, own ticket, ev event) {
	switch ev.kind {
	case eventReady: // the turn receives the answers
		if ev.ready&unix.EPOLLERR != 0 {
			e.receiveErrors(l)
		}
	case eventClosing:
		l.finish(own, nil)
	}
}

// receive receives answers. more reports whether there may be more than a turn has time for.
func (e *ear) receive(l *loop) (more bool) {
	for range callsPerTurn {
		if !e.receiveSome(l) {
			return false
		}
	}
	return true
}

// receiveAll receives all answers that arrived before a time on the loop's clock. It reports whether there were not too
// many of them.
func (e *ear) receiveAll(l *loop, before time.Duration) bool {
	for range roomForAnswers / 256 / heardAtOnce { // no answer takes less room
		if e.drained >= before {
			return true
		}
		e.receiveSome(l)
	}
	return e.drained >= before
}

// makeRoom drops what arrived while no handshake waited for an answer. It might fill the receive buffer.
func (e *ear) makeRoom(l *loop) {
	if e.flights > 0 {
		return
	}
	if now := l.clock(); now-e.drained > stale {
		e.receiveAll(l, now)
		e.countDrops()
	}
}

// receiveSome makes one system call. more reports whether there is probably more to receive.
func (e *ear) receiveSome(l *loop) (more bool) {
	for i := range e.messages {
		h := &e.messages[i].header
		h.Namelen = uint32(len(e.names[i]))
		h.SetControllen(len(e.controls[i]))
	}
	before := l.clock()
	n, errno := receiveMany(e.fd, e.messages[:])
	switch {
	case errno == unix.EAGAIN:
		e.drained = before
		return false
	case errno != 0: // an ICMP error has arrived
		e.receiveErrors(l)
		return true
	}
	wall, clock := l.clocks()
	var last time.Duration
	for i := range n {
		var a answer
		if at, ok := e.parse(i, &a); ok {
			arrival := clock - time.Duration(wall-at)
			e.wire.hear(l, &a, arrival)
			last = max(last, min(arrival, before)) // segments are received in the order in which they arrived
		}
	}
	e.drained = max(e.drained, last)
	return n == len(e.messages) // fewer need not be all of them: an ICMP error ends the system call, too
}

// clocks returns the same moment in nanoseconds of Unix time and on the loop's clock. A processor that is taken away
// between looking at the one and at the other would make them differ.
func (l *loop) clocks() (wall int64, clock time.Duration) {
	for range 10 {
		before := l.clock()
		wall = time.Now().UnixNano()
		if clock = l.clock(); clock-before < time.Millisecond {
			break
		}
	}
	return wall, clock
}

// parse parses a segment that was received. at is when it arrived, in nanoseconds of Unix time.
func (e *ear) parse(i int, a *answer) (at int64, ok bool) {
	m := &e.messages[i]
	segment, from, to := e.data[i][:m.length], []byte(nil), []byte(nil)
	if e.family == unix.AF_INET { // the IP header comes first
		if len(segment) < 20 {
			return 0, false
		}
		a.ttl, from, to = segment[8], segment[12:16], segment[16:20]
		segment = segment[min(int(segment[0]&0xf)*4, len(segment)):]
	} else {
		from = e.names[i][8:24]
	}
	controls := e.controls[i][:m.header.Controllen]
	for len(controls) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(controls)
		if err != nil {
			break
		}
		switch {
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SO_TIMESTAMPNS_NEW && len(data) >= 16:
			at = int64(binary.NativeEndian.Uint64(data))*int64(time.Second) +
				int64(binary.NativeEndian.Uint64(data[8:]))
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			a.ttl = uint8(binary.NativeEndian.Uint32(data))
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			to = data[:16]
		}
		controls = rest
	}
	// The checksum of a segment that is longer than the buffer covers data that are not there.
	if !parseAnswer(segment, a) || m.header.Flags&unix.MSG_TRUNC == 0 && !checksumHolds(from, to, segment) {
		return 0, false
	}
	a.flow.peer = e.names[i]
	a.flow.peer.setPort(binary.BigEndian.Uint16(segment))
	return at, true
}

// receiveErrors takes the ICMP errors from the error queue (IP_RECVERR in ip(7)), which quote the SYN that they are
// about. The kernel queues those about all TCP segments of this host.
func (e *ear) receiveErrors(l *loop) {
	for range callsPerTurn * heardAtOnce {
		m := &e.messages[0]
		m.header.Namelen = uint32(len(e.names[0]))
		m.header.SetControllen(len(l.control))
		m.header.Control = &l.control[0]
		n, errno := receiveQuote(e.fd, &m.header)
		m.header.Control = &e.controls[0][0]
		if errno != 0 {
			return
		}
		quote := e.data[0][:n]
		icmp, reason := parseErrorQueue(l.control[:m.header.Controllen])
		if reason == 0 || reason == unix.EMSGSIZE || len(quote) < 8 {
			continue // EMSGSIZE: a router asks for smaller packets
		}
		f := flow{peer: e.names[0], port: binary.BigEndian.Uint16(quote)}
		if port := f.port - e.wire.first; port >= portsPerWire {
			continue
		}
		f.peer.setPort(binary.BigEndian.Uint16(quote[2:]))
		if h := e.wire.find(l, &f, binary.BigEndian.Uint32(quote[4:])); h != nil {
			h.undelivered(l, icmp, reason)
		}
	}
}

// lost reports whether the socket has dropped segments, for lack of room, since it had dropped as many as given.
func (e *ear) lost(since uint32) bool {
	e.countDrops()
	return e.drops != since
}

func (e *ear) countDrops() {
	drops := socketDrops(e.fd)
	e.wire.strays.lost.Add(uint64(drops - e.drops))
	e.drops = drops
}

// setFilter attaches a program to the socket (SO_ATTACH_FILTER in socket(7)).
func setFilter(fd int, program []bpf.Instruction) error {
	code, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := unix.SockFprog{Len: uint16(len(code)), Filter: (*unix.SockFilter)(unsafe.Pointer(&code[0]))}
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, unsafe.Pointer(&filter), unsafe.Sizeof(filter))
}
