package shaker

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// rawAddress is a struct sockaddr_in or sockaddr_in6, with room for the larger one,
// laid out as ip(7) and ipv6(7) have it: family, port, and then an IPv4 address at byte 4,
// or flow information at 4, an IPv6 address at 8 and its scope at 24.
type rawAddress [unix.SizeofSockaddrInet6]byte

// newRawAddress returns the kernel's form of an address and port. The scope is that of
// the address's zone, 0 if it has none.
func newRawAddress(a netip.AddrPort, scope uint32) (raw rawAddress, family int) {
	family = unix.AF_INET6
	if a.Addr().Is4() {
		family = unix.AF_INET
	}
	binary.NativeEndian.PutUint16(raw[0:], uint16(family))
	binary.BigEndian.PutUint16(raw[2:], a.Port())
	if family == unix.AF_INET {
		ip := a.Addr().As4()
		copy(raw[4:], ip[:])
		return raw, family
	}
	ip := a.Addr().As16()
	copy(raw[8:], ip[:])
	binary.NativeEndian.PutUint32(raw[24:], scope)
	return raw, family
}

// addrPort returns the address in Go's form with the given IPv6 zone, the zero AddrPort
// if it is of neither family.
func (r rawAddress) addrPort(zone string) netip.AddrPort {
	port := binary.BigEndian.Uint16(r[2:])
	switch binary.NativeEndian.Uint16(r[0:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(r[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(r[8:24])).Unmap().WithZone(zone), port)
	}
	return netip.AddrPort{}
}
