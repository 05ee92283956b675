package server

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The open file limit leaves room for the descriptors of all probes that may run at once.
func TestOpenFilesForProbes(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	for _, c := range []struct {
		limit        uint64
		engine, want int
	}{
		{limit: 1000, engine: 2, want: (1000 - 64 - 2) / 3},
		{limit: 1000, engine: 2 + shaker.RawDescriptors, want: (1000 - 64 - 2 - shaker.RawDescriptors) / 3},
		{limit: 64, engine: 2, want: 1},
	} {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: c.limit, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		if got := openFilesForProbes(c.engine); got != c.want {
			t.Errorf("openFilesForProbes(%d) with an open file limit of %d = %d, want %d",
				c.engine, c.limit, got, c.want)
		}
	}
}
