//go:build unix

package shaker

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrnoName returns the symbolic name of an errno, such as "ECONNREFUSED". It returns "" for 0
// and for a number that the operating system does not define.
func ErrnoName(errno syscall.Errno) string { return unix.ErrnoName(errno) }
