package shaker

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unique"
)

// Options configures one handshake. Its zero value holds the defaults.
//
// On systems other than Linux, only Timeout, Source and FIN are supported. Any other option is an
// [errors.ErrUnsupported] there.
type Options struct {
	// Timeout limits the handshake, counted from the call of Shake. The context's deadline
	// applies if it is sooner. Delays of this host count, too: if the SYN was out for less than
	// three quarters of the time when the deadline passes, Shake returns [ErrUnsent] instead of
	// the verdict [Timeout]. If Timeout is 0 and the context has no deadline, the kernel
	// gives up after about two minutes (tcp_syn_retries in tcp(7)). A negative Timeout is an
	// error.
	Timeout time.Duration

	// Source is the address of this host to send from. It must be of the target's family. A
	// link-local IPv6 address needs its zone. The kernel still picks the port separately for
	// each target, so that every target can have all local ports (IP_BIND_ADDRESS_NO_PORT in
	// ip(7)). The zero Addr, or an unspecified address, lets the system choose. If Source is
	// the broadcast address of a subnet, the kernel silently sends from another address:
	// Check finds that, Shake does not.
	Source netip.Addr

	// SourcePorts are the ports to send from (IP_LOCAL_PORT_RANGE in ip(7)); it needs Linux
	// 6.3 or newer. The kernel silently ignores a bound outside
	// net.ipv4.ip_local_port_range: Check finds that, Shake does not. The zero range lets the
	// system choose.
	SourcePorts PortRange

	// SourcePort is the port to send from; 0 lets the system choose. So several handshakes with a target take
	// the same path each time, where routers or links share the load by ports. It should be outside of
	// net.ipv4.ip_local_port_range: see [ReservePorts]. Unlike SourcePorts, it needs no newer kernel than Linux
	// 5.11. The error is EADDRINUSE or EADDRNOTAVAIL, and wraps [ErrLocal], if another socket has the port, or
	// another handshake from the port to the target is running.
	SourcePort uint16

	// Interface is the name of the network interface, or of the VRF, to send and receive
	// through (SO_BINDTODEVICE in socket(7)). "" lets the routing table choose. Before Linux
	// 5.7 it needs CAP_NET_RAW.
	Interface string

	// DSCP is the differentiated services code point of every packet (RFC 2474), from 0 to 63.
	DSCP uint8

	// Mark is the firewall mark of every packet, for this host's firewall rules and policy
	// routing (SO_MARK in socket(7)). 0 means no mark. Any other mark needs CAP_NET_ADMIN;
	// since Linux 5.17, CAP_NET_RAW is enough.
	Mark uint32

	// TTL is the time to live, or hop limit, of every packet, from 1 to 255. 0 means the
	// system's default.
	TTL uint8

	// FIN completes the handshake and closes the connection with a FIN, for targets that
	// treat an RST as an error. The application sees a connection, ACKSent is true, and this
	// host keeps the connection in TIME_WAIT. If the target has already sent data, close(2)
	// sends an RST nevertheless.
	FIN bool

	// damaged makes the checksum of the SYN wrong, so that routers forward it and no target answers it. It needs a
	// Shaker with Config.Raw. Only Trace sets it.
	damaged bool

	// tracing lets the handshake have the same SourcePort and target as others that are running, which a Shaker with
	// Config.Raw can tell apart. Only Trace sets it.
	tracing bool
}

// A PortRange is the ports from First to Last, including both. Its zero value means no choice.
type PortRange struct {
	First, Last uint16
}

func (r PortRange) isValid() bool { return 0 < r.First && r.First <= r.Last }

func (r PortRange) has(port uint16) bool { return r.First <= port && port <= r.Last }

// String returns the range in the form "40000-40999".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Check returns an error if this process cannot use the options on this host. On Linux it sets
// them on sockets of the source's family, or of each family that this host supports. It sends
// nothing. The error names the option and its value. It wraps
//   - EPERM for a mark without the capability;
//   - ENODEV for an interface, or a zone of the source, that does not exist;
//   - EADDRNOTAVAIL for a source that is not an address of this host, or is a broadcast address;
//   - ENOPROTOOPT for source ports on a kernel older than Linux 6.3;
//   - [errors.ErrUnsupported] for an option that this operating system does not support.
//
// An error for a value outside its range wraps [os.ErrInvalid].
func (o *Options) Check() error {
	if err := o.validate(); err != nil {
		return err
	}
	return o.try()
}

// validate rejects values that the kernel would truncate or reinterpret.
func (o *Options) validate() error {
	switch source := o.Source.Unmap(); {
	case o.Timeout < 0:
		return invalid("negative timeout %v", o.Timeout)
	case source.IsMulticast() || source == limitedBroadcast:
		return invalid("source %v: not the address of one host", source)
	case needsZone(source):
		return invalid("source %v: %v", source, errNoZone)
	case o.Interface != "" && source.Zone() != "" && source.Zone() != o.Interface: // the kernel would use the zone
		return invalid("source %v: zone does not match the interface %q", source, o.Interface)
	case o.SourcePorts != PortRange{} && o.SourcePort != 0:
		return invalid("source ports %v and source port %d, want only one of them", o.SourcePorts, o.SourcePort)
	case o.SourcePorts != PortRange{} && !o.SourcePorts.isValid():
		return invalid("invalid source port range %v", o.SourcePorts)
	case o.DSCP > 63:
		return invalid("DSCP is %d, want 0 to 63", o.DSCP)
	}
	return nil
}

// invalid returns an error that wraps [os.ErrInvalid] without its text.
func invalid(format string, args ...any) error {
	return &sentinel{text: fmt.Sprintf(format, args...), general: os.ErrInvalid}
}

// canReach reports whether the source, if there is one, is of the same family as the address.
func (o *Options) canReach(a netip.Addr) bool {
	source := o.Source.Unmap()
	return !source.IsValid() || source.Is4() == a.Unmap().Is4()
}

// ofRoute returns the options that decide which way packets take.
func (o *Options) ofRoute() Options {
	return Options{
		Source:      o.Source,
		SourcePorts: o.SourcePorts,
		SourcePort:  o.SourcePort,
		Interface:   o.Interface,
		DSCP:        o.DSCP,
		Mark:        o.Mark,
	}
}

// sharedOptions are Options whose memory all equal ones share, because 100,000 Repetitions and their Results may have
// the same few. Its zero value is the zero Options. Two of them are equal if their Options are.
type sharedOptions struct{ handle unique.Handle[Options] }

func (o Options) share() sharedOptions {
	if o == (Options{}) {
		return sharedOptions{} // without looking it up
	}
	return sharedOptions{handle: unique.Make(o)}
}

func (o sharedOptions) get() Options {
	if o == (sharedOptions{}) {
		return Options{}
	}
	return o.handle.Value()
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

var errNoZone = errors.New("a link-local address needs a zone")

// needsZone reports whether the address is ambiguous without an IPv6 zone.
func needsZone(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "" }
