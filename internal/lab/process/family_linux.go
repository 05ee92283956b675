package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A family is a program and its descendants: the processes in a UTS namespace that the program was started in. Unlike
// a process group, a child cannot leave it by setsid, as those of sshd and PostgreSQL do. Unlike a parent, a
// namespace is still known when processes between the program and a descendant have ended. The namespace changes
// nothing for the program: it has the same host name.
type family struct {
	namespace string // as in /proc/PID/ns/uts
}

// newFamily moves this thread into a new UTS namespace. The processes that the thread starts are the family. The thread
// must not end before the family has, because the kernel reuses the numbers of namespaces.
func newFamily() (family, error) {
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return family{}, fmt.Errorf("a UTS namespace: %w", err)
	}
	namespace, err := os.Readlink("/proc/thread-self/ns/uts")
	return family{namespace}, err
}

// kill kills the processes of the family, and waits until they have ended.
func (f family) kill() {
	for {
		pids := f.running()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			// From here on, the process is that one, even if the kernel reuses its number.
			if process, err := os.FindProcess(pid); err == nil {
				if f.contains(pid, pid) {
					process.Signal(syscall.SIGKILL)
				}
				process.Release()
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// running returns the IDs of the family's processes. The thread of this process that has started them is not among
// them.
func (f family) running() (pids []int) {
	threads, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*") // fails for malformed patterns only
	for _, thread := range threads {
		fields := strings.Split(thread, "/")
		pid, _ := strconv.Atoi(fields[2])
		tid, _ := strconv.Atoi(fields[4])
		if pid != os.Getpid() && f.contains(pid, tid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// contains reports whether a thread is one of the family. A thread that is ending leaves its namespaces after it has
// closed its files.
func (f family) contains(pid, tid int) bool {
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/task/%d/ns/uts", pid, tid))
	return err == nil && namespace == f.namespace
}
