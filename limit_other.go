//go:build !unix

package main

// defaultMaxInFlight is no limit: this platform has none of open files.
func defaultMaxInFlight() int { return 0 }
