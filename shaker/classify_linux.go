package shaker

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The errors of a handshake's socket at one moment, other than the ICMP error in its error queue.
type socketErrors struct {
	call    unix.Errno // of connect(2); ETIMEDOUT if the deadline has passed; 0 after an event
	pending unix.Errno // SO_ERROR in socket(7)
	queued  unix.Errno // to which the kernel translated the ICMP error

	// earlier is the conclusion from a soft ICMP error after which the handshake has gone on.
	earlier conclusion

	// tooLate reports whether the SYN was out for too short a time for the verdict Timeout.
	tooLate bool
}

// A conclusion is what the state of a socket and its errors mean for a handshake. If there is neither an outcome
// nor an error, the handshake goes on.
type conclusion struct {
	outcome Outcome
	errno   unix.Errno // the reason for the outcome
	icmp    ICMP       // the same

	// err is a local error.
	err error

	// soft reports whether the reason is a soft ICMP error: it becomes the outcome at the deadline, if no
	// SYN-ACK arrives until then.
	soft bool
}

// classify decides what is known about a handshake from TCP_INFO, from the errors of the socket, and from an ICMP
// error. The state of the connection counts first: an ICMP error for one SYN does not undo the SYN-ACK for another
// one. The socket's error counts next, and that of the call last.
//
// An ICMP error ends the handshake: the kernel closes a socket in SYN-SENT for every ICMP error (RFC 5461), and a
// prompt verdict with the sender of the error is worth more than waiting for another SYN. Only an error that arrives
// while connect(2) has the socket locked leaves the socket open. If such an error is soft (RFC 1122), the next SYN
// may be answered, and the handshake goes on.
func classify(info *unix.TCPInfo, errors socketErrors, icmp ICMP) conclusion {
	switch open, err := isOpen(info.State); {
	case err != nil:
		return conclusion{err: err}
	case open:
		return conclusion{outcome: Open}
	}
	errno := errors.pending
	if errno == 0 {
		errno = errors.queued // it arrived after SO_ERROR was read
	}
	switch {
	case errno != 0 && errors.call == 0 && icmp.soft() && info.State == unix.BPF_TCP_SYN_SENT:
		return conclusion{soft: true, errno: errno, icmp: icmp}
	case errno != 0:
	case errors.call == unix.ETIMEDOUT && errors.earlier.soft:
		c := errors.earlier
		c.outcome, _ = verdict(c.errno, c.icmp)
		return c
	case errors.call == unix.ETIMEDOUT && isDropped(info):
		return conclusion{err: errDropped}
	case errors.call == unix.ETIMEDOUT && errors.tooLate:
		return conclusion{err: ErrUnsent}
	case errors.call != 0:
		errno = errors.call
	case info.State == unix.BPF_TCP_CLOSE:
		errno = unix.ECONNABORTED // like connect(2) in this case
	default:
		return conclusion{}
	}
	outcome, ok := verdict(errno, icmp)
	switch {
	case errno == unix.EINVAL:
		outcome = Unreachable // the route has become a blackhole: see start
	case !ok:
		return conclusion{err: check("connect", errno)}
	}
	return conclusion{outcome: outcome, errno: errno, icmp: icmp}
}

// isOpen reports whether a connection in the given state of TCP_INFO has got a SYN-ACK, and has not failed
// since. Only these states are possible for a socket that has called connect(2) and nothing else. Any
// other state, such as 0 from a kernel that does not fill TCP_INFO, says nothing about the target.
func isOpen(state uint8) (bool, error) {
	switch state { // package unix has only the BPF names of the states
	case unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_CLOSE_WAIT:
		return true, nil
	case unix.BPF_TCP_SYN_SENT, unix.BPF_TCP_SYN_RECV, unix.BPF_TCP_CLOSE:
		return false, nil
	}
	return false, fmt.Errorf("TCP_INFO: this kernel does not report the state of the connection: it is %d", state)
}

// errDropped is the error of a handshake whose SYNs do not leave this host. connect(2) reports success in this
// case, and other sockets get EPERM.
var errDropped = fmt.Errorf("this host drops the SYN: output firewall rule, or full queue: %w", unix.EPERM)

// isDropped reports whether the last SYN was dropped on its way out of this host: the kernel counts the attempts
// to retransmit it (tcpi_total_retrans), and whether the last attempt has succeeded (tcpi_retrans). It does not
// report what became of the first SYN.
func isDropped(info *unix.TCPInfo) bool { return info.Total_retrans > 0 && info.Retrans == 0 }
