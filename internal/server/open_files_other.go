//go:build !unix

package server

// openFilesForProbes returns 0, any number: this platform does not limit open files.
func openFilesForProbes(int) int { return 0 }
