package shaker

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A reservation is sockets that are bound to ports and do not listen.
type reservation struct{ descriptors []int }

func (p *Ports) reserve(n int) (err error) {
	p.First, p.descriptors, err = reserveFree(n, shared)
	p.Last = p.First + uint16(n-1)
	return err
}

// Close releases the ports. The error is always nil.
func (p *Ports) Close() error {
	for _, fd := range p.descriptors {
		closeDescriptor(fd)
	}
	p.descriptors = nil
	return nil
}

// Whether sockets of handshakes can be bound to reserved ports (SO_REUSEPORT in socket(7)).
const (
	exclusive = false
	shared    = true
)

// reserveFree reserves n ports outside of those of ordinary sockets: the nearest ones below, or else above.
func reserveFree(n int, share bool) (first uint16, descriptors []int, err error) {
	ephemeral, err := ephemeralPorts()
	if err != nil {
		return 0, nil, err
	}
	for from := int(ephemeral.First) - n; from >= lowestPort; {
		descriptors, taken, err := reserveAt(from, n, share)
		if !errors.Is(err, unix.EADDRINUSE) {
			return uint16(from), descriptors, err
		}
		from = taken - n
	}
	for from := int(ephemeral.Last) + 1; from+n <= 1<<16; {
		descriptors, taken, err := reserveAt(from, n, share)
		if !errors.Is(err, unix.EADDRINUSE) {
			return uint16(from), descriptors, err
		}
		from = taken + 1
	}
	return 0, nil, fmt.Errorf("no %d free ports in a row outside of %s, which is %v: %w",
		n, portRangeSetting, ephemeral, unix.EADDRINUSE)
}

// reserveAt reserves n ports. With an error, it has reserved none, and taken is the port that it could not reserve.
func reserveAt(first, n int, share bool) (descriptors []int, taken int, err error) {
	for port := first; port < first+n; port++ {
		fd, err := reservePort(uint16(port), share)
		if err != nil {
			for _, fd := range descriptors {
				closeDescriptor(fd)
			}
			return nil, port, err
		}
		descriptors = append(descriptors, fd)
	}
	return descriptors, 0, nil
}

// reservePort binds a socket to the port of all addresses, on which it does not listen.
func reservePort(port uint16, share bool) (fd int, err error) {
	all := netip.IPv6Unspecified()
	fd, err = socket(unix.AF_INET6, tcpSocket, unix.IPPROTO_TCP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		all = netip.IPv4Unspecified()
		fd, err = socket(unix.AF_INET, tcpSocket, unix.IPPROTO_TCP)
	}
	if err != nil {
		return -1, err
	}
	if all.Is6() {
		err = setInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err == nil {
		local, _ := newRawAddress(netip.AddrPortFrom(all, port), 0)
		err = bind(fd, &local)
	}
	if err == nil && share {
		// Only now, so that another process cannot have reserved the port in the same way.
		err = setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if err != nil {
		closeDescriptor(fd)
		return -1, err
	}
	return fd, nil
}

func (r PortRange) ephemeral() (all PortRange, ok bool) {
	all, err := ephemeralPorts()
	if err != nil || r.Last < all.First || all.Last < r.First {
		return all, false
	}
	reserved, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	given := PortRange{First: max(r.First, all.First), Last: min(r.Last, all.Last)}
	return all, err != nil || !given.isIn(string(reserved))
}

// isIn reports whether a list of ports, such as "8080,20000-20127", has the range in one of its ranges.
func (r PortRange) isIn(list string) bool {
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if errors.Join(err1, err2) == nil && first <= int(r.First) && int(r.Last) <= last {
			return true
		}
	}
	return false
}
