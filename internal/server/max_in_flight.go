package server

// defaultMaxInFlight returns how many handshakes the open files and the memory of this process permit at once, 0 for
// any number. The engine holds some of the open files.
func defaultMaxInFlight(engine int) int {
	files, memory := openFilesForProbes(engine), findMemoryLimit().probes()
	if files == 0 || memory > 0 && memory < files {
		return memory
	}
	return files
}
