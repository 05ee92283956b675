package shaker

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// resultOfStopped runs the same test in another process, with one environment variable more. That process is stopped
// for a while when it has sent its first SYN that is not lost; the SYN-ACK arrives meanwhile. It returns what the
// process has printed behind "result ", and the packets of the handshake for messages.
func resultOfStopped(t *testing.T, stopped time.Duration, lost int, env string) (result string, trace func() string) {
	t.Helper()
	syns := make(chan simnet.Segment, 10)
	wire := simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			syns <- s
		}
		return nil
	}, "192.0.2.0/24", "2001:db8::/64")
	itself, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.Command(itself, "-test.run=^"+name+"$")
	cmd.Env = append(os.Environ(), env)
	child := process.Start(t, cmd)
	for range lost {
		<-syns
	}
	syn := <-syns
	child.Signal(syscall.SIGSTOP)
	lab.Eventually(t, "the process is stopped", child.Stopped)
	wire.Send(syn.SYNACK())
	time.Sleep(stopped)
	child.Signal(syscall.SIGCONT)
	lab.Eventually(t, "the process has a result", func() bool {
		return child.Ended() || strings.Contains(child.Output(), "result ")
	})
	_, result, _ = strings.Cut(child.Output(), "result ")
	return result, func() string { return wire.Trace(syn.Dst.Addr()) }
}
