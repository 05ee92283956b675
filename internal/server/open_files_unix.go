//go:build unix

package server

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// otherDescriptors is how many descriptors are reserved for everything but probes and the engine.
const otherDescriptors = 64

// openFilesForProbes returns how many handshakes the open file limit permits at once. Each probe needs three
// descriptors, one for its HTTP connection and two for its DNS queries (its handshake uses one of them afterwards, if
// it has a socket). Some are reserved for everything else, in addition to those of the engine.
func openFilesForProbes(engine int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<20 {
		return 1 << 20 / descriptorsPerProbe
	}
	return max(1, (int(limit.Cur)-otherDescriptors-engine)/descriptorsPerProbe)
}

// warnOpenFiles logs that the open file limit, without the descriptors of the engine, leaves room for few probes.
func warnOpenFiles(engine int, logger *slog.Logger) {
	const few = 32
	reserved := otherDescriptors + engine
	want := reserved + descriptorsPerProbe*few
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<20 ||
		int(limit.Cur) >= want {
		return
	}
	logger.Warn("The open file limit leaves room for few probes at once: "+
		"raise it (ulimit -n, LimitNOFILE= of systemd)",
		"open_file_limit", limit.Cur, "reserved", reserved, "max_in_flight", openFilesForProbes(engine), "want", want)
}
