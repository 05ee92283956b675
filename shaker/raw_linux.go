package shaker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How SYNs without a socket work.
//
// A wire belongs to a loop. It has some ports, to which sockets are bound that never listen, so that no other
// program gets them, and a raw socket for each IP version (ear_linux.go) that receives the answers to these ports. A
// handshake that uses the wire (raw_handshake_linux.go) builds its SYN (segment_linux.go), with a sequence number that
// proves answers genuine (sequence_linux.go), and sends it on a way (way_linux.go): that is a raw socket with the
// options of the handshake, and the knowledge from which address the kernel sends to a target. When the SYN-ACK
// arrives, the kernel finds no socket for it and answers with an RST. The wire hands its copy of the SYN-ACK to the
// handshake.

// A wire is the part of a loop that sends SYNs without a socket and hears the answers.
type wire struct {
	first    uint16 // of portsPerWire ports
	reserved []int  // descriptors of the sockets that are bound to them
	next     uint16 // the port to try first for the next handshake
	given    uint16 // how many ports there are up to the last one that was the SourcePort of a handshake
	ears     []*ear // of the IP versions that have been used: each costs some time for every segment of this host
	ways     ways
	flights  map[flow]*handshake // that wait for an answer
	unheard  bool                // there may be more answers to be received
	strays   *strays
	resets   resets
	load     atomic.Int64 // handshakes of Repetitions in an hour

	sequences      sequences
	retransmission retransmission
}

// A flow is what the ports and addresses of a segment tell about the handshake to which it belongs.
type flow struct {
	peer rawAddress
	port uint16 // of this host
}

// strays counts what wires have dropped: see Strays.
type strays struct{ late, forged, foreign, lost atomic.Uint64 }

// newWires opens the wires of an engine, n of them.
func newWires(raw *Raw, n int, count *strays, resetCount *resetCount) (all []*wire, err error) {
	if err := checkCapability(); err != nil {
		return nil, err
	}
	first, reserved, err := raw.reserve(n * portsPerWire)
	if err != nil {
		return nil, err
	}
	for i := range n {
		w := &wire{
			// A target may wait for the ACK to a SYN from a port that the last process tried first.
			next:  uint16(rand.Uint32()),
			first: first + uint16(i*portsPerWire), flights: make(map[flow]*handshake), strays: count,
			resets:    resets{count: resetCount},
			reserved:  reserved[i*portsPerWire : (i+1)*portsPerWire],
			sequences: newSequences(), retransmission: newRetransmission(),
		}
		all = append(all, w)
		if cannot := w.ways.open(); cannot != nil {
			err = cannot // close all, so that no port remains reserved
		}
	}
	if err != nil {
		for _, w := range all {
			w.close()
		}
		return nil, err
	}
	return all, nil
}

// checkCapability returns an error if this process cannot open raw sockets.
func checkCapability() error {
	err := error(unix.EAFNOSUPPORT)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var fd int
		if fd, err = socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err == nil {
			closeDescriptor(fd)
			return nil
		}
		if !errors.Is(err, unix.EAFNOSUPPORT) {
			break
		}
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("raw sockets need CAP_NET_RAW: %w", err)
	}
	return err
}

// reserve reserves n ports, the first ones of r.Ports, or free ones. They are released when the descriptors are closed.
func (r *Raw) reserve(n int) (first uint16, descriptors []int, err error) {
	if r.Ports == (PortRange{}) {
		return reserveFree(n, exclusive)
	}
	descriptors, taken, err := reserveAt(int(r.Ports.First), n, exclusive)
	if err != nil {
		err = fmt.Errorf("port %d: %w", taken, err)
	}
	return r.Ports.First, descriptors, err
}

// choose returns the loop for a Repetition with an interval: the first one that has time for it, so that as few as
// possible wake up.
func (e *engine) choose(interval time.Duration) *loop {
	all := e.able(true)
	best := all[0]
	for _, l := range all {
		if l.wire.load.Load()+perHour(interval) <= fullWire {
			return l
		}
		if l.wire.load.Load() < best.wire.load.Load() {
			best = l
		}
	}
	return best
}

// fullWire is for how many handshakes in an hour one loop is used before another one is used as well: 30,000/s.
const fullWire = 30_000 * 3600

func perHour(interval time.Duration) int64 { return int64(time.Hour / interval) }

// close closes the descriptors of the wire. Its handshakes have ended.
func (w *wire) close() {
	for _, e := range w.ears {
		closeDescriptor(e.fd)
	}
	for _, fd := range w.reserved {
		closeDescriptor(fd)
	}
	w.ways.close()
}

// ports returns the ports of the wire.
func (w *wire) ports() PortRange { return PortRange{First: w.first, Last: w.first + portsPerWire - 1} }

// ear returns the ear of an IP version. It opens it if it is the first time.
func (w *wire) ear(l *loop, family int) (*ear, error) {
	for _, e := range w.ears {
		if e.family == family {
			return e, nil
		}
	}
	e, err := newEar(l, w, family)
	if err == nil {
		w.ears = append(w.ears, e)
	}
	return e, err
}

// take chooses a port for a handshake with the flow's peer, and stores it in the flow. ok is false if none is free. It
// leaves the ports up to the last one that a handshake had as SourcePort, and at least the first half, to such
// handshakes, unless the others are taken.
func (w *wire) take(f *flow) (ok bool) {
	w.next++
	given := max(w.given, portsPerWire/2)
	for _, ports := range []PortRange{{given, portsPerWire}, {0, given}} {
		n := ports.Last - ports.First
		for i := range n {
			f.port = w.first + ports.First + (w.next%n+i)%n
			if w.flights[*f] == nil {
				return true
			}
		}
	}
	return false
}

// hear hands an answer that arrived at a time on the loop's clock to the handshake to which it belongs.
func (w *wire) hear(l *loop, a *answer, at time.Duration) {
	if first := w.flights[a.flow]; a.bare && first != nil {
		for h := first; h != nil; h = h.raw.next {
			h.heldOff(l, a)
		}
		return
	}
	h := w.find(l, &a.flow, a.acknowledged-1)
	switch {
	case a.bare: // the handshake has ended
	case h == nil && !a.rst:
		w.resets.again(a.acknowledged-1, at)
	case h == nil:
	case h.deadline != 0 && at > h.deadline && arrivedAt(h.sent, at, l.clock()) == at:
		w.strays.late.Add(1) // the loop was held up, and ends the handshake now
	default:
		h.answered(l, a, at)
	}
}

// find returns the handshake with the flow and the sequence number, nil if there is none.
func (w *wire) find(l *loop, f *flow, sequence uint32) *handshake {
	first := w.flights[*f]
	for h := first; h != nil; h = h.raw.next {
		if h.raw.sequence == sequence {
			return h
		}
	}
	switch {
	case w.sequences.isLate(f, sequence, l.clock()):
		w.strays.late.Add(1)
	case first != nil:
		w.strays.forged.Add(1)
	default:
		w.strays.foreign.Add(1)
	}
	return nil
}

// add lets a handshake wait for an answer.
func (w *wire) add(h *handshake) {
	h.raw.next = w.flights[h.raw.flow]
	w.flights[h.raw.flow] = h
	h.raw.ear.flights++
	if !h.inBackground {
		h.raw.ear.callers++
	}
}

// remove undoes add.
func (w *wire) remove(h *handshake) {
	h.raw.ear.flights--
	if !h.inBackground {
		h.raw.ear.callers--
	}
	first := w.flights[h.raw.flow]
	switch {
	case first == h && h.raw.next == nil:
		delete(w.flights, h.raw.flow)
	case first == h:
		w.flights[h.raw.flow] = h.raw.next
	default:
		for first.raw.next != h {
			first = first.raw.next
		}
		first.raw.next = h.raw.next
	}
	h.raw.next = nil
}

// receive receives answers to handshakes that wait for them.
func (w *wire) receive(l *loop) {
	behind := w.unheard
	w.unheard = false
	for _, e := range w.ears {
		if e.flights > 0 && e.receive(l) {
			w.unheard = true
		}
	}
	if behind && !w.unheard { // only then the buffers may have been full
		for _, e := range w.ears {
			e.countDrops()
		}
	}
}

// arm lets the loop wake up for answers. While the loop is driven, it looks for them itself: an event for each would
// wake a thread in vain. So would events for answers that no caller waits for, if the loop wakes up soon anyway: the
// kernel has noted when they arrived.
func (w *wire) arm(l *loop) {
	next, ok := l.deadlines.next()
	soon := ok && next < l.clock()+offsetStep
	for _, e := range w.ears {
		if e.callers > 0 || e.flights > 0 && !soon {
			event := unix.EpollEvent{
				Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: e.own.index, Pad: e.own.generation,
			}
			epollControl(l.epoll, unix.EPOLL_CTL_MOD, e.fd, &event)
		}
	}
}
