package server

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"
)

// How much memory the exporter needs: docs/cost.md explains the figures.
const (
	// memoryAtRest is for everything except the probes in flight: the program, its heap, the history, and a page.
	memoryAtRest = 32 << 20

	// memoryPerProbe is for a probe in flight. 30 kB of it are the buffers and stacks of the HTTP connection and of
	// the probe, and 6 kB are the sockets in the kernel. The rest is for garbage and for TLS.
	memoryPerProbe = 48 << 10

	// memoryPerResult is for a result in the history, with its share of the garbage.
	memoryPerResult = 1 << 10

	// memoryPerTarget is for a watched target, with its share of the garbage.
	memoryPerTarget = 3 << 10

	// memoryPerConnection is for a held connection, with its share of the garbage. Half of it is the socket in the
	// kernel.
	memoryPerConnection = 8 << 10
)

// A memoryLimit is how much memory this process may use, in bytes. [noMemoryLimit] means any amount.
type memoryLimit int64

const noMemoryLimit memoryLimit = math.MaxInt64

// goShare returns the part of the limit that the Go runtime may use. The rest is for the sockets in the kernel and
// for the code of the program.
func (l memoryLimit) goShare() int64 { return int64(l) / 4 * 3 }

// findMemoryLimit returns the memory limit of the control group, or the limit whose goShare is GOMEMLIMIT if that is
// lower.
func findMemoryLimit() memoryLimit {
	limit := memoryLimit(cgroupMemory())
	if os.Getenv("GOMEMLIMIT") != "" {
		// In this order, the multiplication cannot overflow unless there is no limit.
		if heap := debug.SetMemoryLimit(-1); heap < noMemoryLimit.goShare() {
			limit = min(limit, memoryLimit(heap/3*4))
		}
	}
	return limit
}

// apply makes the garbage collector keep to the limit, unless GOMEMLIMIT gives it another one.
func (l memoryLimit) apply() {
	if l != noMemoryLimit && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(l.goShare())
	}
}

// probes returns how many probes may be in flight, 0 for any number. However little memory there is, a quarter of it
// is for probes.
func (l memoryLimit) probes() int {
	if l == noMemoryLimit {
		return 0
	}
	return int(max(1, max(l-memoryAtRest, l/4)/memoryPerProbe))
}

// results returns how many results the history may keep, 0 for any number. They take a quarter of the memory at most.
func (l memoryLimit) results() int {
	if l == noMemoryLimit {
		return 0
	}
	return int(max(1, l/4/memoryPerResult))
}

// targets returns how many targets may be watched, 0 for any number. They take a quarter of the memory at most.
func (l memoryLimit) targets() int {
	if l == noMemoryLimit {
		return 0
	}
	return int(max(1, l/4/memoryPerTarget))
}

// defaultMaxTargets returns how many targets may be watched if the flag does not say so.
func (l memoryLimit) defaultMaxTargets() int {
	const enough = 20_000
	if most := l.targets(); 0 < most && most < enough {
		return most
	}
	return enough
}

// capped returns the value of a flag, or the most that the memory limit permits, 0 for any value. It logs that the
// value is too large.
func (l memoryLimit) capped(flag string, value, most int, logger *slog.Logger) int {
	if most == 0 || value <= most {
		return value
	}
	logger.Warn("The memory limit permits less than the flag",
		"flag", flag, "value", value, "used", most, "memory_limit_bytes", int64(l))
	return most
}
