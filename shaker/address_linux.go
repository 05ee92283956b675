package shaker

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A rawAddress is a struct sockaddr_in or sockaddr_in6, with room for the larger one. The layout is
// that of ip(7) and ipv6(7): family, port, and then an IPv4 address at byte 4, or flow information
// at byte 4, an IPv6 address at byte 8 and its scope at byte 24.
type rawAddress [unix.SizeofSockaddrInet6]byte

// newRawAddress returns the kernel's form of an address and port. The scope is the interface index
// of the address's zone, 0 if it has no zone.
func newRawAddress(a netip.AddrPort, scope uint32) (raw rawAddress, family int) {
	family = unix.AF_INET6
	if a.Addr().Is4() {
		family = unix.AF_INET
	}
	binary.NativeEndian.PutUint16(raw[0:], uint16(family))
	raw.setPort(a.Port())
	if family == unix.AF_INET {
		ip := a.Addr().As4()
		copy(raw[4:], ip[:])
		return raw, family
	}
	ip := a.Addr().As16()
	copy(raw[8:], ip[:])
	raw.setScope(scope)
	return raw, family
}

// anyAddress returns the unspecified address of an IP version.
func anyAddress(family int) (raw rawAddress) {
	binary.NativeEndian.PutUint16(raw[0:], uint16(family))
	return raw
}

func (r *rawAddress) setPort(port uint16) { binary.BigEndian.PutUint16(r[2:], port) }

func (r *rawAddress) setScope(scope uint32) { binary.NativeEndian.PutUint32(r[24:], scope) }

// addrPort returns the address in Go's form, with the given zone if it is an IPv6 address. It
// returns the zero AddrPort for any other family.
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
