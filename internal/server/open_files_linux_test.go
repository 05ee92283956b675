package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
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

// The log says that the open file limit is too low for more than a few probes, and which one would be right.
func TestFewOpenFiles(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	const engine = 2 + shaker.RawDescriptors
	const reserved, want = 64 + engine, 64 + engine + 3*32
	for _, c := range []struct {
		limit  uint64
		logged string
	}{
		{limit: want},
		{limit: want - 1, logged: fmt.Sprintf("open_file_limit=%d reserved=%d max_in_flight=31 want=%[3]d", want-1,
			reserved, want)},
		{limit: reserved + 3, logged: " max_in_flight=1 "},
		{limit: 100, logged: " max_in_flight=1 "},
	} {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: c.limit, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		warnOpenFiles(engine, slog.New(slog.NewTextHandler(&log, nil)))
		if text := log.String(); !strings.Contains(text, c.logged) || (c.logged == "") != (text == "") {
			t.Errorf("an open file limit of %d logs %q, want %q", c.limit, text, c.logged)
		}
	}
}
