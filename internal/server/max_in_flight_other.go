//go:build !unix

package server

// defaultMaxInFlight returns 0, no limit: this platform does not limit open files.
func defaultMaxInFlight() int { return 0 }
