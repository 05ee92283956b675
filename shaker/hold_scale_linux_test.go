package shaker

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// holdPeerEnv marks a process that accepts connections and echoes their data. The limit of descriptors of a process may
// be 20,000, so the two ends of many connections are in two processes.
const holdPeerEnv = "SHAKER_TEST_HOLD_PEER"

// echoForever accepts the connections of the listener that is descriptor 3.
func echoForever() error {
	const listener = 3
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	watch := func(fd int) error {
		return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	if err := watch(listener); err != nil {
		return err
	}
	events, data := make([]unix.EpollEvent, 100), make([]byte, 4096)
	for {
		n, err := unix.EpollWait(epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, event := range events[:max(n, 0)] {
			if event.Fd != listener {
				if n, err := unix.Read(int(event.Fd), data); n > 0 {
					unix.Write(int(event.Fd), data[:n])
				} else if err == nil || err != unix.EINTR {
					unix.Close(int(event.Fd))
				}
				continue
			}
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err == nil {
				err = watch(fd)
			}
			if err != nil {
				return err
			}
		}
	}
}

// A multitude is many connections to another process at the other end of a cable.
type multitude struct {
	tb     testing.TB
	chain  *kernel.Chain
	target netip.AddrPort
	all    []*Connection

	established, answered, unanswered, ended, deaths atomic.Int64
}

// newMultitude starts the other process. TestHoldMany calls echoForever there.
func newMultitude(tb testing.TB) *multitude {
	m := &multitude{tb: tb, chain: kernel.NewChain(tb)}
	var l net.Listener
	m.chain.In(1, func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		l, err = config.Listen(context.Background(), "tcp", "10.77.1.2:7000")
		return err
	})
	defer l.Close()
	m.target = l.Addr().(*net.TCPAddr).AddrPort()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	itself, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	file.Fd() // sets it to blocking mode
	cmd := exec.Command(itself, "-test.run=^TestHoldMany$")
	cmd.Env = append(os.Environ(), holdPeerEnv+"=1")
	cmd.ExtraFiles = []*os.File{file}
	process.Start(tb, cmd)
	return m
}

// hold establishes n connections, some hundred at the same time.
func (m *multitude) hold(s *Shaker, n int, options HoldOptions) {
	m.tb.Helper()
	each := func(_ *Connection, e ConnectionEvent) {
		switch {
		case e.Kind == Established:
			m.established.Add(1)
		case e.Kind == Answered:
			m.answered.Add(1)
		case e.Kind == Unanswered:
			m.unanswered.Add(1)
		case e.Kind == Ended && (e.Outcome == Timeout || e.Outcome == Unreachable): // the latter if there was data
			m.ended.Add(1)
			m.deaths.Add(1)
		case e.Kind == Ended:
			m.ended.Add(1)
			m.tb.Logf("a connection has ended: %v, errno %s, error %v", e.Outcome, ErrnoName(e.Errno), e.Err)
		}
	}
	m.all = make([]*Connection, 0, n)
	for len(m.all) < n {
		for range min(500, n-len(m.all)) {
			c, err := s.Hold(m.target, options, each)
			if err != nil {
				m.tb.Fatal(err)
			}
			m.all = append(m.all, c)
		}
		lab.Eventually(m.tb, "all connections are established", func() bool {
			if m.ended.Load() > 0 {
				m.tb.Fatalf("%d connections have ended, want none", m.ended.Load())
			}
			return m.established.Load() == int64(len(m.all))
		})
	}
}

// pull pulls the cable, and waits until all connections have ended.
func (m *multitude) pull() {
	m.tb.Helper()
	m.chain.In(1, func() error { return onLink("to0", netlink.LinkSetDown) })
	lab.Eventually(m.tb, "all connections have ended", func() bool { return m.ended.Load() == int64(len(m.all)) })
}

func heapInUse() uint64 {
	for range 3 { // a sync.Pool survives one garbage collection
		runtime.GC()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// Many connections take no goroutine and little memory each, and when the cable is pulled, each of them ends.
func TestHoldMany(t *testing.T) {
	if os.Getenv(holdPeerEnv) != "" {
		t.Fatal(echoForever())
	}
	n := 19_000
	if lab.Race || testing.Short() {
		n = 2_000
	}
	lab.NeedDescriptors(t, n+200)
	m := newMultitude(t)
	s := start(t)
	goroutines, descriptors, before := runtime.NumGoroutine(), lab.Descriptors(t), heapInUse()
	m.hold(s, n, HoldOptions{
		KeepAlive: KeepAlive{Idle: 4 * time.Second, Interval: time.Second, Count: 3},
		Framing:   lines,
	})
	each := float64(heapInUse()-before) / float64(n)
	if each > 1536 && !lab.Race {
		t.Errorf("%.0f bytes of heap for each connection, want 1536 at most", each)
	}
	if more := runtime.NumGoroutine() - goroutines; more > 5 {
		t.Errorf("%d more goroutines, want none for a connection", more)
	}
	m.pull()
	if m.deaths.Load() != int64(n) {
		t.Errorf("%d of %d connections ended because the peer was gone, want all", m.deaths.Load(), n)
	}
	if open := lab.Descriptors(t); open != descriptors {
		t.Errorf("%d descriptors are open, want %d as before", open, descriptors)
	}
	m.all = nil
	t.Logf("%.0f bytes of heap for each connection; after the end of all of them, %d bytes more than before",
		each, int64(heapInUse())-int64(before))
}

// BenchmarkHold measures 19,000 connections, at rest and with a heartbeat every 10 s, and the handshakes of callers
// beside them. Their 99th percentile is compared with that before the connections.
//
//	go test -run '^$' -bench 'Hold$' -benchtime 1x ./shaker
func BenchmarkHold(b *testing.B) {
	for name, heartbeat := range map[string]Heartbeat{
		"rest":      {},
		"heartbeat": ping(10*time.Second, 2*time.Second),
	} {
		b.Run(name, func(b *testing.B) { benchmarkHold(b, heartbeat) })
	}
}

func benchmarkHold(b *testing.B, heartbeat Heartbeat) {
	n, measured := 19_000, 30*time.Second
	keepAlive := KeepAlive{Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
	if testing.Short() {
		n, measured = 1_000, time.Second
		keepAlive = KeepAlive{Idle: 2 * time.Second, Interval: time.Second, Count: 2}
	}
	lab.NeedDescriptors(b, n+200)
	m := newMultitude(b)
	s := start(b)
	open, _ := listen(b, "127.0.0.1:0")
	p99 := func() float64 {
		var all []time.Duration
		for range 20_000 {
			began := time.Now()
			mustShake(b, s, open)
			all = append(all, time.Since(began))
		}
		slices.Sort(all)
		return all[len(all)*99/100].Seconds() * 1e6
	}
	alone, before := p99(), heapInUse()
	m.hold(s, n, HoldOptions{
		KeepAlive: keepAlive,
		Framing:   lines,
		Heartbeat: heartbeat,
	})
	heap := float64(heapInUse()-before) / float64(n)
	b.ResetTimer()
	answered, cpu, began := m.answered.Load(), lab.CPU(), time.Now()
	time.Sleep(measured)
	cpu = lab.CPU() - cpu
	share := cpu.Seconds() / time.Since(began).Seconds()
	answered = m.answered.Load() - answered
	began = time.Now()
	for _, c := range m.all {
		if _, err := c.State(); err != nil {
			b.Fatal(err)
		}
	}
	state := time.Since(began).Seconds() / float64(n)
	beside := p99()
	missing := m.unanswered.Load() // before the cable is pulled
	m.pull()
	b.ReportMetric(0, "ns/op") // it means nothing
	b.ReportMetric(heap, "heap-B/connection")
	b.ReportMetric(share*100, "CPU-%")
	if answered > 0 {
		b.ReportMetric(cpu.Seconds()/float64(answered)*1e6, "CPU-µs/heartbeat")
		b.ReportMetric(float64(missing), "unanswered")
	}
	b.ReportMetric(state*1e6, "µs/State")
	b.ReportMetric(beside/alone, "p99-ratio")
	b.ReportMetric(float64(int64(n)-m.deaths.Load()), "missed-deaths")
}
