package process

import (
	"os"
	"path/filepath"
	"strconv"

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
