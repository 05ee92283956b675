//go:build unix

package shaker

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrnoName returns an errno's symbolic name, such as "ECONNREFUSED", and "" for 0 and
// for numbers that the operating system does not define.
func ErrnoName(errno syscall.Errno) string { return unix.ErrnoName(errno) }
