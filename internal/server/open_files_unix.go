//go:build unix

package server

import "golang.org/x/sys/unix"

// openFilesForProbes returns how many handshakes the open file limit permits at once. Each probe needs three
// descriptors, one for its HTTP connection and two for its DNS queries (its handshake uses one of them afterwards, if
// it has a socket). Some are reserved for everything else, in addition to those of the engine.
func openFilesForProbes(engine int) int {
	const each = 3
	others := 64 + engine
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<20 {
		return 1 << 20 / each
	}
	return max(1, (int(limit.Cur)-others)/each)
}
