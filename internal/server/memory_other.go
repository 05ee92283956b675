//go:build !linux

package server

import "math"

// cgroupMemory returns math.MaxInt64, no limit: this platform has no control groups.
func cgroupMemory() int64 { return math.MaxInt64 }
