package simnet

import (
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/stall"
)

// A Wire is a TUN device. The addresses of its prefixes are behind it. A function of the test, the script,
// answers for them, and every packet in either direction is recorded.
type Wire struct {
	t      testing.TB
	tun    *os.File
	link   netlink.Link
	record *record
	hearts *stall.Hearts // nil unless WatchStalls succeeded

	flushing sync.Mutex
	flushed  chan struct{} // receives a value when a datagram to nowhere was read
}

// nowhere is the destination of the datagrams by which a Wire recognizes that it has read all earlier packets.
const nowhere = "198.18.0.2:9"

// NewWire creates a wire that exists until the test ends. The script gets each TCP segment that this machine
// sends, and returns the IP packets that answer it. With a nil script, nothing answers.
//
// The addresses of this machine on the wire are 198.18.0.1 and 2001:2::1 (RFC 2544, RFC 5180).
func NewWire(t testing.TB, script func(Segment) [][]byte, prefixes ...string) *Wire {
	t.Helper()
	w := newWire(t)
	w.lay(func(s Segment) {
		w.record.add(sent, s.raw)
		if script != nil {
			w.Send(script(s)...)
		}
	}, prefixes...)
	return w
}

func newWire(t testing.TB) *Wire {
	return &Wire{t: t, record: newRecord(), flushed: make(chan struct{}, 1)}
}

// lay creates the device, routes the prefixes to it, and starts to call handle for each segment that this
// machine sends. handle must not keep the bytes of the segment.
func (w *Wire) lay(handle func(Segment), prefixes ...string) {
	t := w.t
	t.Helper()
	lab.Need(t)
	name := w.open(t)
	var err error
	if w.link, err = netlink.LinkByName(name); err != nil {
		t.Fatal(err)
	}
	// Make room for the SYNs of many callers at once: only the script may lose packets, not the device.
	if err := netlink.LinkSetTxQLen(w.link, 1<<16); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(w.link); err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"198.18.0.1/32", "2001:2::1/128"} {
		address, err := netlink.ParseAddr(own)
		if err != nil {
			t.Fatal(err)
		}
		address.Flags |= unix.IFA_F_NODAD
		if err := netlink.AddrAdd(w.link, address); err != nil {
			t.Fatalf("adding address %s: %v", own, err)
		}
		// It takes a moment until the kernel accepts packets for an IPv6 address.
		lab.Eventually(t, own+" is local", func() bool {
			routes, err := netlink.RouteGet(address.IP)
			return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
		})
	}
	for _, prefix := range append(prefixes, netip.MustParseAddrPort(nowhere).Addr().String()+"/32") {
		p := netip.MustParsePrefix(prefix)
		route := &netlink.Route{LinkIndex: w.link.Attrs().Index, Dst: &net.IPNet{
			IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatalf("adding a route to %s: %v", prefix, err)
		}
	}
	var reading sync.WaitGroup
	reading.Go(func() { w.read(handle) })
	t.Cleanup(func() {
		w.checkComplete()
		w.tun.Close()
		reading.Wait()
	})
}

// Interface returns the name of the device.
func (w *Wire) Interface() string { return w.link.Attrs().Name }

// checkComplete fails the test if the device had to drop packets.
func (w *Wire) checkComplete() {
	link, err := netlink.LinkByIndex(w.link.Attrs().Index)
	if err != nil {
		w.t.Fatal(err)
	}
	if stats := link.Attrs().Statistics; stats.TxDropped > 0 || stats.RxDropped > 0 {
		w.t.Errorf("the wire dropped %d outgoing and %d incoming packets, want none", stats.TxDropped, stats.RxDropped)
	}
}

// open creates the TUN device and returns its name. The device exists until its file is closed.
func (w *Wire) open(t testing.TB) string {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		lab.Skip(t, "needs a TUN device (kernel module tun, and access to /dev/net/tun): %v", err)
	}
	request, err := unix.NewIfreq("wire%d")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		lab.Skip(t, "needs a TUN device (kernel module tun, and access to /dev/net/tun): %v", err)
	}
	w.tun = os.NewFile(uintptr(fd), "/dev/net/tun")
	return request.Name()
}

// read reads packets from the device until the device is closed.
func (w *Wire) read(handle func(Segment)) {
	var p parser
	packet := make([]byte, 2048)
	for {
		n, err := w.tun.Read(packet)
		if err != nil {
			return // the test is over
		}
		segment, ok := p.parse(packet[:n])
		switch {
		case !ok: // another protocol, such as neighbour discovery
		case segment.UDP && segment.Dst.String() == nowhere:
			w.flushed <- struct{}{}
		default:
			handle(segment)
		}
	}
}

// Send sends IP packets to this machine. When it returns, the kernel has processed them.
func (w *Wire) Send(packets ...[]byte) {
	for _, packet := range packets {
		w.record.add(arrived, packet)
		if _, err := w.tun.Write(packet); err != nil && !errors.Is(err, os.ErrClosed) {
			w.t.Errorf("sending a packet into %s: %v", w.Interface(), err)
		}
	}
}

// flush returns when the record contains everything that this machine has sent into the wire.
func (w *Wire) flush() {
	w.t.Helper()
	w.flushing.Lock()
	defer w.flushing.Unlock()
	conn, err := net.Dial("udp4", nowhere)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0}); err != nil {
		w.t.Fatal(err)
	}
	select {
	case <-w.flushed:
	case <-time.After(time.Minute):
		w.t.Fatalf("a datagram to %s has not arrived within a minute", nowhere)
	}
}

// Sent returns the segments that this machine has sent into the wire, in their order.
func (w *Wire) Sent() iter.Seq[Segment] {
	w.t.Helper()
	w.flush()
	return func(yield func(Segment) bool) {
		var p parser
		for e := range w.record.all() {
			if e.fate != sent && e.fate != sentLost {
				continue
			}
			if segment, _ := p.parse(e.packet); !yield(segment) {
				return
			}
		}
	}
}

// SentTo returns the segments that this machine has sent to an address and port.
func (w *Wire) SentTo(target netip.AddrPort) iter.Seq[Segment] {
	return func(yield func(Segment) bool) {
		for segment := range w.Sent() {
			if segment.Dst == target && !yield(segment) {
				return
			}
		}
	}
}

// ACKs returns the segments with an ACK and without an RST that this machine has sent into the wire: the
// final ACK of a handshake, or the FIN of a connection. After [Wire.WatchStalls], it leaves out the ACKs that
// a stall of the machine caused, and logs their number.
func (w *Wire) ACKs() []Segment {
	w.t.Helper()
	w.flush()
	var p parser
	var acks []timedACK
	synacks := make(map[flow]time.Duration) // arrival of the first SYN-ACK of each handshake
	for e := range w.record.all() {
		s, _ := p.parse(e.packet)
		out, in := flow{s.Src, s.Dst}, flow{s.Dst, s.Src}
		switch {
		case e.fate == arrived && s.SYN && s.ACK:
			if _, again := synacks[in]; !again {
				synacks[in] = e.at
			}
		case e.fate == sent && s.RST:
			delete(synacks, out)
		case e.fate == sent && s.ACK:
			since, ok := synacks[out]
			if !ok {
				since = e.at // without a SYN-ACK, no stall can be the cause
			}
			acks = append(acks, timedACK{s, since, e.at})
		}
	}
	return w.withoutStalls(acks)
}

// An Exchange is a SYN that this machine has sent, and the time until the SYN-ACK arrived. The time is 0 if there was
// none.
type Exchange struct {
	SYN   Segment
	At    time.Duration // when the SYN was sent, after the wire was laid
	After time.Duration
}

// Exchanges returns the SYNs that this machine has sent into the wire, in their order.
func (w *Wire) Exchanges() []Exchange {
	w.t.Helper()
	w.flush()
	var p parser
	var all []Exchange
	type pending struct {
		index int
		at    time.Duration
	}
	waiting := make(map[flow]pending)
	for e := range w.record.all() {
		s, _ := p.parse(e.packet)
		switch {
		case (e.fate == sent || e.fate == sentLost) && s.SYN && !s.ACK:
			waiting[flow{s.Src, s.Dst}] = pending{index: len(all), at: e.at}
			all = append(all, Exchange{SYN: s, At: e.at})
		case e.fate == arrived && s.SYN && s.ACK:
			in := flow{s.Dst, s.Src}
			if syn, ok := waiting[in]; ok {
				all[syn.index].After = e.at - syn.at
				delete(waiting, in)
			}
		}
	}
	return all
}

// Await waits until this machine has sent n segments into the wire. It fails the test after a minute.
func (w *Wire) Await(n int) {
	w.t.Helper()
	if !w.record.awaitSent(n) {
		w.t.Fatalf("fewer than %d segments were sent within a minute", n)
	}
}

// Forget empties the record of packets.
func (w *Wire) Forget() {
	w.t.Helper()
	w.flush()
	w.record.forget()
}

// Trace describes the packets to, from and about an address, one per line, for the message of a failed test.
func (w *Wire) Trace(addr netip.Addr) string { return w.record.trace(addr) }
