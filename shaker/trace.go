package shaker

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"time"
)

// TraceOptions configures a trace. Its zero value holds the defaults.
type TraceOptions struct {
	// Timeout limits the trace. The context's deadline applies if it is sooner. 0 means 2 s. A
	// negative Timeout is an error.
	Timeout time.Duration

	// MaxHops limits how many hops are probed, from 1 to 255. 0 means 30.
	MaxHops int

	// OnHop, if not nil, is called for each hop as soon as its result is known, in the order
	// of the hops. It is called on the goroutine that called Trace.
	OnHop func(Hop)
}

// A Path is the route of a flow to a target, as far as Trace could see it.
type Path struct {
	// Hops are the hops that were probed, the nearest first. Hops at the end that did not
	// reply are left out.
	Hops []Hop

	// Reached is the TTL of the hop that replied with the target's address: the target itself,
	// or a firewall that answers in its name. It is 0 if there was no such reply.
	Reached int

	// SameFlow reports whether the SYNs of all Hops had the local address and port of the
	// handshake. If not, load-balancing routers may have sent some of them along a path that the
	// handshake did not take. With [Config.Raw] they also had its IPv6 flow label, and SameFlow is
	// true unless the handshake used a socket, or its local address is gone.
	SameFlow bool
}

// A Hop is one step on the route to a target.
type Hop struct {
	// TTL is the distance of the hop, from 1 to 255: it is behind TTL-1 routers.
	TTL int

	// Local is the address and port from which the SYN was sent.
	Local netip.AddrPort

	// From is the source address of the reply: a router, the target, or a firewall that
	// answers in the target's name. It is invalid if there was no reply.
	From netip.Addr

	// ICMP is the ICMP error that a router sent, usually time exceeded. Its From is invalid
	// if the reply was a SYN-ACK or an RST, or if there was none.
	ICMP ICMP

	// Outcome is the verdict of the handshake with this TTL: Open for a SYN-ACK, Refused for
	// an RST, Timeout if there was no reply, and for an ICMP error the outcome that Shake
	// would return.
	Outcome Outcome

	// RTT is the time from the SYN to the reply on this process's clock, 0 if there was no
	// reply.
	RTT time.Duration
}

// Trace finds the routers on the path to a target, right after a handshake with that target. It
// sends SYNs to the target's port with a TTL of 1, 2, 3 and so on, and with the options of the
// handshake. The router at which the TTL of a SYN runs out replies with an ICMP time exceeded, which
// shows the router's address. Trace needs no privilege on Linux 5.11 or newer. On systems other than
// Linux, the error is an [errors.ErrUnsupported].
//
// The SYNs have the local address and port of the handshake, so that load-balancing routers send
// them along the same path. Trace sends the next SYN when the previous one was answered, so that the
// target sees at most one handshake: SYN, SYN-ACK and RST. For a hop that does not answer, Trace
// waits three times the longest latency so far, at least 100 ms and at most 800 ms.
//
// If the handshake was not [Open], no SYN-ACK is expected. From the first hop that does not answer,
// Trace then probes 8 hops concurrently. Without [Config.Raw] each of them uses a descriptor. The kernel
// allows only one socket per flow, so these SYNs have other local ports. The port of the handshake is also
// taken if another program uses it, and after a handshake with [Options.FIN], which leaves it in TIME_WAIT:
// the SYNs then share another port. [Path.SameFlow] and [Hop.Local] report that. They do not report the
// flow label, for which the kernel picks a new value for each IPv6 socket: where routers balance by
// it, SYNs over IPv6 may take several paths.
//
// With Config.Raw all SYNs have the port and the flow label of the handshake, and Trace begins with a SYN
// for each of MaxHops at the same time, so that all routers reply within one round trip. The checksums of
// these SYNs are wrong: routers do not check it, and the target's kernel drops the SYNs. Then Trace goes on
// as above, from the hop after the last one that replied, and the target still sees at most one handshake.
// A firewall may drop or reject SYNs with wrong checksums: the hops behind it are probed one after the other.
// After a handshake that ended with an ICMP error, all hops are: the router would have to reject one SYN for
// each hop behind it, and routers limit how many ICMP errors they send. Other routers on the path get one SYN
// each, unless there is a routing loop.
//
// The path ends at the target, at a router that replies with another ICMP error, after 8 concurrently
// probed hops without a reply, at MaxHops, or in a routing loop: a router has replied three times,
// and others in between, and the target has not replied to the handshake. Hops with the same address
// one after the other are not a loop: a NAT may rewrite the senders of all ICMP errors. The path
// is empty if the handshake sent no SYN, or if it ended with an ICMP error that this host generated. The
// path also ends if this host generates such an error for a SYN of the trace: this host is not a hop.
//
// If there is an error, the Path has the hops that were found before it, and does not show where the
// path ends. The error wraps [context.DeadlineExceeded] if the time was up. Otherwise it wraps the
// same errors as the error of [Shaker.Shake].
func (s *Shaker) Trace(ctx context.Context, after Result, options *TraceOptions) (Path, error) {
	if options == nil {
		options = &TraceOptions{}
	}
	path, err := s.trace(ctx, after, *options)
	if err != nil {
		err = newOpError(ctx, fmt.Sprintf("trace %v", after.Peer), err)
	}
	return path, err
}

func (s *Shaker) trace(ctx context.Context, after Result, options TraceOptions) (Path, error) {
	switch {
	case s.engine == nil:
		return Path{}, errZero
	case options.MaxHops < 0 || options.MaxHops > 255:
		return Path{}, invalid("MaxHops is %d, want 1 to 255", options.MaxHops)
	case options.Timeout < 0:
		return Path{}, invalid("negative timeout %v", options.Timeout)
	case !after.Local.IsValid() || after.ICMP.Own:
		return Path{}, nil // no packet has left this host
	}
	options.MaxHops = cmp.Or(options.MaxHops, 30)
	options.Timeout = cmp.Or(options.Timeout, 2*time.Second)
	return s.tracePath(ctx, after, options)
}
