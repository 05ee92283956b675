//go:build race

package lab

// Race tells whether the race detector is on, which makes all of it several times slower.
const Race = true
