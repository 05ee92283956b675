package shaker

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Options configures one handshake. Its zero value holds the defaults.
//
// On other systems than Linux there are Timeout, Source and FIN; the others are an
// [errors.ErrUnsupported] there.
type Options struct {
	// Timeout limits the handshake, counted from the call of Shake. The
	// context's deadline applies if it is sooner. 0 means [Config.Timeout].
	Timeout time.Duration

	// Source is the address of this host to send from, of the target's family. A
	// link-local IPv6 address needs its zone. The port is chosen as ever, for each
	// target anew, so that a source has as many ports as there are for every target
	// (IP_BIND_ADDRESS_NO_PORT in ip(7)). The zero Addr, or an unspecified one, means
	// that the system chooses. So does the kernel for a broadcast address: Check tells,
	// Shake does not.
	Source netip.Addr

	// SourcePorts are the ports to send from (IP_LOCAL_PORT_RANGE in ip(7), Linux
	// 6.3). The kernel ignores a bound that is not in net.ipv4.ip_local_port_range:
	// Check tells, Shake does not. The zero range means the system's.
	SourcePorts PortRange

	// Interface is the name of the network interface, or of the VRF, to send and
	// receive through (SO_BINDTODEVICE in socket(7)). "" means the one that the
	// routes say. Before Linux 5.7 it needs CAP_NET_RAW.
	Interface string

	// DSCP, from 0 to 63, marks every packet for the routers on its way: RFC 2474.
	DSCP uint8

	// Mark is the firewall mark of every packet, for the rules and the routing
	// policy of this host (SO_MARK in socket(7)). 0 is none. Others need CAP_NET_ADMIN,
	// or since Linux 5.17 CAP_NET_RAW.
	Mark uint32

	// TTL is the time to live, or hop limit, of every packet. 0 means the system's.
	TTL uint8

	// FIN completes the handshake and closes the connection with a FIN, for a target
	// that takes offence at an RST. Its application sees a connection: ACKSent says so,
	// and the promise of this package is off. On this host it leaves a TIME_WAIT. Where
	// the target has already said something, close(2) sends an RST all the same.
	FIN bool
}

// PortRange is the ports from First to Last, which both belong to it. Its zero value
// stands for no choice.
type PortRange struct {
	First, Last uint16
}

func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Check tells whether this process may use the options on this host. On Linux it sets
// them on sockets of the source's family, or of every family that this host has, and
// sends nothing. The error names the option and its value. It wraps
//   - EPERM for a mark without the capability;
//   - ENODEV for an interface, or the zone of a source, that is not there;
//   - EADDRNOTAVAIL for a source that is not an address of this host alone;
//   - ENOPROTOOPT for source ports on a kernel that is too old for them;
//   - [errors.ErrUnsupported] for what this operating system lacks;
//   - or nothing, where a value is out of its range.
func (o *Options) Check() error {
	if err := o.validate(); err != nil {
		return err
	}
	return o.try()
}

// validate finds the values that would be others if they got to the kernel.
func (o *Options) validate() error {
	switch source := o.Source.Unmap(); {
	case o.Timeout < 0:
		return fmt.Errorf("negative timeout %v", o.Timeout)
	case source.IsMulticast() || source == limitedBroadcast:
		return fmt.Errorf("source %v: not the address of one host", source)
	case needsZone(source):
		return fmt.Errorf("source %v: %w", source, errNoZone)
	case o.Interface != "" && source.Zone() != "" && source.Zone() != o.Interface: // the kernel would take the zone
		return fmt.Errorf("source %v: its zone is not the interface %q", source, o.Interface)
	case o.SourcePorts != PortRange{} && (o.SourcePorts.First == 0 || o.SourcePorts.First > o.SourcePorts.Last):
		return fmt.Errorf("source ports %v: no range of ports", o.SourcePorts)
	case o.DSCP > 63:
		return fmt.Errorf("DSCP %d: above 63", o.DSCP)
	}
	return nil
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

var errNoZone = errors.New("a link-local address needs a zone")

// needsZone tells whether an address means nothing for want of a zone.
func needsZone(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "" }
