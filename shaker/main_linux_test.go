package shaker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

func TestMain(m *testing.M) { lab.Main(m) }

// startOne starts a Shaker with a single loop for the rest of the test, and returns the loop.
func startOne(tb testing.TB) (*Shaker, *loop) {
	tb.Helper()
	return startOneWith(tb, startConfig)
}

func startOneWith(tb testing.TB, config *Config) (*Shaker, *loop) {
	tb.Helper()
	engine, err := newEngineOf(1, config.Raw)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(engine.close)
	return &Shaker{engine: engine}, engine.loops[0]
}

// isRaw reports whether the Shakers of start send SYNs without sockets.
func isRaw() bool { return startConfig.Raw != nil }

// mustShake shakes hands within 5 s. It fails the test on an error.
func mustShake(tb testing.TB, s *Shaker, target netip.AddrPort) Result {
	tb.Helper()
	r, err := s.Shake(context.Background(), target, &Options{Timeout: 5 * time.Second})
	if err != nil {
		tb.Fatalf("Shake(%v): error %v, want a verdict", target, err)
	}
	return r
}

// goShake is like mustShake, but does not wait. The function that it returns waits for the result.
func goShake(tb testing.TB, s *Shaker, target netip.AddrPort) (wait func() Result) {
	var r Result
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err = s.Shake(context.Background(), target, &Options{Timeout: 5 * time.Second})
	}()
	return func() Result {
		tb.Helper()
		<-done
		if err != nil {
			tb.Fatalf("Shake(%v): error %v, want a verdict", target, err)
		}
		return r
	}
}

// inTime repeats a handshake with a short timeout while a stall of the machine makes its SYN late.
func inTime(shake func() (Result, error)) (r Result, err error) {
	for range 20 {
		if r, err = shake(); !errors.Is(err, ErrUnsent) {
			break
		}
	}
	return r, err
}

// listen listens on address until the test ends. accepted counts how often accept returns: once for
// each handshake whose final ACK was sent.
func listen(tb testing.TB, address string) (target netip.AddrPort, accepted *atomic.Int64) {
	tb.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	accepted = new(atomic.Int64)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			accepted.Add(1)
			if err == nil {
				conn.Close()
			}
		}
	})
	tb.Cleanup(func() { l.Close(); accepting.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort(), accepted
}

// closedPort returns a loopback address and port on which no process listens.
func closedPort(tb testing.TB) netip.AddrPort {
	lab.Need(tb)
	return netip.MustParseAddrPort("127.0.0.1:1")
}

// assertNoACK fails the test if this host has sent a segment with an ACK and without an RST: the
// final ACK of a handshake, or the FIN of a connection.
func assertNoACK(tb testing.TB, wire *simnet.Wire) {
	tb.Helper()
	if acks := wire.ACKs(); len(acks) > 0 {
		tb.Fatalf("%d ACKs were sent, want none; the first is %v\n%s",
			len(acks), acks[0], wire.Trace(acks[0].Dst.Addr()))
	}
}
