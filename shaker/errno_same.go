//go:build !linux && !windows && !plan9

package shaker

// portable returns the errno unchanged. On Windows it translates Winsock's numbers.
func portable(errno Errno) Errno { return errno }
