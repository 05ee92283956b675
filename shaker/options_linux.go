package shaker

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// try opens sockets with the options, as handshakes do, and closes them.
func (o *Options) try() error {
	families := []int{unix.AF_INET, unix.AF_INET6}
	scope, err := scopeID(o.Source.Unmap().Zone())
	if err != nil {
		return fmt.Errorf("source %v: %w", o.Source, err)
	}
	source, family := o.rawSource(scope)
	if o.Source.IsValid() {
		families = []int{family}
	}
	var missing error
	tried := false
	for _, family := range families {
		h := handshake{withholdACK: true, options: *o, source: source, family: family}
		h.fd, err = socket(h.family, tcpSocket, unix.IPPROTO_TCP)
		if err == nil {
			err = h.configure()
		}
		h.closeSocket()
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT):
			missing = err
		case err != nil:
			return err
		default:
			tried = true
		}
	}
	if !tried {
		return missing
	}
	if err := o.checkSource(source, family); err != nil {
		return err
	}
	return o.checkSourcePorts()
}

// checkSource returns an error if the source is a broadcast address, because then the kernel would
// send from an address of its own choice. It connects a UDP socket to the source, which sends
// nothing, and which the kernel denies for a broadcast address unless SO_BROADCAST is set.
func (o *Options) checkSource(source rawAddress, family int) error {
	if family != unix.AF_INET {
		return nil
	}
	fd, err := socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer closeDescriptor(fd)
	if connect(fd, &source) == unix.EACCES {
		return fmt.Errorf("source %v: a broadcast address: %w", o.Source, unix.EADDRNOTAVAIL)
	}
	return nil
}

// checkSourcePorts returns an error if the kernel would ignore a bound of SourcePorts.
func (o *Options) checkSourcePorts() error {
	if o.SourcePorts == (PortRange{}) {
		return nil
	}
	system, err := ephemeralPorts()
	if err != nil {
		return fmt.Errorf("source ports %v: %w", o.SourcePorts, err)
	}
	if o.SourcePorts.First < system.First || o.SourcePorts.Last > system.Last {
		return fmt.Errorf("source ports %v: not within %s, which is %v", o.SourcePorts, portRangeSetting, system)
	}
	return nil
}

const portRangeSetting = "net.ipv4.ip_local_port_range"

// ephemeralPorts returns the ports that the kernel gives to sockets without one.
func ephemeralPorts() (ports PortRange, err error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &ports.First, &ports.Last)
	}
	if err != nil {
		return PortRange{}, fmt.Errorf("%s: %w", portRangeSetting, err)
	}
	return ports, nil
}

// rawSource returns the source in the kernel's form, and its family. Both are zero if there is none. The
// scope is the interface index of the source's zone, 0 if it has no zone.
func (o *Options) rawSource(scope uint32) (raw rawAddress, family int) {
	if !o.Source.IsValid() {
		return raw, 0
	}
	return newRawAddress(netip.AddrPortFrom(o.Source.Unmap(), 0), scope)
}

// setOptions sets the handshake's options on its socket.
func (h *handshake) setOptions() error {
	o := &h.options
	if err := h.setRoute(h.fd); err != nil {
		return err
	}
	if o.SourcePort != 0 {
		if err := h.bindPort(); err != nil {
			return fmt.Errorf("source port %d: %w", o.SourcePort, err)
		}
	}
	if ports := o.SourcePorts; ports != (PortRange{}) {
		bounds := int32(uint32(ports.Last)<<16 | uint32(ports.First))
		if err := setInt(h.fd, unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, bounds); err != nil {
			return fmt.Errorf("source ports %v: %w", ports, err)
		}
	}
	if o.TTL != 0 {
		if err := h.setIP(h.fd, unix.IP_TTL, unix.IPV6_UNICAST_HOPS, o.TTL); err != nil {
			return fmt.Errorf("TTL %d: %w", o.TTL, err)
		}
	}
	return nil
}

// setRoute sets the options by which the kernel chooses the route and the source address. It sets
// the interface before the source, because a VRF has its own addresses.
func (h *handshake) setRoute(fd int) error {
	o := &h.options
	if o.Interface != "" {
		if err := bindToDevice(fd, o.Interface); err != nil {
			return fmt.Errorf("interface %q: %w", o.Interface, err)
		}
	}
	if o.Mark != 0 {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int32(o.Mark)); err != nil {
			return fmt.Errorf("mark %d: %w", o.Mark, err)
		}
	}
	if o.DSCP != 0 {
		if err := h.setIP(fd, unix.IP_TOS, unix.IPV6_TCLASS, o.DSCP<<2); err != nil {
			return fmt.Errorf("DSCP %d: %w", o.DSCP, err)
		}
	}
	if o.Source.IsValid() {
		err := setInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) // also for IPv6
		if err == nil || errors.Is(err, unix.ENOPROTOOPT) {                 // a raw socket of IPv6, which has no port
			err = bind(fd, &h.source)
		}
		if err != nil {
			return fmt.Errorf("source %v: %w", o.Source, err)
		}
	}
	return nil
}

// bindPort binds the socket to options.SourcePort. With SO_REUSEADDR, several handshakes can send from the same port to
// different targets, and with SO_REUSEPORT the port may be one of ReservePorts.
func (h *handshake) bindPort() error {
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := setInt(h.fd, unix.SOL_SOCKET, option, 1); err != nil {
			return err
		}
	}
	local := h.source
	if !h.options.Source.IsValid() {
		local = anyAddress(h.family)
	}
	local.setPort(h.options.SourcePort)
	return bind(h.fd, &local)
}

// setIP sets an option that has one name for IPv4 and another for IPv6.
func (h *handshake) setIP(fd, option4, option6 int, value uint8) error {
	if h.family == unix.AF_INET {
		return setInt(fd, unix.IPPROTO_IP, option4, int32(value))
	}
	return setInt(fd, unix.IPPROTO_IPV6, option6, int32(value))
}
