//go:build js || wasip1

package shaker

import "syscall"

const ehostdown Errno = 1 << 16 // a number that does not occur: WASI has no EHOSTDOWN

// ErrnoName returns the symbolic name of an errno, such as "ECONNREFUSED". It returns "" for 0 and
// for an error with which a handshake does not end.
func ErrnoName(errno Errno) string {
	switch errno {
	case syscall.EACCES:
		return "EACCES"
	case syscall.ECONNABORTED:
		return "ECONNABORTED"
	case syscall.ECONNREFUSED:
		return "ECONNREFUSED"
	case syscall.ECONNRESET:
		return "ECONNRESET"
	case syscall.EHOSTUNREACH:
		return "EHOSTUNREACH"
	case syscall.EINVAL:
		return "EINVAL"
	case syscall.ENETDOWN:
		return "ENETDOWN"
	case syscall.ENETUNREACH:
		return "ENETUNREACH"
	case syscall.EPERM:
		return "EPERM"
	case syscall.ETIMEDOUT:
		return "ETIMEDOUT"
	}
	return ""
}
