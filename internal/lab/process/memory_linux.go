package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// memoryController is where cgroup v1 has the memory controller.
const memoryController = "/sys/fs/cgroup/memory"

// A MemoryGroup is a control group with a memory limit.
type MemoryGroup struct {
	t         testing.TB
	directory string
}

// LimitMemory returns a control group whose programs may use the given number of bytes of memory together, and a
// command that runs cmd in it. The group exists until the test ends; the program must have ended before.
func LimitMemory(t testing.TB, limit int, cmd *exec.Cmd) (*MemoryGroup, *exec.Cmd) {
	t.Helper()
	directory, err := os.MkdirTemp(memoryController, "shaker-lab-")
	if err != nil {
		lab.Skip(t, "needs the memory controller of cgroup v1: %v", err)
	}
	t.Cleanup(func() {
		lab.Eventually(t, "the group is removed", func() bool { return os.Remove(directory) == nil })
	})
	file := filepath.Join(directory, "memory.limit_in_bytes")
	if err := os.WriteFile(file, []byte(strconv.Itoa(limit)), 0); err != nil {
		lab.Skip(t, "needs a memory limit: %v", err)
	}
	args := []string{"-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, directory, cmd.Path}
	limited := exec.Command(lab.Program(t, "sh", "dash"), append(args, cmd.Args[1:]...)...)
	limited.Env = cmd.Env
	return &MemoryGroup{t: t, directory: directory}, limited
}

// Peak returns how much memory the programs of the group have used at most at the same time, in bytes. It includes the
// kernel's memory, such as that of sockets.
func (g *MemoryGroup) Peak() int {
	g.t.Helper()
	text := lab.Read(g.t, filepath.Join(g.directory, "memory.max_usage_in_bytes"))
	n, err := strconv.Atoi(string(text[:max(0, len(text)-1)]))
	if err != nil {
		g.t.Fatalf("the peak of the group: %v", err)
	}
	return n
}
