//go:build unix

package main

import "golang.org/x/sys/unix"

// defaultMaxInFlight leaves every probe two descriptors, of its handshake and of its HTTP
// connection, and some to everything else.
func defaultMaxInFlight() int {
	const others = 64
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<20 {
		return 1 << 19
	}
	return max(1, (int(limit.Cur)-others)/2)
}
