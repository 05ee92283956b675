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

// sparse makes a file of a length with nothing but zeros in it, and returns its name.
func sparse(t testing.TB, length int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "sparse.yml")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, length)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLoadWhatIsNoConfiguration(t *testing.T) {
	unwritten := filepath.Join(t.TempDir(), "fifo.yml")
	if err := unix.Mkfifo(unwritten, 0o600); err != nil {
		t.Fatal(err)
	}
	directory, long := t.TempDir(), sparse(t, maxSize+1)
	const nothing = ":1: there is nothing in it, want targets or modules"
	for name, want := range map[string]string{
		unwritten:   unwritten + nothing,
		"/dev/null": "/dev/null" + nothing,
		"/dev/zero": "/dev/zero is longer than 16 MiB",
		long:        long + " is longer than 16 MiB",
		directory:   "read " + directory + ": is a directory",
	} {
		if c, warnings, err := Load(name); c != nil || warnings != nil || err == nil || err.Error() != want {
			t.Errorf("%+v, %q\n got %v\nwant %s", c, warnings, err, want)
		}
	}
}

func TestReadLongest(t *testing.T) {
	text, err := read(sparse(t, maxSize), time.Now().Add(patience))
	if len(text) != maxSize || err != nil {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// What a shell makes of <(…) is the name of a pipe.
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
		t.Errorf("past the deadline: %q, %v", text, err)
	}
	w.Close()
	if text, err := read(name, time.Now().Add(time.Hour)); string(text) != written || err != nil {
		t.Errorf("at the end: %q, %v", text, err)
	}
}
