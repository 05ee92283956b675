// Package process starts and stops the programs that a test needs, such as servers and Prometheus. A
// program ends when its test ends, and when the test binary is killed. Processes that the program has started end
// with it at the latest, so that none of them writes to the directories of a test that has ended. If the test fails,
// its log contains the output of the program.
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
	"github.com/shaker-exporter/shaker_exporter/internal/lab/stall"
)

// A Process is a program that a test has started.
type Process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	output string        // path of the file with the output
	ended  chan struct{} // closed when the program and its descendants have ended
}

// Start starts a program, and stops it when the test ends. When the program has ended, its descendants are killed. If
// the test fails, Start logs the end of the program's output.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	lab.Need(t) // and with it the privilege for further namespaces
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
		runtime.LockOSThread() // the kernel sends Pdeathsig when the thread that started the program ends
		// The thread stays locked, so that it ends with the goroutine: it leaves the namespace of the other threads.
		family, err := newFamily()
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			cmd.Wait()
			family.kill()
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		t.Fatalf("cannot start %s: %v", p.name, err)
	}
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			output := p.Output()
			t.Logf("the end of the output of %s:\n%s", p.name, output[max(0, len(output)-4000):])
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

// Stopped reports whether all threads of the program are stopped, as by SIGSTOP.
func (p *Process) Stopped() bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		p.t.Fatalf("threads of %s in /proc: %v, %v, want at least one", p.name, files, err)
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			return false // the thread has just ended
		}
		// The file contains the number, the name in parentheses, and the state of the thread.
		if _, state, _ := strings.Cut(string(stat), ") "); state[:1] != "T" {
			return false
		}
	}
	return true
}

// Resident returns the resident memory of the program in bytes.
func (p *Process) Resident() int { return p.memory("smaps_rollup", "Rss") }

// Anonymous returns the resident memory of the program in bytes, without that of files such as its code.
func (p *Process) Anonymous() int { return p.memory("status", "RssAnon") }

// PeakResident returns the largest resident memory that the program has had, in bytes.
func (p *Process) PeakResident() int { return p.memory("status", "VmHWM") }

// memory returns a field of one of the program's files in /proc, converted to bytes.
func (p *Process) memory(file, name string) int {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n"+name+":")
	var kilobytes int
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		p.t.Fatalf("/proc/%d/%s has no number %s:\n%s", p.cmd.Process.Pid, file, name, text)
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

// Wait waits until the program has ended, and returns its exit code. It fails the test after 30 s.
func (p *Process) Wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		p.t.Fatalf("%s has not ended within 30 s", p.name)
		return -1
	}
}

// Stop ends the program with SIGTERM, or with SIGKILL if it has not ended 10 s later.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		p.Signal(syscall.SIGKILL)
		<-p.ended
	}
}

// Output returns the output of the program so far.
func (p *Process) Output() string {
	output, err := os.ReadFile(p.output)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(output)
}

// Listening waits until a program listens on the TCP port. It does not connect to the port.
func (p *Process) Listening(port int) {
	p.t.Helper()
	lab.Eventually(p.t, fmt.Sprintf("%s listens on port %d", p.name, port), func() bool {
		if p.Ended() {
			p.t.Fatalf("%s has ended, want it to listen on port %d", p.name, port)
		}
		return slices.ContainsFunc(kernel.Sockets(p.t), func(s kernel.Socket) bool {
			return s.State == unix.BPF_TCP_LISTEN && s.Near == port
		})
	})
}

// Compile compiles a C program for the test and returns its path.
func Compile(t testing.TB, source string) string {
	t.Helper()
	compiler := lab.Program(t, "cc", "gcc")
	program := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	cmd := exec.Command(compiler, "-O2", "-Wall", "-Werror", "-o", program, source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot compile %s: %v\n%s", source, err, out)
	}
	return program
}

// KeepBusy keeps every processor busy, from its return until the test ends.
func KeepBusy(t testing.TB) {
	t.Helper()
	shell := lab.Program(t, "sh", "dash")
	for _, cpu := range stall.Processors() {
		loop := Start(t, exec.Command(shell, "-c", "while :; do :; done"))
		var own unix.CPUSet
		own.Set(cpu)
		if err := unix.SchedSetaffinity(loop.PID(), &own); err != nil { // otherwise two may share a processor
			t.Fatal(err)
		}
		lab.Eventually(t, "the loop runs", func() bool { return loop.CPU() > 0 })
	}
}
