package shaker

import "syscall"

// verdict decides what an errno of connect(2), or one that a socket was left with, says
// about the target. It is not ok if the errno says nothing about the target, but that
// this host could not try. (What goes wrong before connect(2) is never a verdict.)
//
// What ICMP errors turn into is in the kernel's tables icmp_err_convert (net/ipv4/icmp.c)
// and tab_unreach (net/ipv6/icmp.c).
func verdict(errno syscall.Errno, icmp ICMP) (outcome Outcome, ok bool) {
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, // no descriptor
		syscall.ENOBUFS, syscall.ENOMEM, // no kernel memory
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN, // no local address or port
		syscall.ENODEV: // the interface to send through has gone
		return 0, false

	case syscall.ECONNREFUSED:
		return Refused, true

	case syscall.ECONNRESET, syscall.EPIPE:
		return Reset, true

	case syscall.ETIMEDOUT:
		return Timeout, true

	case syscall.EACCES, syscall.EPERM:
		return Prohibited, true
	}
	switch {
	case icmp.prohibited(): // to the errno, the target is just unreachable
		return Prohibited, true
	case icmp.destinationUnreachable():
		return Unreachable, true
	}
	switch errno {
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.ENOPROTOOPT:
		return Unreachable, true
	}
	return Failed, true
}
