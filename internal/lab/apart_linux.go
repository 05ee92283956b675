package lab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// apartEnv is the name of the test for which a process runs.
const apartEnv = "SHAKER_LAB_APART"

// Apart runs a test in a process and a network namespace of its own, at the same time as the other tests that call
// Apart. It is for tests that wait most of the time. It returns true if it has done so; then the test must return. In
// the new process it returns false, and the test continues:
//
//	if lab.Apart(t) {
//		return
//	}
func Apart(t *testing.T) (done bool) {
	t.Helper()
	// In the process of a part of this test, this test leads to the part.
	if own := os.Getenv(apartEnv); own == t.Name() || strings.HasPrefix(own, t.Name()+"/") {
		return false
	}
	Need(t)
	t.Parallel()
	var pattern []string
	for _, part := range strings.Split(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	args := []string{"-test.v", "-test.run=" + strings.Join(pattern, "/")}
	flag.Visit(func(f *flag.Flag) {
		if own := []string{"test.short", "test.timeout", "test.paniconexit0"}; slices.Contains(own, f.Name) ||
			!strings.HasPrefix(f.Name, "test.") {
			args = append(args, fmt.Sprintf("-%s=%v", f.Name, f.Value))
		}
	})
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), apartEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the kernel sends Pdeathsig when the thread that started the child ends
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skipf("%s", out)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()+" "):
		t.Errorf("the test did not run:\n%s", out)
	default:
		t.Logf("%s", out)
	}
	return true
}
