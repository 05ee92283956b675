package shaker

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// readErrorQueue empties the socket's error queue (IP_RECVERR in ip(7)). It returns the last ICMP
// error in the queue and the errno to which the kernel translated it, or zeros if there is none. It uses
// control for the control messages of an error, which take less than 192 bytes.
func readErrorQueue(fd int, control []byte) (icmp ICMP, errno unix.Errno) {
	for {
		n, failed := receiveError(fd, control)
		if failed != 0 { // EAGAIN: the queue is empty
			return icmp, errno
		}
		if i, e := parseErrorQueue(control[:n]); e != 0 {
			icmp, errno = i, e
		}
	}
}

// parseErrorQueue finds the ICMP error in the control messages of one entry of an error queue. It
// returns zeros if there is none.
func parseErrorQueue(control []byte) (ICMP, unix.Errno) {
	for len(control) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		if header.Level == unix.IPPROTO_IP && header.Type == unix.IP_RECVERR ||
			header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_RECVERR {
			return parseExtendedError(data)
		}
		control = rest
	}
	return ICMP{}, 0
}

// parseExtendedError parses a struct sock_extended_err (linux/errqueue.h) and the address of the
// error's sender, which follows it. It returns zeros if the error is not an ICMP error.
func parseExtendedError(data []byte) (ICMP, unix.Errno) {
	const size = 16
	if len(data) < size {
		return ICMP{}, 0
	}
	errno, origin := unix.Errno(binary.NativeEndian.Uint32(data)), data[4]
	var sender rawAddress
	copy(sender[:], data[size:])
	icmp := ICMP{From: sender.addrPort("").Addr(), Type: data[5], Code: data[6]}
	if origin != unix.SO_EE_ORIGIN_ICMP && origin != unix.SO_EE_ORIGIN_ICMP6 || !icmp.From.IsValid() {
		return ICMP{}, 0
	}
	return icmp, errno
}

// generated reports whether this host generated an ICMP error that answers packets from a local address. The
// kernel sends such an error to the local address, from the source address of its route to it. That is the
// same address, unless it is a secondary IPv4 address of a network.
func (l *loop) generated(icmp ICMP, local netip.Addr) bool {
	if icmp.From == local || !icmp.destinationUnreachable() || !local.Is4() {
		return icmp.From.IsValid() && icmp.From == local
	}
	fd, err := l.socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer closeDescriptor(fd)
	to, _ := newRawAddress(netip.AddrPortFrom(local, 9), 0) // no packet is sent
	return connect(fd, &to) == 0 && getsockname(fd).addrPort("").Addr() == icmp.From
}
