package lab

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/stall"
)

// Soak is the duration of each endurance test.
var Soak = flag.Duration("soak", 3*time.Second, "duration of each endurance test")

// insideEnv marks a test process that runs in the new namespace. Its value is [Dir].
const insideEnv = "SHAKER_LAB_INSIDE"

// parallel is how many tests run at the same time that call Parallel, unless the flag -parallel says otherwise. They
// are those that wait most of the time, so that the number of processors does not matter.
const parallel = "8"

// errOutside is the reason why the tests do not run in a namespace of their own. It is nil if they do.
var errOutside = errors.New("a network namespace of its own, but TestMain does not call lab.Main")

// Main runs a package's tests in a network namespace of their own, if it can create one, and fails if
// they leave goroutines behind. TestMain calls it. It does not return.
func Main(m *testing.M) { MainIn(m, ".") }

// MainIn is like Main, but the tests run in the given directory instead of their package's.
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
	if !slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "-test.parallel") }) {
		flag.Set("test.parallel", parallel)
	}
	goleak.VerifyTestMain(m)
}

// runInside runs this test binary again in a new network namespace and returns its exit code. An error
// means that the kernel did not permit the namespace, so that no test has run.
func runInside() (code int, err error) {
	runtime.LockOSThread() // the kernel sends Pdeathsig when the thread that started the child ends
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
		return 0, fmt.Errorf("a network namespace of its own: %w (run as root with CAP_SYS_ADMIN, "+
			"or permit user namespaces: sysctl user.max_user_namespaces and, on Ubuntu, "+
			"kernel.apparmor_restrict_unprivileged_userns)", err)
	}
	child.Wait()
	code = child.ProcessState.ExitCode()
	return max(code, -code), nil // -1 means that a signal ended the child
}

// Dir returns a temporary directory that the tests of the package share. It is removed after the last
// test.
func Dir() string { return os.Getenv(insideEnv) }

// LoopbackUp sets the loopback interface up in the network namespace of this thread.
func LoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("the loopback interface up: %w", err)
	}
	return nil
}

// Need skips the test if it does not run in a network namespace of its own.
func Need(t testing.TB) {
	t.Helper()
	if errOutside != nil {
		Skip(t, "needs %v", errOutside)
	}
}

// NeedRoot skips the test if it does not run in a network namespace of its own, or if it does not run as
// the real root user. The root user of a user namespace that maps only one user ID is not the real one.
func NeedRoot(t testing.TB) {
	t.Helper()
	Need(t)
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if fields := strings.Fields(string(ids)); os.Geteuid() != 0 || len(fields) != 3 || fields[2] == "1" {
		Skip(t, "needs the real root user (run the tests as root, not in a user namespace)")
	}
}

// Skip skips the test because the machine lacks something. The message says what the test needs and, if
// possible, how to provide it. If SHAKER_TEST_ALL=1 is set in the environment, Skip fails the test instead.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("SHAKER_TEST_ALL") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Eventually calls a function until it reports that the condition is true. It fails the test after three minutes: a
// machine that other tests keep busy may take that long. What describes the condition, such as "the server is ready".
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not true within 3 minutes: %s", what)
		}
	}
}
