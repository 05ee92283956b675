package shaker

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// windowsErrnos lists the Winsock errors with which a handshake can end, and the errno and the name
// that package syscall has for each of them.
var windowsErrnos = []struct {
	winsock, errno syscall.Errno
	name           string
}{
	{windows.WSAEACCES, syscall.EACCES, "EACCES"},
	{windows.WSAEADDRINUSE, syscall.EADDRINUSE, "EADDRINUSE"},
	{windows.WSAEADDRNOTAVAIL, syscall.EADDRNOTAVAIL, "EADDRNOTAVAIL"},
	{windows.WSAEAFNOSUPPORT, syscall.EAFNOSUPPORT, "EAFNOSUPPORT"},
	{windows.WSAECONNABORTED, syscall.ECONNABORTED, "ECONNABORTED"},
	{windows.WSAECONNREFUSED, syscall.ECONNREFUSED, "ECONNREFUSED"},
	{windows.WSAECONNRESET, syscall.ECONNRESET, "ECONNRESET"},
	{windows.WSAEHOSTDOWN, syscall.EHOSTDOWN, "EHOSTDOWN"},
	{windows.WSAEHOSTUNREACH, syscall.EHOSTUNREACH, "EHOSTUNREACH"},
	{windows.WSAEINVAL, syscall.EINVAL, "EINVAL"},
	{windows.WSAEMFILE, syscall.EMFILE, "EMFILE"},
	{windows.WSAENETDOWN, syscall.ENETDOWN, "ENETDOWN"},
	{windows.WSAENETUNREACH, syscall.ENETUNREACH, "ENETUNREACH"},
	{windows.WSAENOBUFS, syscall.ENOBUFS, "ENOBUFS"},
	{windows.WSAETIMEDOUT, syscall.ETIMEDOUT, "ETIMEDOUT"},
}

const ehostdown = syscall.EHOSTDOWN

// ErrnoName returns the symbolic name of an errno, such as "ECONNREFUSED". It returns "" for 0 and
// for an error with which a handshake does not end.
func ErrnoName(errno Errno) string {
	for _, e := range windowsErrnos {
		if errno == e.errno || errno == e.winsock {
			return e.name
		}
	}
	return ""
}

// portable translates a Winsock error to the errno that package syscall has for it.
func portable(errno Errno) Errno {
	for _, e := range windowsErrnos {
		if errno == e.winsock {
			return e.errno
		}
	}
	return errno
}
