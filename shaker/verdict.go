//go:build !plan9

package shaker

import "syscall"

// verdict decides which outcome an errno means for the target, given the ICMP error that caused it,
// if any. The errno is that of connect(2) or the socket's pending error (SO_ERROR). ok is false if
// the errno is a local error, which says nothing about the target. An error before connect(2) is
// always a local error and does not get here.
//
// The kernel translates ICMP errors to errnos by the tables icmp_err_convert (net/ipv4/icmp.c) and
// tab_unreach (net/ipv6/icmp.c).
func verdict(errno syscall.Errno, icmp ICMP) (outcome Outcome, ok bool) {
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, // no free descriptor
		syscall.ENOBUFS, syscall.ENOMEM, // no kernel memory
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN, // no free local address or port
		syscall.ENODEV: // the interface to send through is gone
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
	case icmp.prohibited(): // errno alone would only say "unreachable"
		return Prohibited, true
	case icmp.destinationUnreachable():
		return Unreachable, true
	}
	switch errno {
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, ehostdown, syscall.ENETDOWN, syscall.ENOPROTOOPT:
		return Unreachable, true
	}
	return Failed, true
}
