package shaker

// RawPorts is how many local ports a Shaker with [Config.Raw] uses.
const RawPorts = wires * portsPerWire

// RawDescriptors is how many descriptors a Shaker with [Config.Raw] holds at most, in addition to what it holds without
// Raw: those of its ports, and of the raw sockets that all handshakes share. It holds half of them if there is only one
// processor, and fewer if the handshakes have few different options.
const RawDescriptors = RawPorts + wires*descriptorsPerWire

const (
	// wires is how many loops send SYNs without a socket. Each of them adds to the cost of every TCP segment that this
	// host receives, because the kernel offers a copy to each raw socket. One of them fills most of a processor.
	wires = 2

	// portsPerWire is how many ports a wire has, and so how many handshakes it can perform at the same time with one
	// address and port. It is a power of two, and not less than maxOverlap.
	portsPerWire = 64

	// mostWays limits how many ways a wire keeps. They are as many as there are different options in use.
	mostWays = 64

	// descriptorsPerWire is how many descriptors a wire has for its ears, its ways and netlink.
	descriptorsPerWire = 2 + 2*mostWays + 1

	// lowestPort is the first port that needs no privilege. Firewalls may deny SYNs from a lower one.
	lowestPort = 1024
)

// Raw configures a [Shaker] that sends SYNs without sockets.
//
// The SYNs are sent through a raw socket (raw(7)), from a few ports on which no program listens. The kernel knows
// nothing of a connection, and answers a SYN-ACK with an RST before this process has seen the SYN-ACK. So the final ACK
// cannot be sent, even if this process is stopped, and a handshake takes one system call and a share of two others.
//
// Everything else is as without Raw, except for the following. Handshakes with [Options.FIN] or
// [Options.SourcePorts], and Connections, use sockets as usual.
//
//   - [Result.Handshake] and [Result.RTT] are the same: from just before the SYN was sent to the kernel's timestamp of
//     the SYN-ACK. [Result.ResetLag] is not measured, because the kernel sends the RST. [Result.TTL] is measured.
//   - A simultaneous open (RFC 9293, section 3.5) does not open a connection.
//   - A SYN that this host drops is an error after 10 ms, and not when the SYN is retransmitted.
//   - A SYN-ACK is accepted from any interface, not just from [Options.Interface]; but from an interface of a VRF only
//     if net.ipv4.raw_l3mdev_accept is 1, which is the default.
//   - The kernel's RST has none of the [Options]. With [Options.Interface] or [Options.Mark], whose route the RST may
//     not take, the Shaker sends another RST that has the options. If a firewall drops the RSTs, the target may ignore
//     the next SYNs from the same port for a minute: see [Shaker.Resets].
//   - An ICMP error always ends the handshake. A socket goes on if this host's own firewall has sent the error, with
//     certain codes, while the SYN was being sent.
//   - New reads how often SYNs are sent again: net.ipv4.tcp_syn_retries and tcp_syn_linear_timeouts.
//   - If this host has several routes of the same cost, all SYNs to a target take the same one.
//     Rules of policy routing do not match their ports and protocol.
//   - The SYN has the TCP options that Linux has by default: net.ipv4.tcp_* and the route do not change them.
//   - [Shaker.Trace] finds all routers within one round trip, from the port of the handshake.
//   - Each of the two loops that send SYNs has half of the ports, and performs at most as many handshakes with one
//     address and port at the same time. More are an EADDRINUSE.
//
// It needs Linux 5.1, and CAP_NET_RAW in the user namespace of the network namespace.
type Raw struct {
	// Ports are the ports from which SYNs are sent: [RawPorts] of them, from 1024 on. They must be free, and should be
	// outside of net.ipv4.ip_local_port_range, in which the kernel looks for ports of ordinary sockets. The zero range
	// lets New choose the nearest free ones below that range.
	Ports PortRange
}

// Validate returns an error that wraps [os.ErrInvalid] for ports that cannot be used, whether they are free or not.
func (r *Raw) Validate() error {
	switch p := r.Ports; {
	case p == PortRange{}:
		return nil
	case p.First < lowestPort || p.Last < p.First || int(p.Last-p.First)+1 != RawPorts:
		return invalid("ports %v, want %d ports from %d on, such as %v",
			p, RawPorts, lowestPort, PortRange{20000, 20000 + RawPorts - 1})
	}
	return nil
}

// Strays counts segments and ICMP errors that arrived at the ports of a [Shaker] with [Config.Raw], and that it
// dropped. Each SYN has a sequence number that cannot be guessed, and a genuine answer acknowledges or quotes it.
type Strays struct {
	// Late ones answer a SYN of the last four minutes whose handshake had ended: they came after the deadline, or are
	// duplicates.
	Late uint64

	// Forged ones claim to answer a SYN that has not been answered, and have a wrong number.
	Forged uint64

	// Foreign ones answer none of the SYNs.
	Foreign uint64

	// Lost ones found no room in a receive buffer, because this process was stopped or too slow (net.core.rmem_max). No
	// handshake that waited at that time is a [Timeout]: the error is [ErrLocal].
	Lost uint64
}

// Strays returns what was dropped since New. Without [Config.Raw] all numbers are 0.
func (s *Shaker) Strays() Strays {
	if s.engine == nil {
		return Strays{}
	}
	return s.engine.strays()
}

// Resets shows whether the RSTs of this host arrive after handshakes of a [Shaker] with [Config.Raw]. The kernel sends
// them, and a firewall of this host may drop them. A target that gets none sends its SYN-ACK again, and keeps a
// half-open connection for about a minute.
type Resets struct {
	// Checked handshakes were [Open] after one SYN, and have been followed up: up to 128 in a second for each of the
	// two loops that send SYNs.
	Checked uint64

	// Missing is to how many of them the target has sent another SYN-ACK, half a second after the first one or later.
	// A few are normal, because the network loses RSTs, too.
	Missing uint64
}

// Resets returns what was found since New. Without [Config.Raw] all numbers are 0.
func (s *Shaker) Resets() Resets {
	if s.engine == nil {
		return Resets{}
	}
	return s.engine.resets()
}

// IsRaw reports whether handshakes with the options send SYNs without sockets, so that they need no descriptor and no
// port of their own. Without [Config.Raw] none of them do.
func (s *Shaker) IsRaw(o *Options) bool { return s.engine != nil && s.engine.isRaw(o) }

// Ports returns the ports of a Shaker with [Config.Raw], and otherwise the zero range.
func (s *Shaker) Ports() PortRange {
	if s.engine == nil {
		return PortRange{}
	}
	return s.engine.ports()
}
