package server

import (
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/prometheus/procfs"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The memory limit is the lowest one of the process's own group and of the groups above it, in both versions of
// control groups.
func TestCgroupMemory(t *testing.T) {
	const (
		v1Mount = "33 25 0:30 / ROOT/memory rw,nosuid - cgroup cgroup rw,memory\n"
		v1CPU   = "34 25 0:31 / ROOT/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
		v2Mount = "35 25 0:32 / ROOT/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
		none    = int64(math.MaxInt64)
	)
	for _, c := range []struct {
		name, cgroup, mountinfo string
		files                   map[string]string
		want                    int64
	}{
		{name: "nothing", want: none},
		{name: "version 2", cgroup: "0::/system.slice/shaker.service\n", mountinfo: v2Mount,
			files: map[string]string{"unified/system.slice/shaker.service/memory.max": "1000"}, want: 1000},
		{name: "version 2, no limit", cgroup: "0::/system.slice/shaker.service\n", mountinfo: v2Mount,
			files: map[string]string{
				"unified/system.slice/shaker.service/memory.max":  "max",
				"unified/system.slice/shaker.service/memory.high": "max"}, want: none},
		{name: "version 2, slowed down before it is killed",
			cgroup: "0::/system.slice/shaker.service\n", mountinfo: v2Mount,
			files: map[string]string{
				"unified/system.slice/shaker.service/memory.max":  "1000",
				"unified/system.slice/shaker.service/memory.high": "900"}, want: 900},
		{name: "version 2, a group above", cgroup: "0::/system.slice/shaker.service\n", mountinfo: v2Mount,
			files: map[string]string{
				"unified/system.slice/shaker.service/memory.max": "1000",
				"unified/system.slice/memory.max":                "800"}, want: 800},
		{name: "version 2, another group", cgroup: "0::/system.slice/shaker.service\n", mountinfo: v2Mount,
			files: map[string]string{"unified/system.slice/other.service/memory.max": "800"}, want: none},
		{name: "version 2, a container", cgroup: "0::/\n", mountinfo: v2Mount,
			files: map[string]string{"unified/memory.max": "700"}, want: 700},
		{name: "version 2, a container that sees its path on the host", cgroup: "0::/kubepods/pod1/abc\n",
			mountinfo: "35 25 0:32 /kubepods/pod1/abc ROOT/unified ro - cgroup2 cgroup2 rw\n",
			files:     map[string]string{"unified/memory.max": "600"}, want: 600},
		{name: "version 2, outside of the namespace's top", cgroup: "0::/../other\n", mountinfo: v2Mount,
			files: map[string]string{"unified/memory.max": "600"}, want: 600},
		{name: "version 1", cgroup: "5:cpu,cpuacct:/a\n4:memory:/shaker\n", mountinfo: v1CPU + v1Mount,
			files: map[string]string{
				"memory/shaker/memory.limit_in_bytes": "1000",
				"memory/memory.limit_in_bytes":        "9223372036854771712",
				"cpu/a/memory.limit_in_bytes":         "1"}, want: 1000},
		{name: "version 1, a group above", cgroup: "4:memory:/docker/shaker\n", mountinfo: v1Mount,
			files: map[string]string{
				"memory/docker/shaker/memory.limit_in_bytes": "1000",
				"memory/docker/memory.limit_in_bytes":        "500"}, want: 500},
		{name: "version 1, a container", cgroup: "4:memory:/docker/abc\n",
			mountinfo: "33 25 0:30 /docker/abc ROOT/memory ro - cgroup cgroup rw,memory\n",
			files:     map[string]string{"memory/memory.limit_in_bytes": "400"}, want: 400},
		{name: "both versions", cgroup: "4:memory:/shaker\n0::/system.slice/shaker.service\n",
			mountinfo: v1Mount + v2Mount,
			files:     map[string]string{"memory/shaker/memory.limit_in_bytes": "300"}, want: 300},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			write := func(name, content string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
					t.Fatal(err)
				}
				lab.Write(t, root, name, content)
			}
			write("proc/1/cgroup", c.cgroup)
			write("proc/1/mountinfo", strings.ReplaceAll(c.mountinfo, "ROOT", root))
			for name, content := range c.files {
				write(name, content+"\n")
			}
			fs, err := procfs.NewFS(filepath.Join(root, "proc"))
			if err != nil {
				t.Fatal(err)
			}
			self, err := fs.Proc(1)
			if err != nil {
				t.Fatal(err)
			}
			if got := cgroupMemoryOf(self); got != c.want {
				t.Errorf("the limit of a process in %q with the limits %v is %d, want %d",
					c.cgroup, c.files, got, c.want)
			}
		})
	}
}

// GOMEMLIMIT is a memory limit, too, and stays the limit of the Go runtime. Otherwise that is part of the control
// group's limit.
func TestGoMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	group := memoryLimit(cgroupMemory())
	for _, c := range []struct {
		name, env   string
		heap        int64 // what the runtime made of GOMEMLIMIT
		want        memoryLimit
		wantRuntime int64
	}{
		{name: "GOMEMLIMIT", env: "75MiB", heap: 75 << 20, want: 100 << 20, wantRuntime: 75 << 20},
		{name: "GOMEMLIMIT=off", env: "off", heap: math.MaxInt64, want: group, wantRuntime: math.MaxInt64},
	} {
		t.Setenv("GOMEMLIMIT", c.env)
		debug.SetMemoryLimit(c.heap)
		limit := findMemoryLimit()
		limit.apply()
		if runtime := debug.SetMemoryLimit(-1); limit != c.want || runtime != c.wantRuntime {
			t.Errorf("with %s the limit is %d, that of the runtime %d, want %d and %d",
				c.name, limit, runtime, c.want, c.wantRuntime)
		}
	}
	t.Setenv("GOMEMLIMIT", "")
	debug.SetMemoryLimit(math.MaxInt64)
	memoryLimit(100 << 20).apply()
	if got := debug.SetMemoryLimit(-1); got != 75<<20 {
		t.Errorf("with a limit of 100 MiB, the runtime's limit is %d, want 75 MiB", got)
	}
}

// What the memory is enough for. A limit of 0 would mean any number, so it is at least 1.
func TestMemoryIsEnoughFor(t *testing.T) {
	for _, c := range []struct {
		limit                    memoryLimit
		probes, results, targets int
		defaultTargets           int
	}{
		{limit: noMemoryLimit, probes: 0, results: 0, targets: 0, defaultTargets: 20_000},
		// The example for Kubernetes has 10,000 probes.
		{limit: 512 << 20, probes: 10_240, results: 131_072, targets: 43_690, defaultTargets: 20_000},
		{limit: 128 << 20, probes: 2048, results: 32_768, targets: 10_922, defaultTargets: 10_922},
		{limit: 64 << 20, probes: 682, results: 16_384, targets: 5461, defaultTargets: 5461},
		{limit: 32 << 20, probes: 170, results: 8192, targets: 2730, defaultTargets: 2730},
		{limit: 1000, probes: 1, results: 1, targets: 1, defaultTargets: 1},
		{limit: 0, probes: 1, results: 1, targets: 1, defaultTargets: 1},
	} {
		probes, results, targets := c.limit.probes(), c.limit.results(), c.limit.targets()
		if probes != c.probes || results != c.results || targets != c.targets {
			t.Errorf("%d bytes are enough for %d probes, %d results and %d targets, want %d, %d and %d",
				c.limit, probes, results, targets, c.probes, c.results, c.targets)
		}
		if got := c.limit.defaultMaxTargets(); got != c.defaultTargets {
			t.Errorf("with %d bytes, %d targets are watched by default, want %d", c.limit, got, c.defaultTargets)
		}
	}
}

// A flag that the memory is not enough for is capped, and the log says so.
func TestCapped(t *testing.T) {
	for _, c := range []struct {
		value, most, want int
		logged            string
	}{
		{value: 1000, most: 682, want: 682,
			logged: "flag=--probe.max-in-flight value=1000 used=682 memory_limit_bytes=67108864"},
		{value: 682, most: 682, want: 682},
		{value: 1000, most: 0, want: 1000}, // no limit
	} {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, nil))
		got := memoryLimit(64<<20).capped("--probe.max-in-flight", c.value, c.most, logger)
		if got != c.want || !strings.Contains(log.String(), c.logged) || (c.logged == "") != (log.Len() == 0) {
			t.Errorf("--probe.max-in-flight=%d with memory for %d is %d and logs %q, want %d and %q",
				c.value, c.most, got, log.String(), c.want, c.logged)
		}
	}
}
