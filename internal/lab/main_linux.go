package lab

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/stall"
)

// Soak is how long the tests of endurance last.
var Soak = flag.Duration("soak", 3*time.Second, "how long the tests of endurance last")

// insideEnv marks a test process that already runs in its own namespace. Its value is [Dir].
const insideEnv = "SHAKER_LAB_INSIDE"

// errOutside is why the tests do not run in a namespace of their own, nil if they do.
var errOutside = errors.New("lab.Main was not called")

// Main runs a package's tests in a network namespace of their own, if it can make one, and fails them if
// they leave goroutines behind. TestMain calls it. It does not return.
func Main(m *testing.M) { MainIn(m, ".") }

// MainIn is Main for tests that run in another directory than their package's.
func MainIn(m *testing.M, directory string) {
	stall.RunIfHearts()
	if os.Getenv(insideEnv) == "" {
		if err := os.Chdir(directory); err != nil {
			panic(err)
		}
		code, err := runInside()
		if err == nil {
			os.Exit(code)
		}
		errOutside = err
	} else {
		errOutside = LoopbackUp()
	}
	goleak.VerifyTestMain(m)
}

// runInside runs this test binary again, in a new network namespace, and returns its
// exit code. The error tells why it could not be started.
func runInside() (code int, err error) {
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
	defer runtime.UnlockOSThread()
	as := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		as.Cloneflags |= syscall.CLONE_NEWUSER
		as.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		as.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	directory, err := os.MkdirTemp("", "shaker-lab-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(directory)
	child.Env = append(os.Environ(), insideEnv+"="+directory)
	child.SysProcAttr = as
	if err := child.Start(); err != nil {
		return 0, fmt.Errorf("a network namespace of its own: %w", err)
	}
	child.Wait()
	return max(child.ProcessState.ExitCode(), -child.ProcessState.ExitCode()), nil
}

// Dir returns a directory that the tests of the package share. It is removed when all have ended.
func Dir() string { return os.Getenv(insideEnv) }

// LoopbackUp sets up the loopback interface of this thread's network namespace.
func LoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// Need skips a test that is not in a network namespace of its own.
func Need(t testing.TB) {
	t.Helper()
	if errOutside != nil {
		Skip(t, "needs %v", errOutside)
	}
}

// NeedRoot skips a test that is not in a network namespace of its own as the real root,
// but as that of a user namespace, which is no one else besides.
func NeedRoot(t testing.TB) {
	t.Helper()
	Need(t)
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if fields := strings.Fields(string(ids)); os.Geteuid() != 0 || len(fields) != 3 || fields[2] == "1" {
		Skip(t, "needs root")
	}
}

// Skip skips a test for want of something on this machine. With SHAKER_TEST_ALL=1 in the
// environment nothing may be wanting: the test fails.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("SHAKER_TEST_ALL") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Program returns the path of a program of a Debian package, and skips the test if it
// is not installed.
func Program(t testing.TB, name, debianPackage string) string {
	t.Helper()
	for _, where := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(where); err == nil {
			return path
		}
	}
	Skip(t, "needs %s of Debian's package %s", name, debianPackage)
	return ""
}

// Eventually asks again and again until the condition holds, and fails the test after a
// minute.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for a minute: %s", what)
		}
	}
}
