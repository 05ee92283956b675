package server

import "log/slog"

// descriptorsPerProbe is how many descriptors a probe needs.
const descriptorsPerProbe = 3

// heldConnections returns how many connections may be held, given the value of the flag, the limit of probes in flight
// and the descriptors of the engine: 0 for any number. spare is how many of them do not need the descriptors of probes.
func (l memoryLimit) heldConnections(flag, inFlight, engine int, logger *slog.Logger) (most, spare int) {
	files := descriptorsPerProbe * openFilesForProbes(engine) // 0 if there is no limit
	if spare = files - descriptorsPerProbe*inFlight; files == 0 || spare < 0 {
		spare = 0
	}
	if most = flag; most == 0 {
		most = max(files/3, spare)
		if permitted := l.connections(); 0 < permitted && permitted < most {
			return permitted, spare
		}
	}
	if usable := max(files-files/32, spare); files > 0 && most > usable {
		logger.Warn("The open file limit permits less than the flag",
			"flag", "--hold.max-connections", "value", most, "used", usable)
		most = usable
	}
	return l.capped("--hold.max-connections", most, l.connections(), logger), spare
}

// connections returns how many connections may be held, 0 for any number. They take a quarter of the memory at most.
func (l memoryLimit) connections() int {
	if l == noMemoryLimit {
		return 0
	}
	return int(max(1, l/4/memoryPerConnection))
}
