// Package shaker finds out whether a TCP port accepts connections without opening one: it sends
// a SYN, waits for the SYN-ACK, and sends an RST instead of the final ACK. The target's kernel
// replies, and its application never sees a connection: accept(2) does not return, no worker
// wakes up, and nothing is logged.
//
//	s, err := shaker.New(nil)
//	…
//	defer s.Close()
//	err = s.Check(ctx, "example.com:443") // nil if the port is open
//
// [Shaker.Check] takes the place of a dial in a health check. [Shaker.Shake] returns more than an
// error, and takes an address and options.
//
// # Verdict and error
//
// [Shaker.Shake] returns either a verdict or an error, never both.
//
// A verdict is a [Result]: the [Outcome] for the target, the errno and the ICMP error that led to
// it, and what was measured. If there is no reply by the deadline, that is the verdict
// [Timeout], provided that the SYN was out for at least three quarters of the time between the call of
// Shake and the deadline. If this host was too slow for that, it is the error [ErrUnsent].
//
// An error means that there is no verdict: this host could not measure ([ErrLocal]), the target or
// the options are invalid ([os.ErrInvalid]), or the context was cancelled. An error says nothing
// about the state of the target.
//
// Check returns both: such an error, or the error of a verdict other than Open. [errors.Is] tells the
// two apart:
//
//	switch err := s.Check(ctx, "192.0.2.1:443"); {
//	case err == nil: // open
//	case errors.Is(err, shaker.ErrLocal): // state unknown
//	case errors.Is(err, os.ErrDeadlineExceeded): // no reply: the verdict Timeout
//	case errors.Is(err, syscall.ECONNREFUSED): // no process listens
//	}
//
// # Guarantees on Linux
//
//   - The final ACK is withheld (TCP_QUICKACK in tcp(7)), and an RST is sent instead (AF_UNSPEC in
//     connect(2)) before Shake returns, or when this process is killed (SO_LINGER in socket(7)). The
//     RST does not wait for children of this process that hold a copy of the socket, between fork(2)
//     and execve(2). The kernel withholds the ACK for at most 200 ms. If this process is delayed for
//     longer, the kernel sends the ACK, and [Result.ACKSent] reports it. [Result.ACKWithheld] is the
//     kernel's proof that the ACK was not sent. gVisor gives no such proof: it always sends the ACK.
//   - A verdict never belongs to another target, even though the kernel soon reuses the number of
//     a closed descriptor, and events for the old one may still be queued (epoll(7), under
//     "Questions and answers").
//   - Shake returns at the latest when the deadline passes, the context is cancelled, or the Shaker
//     is closed. By then the handshake's socket is closed.
//   - SYN-ACKs are answered before other work. However many callers arrive and however many
//     deadlines pass at the same time, at most a few dozen SYNs are sent and a few dozen handshakes
//     are ended before the next look for SYN-ACKs.
//   - If the target is a closed port of this host, and the kernel connects the socket to itself
//     (simultaneous open, RFC 9293, section 3.5), the verdict is [Refused].
//   - [Options] are never ignored silently. Options that this host does not support or permit are
//     an error. The two values that the kernel itself replaces are described at [Options.Source]
//     and [Options.SourcePorts], and [Options.Check] finds both.
//
// With [Options.FIN] the first guarantee does not hold: the handshake is completed, the
// application sees a connection, and this host keeps the connection in TIME_WAIT. Use it for
// targets that treat an RST as an error.
//
// # What it does not prove
//
// A SYN-ACK proves that a kernel, a load balancer or a proxy accepts connections for the port. It
// does not prove that an application behind the port works.
//
// # Options and privileges
//
// [Options] set where a SYN is sent from, and the fields of its IP header. On a current kernel
// only Mark needs a privilege:
//
//	Source         no privilege
//	SourcePort     no privilege
//	SourcePorts    no privilege; needs Linux 6.3 or newer
//	Interface      no privilege since Linux 5.7; CAP_NET_RAW on older kernels
//	DSCP, TTL      no privilege
//	FIN            no privilege
//	Mark           CAP_NET_ADMIN; since Linux 5.17, CAP_NET_RAW is enough
//
// A program that reads options from its configuration should call [Options.Check] first. Check
// tries the options on sockets and sends nothing.
//
// # The path to a target
//
// [Shaker.Trace] finds the routers between this host and a target, right after a handshake with
// that target. It sends SYNs with a small TTL from the same port to the same port, and the kernel
// reports which router dropped each of them (IP_RECVERR in ip(7)). Trace needs no privilege on Linux
// 5.11 or newer. With [Config.Raw], all routers reply within one round trip, and no SYN leaves the flow of the
// handshake.
//
// # SYNs without sockets
//
// With [Config.Raw], SYNs are sent through a raw socket and belong to no socket, from a few ports that are reserved for
// them. The kernel answers the SYN-ACK with an RST by itself, so that the final ACK cannot be sent, not even if this
// process is stopped. A handshake costs about half of what one with a socket costs, and no descriptor. The kernel's
// timestamps show when answers arrived, and sequence numbers that cannot be guessed show which answers are genuine. It
// needs CAP_NET_RAW: see [Raw] for that and for the differences. All verdicts are the same.
//
// # Local ports
//
// [Options.SourcePort] sends from one port. Where routers or links share the load by ports, handshakes from one port
// take the same path each time, and handshakes from several ports take several. [ReservePorts] keeps ports for that.
//
// # Repeated handshakes
//
// [Shaker.Repeat] shakes hands with a target again and again in the background, and passes each result to a
// function: to see lost SYNs and latency all the time, and not only when somebody asks. On Linux the event
// loops drive all of them. A [Repetition] takes about 0.5 kB of memory and no goroutine. Each handshake takes the
// system calls of Shake, allocates nothing, and holds one descriptor while it waits for the reply, which is the
// latency of the target, or the timeout. A handshake that this host cannot start in time is skipped and counted
// ([Repetition.Skipped]).
//
// # Held connections
//
// [Shaker.Hold] opens a connection and keeps it, to find out how long connections live, and what ends them. This is
// about the other half of TCP: a cable is pulled, a NAT forgets a connection, or a process hangs, and neither side
// learns of it. Here the application does see a connection. Each event of a [Connection] is passed to a function.
//
//   - [KeepAlive] of the connection finds hosts that are gone, and keeps NAT entries. It ends the connection when the
//     peer was silent for Idle + Interval × Count, also while data is not acknowledged and the kernel sends no
//     keepalives.
//   - A [Heartbeat] finds applications that do not answer although their kernels do: a process that is stopped
//     acknowledges data until its buffers are full, and answers keepalives forever.
//   - The [Outcome] of the end tells a FIN (Closed), an RST (Reset) and silence (Timeout) apart. A missing route or
//     a pulled cable of this host mostly looks like silence, too: [Shaker.Shake] with the same target tells the
//     difference.
//   - [Connection.State] returns when the peer's kernel and when its application was heard last.
//
// On Linux the event loops drive all connections. A Connection takes about 0.5 kB of memory of this process, some
// kilobytes of the kernel, one descriptor, and no goroutine. At rest it takes no CPU time: the kernel sends the
// keepalives. A heartbeat takes about 25 µs of CPU time, and State one system call. Handshakes go first: a peer that
// sends without end cannot hold them up.
//
// [SetKeepAlive] and [GetKeepAlive] serve those who only want the same keepalive on a [net.TCPConn] of their own.
//
// # Other platforms
//
// Systems other than Linux cannot withhold the final ACK. There, Shake completes the handshake with
// the standard [net.Dialer] and then resets the connection: the application sees a connection, and
// ACKSent is true whenever the port is open. Only Timeout, Source and FIN are supported; any other
// option is an [errors.ErrUnsupported]. The kernel's measurements (RTT, MSS, SYNs, ResetLag and the
// ICMP error) are not available, and neither is Trace. A Repetition has a goroutine there, and one more for each
// handshake. A Connection has two. It does not know what the peer's kernel has acknowledged: an Unanswered is always
// Timeout, and never Silent.
//
// # Concurrency
//
// A [Shaker] is safe for concurrent use by any number of goroutines. One Shaker is enough for a
// program: it shares its descriptors and its goroutines among all callers.
//
// # Network namespaces
//
// On Linux a [Shaker] belongs to the network namespace of the thread that called [New]: all of its
// handshakes and traces take place there, and IPv6 zones and interface names are those of this namespace,
// whichever thread calls. To probe from another namespace, lock the goroutine to its thread
// ([runtime.LockOSThread]), enter the namespace (setns(2)), call New, and return to the former namespace.
// The Shaker then works for callers on any thread. [Options.Check] looks at the namespace of its own caller.
package shaker
