//go:build unix && !linux

package shaker

import "syscall"

// portable is here for Windows, whose errors have numbers of their own.
func portable(errno syscall.Errno) syscall.Errno { return errno }
