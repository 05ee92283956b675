package shaker

import (
	"errors"
	"net"
	"strings"
)

// Errno stands for an error of the operating system, because Plan 9 has strings instead of numbers.
type Errno uint

// The errors that decide a verdict.
const (
	ECONNREFUSED Errno = iota + 1
	ETIMEDOUT
)

const enodev Errno = 1 << 16 // a number that does not occur: Plan 9 has no ENODEV

// Error returns the string that Plan 9 has for the error.
func (e Errno) Error() string {
	switch e {
	case ECONNREFUSED:
		return "connection refused"
	case ETIMEDOUT:
		return "connection timed out"
	}
	return "unknown error"
}

// ErrnoName returns the name of the constant, "" for any other number.
func ErrnoName(errno Errno) string {
	switch errno {
	case ECONNREFUSED:
		return "ECONNREFUSED"
	case ETIMEDOUT:
		return "ETIMEDOUT"
	}
	return ""
}

// dialErrno returns the errno of an error of a dial, 0 if it has none.
func dialErrno(err error) Errno {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return ETIMEDOUT
	}
	for _, errno := range []Errno{ECONNREFUSED, ETIMEDOUT} {
		if strings.Contains(err.Error(), errno.Error()) {
			return errno
		}
	}
	return 0
}

// verdict decides which outcome an errno means for the target. ok is false for any other errno.
func verdict(errno Errno, _ ICMP) (outcome Outcome, ok bool) {
	switch errno {
	case ECONNREFUSED:
		return Refused, true
	case ETIMEDOUT:
		return Timeout, true
	}
	return 0, false
}
