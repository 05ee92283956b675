package server

// defaultMaxInFlight returns how many handshakes the open files and the memory of this process permit at once, 0 for
// any number.
func defaultMaxInFlight() int {
	files, memory := openFilesForProbes(), findMemoryLimit().probes()
	if files == 0 || memory > 0 && memory < files {
		return memory
	}
	return files
}
