// Package process starts and stops the programs that a test needs, such as servers and
// Prometheus. Each ends with its test, and with the test binary if that is killed. If the test
// fails, its log has what the program printed.
package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// A Process is a program that a test has started.
type Process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	output string        // a file
	ended  chan struct{} // closed when the program has ended
}

// Start starts a program, which is ended with the test. What it prints is shown if the
// test fails.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{t: t, name: filepath.Base(cmd.Path), cmd: cmd, ended: make(chan struct{})}
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	p.output = output.Name()
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread that starts the program
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		if cmd.Process != nil {
			cmd.Wait()
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			output := p.Output()
			t.Logf("%s printed, at last:\n%s", p.name, output[max(0, len(output)-4000):])
		}
	})
	return p
}

// Signal sends a signal to the program.
func (p *Process) Signal(signal os.Signal) { p.cmd.Process.Signal(signal) }

// PID returns the program's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Stopped tells whether all threads of the program are stopped.
func (p *Process) Stopped() bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		p.t.Fatalf("%s has no threads: %v", p.name, err)
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			return false // it has just ended
		}
		if _, state, _ := strings.Cut(string(stat), ") "); state[:1] != "T" { // the thread's name comes first
			return false
		}
	}
	return true
}

// Resident returns how many bytes of the program are in memory.
func (p *Process) Resident() int { return p.kernelTells("smaps_rollup", "Rss") }

// PeakResident returns how many there have been at most.
func (p *Process) PeakResident() int { return p.kernelTells("status", "VmHWM") }

// kernelTells returns a number of bytes from one of the program's files in /proc.
func (p *Process) kernelTells(file, name string) int {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n"+name+":")
	var kilobytes int
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		p.t.Fatalf("%s has no %s: %s", file, name, text)
	}
	return kilobytes << 10
}

// Status returns a field of the program's status in /proc.
func (p *Process) Status(name string) string {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n"+name+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

// Wait returns the program's exit code once it has ended, and fails the test if that
// takes more than 30 s.
func (p *Process) Wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		p.t.Fatalf("%s does not end", p.name)
		return -1
	}
}

// Stop ends the program: with SIGTERM, and with SIGKILL if it has not ended 10 s later.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		p.Signal(syscall.SIGKILL)
		<-p.ended
	}
}

// Output returns what the program has printed so far.
func (p *Process) Output() string {
	output, err := os.ReadFile(p.output)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(output)
}

// Listening waits until somebody listens on the TCP port, without connecting to it.
func (p *Process) Listening(port int) {
	p.t.Helper()
	lab.Eventually(p.t, fmt.Sprintf("%s listens on port %d", p.name, port), func() bool {
		if p.Ended() {
			p.t.Fatalf("%s has ended", p.name)
		}
		return slices.ContainsFunc(kernel.Sockets(p.t), func(s kernel.Socket) bool { return s.State == unix.BPF_TCP_LISTEN && s.Near == port })
	})
}

// Compile compiles a C program for the test and returns its path.
func Compile(t testing.TB, source string) string {
	t.Helper()
	compiler := lab.Program(t, "cc", "gcc")
	program := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	if out, err := exec.Command(compiler, "-O2", "-Wall", "-Werror", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", source, err, out)
	}
	return program
}

// KeepBusy keeps every processor busy until the test ends.
func KeepBusy(t testing.TB) {
	t.Helper()
	for range runtime.NumCPU() {
		Start(t, exec.Command("sh", "-c", "while :; do :; done"))
	}
}
