package server

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The open file limit leaves room for the descriptors of all probes that may run at once.
func TestOpenFilesForProbes(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	for limit, want := range map[uint64]int{1000: (1000 - 64 - runtime.GOMAXPROCS(0)) / 3, 64: 1} {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		if got := openFilesForProbes(); got != want {
			t.Errorf("openFilesForProbes() with an open file limit of %d = %d, want %d", limit, got, want)
		}
	}
}
