package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// cpuController is where cgroup v1 has the CPU controller.
const cpuController = "/sys/fs/cgroup/cpu"

// LimitCPU lets the program have at most the given share of one processor, in per cent, until the
// test ends. The kernel gives it that share at the start of every tenth of a second, and nothing
// afterwards.
func (p *Process) LimitCPU(percent int) {
	p.t.Helper()
	group, err := os.MkdirTemp(cpuController, "shaker-lab-")
	if err != nil {
		lab.Skip(p.t, "needs the CPU controller of cgroup v1: %v", err)
	}
	p.t.Cleanup(func() {
		p.Stop() // a group can be removed when it is empty
		lab.Eventually(p.t, "the group is removed", func() bool { return os.Remove(group) == nil })
	})
	for _, setting := range [][2]string{
		{"cpu.cfs_period_us", "100000"},
		{"cpu.cfs_quota_us", strconv.Itoa(percent * 1000)},
		{"cgroup.procs", strconv.Itoa(p.PID())},
	} {
		if err := os.WriteFile(filepath.Join(group, setting[0]), []byte(setting[1]), 0); err != nil {
			lab.Skip(p.t, "needs a CPU quota: %v", err)
		}
	}
}

// CPU returns the CPU time, user and system, that the program has used, in steps of a hundredth of a second.
func (p *Process) CPU() time.Duration {
	p.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	// After the name in parentheses, fields 12 and 13 are the user and the system time (proc_pid_stat(5)).
	_, rest, _ := strings.Cut(string(stat), ") ")
	var ticks time.Duration
	for _, field := range strings.Fields(rest)[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			p.t.Fatalf("/proc/%d/stat has the time %q, want a number in %s", p.PID(), field, stat)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}
