package cli

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The last line shows the probe that has been running for the longest time. It is cut to the width of the
// terminal, and erased before other output.
func TestLastLine(t *testing.T) {
	master, slave := process.OpenTerminal(t)
	defer master.Close()
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 30}); err != nil {
		t.Fatal(err)
	}
	out := &terminal{file: slave, closed: make(chan struct{})}
	now := time.Now()
	first := out.wait("a:1")
	second := out.wait("b:2")
	out.draw(now) // draws nothing, because the probe has just begun
	out.draw(now.Add(1500 * time.Millisecond))
	out.line("a:1", "open", true, "")
	first()
	second()
	out.wait("a-name-that-is-longer-than-the-line:3")
	out.draw(now.Add(2 * time.Second))
	slave.Close()
	const want = "a:1: waiting, 1.5 s (and 1 mo\r\x1b[Ka:1 open\r\na-name-that-is-longer-than-th"
	if got := process.ReadTerminal(master); got != want {
		t.Errorf("the terminal shows %q, want %q", got, want)
	}
}

// The last line shows how far a probe is. It does not begin to wait again with each step.
func TestProgress(t *testing.T) {
	master, slave := process.OpenTerminal(t)
	defer master.Close()
	out := &terminal{file: slave, closed: make(chan struct{})}
	now := time.Now()
	progress, done := out.track("a:1")
	out.draw(now.Add(time.Second))
	progress("3 of 16 traces")
	out.draw(now.Add(1500 * time.Millisecond))
	done()
	out.draw(now.Add(2 * time.Second))
	slave.Close()
	const want = "a:1: waiting, 1.0 s\r\x1b[Ka:1: 3 of 16 traces, 1.5 s\r\x1b[K"
	if got := process.ReadTerminal(master); got != want {
		t.Errorf("the terminal shows %q, want %q", got, want)
	}
}
