//go:build !plan9

package shaker

import "syscall"

// Errno is the number of an error of the operating system: it is [syscall.Errno]. Plan 9 has no such
// numbers. There, Errno is a type of this package, with the values ECONNREFUSED and ETIMEDOUT.
type Errno = syscall.Errno

const enodev = syscall.ENODEV
