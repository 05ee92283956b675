package process

import (
	"maps"
	"os/exec"
	"slices"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// WithFiles returns a command that runs the program with some files replaced by others, such as /etc/hosts
// by a file of the test. The keys are the paths that the program opens, the values the files that it gets.
// The program also sees later changes of these files.
func WithFiles(t testing.TB, cmd *exec.Cmd, files map[string]string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	const script = `while [ "$1" != -- ]; do mount --bind "$2" "$1"; shift 2; done; shift; exec "$@"`
	lab.Program(t, "mount", "mount")
	args := []string{"--mount", lab.Program(t, "sh", "dash"), "-e", "-c", script, "sh"}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		args = append(args, file, files[file])
	}
	args = append(append(args, "--", cmd.Path), cmd.Args[1:]...)
	wrapped := exec.Command(lab.Program(t, "unshare", "util-linux"), args...)
	wrapped.Env, wrapped.Dir = cmd.Env, cmd.Dir
	return wrapped
}
