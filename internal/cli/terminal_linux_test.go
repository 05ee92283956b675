package cli

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The last line tells of what has been waited for longest, and fits the terminal.
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
	out.draw(now) // nothing yet: it has only begun
	out.draw(now.Add(1500 * time.Millisecond))
	out.line("a:1", "open", true, "")
	first()
	second()
	out.wait("a-name-that-is-longer-than-the-line:3")
	out.draw(now.Add(2 * time.Second))
	slave.Close()
	const want = "a:1: waiting, 1.5 s (and 1 mo\r\x1b[Ka:1 open\r\na-name-that-is-longer-than-th"
	if got := process.ReadTerminal(master); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
