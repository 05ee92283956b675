// Package shaker asks a TCP port for a handshake and does not finish it: SYN, SYN-ACK,
// RST. The target's kernel answers, its application never learns of it: accept(2) does
// not return, nothing is logged, no worker wakes.
//
//	s, err := shaker.New(nil)
//	…
//	result, err := s.Shake(ctx, netip.MustParseAddrPort("192.0.2.1:443"), nil)
//
// A [Result] is a verdict about the target, with its reason and what the kernel measured
// on the way. An error means that this host could not measure. The two never mix.
//
// # What it guarantees on Linux
//
//   - The last ACK of the handshake is withheld (TCP_QUICKACK in tcp(7)) and an RST sent
//     instead (SO_LINGER in socket(7)), before anybody is told the result. The kernel
//     holds the ACK back for 200 ms at most; if this process is held up for longer,
//     [Result.ACKSent] says that it left.
//   - A verdict is never about another target. Events carry a ticket that is valid for
//     one handshake, not a descriptor's number, which the kernel soon gives to another
//     one (see "Will closing a file descriptor cause it to be removed…" in epoll(7)).
//   - Shake returns exactly once, at the latest when the deadline passes, the context is
//     cancelled, or the Shaker is closed. Then the handshake's socket is closed.
//   - However many callers come at once, and however many deadlines pass at once,
//     SYN-ACKs are answered first: between two looks for them the loop sends a few dozen
//     SYNs and ends a few dozen handshakes at most.
//   - A port of this host that the kernel connects to itself is [Refused].
//   - [Options] that this host does not grant are an error: never a verdict, and never
//     left out.
//
// With [Options.FIN] the first of these is given up: the handshake is completed, the
// application sees a connection, and this host keeps it in TIME_WAIT. That is for targets
// to which an RST means trouble.
//
// # What it does not
//
// A SYN-ACK says that a kernel, a load balancer or a proxy accepts connections for the
// port, not that an application behind it is well. On other systems than Linux the
// handshake is completed and then reset: the application sees a connection, and ACKSent
// is always true.
//
// # Options
//
// [Options] say from where a SYN leaves, and how its packets look on the way: Source and
// SourcePorts, Interface, Mark, DSCP, TTL. All of them but Mark are for everybody.
//
//	Mark           CAP_NET_ADMIN, or since Linux 5.17 CAP_NET_RAW
//	Interface      before Linux 5.7 CAP_NET_RAW
//	SourcePorts    Linux 6.3
//
// A program that reads them from its configuration asks [Options.Check] first, which tries
// them on sockets and sends nothing.
//
// # The path
//
// [Shaker.Trace] finds the routers on the way to a target with which a handshake has just
// ended, with SYNs of a small TTL that have the same flow: the kernel tells an unprivileged
// process who dropped them (IP_RECVERR in ip(7)). trace.go is all there is to it, on top of
// the handshake.
//
// # How
//
// There is an epoll loop for each processor, which owns its sockets from socket(2) to
// close(2) (loop_linux.go). It drives tasks, of which the handshake is one
// (handshake_linux.go), by their tickets (slots_linux.go) and deadlines
// (deadlines_linux.go). Options are set on its socket before it connects
// (options_linux.go). Callers hand tasks over under a mutex and are woken through a
// channel. verdict.go decides what an errno says about the target.
//
// A loop does its work in turns, one at a time. The caller that finds a loop at rest takes a
// turn itself, so that its SYN leaves at once and no thread has to be woken for it. All
// other turns are those of the loop's goroutine, which sleeps in the Go runtime's own
// poller (an epoll descriptor can be waited for like any other) until there is an answer,
// or a deadline.
//
// Wherever the loop gives its processor up, it may have to wait in line with thousands of
// runnable goroutines while the kernel counts down to the ACK. So its system calls do not
// tell the Go scheduler (syscall_linux.go), it wakes callers a few at a time, and does not
// sleep before these have run.
//
// # What it costs
//
// Shake beside a [net.Dialer] whose Control sets TCP_QUICKACK to 0, closed with linger 0,
// with the same loopback listener in the same run; Linux 6.18, Go 1.26, 2 cores, three
// runs. In the last column other programs keep both cores busy.
//
//	callers                          1         10        100       1000      10000  10000 busy
//	CPU, Shake to Dialer     0.49-0.50  0.56-0.62  0.57-0.58  0.52-0.54  0.50-0.55   0.46-0.48
//	handshakes/s, likewise     2.0-2.0    1.8-1.9    1.7-1.8    1.9-2.1    1.8-4.1     3.8-4.5
//	ACKs sent, Shake                 0          0          0          0          0           0
//	ACKs sent, Dialer                0          0          0          0     14-24%      33-39%
//	allocations, Shake             0.0        0.0        0.1        0.4    2.7-3.1     2.8-3.0
//	allocations, Dialer             29         29         29         29      31-32       33-33
//
// What Shake allocates is for more callers at once than there were before. It makes 8 to 10
// system calls, the Dialer 15 to 17. Beside a C program of one thread that does the system
// calls of a handshake and nothing else it takes 1.06 to 1.09 times the CPU time, at 100
// callers. The commands are
//
//	go test -run '^$' -bench Beside -benchtime 50000x ./shaker
//	go test -run '^$' -bench SystemCalls -benchtime 3000x ./shaker
//	go test -run '^$' -bench Floor -benchtime 40000x ./shaker
package shaker
