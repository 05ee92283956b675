package process

import (
	"maps"
	"os/exec"
	"slices"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// WithFiles lets a program see files in place of others, such as a file of the test's own in
// place of /etc/hosts. What is written to one of them later is seen, too.
func WithFiles(t testing.TB, cmd *exec.Cmd, files map[string]string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	const script = `while [ "$1" != -- ]; do mount --bind "$2" "$1"; shift 2; done; shift; exec "$@"`
	args := []string{"--mount", "sh", "-e", "-c", script, "sh"}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		args = append(args, file, files[file])
	}
	args = append(append(args, "--", cmd.Path), cmd.Args[1:]...)
	wrapped := exec.Command(lab.Program(t, "unshare", "util-linux"), args...)
	wrapped.Env, wrapped.Dir = cmd.Env, cmd.Dir
	return wrapped
}
