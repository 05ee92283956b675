package server

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
)

// cgroupMemory returns how much memory this process may use according to the limits of its control group and of the
// groups above it, as far as they are visible. It returns math.MaxInt64 if there is no limit.
func cgroupMemory() int64 {
	self, err := procfs.Self()
	if err != nil {
		return math.MaxInt64
	}
	return cgroupMemoryOf(self)
}

// cgroupMemoryOf is cgroupMemory of a process. What it cannot read does not count as a limit.
func cgroupMemoryOf(p procfs.Proc) int64 {
	limit := int64(math.MaxInt64)
	groups, _ := p.Cgroups()
	mounts, _ := p.MountInfo()
	for _, g := range groups {
		for _, m := range mounts {
			// In a hybrid hierarchy, the files of version 2 do not exist.
			files := []string{"memory.max", "memory.high"}
			if g.HierarchyID != 0 {
				files = []string{"memory.limit_in_bytes"}
			}
			if hasMemory(g, m) {
				limit = min(limit, lowest(m.MountPoint, below(m.Root, g.Path), files))
			}
		}
	}
	return limit
}

// hasMemory reports whether a mount is of the group's hierarchy, and whether that limits memory.
func hasMemory(g procfs.Cgroup, m *procfs.MountInfo) bool {
	if g.HierarchyID == 0 {
		return m.FSType == "cgroup2"
	}
	_, ok := m.SuperOptions["memory"]
	return ok && m.FSType == "cgroup" && slices.Contains(g.Controllers, "memory")
}

// below returns the path of a group relative to a mount of which root is the top. A container may see its own group
// as the top, by whatever path.
func below(root, group string) string {
	rest, err := filepath.Rel(root, group)
	if err != nil || strings.HasPrefix(rest, "..") {
		return "."
	}
	return rest
}

// lowest returns the lowest limit in the files of a group and of the groups above it.
func lowest(mountPoint, group string, files []string) int64 {
	limit := int64(math.MaxInt64)
	for ; ; group = filepath.Dir(group) {
		for _, file := range files {
			text, err := os.ReadFile(filepath.Join(mountPoint, group, file))
			if err != nil {
				continue // the topmost group has no limits
			}
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil { // or "max"
				limit = min(limit, n)
			}
		}
		if group == "." {
			return limit
		}
	}
}
