//go:build !linux && !plan9

package shaker

import (
	"errors"
	"net"
	"syscall"
)

// dialErrno returns the errno of an error of a dial, 0 if it has none.
func dialErrno(err error) Errno {
	if errno, ok := errors.AsType[syscall.Errno](err); ok { // before Timeout, which is also true of EAGAIN
		return portable(errno)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return syscall.ETIMEDOUT
	}
	return 0
}
