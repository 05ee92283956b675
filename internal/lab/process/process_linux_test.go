package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A program has a child in a session of its own, which ignores SIGTERM and creates files as fast as it can, like a
// server that writes to its log. However the program ends, nothing is written after its end. The control: the child
// has written until then.
func TestDescendantsEndWithTheProgram(t *testing.T) {
	shell := lab.Program(t, "sh", "dash")
	lab.Program(t, "setsid", "util-linux")
	const child = `trap "" TERM; while :; do echo >"$0/$((n = n + 1))"; done`
	for _, c := range []struct {
		name, then string // what the program does when it has started the child
		end        func(*Process)
	}{
		{name: "stopped", then: "wait", end: (*Process).Stop},
		{name: "killed", then: "wait", end: func(p *Process) { p.Signal(os.Kill); p.Wait() }},
		{name: "ended by itself", then: `while [ ! -e "$1/100" ]; do :; done`, end: func(p *Process) { p.Wait() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			directory := t.TempDir()
			script := `setsid "$2" -c "$3" "$1" 2>/dev/null & ` + c.then
			p := Start(t, exec.Command(shell, "-c", script, "sh", directory, shell, child))
			lab.Eventually(t, "the child has written 100 files", func() bool {
				_, err := os.Stat(filepath.Join(directory, "100"))
				return err == nil
			})
			c.end(p)
			files, err := os.ReadDir(directory)
			if err != nil || len(files) < 100 {
				t.Errorf("the child has created %d files, %v, want at least 100", len(files), err)
			}
			if err := os.RemoveAll(directory); err != nil {
				t.Errorf("after the program has ended: %v, want that nothing is written to the directory", err)
			}
		})
	}
}

// A program that is preferred runs many times as long as another one on the same processor. The control: without
// Prefer, it does not.
func TestPrefer(t *testing.T) {
	shell := lab.Program(t, "sh", "dash")
	var own unix.CPUSet
	own.Set(0)
	loop := func() *Process {
		p := Start(t, exec.Command(shell, "-c", "while :; do :; done"))
		if err := unix.SchedSetaffinity(p.PID(), &own); err != nil {
			lab.Skip(t, "needs the first processor: %v", err)
		}
		return p
	}
	other := loop()
	// ratio returns for how long a program has run in some seconds, divided by the time of the other program.
	ratio := func(p *Process) float64 {
		began, before, otherBefore := time.Now(), p.CPU(), other.CPU()
		lab.Eventually(t, "the programs have run for a while", func() bool { return time.Since(began) > 2*time.Second })
		return float64(p.CPU()-before) / float64(max(10*time.Millisecond, other.CPU()-otherBefore))
	}
	if got := ratio(loop()); got > 3 {
		t.Errorf("a program has run %.1f times as long as another one, want about as long", got)
	}
	group := ownGroup(t)
	Prefer(t)
	if ownGroup(t) == group {
		lab.Skip(t, "needs the CPU controller of cgroup v1")
	}
	if got := ratio(loop()); got < 5 {
		t.Errorf("a preferred program has run %.1f times as long as another one, want many times", got)
	}
}
