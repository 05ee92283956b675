package shaker

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// mostSources limits for how many targets a way remembers from which address to send.
	mostSources = 1 << 17

	// changesPerTurn limits how many netlink messages a turn of the loop receives.
	changesPerTurn = 256

	// roomForSYNs is the size of the send buffer of a way. Without CAP_NET_ADMIN it is net.core.wmem_max at most.
	roomForSYNs = 4 << 20
)

// ways are the ways of a wire. It is a task of the loop, which watches a netlink socket for changes of addresses,
// routes and interfaces (rtnetlink(7)). After each change, the ways ask the kernel again from where it sends. A way
// whose interface or address has changed is forgotten, because another interface may have the same name.
type ways struct {
	all     map[wayKey]*way
	changes int   // a netlink socket; -1 if there is none
	err     error // why the loop does not watch it
}

// A wayKey is what the packets of a way have in common.
type wayKey struct {
	options sharedOptions // those of the route
	family  int
}

// A way sends SYNs with certain options.
type way struct {
	out     int        // a raw socket
	from    netip.Addr // to which out is bound; the zero Addr before the first SYN
	ask     int        // a UDP socket, to ask the kernel from which address it sends to a target
	device  int32      // the index of the interface to which the options bind, 0 if there is none
	sources map[netip.Addr]source

	flights   int  // handshakes that may send another SYN
	forgotten bool // the last of them closes the way
}

// A source is what the kernel would use for a packet to a target.
type source struct {
	addr netip.Addr
	to   netip.Addr // if the target is an unspecified address, which means this host; otherwise the zero Addr
	mtu  uint16
	ttl  uint8
}

// open opens the netlink socket in the thread's network namespace.
func (w *ways) open() (err error) {
	w.changes, err = socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	return subscribe(w.changes, unix.RTMGRP_LINK|unix.RTMGRP_IPV4_IFADDR|unix.RTMGRP_IPV4_ROUTE|unix.RTMGRP_IPV4_RULE|
		unix.RTMGRP_IPV6_IFADDR|unix.RTMGRP_IPV6_ROUTE|1<<(unix.RTNLGRP_IPV6_RULE-1)|1<<(unix.RTNLGRP_NEXTHOP-1))
}

func (w *ways) close() {
	w.forgetAll()
	if w.changes >= 0 {
		closeDescriptor(w.changes)
	}
}

func (w *ways) handle(l *loop, own ticket, e event) {
	switch e.kind {
	case eventStart:
		w.err = l.watch(own, w.changes, unix.EPOLLIN)
	case eventReady, eventRead:
		for range changesPerTurn {
			// An error other than EAGAIN means that messages were lost, and so that something has changed.
			n, errno := receive(w.changes, l.data[:])
			switch {
			case errno == unix.EAGAIN:
				return
			case errno == 0 && w.follow(l.data[:n]):
			default:
				w.forgetAll()
			}
		}
		l.readLater(own)
	case eventClosing:
		l.finish(own, nil)
	}
}

// follow does what netlink messages require. ok is false if they are not complete.
func (w *ways) follow(messages []byte) (ok bool) {
	all, err := syscall.ParseNetlinkMessage(messages)
	if err != nil {
		return false
	}
	for _, m := range all {
		if len(m.Data) < unix.SizeofIfAddrmsg { // the shortest of those below
			return false
		}
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			device := int32(binary.NativeEndian.Uint32(m.Data[4:]))
			w.forget(func(_ wayKey, y *way) bool { return y.device == device })
		case unix.RTM_DELADDR:
			attributes, err := syscall.ParseNetlinkRouteAttr(&m)
			if err != nil {
				return false
			}
			for _, a := range attributes { // one of them is the address
				address, _ := netip.AddrFromSlice(a.Value)
				w.forget(func(key wayKey, _ *way) bool {
					source := key.options.get().Source
					return source.IsValid() && source.Unmap().WithZone("") == address
				})
			}
		}
	}
	for _, y := range w.all {
		clear(y.sources)
	}
	return true
}

// of returns the way of a handshake, which has to release it.
func (w *ways) of(l *loop, h *handshake) (*way, error) {
	if w.err != nil {
		return nil, w.err
	}
	route := h.options.ofRoute()
	route.SourcePort = 0 // it is in the SYN
	key := wayKey{options: route.share(), family: h.family}
	if y := w.all[key]; y != nil {
		y.flights++
		return y, nil
	}
	y, err := newWay(l, h)
	if err != nil {
		return nil, err
	}
	y.flights++
	if len(w.all) >= mostWays {
		w.forgetAll()
	}
	if w.all == nil {
		w.all = make(map[wayKey]*way)
	}
	w.all[key] = y
	return y, nil
}

// forget lets later handshakes use new ways in place of some.
func (w *ways) forget(some func(wayKey, *way) bool) {
	for key, y := range w.all {
		if some(key, y) {
			delete(w.all, key)
			y.forget()
		}
	}
}

func (w *ways) forgetAll() { w.forget(func(wayKey, *way) bool { return true }) }

// bindTo lets the kernel choose the route by the source, too, as it does for an IPv4 socket that it has given the
// source.
func (y *way) bindTo(source netip.Addr) unix.Errno {
	if y.from == source || !source.Is4() {
		return 0
	}
	local, _ := newRawAddress(netip.AddrPortFrom(source, 0), 0)
	if err := bind(y.out, &local); err != nil {
		errno, _ := errors.AsType[unix.Errno](err)
		return errno
	}
	y.from = source
	return 0
}

func (y *way) forget() {
	y.forgotten = true
	closeDescriptor(y.ask) // only a handshake that begins needs it
	y.ask = -1
	if y.flights == 0 {
		y.close()
	}
}

// release undoes ways.of.
func (y *way) release() {
	y.flights--
	if y.forgotten && y.flights == 0 {
		y.close()
	}
}

func newWay(l *loop, h *handshake) (y *way, err error) {
	y = &way{out: -1, ask: -1, sources: make(map[netip.Addr]source)}
	y.out, err = l.socket(h.family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err == nil {
		y.ask, err = l.socket(h.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	}
	if err == nil {
		err = y.configure(h)
	}
	if err != nil {
		y.close()
		return nil, err
	}
	return y, nil
}

func (y *way) configure(h *handshake) error {
	for _, fd := range []int{y.out, y.ask} {
		if err := h.setRoute(fd); err != nil {
			return err
		}
	}
	var err error
	if y.device, err = getInt(y.ask, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX); err != nil {
		return err
	}
	// It would receive packets of protocol 255, which the loop does not read.
	if err := setFilter(y.out, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil {
		return err
	}
	if setInt(y.out, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, roomForSYNs) != nil {
		setInt(y.out, unix.SOL_SOCKET, unix.SO_SNDBUF, roomForSYNs)
	}
	if h.family == unix.AF_INET {
		return setInt(y.out, unix.IPPROTO_IP, unix.IP_RECVERR, 1) // reports that a queue of this host is full
	}
	if err = setInt(y.out, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1); err != nil {
		return err
	}
	return setInt(y.out, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1)
}

func (y *way) close() {
	for _, fd := range []int{y.out, y.ask} {
		if fd >= 0 {
			closeDescriptor(fd)
		}
	}
}

// sourceFor returns from where the kernel sends to the handshake's peer. The errno is that with which connect(2) of a
// TCP socket would fail before it sends a SYN.
func (y *way) sourceFor(h *handshake) (source, unix.Errno) {
	peer := h.result.Peer.Addr()
	if s, ok := y.sources[peer]; ok {
		return s, 0
	}
	if errno := y.connect(h); errno != 0 {
		return source{}, errno
	}
	s := source{addr: getsockname(y.ask).addrPort(peer.Zone()).Addr(), mtu: 1500, ttl: 64}
	level, mtu, ttl := unix.IPPROTO_IP, unix.IP_MTU, unix.IP_TTL
	if h.family == unix.AF_INET6 {
		level, mtu, ttl = unix.IPPROTO_IPV6, unix.IPV6_MTU, unix.IPV6_UNICAST_HOPS
	}
	if value, err := getInt(y.ask, level, mtu); err == nil {
		s.mtu = uint16(min(value, 1<<16-1))
	}
	if value, err := getInt(y.ask, level, ttl); err == nil {
		s.ttl = uint8(value)
	}
	if peer.IsUnspecified() {
		s.to = getpeername(y.ask).addrPort("").Addr()
	}
	if len(y.sources) >= mostSources {
		clear(y.sources)
	}
	y.sources[peer] = s
	return s, 0
}

// connect connects the UDP socket, which sends nothing, to the handshake's peer.
func (y *way) connect(h *handshake) unix.Errno {
	if h.result.Peer.Addr().IsMulticast() {
		return unix.ENETUNREACH
	}
	disconnect(y.ask) // forgets the address of the last time, and the interface
	if y.device != 0 {
		if err := setInt(y.ask, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, y.device); err != nil {
			return unix.ENETUNREACH // it is gone
		}
	}
	errno := connect(y.ask, &h.peer)
	if errno != unix.EACCES {
		return errno
	}
	// A prohibited route, or a broadcast address, which TCP has no route to.
	setInt(y.ask, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	if connect(y.ask, &h.peer) == 0 {
		errno = unix.ENETUNREACH
	}
	setInt(y.ask, unix.SOL_SOCKET, unix.SO_BROADCAST, 0)
	return errno
}
