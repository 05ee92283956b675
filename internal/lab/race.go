//go:build race

package lab

// Race reports whether the race detector is enabled. It makes a test several times slower.
const Race = true
