package shaker

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// giveCopy starts a child that holds a copy of the only handshake's descriptor until the test ends, as every
// child does between fork(2) and execve(2).
func giveCopy(t *testing.T, l *loop) {
	t.Helper()
	h := hold(l)
	defer close(h.release)
	for _, handshake := range handshakes(l) {
		fd, err := unix.FcntlInt(uintptr(handshake.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(lab.Program(t, "sleep", "coreutils"), "1000")
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "copy")}
		process.Start(t, cmd)
		cmd.ExtraFiles[0].Close()
	}
}

// A child holds a copy of the socket. The RST is sent before Shake returns nevertheless.
func TestRSTWithCopyOfTheSocket(t *testing.T) {
	s, l := startOne(t)
	syns := make(chan simnet.Segment, 10)
	wire := simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			syns <- s
		}
		return nil
	}, "192.0.2.0/24")
	wait := goShake(t, s, target4)
	syn := <-syns
	giveCopy(t, l)
	wire.Send(syn.SYNACK())
	if r := wait(); r.Outcome != Open {
		t.Errorf("Shake(%v) = %+v, want Open", target4, r)
	}
	resets := 0
	for segment := range wire.SentTo(target4) {
		if segment.RST {
			resets++
		}
	}
	if resets != 1 {
		t.Errorf("%d RSTs were sent when Shake returned, want 1:\n%s", resets, wire.Trace(target4.Addr()))
	}
}

// A child holds a copy of the socket when the caller gives up. The kernel gives up, too: it would go on to send
// SYNs and complete the handshake.
func TestCancellationWithCopyOfTheSocket(t *testing.T) {
	s, l := startOne(t)
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.Shake(ctx, target4, nil)
		done <- err
	}()
	wire.Await(1)
	giveCopy(t, l)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Shake(%v): error %v, want %v", target4, err, context.Canceled)
	}
	if sockets := kernel.Sockets(t); slices.ContainsFunc(sockets, func(s kernel.Socket) bool {
		return s.State == unix.BPF_TCP_SYN_SENT
	}) {
		t.Errorf("the kernel has the sockets %+v, want none in SYN_SENT", sockets)
	}
}
