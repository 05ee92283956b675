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

// start starts a Shaker for the rest of the test.
func start(tb testing.TB) *Shaker {
	tb.Helper()
	s, err := New(nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// startOne starts a Shaker with one loop for the rest of the test, which looks into it.
func startOne(tb testing.TB) (*Shaker, *loop) {
	tb.Helper()
	engine, err := newEngineOf(1)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(engine.close)
	return &Shaker{engine: engine}, engine.loops[0]
}

// mustShake shakes hands within 5 s and fails the test if there is no verdict.
func mustShake(tb testing.TB, s *Shaker, target netip.AddrPort) Result {
	tb.Helper()
	r, err := s.Shake(context.Background(), target, &Options{Timeout: 5 * time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// listen listens on address and counts how often accept returns: once for each
// handshake whose last ACK was not withheld.
func listen(tb testing.TB, address string) (netip.AddrPort, *atomic.Int64) {
	tb.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	var accepted atomic.Int64
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
	return l.Addr().(*net.TCPAddr).AddrPort(), &accepted
}

// closedPort returns a loopback address on which nobody listens.
func closedPort(tb testing.TB) netip.AddrPort {
	lab.Need(tb)
	return netip.MustParseAddrPort("127.0.0.1:1")
}

// assertNoACK fails the test if this host has sent a segment with an ACK and without an
// RST: the last ACK of a handshake, or the FIN of a connection.
func assertNoACK(tb testing.TB, wire *simnet.Wire) {
	tb.Helper()
	if acks := wire.ACKs(); len(acks) > 0 {
		tb.Fatalf("%d ACKs left, the first: %v\n%s", len(acks), acks[0], wire.Trace(acks[0].Dst.Addr()))
	}
}

// holdUp is a task that keeps the loop busy, as an overloaded machine does: between held
// being closed by the loop and release being closed by the test, the loop does nothing.
type holdUp struct {
	slot          *slot
	held, release chan struct{}
}

// hold returns when the loop is held up.
func hold(l *loop) *holdUp {
	h := &holdUp{held: make(chan struct{}), release: make(chan struct{})}
	go l.submit(h, 0) // it takes the turn itself if nobody else does
	<-h.held
	return h
}

func (h *holdUp) seat(s *slot) { h.slot = s }
func (h *holdUp) start(l *loop) {
	close(h.held)
	<-h.release
	l.finish(h.slot)
}
func (h *holdUp) ready(*loop, uint32)  {}
func (h *holdUp) expire(*loop)         {}
func (h *holdUp) abandon(*loop, error) {}
func (h *holdUp) wake(l *loop)         { l.woke() }
