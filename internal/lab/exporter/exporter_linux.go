// Package exporter builds the exporter and runs it for tests, as its users do: as a program of
// its own, asked over HTTP. Each test binary builds it once, with the race detector if the test
// binary has it.
package exporter

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// Port is the port on which the exporter listens by default.
const Port = 10115

// build builds the exporter and returns the path of the program. It builds in the directory of
// the exporter's own module, so that no other module changes the versions of what it depends on.
// It does not ask git for the version: git refuses to answer in a clone of another user.
var build = sync.OnceValues(func() (program string, err error) {
	directory, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/shaker-exporter/shaker_exporter").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	program = filepath.Join(lab.Dir(), "shaker_exporter")
	args := []string{"build", "-C", strings.TrimSpace(string(directory)), "-buildvcs=false", "-o", program}
	if lab.Race {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return program, nil
})

// Command returns the exporter as a program with the arguments.
func Command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	lab.Program(t, "go", "golang-go")
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(program, args...)
}

// Start starts the exporter on its default port for the rest of the test.
func Start(t testing.TB, args ...string) *process.Process {
	t.Helper()
	return Run(t, Command(t, args...))
}

// Run starts a command that is the exporter, or that ends up executing it, on its default port
// for the rest of the test.
func Run(t testing.TB, cmd *exec.Cmd) *process.Process {
	t.Helper()
	p := process.Start(t, cmd)
	p.Listening(Port)
	return p
}

// StartOn starts the exporter on a port of 127.0.0.1 for the rest of the test.
func StartOn(t testing.TB, port int, args ...string) *process.Process {
	t.Helper()
	p := process.Start(t, Command(t, append([]string{fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port)}, args...)...))
	p.Listening(port)
	return p
}
