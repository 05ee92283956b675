// Package exporter builds the exporter and runs it for tests in the way users run it: as a separate program
// that is requested over HTTP. The tests of a package build the exporter once, with the race detector if the
// test binary was built with it.
package exporter

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// Port is the port on which the exporter listens by default.
const Port = 10115

// build builds the exporter, unless a process of another test of the package has built it already (lab.Apart), and
// returns the path of the program. It builds in the directory of the exporter's own module, because another module
// would select other versions of the dependencies. The program has no version from git, because git refuses to work in
// a clone that belongs to another user.
var build = sync.OnceValues(func() (program string, err error) {
	program = filepath.Join(lab.Dir(), "shaker_exporter")
	lock, err := os.Create(program + ".lock")
	if err != nil {
		return "", err
	}
	defer lock.Close() // and unlock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	const module = "github.com/shaker-exporter/shaker_exporter"
	directory, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("go list -m %s: %w", module, err)
	}
	args := []string{"build", "-C", strings.TrimSpace(string(directory)), "-buildvcs=false", "-o", program}
	cgo := "CGO_ENABLED=0" // as in a release
	if lab.Race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return program, nil
})

// Command returns a command that runs the exporter with the arguments.
func Command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	if lab.SkippedWithRace(t) {
		t.Fatal("the test runs the exporter, which can be built with the race detector: remove lab.SkipWithRace")
	}
	lab.Program(t, "go", "golang-go")
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(program, args...)
}

// Start starts the exporter on its default port. It runs until the test ends.
func Start(t testing.TB, args ...string) *process.Process {
	t.Helper()
	return Run(t, Command(t, args...))
}

// Run starts a command that is the exporter, or that executes it in the end, and waits until it listens on
// the default port. The exporter runs until the test ends.
func Run(t testing.TB, cmd *exec.Cmd) *process.Process {
	t.Helper()
	p := process.Start(t, cmd)
	p.Listening(Port)
	return p
}

// StartOn starts the exporter on a port of 127.0.0.1. It runs until the test ends.
func StartOn(t testing.TB, port int, args ...string) *process.Process {
	t.Helper()
	args = append([]string{fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port)}, args...)
	p := process.Start(t, Command(t, args...))
	p.Listening(port)
	return p
}
