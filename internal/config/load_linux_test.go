package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sparse creates a file of that length that has only zeros, and returns its name.
func sparse(t testing.TB, length int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "sparse.yml")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, length)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLoadNotAConfiguration(t *testing.T) {
	unwritten := filepath.Join(t.TempDir(), "fifo.yml")
	if err := unix.Mkfifo(unwritten, 0o600); err != nil {
		t.Fatal(err)
	}
	directory, long := t.TempDir(), sparse(t, maxSize+1)
	const empty = ":1: file is empty, want targets or modules"
	for name, want := range map[string]string{
		unwritten:   unwritten + empty,
		"/dev/null": "/dev/null" + empty,
		"/dev/zero": "/dev/zero is larger than the limit of 1 MiB",
		long:        long + " is larger than the limit of 1 MiB",
		directory:   "read " + directory + ": is a directory",
	} {
		if c, warnings, err := Load(name); c != nil || warnings != nil || err == nil || err.Error() != want {
			t.Errorf("Load(%s) = %+v, %q\n got %v\nwant %s", name, c, warnings, err, want)
		}
	}
}

func TestReadLargest(t *testing.T) {
	text, err := read(sparse(t, maxSize), time.Now().Add(fifoTimeout))
	if len(text) != maxSize || err != nil {
		t.Errorf("read of a file of %d bytes = %d bytes, %v, want all of them", maxSize, len(text), err)
	}
}

// A shell replaces <(…) with the name of a pipe.
func TestReadPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	const written = "modules: {m: {prober: tcp}}\n"
	if _, err := w.WriteString(written); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/dev/fd/%d", r.Fd())
	if text, err := read(name, time.Unix(1, 0)); text != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past the deadline = %q, %v, want %v", text, err, os.ErrDeadlineExceeded)
	}
	w.Close()
	if text, err := read(name, time.Now().Add(time.Hour)); string(text) != written || err != nil {
		t.Errorf("read after the writer closed the pipe = %q, %v, want %q", text, err, written)
	}
}
