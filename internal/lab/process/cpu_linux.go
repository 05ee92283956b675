package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// cpuController is where cgroup v1 has the CPU controller.
const cpuController = "/sys/fs/cgroup/cpu"

// Prefer gives this process, and the programs that it starts from now on, most of the time of the processors until the
// test ends, whatever other programs run on the machine. It is for tests of what happens while this process or its
// programs keep the processors busy: other load, such as the tests of another package, would change what they test.
// Without the CPU controller of cgroup v1, it does nothing.
func Prefer(t testing.TB) {
	t.Helper()
	parent := ownGroup(t)
	group, err := os.MkdirTemp(parent, "shaker-lab-")
	if err != nil {
		t.Logf("other programs may disturb this test: %v", err)
		return
	}
	t.Cleanup(func() {
		lab.Eventually(t, "the group of this process is removed", func() bool {
			for pid := range strings.Lines(lab.Read(t, filepath.Join(group, "cgroup.procs"))) {
				setGroup(parent, "cgroup.procs", strings.TrimSpace(pid)) // fails if it has ended
			}
			return os.Remove(group) == nil
		})
	})
	setGroup(group, "cpu.rt_runtime_us", "50000") // for the hearts of package stall, on a kernel that limits them
	for _, setting := range [][2]string{
		// A process outside of groups has 1024. Much more would starve the kernel's threads, such as those that
		// handle packets.
		{"cpu.shares", "16384"},
		{"cgroup.procs", strconv.Itoa(os.Getpid())},
	} {
		if err := setGroup(group, setting[0], setting[1]); err != nil {
			t.Logf("other programs may disturb this test: %v", err)
		}
	}
}

// setGroup changes a setting of a group.
func setGroup(group, setting, value string) error {
	return os.WriteFile(filepath.Join(group, setting), []byte(value), 0)
}

// ownGroup returns the directory of the group to which this process belongs in the CPU controller. In a container, that
// is the only one that it can see.
func ownGroup(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(lab.Read(t, "/proc/self/cgroup")) { // see cgroups(7)
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if !slices.Contains(strings.Split(fields[1], ","), "cpu") {
			continue
		}
		own := filepath.Join(cpuController, fields[2])
		if _, err := os.Stat(own); err == nil {
			return own
		}
	}
	return cpuController
}

// LimitCPU lets the program have at most the given share of one processor, in per cent, until the
// test ends. The kernel gives it that share at the start of every tenth of a second, and nothing
// afterwards.
func (p *Process) LimitCPU(percent int) {
	p.t.Helper()
	group, err := os.MkdirTemp(ownGroup(p.t), "shaker-lab-")
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
		if err := setGroup(group, setting[0], setting[1]); err != nil {
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
