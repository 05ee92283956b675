package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
