//go:build unix

package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// defaultMaxInFlight leaves every probe three descriptors, one for its HTTP connection and
// two for its DNS queries, which its handshake follows, and some to everything else.
func defaultMaxInFlight() int {
	const each = 3
	others := 64 + runtime.GOMAXPROCS(0) // of these has the engine one each
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<20 {
		return 1 << 20 / each
	}
	return max(1, (int(limit.Cur)-others)/each)
}
