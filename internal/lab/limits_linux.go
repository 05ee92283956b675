package lab

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// CPU returns the CPU time, user and system, that this process has used.
func CPU() time.Duration {
	var usage unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// Descriptors returns how many file descriptors this process has open.
func Descriptors(t testing.TB) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open) - 1 // one of them reads the directory
}

// NeedDescriptors skips the test if this process may open fewer than n file descriptors.
func NeedDescriptors(t testing.TB, n int) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < uint64(n) {
		Skip(t, "needs %d file descriptors, but the limit is %d (raise it with ulimit -n)", n, limit.Cur)
	}
}

// WithDescriptors calls f while the limit of file descriptors of this process is n. Descriptors beyond
// the limit that are already open stay open.
func WithDescriptors(t testing.TB, n uint64, f func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}()
	f()
}
