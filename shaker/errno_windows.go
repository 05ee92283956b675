package shaker

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// windowsErrnos are the errors of Winsock that a handshake can end with, with the errno
// that package syscall has for the same, and its name.
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

// ErrnoName returns an errno's symbolic name, such as "ECONNREFUSED", and "" for 0 and
// for errors that a handshake does not end with.
func ErrnoName(errno syscall.Errno) string {
	for _, e := range windowsErrnos {
		if errno == e.errno || errno == e.winsock {
			return e.name
		}
	}
	return ""
}

// portable returns the errno of package syscall for one of Winsock.
func portable(errno syscall.Errno) syscall.Errno {
	for _, e := range windowsErrnos {
		if errno == e.winsock {
			return e.errno
		}
	}
	return errno
}
