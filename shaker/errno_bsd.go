//go:build unix && !linux

package shaker

import "syscall"

// portable returns the errno unchanged. On Windows it translates Winsock's numbers.
func portable(errno syscall.Errno) syscall.Errno { return errno }
