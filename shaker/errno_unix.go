//go:build unix

package shaker

import "golang.org/x/sys/unix"

const ehostdown = unix.EHOSTDOWN

// ErrnoName returns the symbolic name of an errno, such as "ECONNREFUSED". It returns "" for 0
// and for a number that the operating system does not define.
func ErrnoName(errno Errno) string { return unix.ErrnoName(errno) }
