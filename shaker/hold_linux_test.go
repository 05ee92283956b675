package shaker

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// silentTarget returns a target that does not answer.
func silentTarget(t *testing.T) netip.AddrPort {
	simnet.NewNetwork(t).At("192.0.2.1")
	return netip.MustParseAddrPort("192.0.2.1:80")
}

// The kernel's age of the last data starts again after 49 days. LastData does not.
func TestHoldDataAge(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		read  time.Duration // before now; 0 is never
		last  uint32        // of the kernel, in ms
		want  time.Duration
		about string
	}{
		{about: "not read yet", read: 0, last: 20, want: 20 * time.Millisecond},
		{about: "read now", read: time.Millisecond, last: 4, want: 4 * time.Millisecond},
		{about: "24 days", read: 24 * day, last: 24 * 86_400_000, want: 24 * day},
		{about: "50 days", read: 50 * day, last: 50*86_400_000 - 1<<32, want: 50 * day},
		{about: "100 days", read: 100 * day, last: 100*86_400_000 - 2<<32, want: 100 * day},
	} {
		const now = 1000 * day
		var conn Connection
		if c.read > 0 {
			conn.data = now - c.read
		}
		if got := conn.dataAge(now, &unix.TCPInfo{Last_data_recv: c.last}); got != c.want {
			t.Errorf("%s: the age of data that was read %v ago is %v, and the kernel says %d ms, want %v",
				c.about, c.read, got, c.last, c.want)
		}
	}
}

// Close while the handshake is in progress, or before it has begun, closes the socket.
func TestHoldCloseWhileConnecting(t *testing.T) {
	silent := silentTarget(t)
	s := start(t)
	before := lab.Descriptors(t)
	for range 100 {
		h := mustHold(t, s, silent, HoldOptions{})
		if state := h.mustState(); !state.Established.IsZero() || state.Peer != silent {
			t.Errorf("the state while connecting is %+v, want that of a connection that is not established", state)
		}
		h.Close()
		h.none()
		mustHold(t, s, silent, HoldOptions{}).Close()
	}
	if after := lab.Descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d as before", after, before)
	}
}

// A connection that cannot be established ends with the verdict of the handshake, or with the error of this host.
func TestHoldCannotConnect(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	silent := silentTarget(t)
	s := start(t)
	for _, c := range []struct {
		target netip.AddrPort
		want   Outcome
		errno  Errno
	}{
		{target: closedPort(t), want: Refused, errno: unix.ECONNREFUSED},
		{target: silent, want: Timeout, errno: unix.ETIMEDOUT},
	} {
		h := mustHold(t, s, c.target, HoldOptions{Options: Options{Timeout: 2 * time.Second}})
		e := h.next(Ended)
		r := e.Result
		if e.Outcome != c.want || e.Errno != c.errno || e.Err != nil || r.Outcome != c.want || r.SYNs == 0 {
			t.Errorf("Hold(%v): Ended: %+v, want %v and the result of the handshake", c.target, e, c.want)
		}
	}
	lab.WithDescriptors(t, 0, func() {
		h := mustHold(t, s, silent, HoldOptions{})
		if e := h.next(Ended); !errors.Is(e.Err, ErrLocal) || !errors.Is(e.Err, unix.EMFILE) || e.Outcome != 0 {
			t.Errorf("without descriptors: Ended: %+v, want an error that wraps ErrLocal and EMFILE", e)
		}
	})
}

// The socket of an established connection is an ordinary one. That of a handshake withholds the ACK and queues ICMP
// errors.
func TestHoldSocketOptions(t *testing.T) {
	s, l := startOne(t)
	for _, c := range []struct {
		address   string
		fin       bool
		level     int
		recverr   int
		keepAlive KeepAlive
	}{
		{address: "127.0.0.1:0", level: unix.IPPROTO_IP, recverr: unix.IP_RECVERR, keepAlive: dead},
		{address: "[::1]:0", level: unix.IPPROTO_IPV6, recverr: unix.IPV6_RECVERR, fin: true},
	} {
		p := newPeer(t, c.address)
		h := mustHold(t, s, p.target, HoldOptions{Options: Options{FIN: c.fin}, KeepAlive: c.keepAlive})
		h.next(Established)
		stopped := hold(l)
		fd := h.fd
		for _, option := range []struct {
			name          string
			level, option int
			want          int
		}{
			{name: "IP_RECVERR", level: c.level, option: c.recverr, want: 0},
			{name: "TCP_QUICKACK", level: unix.IPPROTO_TCP, option: unix.TCP_QUICKACK, want: 1},
		} {
			if got, err := unix.GetsockoptInt(fd, option.level, option.option); err != nil || got != option.want {
				t.Errorf("%v: %s is %d, error %v, want %d", p.target, option.name, got, err, option.want)
			}
		}
		linger, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
		if err != nil || (linger.Onoff == 0) != c.fin {
			t.Errorf("%v: SO_LINGER is %+v, error %v, want it off with FIN: %t", p.target, linger, err, c.fin)
		}
		close(stopped.release)
	}
}

// A peer that floods does not hold up handshakes, other connections or answers. What the function cannot take in time
// is counted, and takes no more memory.
func TestHoldFlood(t *testing.T) {
	s, _ := startOne(t)
	flooding, calm := newPeer(t, "127.0.0.1:0"), newPeer(t, "127.0.0.1:0")
	target, _ := listen(t, "127.0.0.1:0")
	const connections = 8
	release, over := make(chan struct{}), make(chan struct{})
	var all []*Connection
	var received, answered atomic.Int64
	for range connections {
		c, err := s.Hold(flooding.target, HoldOptions{Framing: lines}, func(_ *Connection, e ConnectionEvent) {
			if e.Kind == Received {
				received.Add(1)
				<-release
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	h := mustHold(t, s, calm.target, HoldOptions{
		Framing:   lines,
		Heartbeat: ping(20*time.Millisecond, 19*time.Millisecond),
	})
	var flood sync.WaitGroup
	defer func() { close(over); flood.Wait() }()
	for range connections {
		conn := flooding.accept()
		flood.Go(func() {
			defer conn.Close()
			data := bytes.Repeat([]byte("\n"), 1<<16)
			for {
				select {
				case <-over:
					return
				default:
					conn.SetWriteDeadline(time.Now().Add(time.Second))
					conn.Write(data)
				}
			}
		})
	}
	conn := calm.accept()
	for range 50 { // heartbeats are sent and answers are read, while the function does not return
		expect(t, conn, "PING\n")
		write(t, conn, "PONG\n")
		mustShake(t, s, target)
		answered.Add(1)
	}
	lab.Eventually(t, "each flooding connection has dropped a million frames", func() bool {
		for _, c := range all {
			if c.Unread() < 1_000_000 {
				return false
			}
		}
		return true
	})
	if n := s.engine.backlog.Load(); n > connections*unreadFrames*eventBytes+1<<20 {
		t.Errorf("%d bytes of events wait, want those of %d frames of each connection", n, unreadFrames)
	}
	close(release)
	h.next(Established)
	for i := int64(0); i < answered.Load(); {
		select {
		case e := <-h.events:
			if e.Kind == Answered {
				i++
			} else if e.Kind != Unanswered { // this machine was too slow
				t.Fatalf("the event %+v, want Answered", e)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d answers have been passed on within a minute", i, answered.Load())
		}
	}
	if n := h.Unread(); n != 0 {
		t.Errorf("%d events of the calm connection were dropped, want 0", n)
	}
}

// A loop that comes late to the judgement of a heartbeat reads the answer first, and the kernel's clock tells when it
// arrived.
func TestHoldLateLoop(t *testing.T) {
	s, l := startOne(t)
	p := newPeer(t, "127.0.0.1:0")
	h := mustHold(t, s, p.target, HoldOptions{Framing: lines, Heartbeat: ping(2*time.Second, 100*time.Millisecond)})
	h.next(Established)
	conn := p.accept()
	answer := func(before, after func()) ConnectionEvent {
		expect(t, conn, "PING\n")
		before()
		write(t, conn, "PONG\n")
		after()
		return h.next(Answered)
	}
	stopped := make(chan *holdUp, 1)
	e := answer(func() { stopped <- hold(l) }, func() {
		time.Sleep(time.Second) // longer than the timeout: the loop is late
		close((<-stopped).release)
	})
	if e.Latency > 700*time.Millisecond {
		t.Errorf("the loop was stopped for 1s after the answer: latency %v, want that of the answer", e.Latency)
	}
	// The control: the answer itself is late.
	e = answer(func() {
		if e := h.next(Unanswered); e.Outcome != Silent {
			t.Errorf("Unanswered: %v, want Silent", e.Outcome)
		}
		time.Sleep(time.Second)
	}, func() {})
	if e.Latency < time.Second {
		t.Errorf("the answer was sent after 1.1s: latency %v, want 1s or more", e.Latency)
	}
}

// Functions may use the connection before Hold has returned.
func TestHoldFunctionIsFirst(t *testing.T) {
	s, _ := startOne(t)
	p := newPeer(t, "127.0.0.1:0")
	other := mustHold(t, s, p.target, HoldOptions{})
	other.next(Established)
	state := make(chan ConnectionState, 1)
	for range 200 {
		c, err := s.Hold(p.target, HoldOptions{}, func(c *Connection, e ConnectionEvent) {
			got, _ := c.State()
			state <- got
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := (<-state).Local, other.mustState().Local; got == want || !got.IsValid() {
			t.Fatalf("the state within the function is that of %v, want another connection than %v", got, want)
		}
		c.Close()
	}
}

// State takes one TCP_INFO, and no other system call for the connection.
func TestHoldStateSystemCalls(t *testing.T) {
	const insideEnv, calls = "SHAKER_TEST_STATES", 1000
	if os.Getenv(insideEnv) != "" {
		s, _ := startOne(t)
		p := newPeer(t, "127.0.0.1:0")
		h := mustHold(t, s, p.target, HoldOptions{})
		h.next(Established)
		for range calls {
			h.mustState()
		}
		return
	}
	lab.Need(t)
	strace := lab.Program(t, "strace", "strace")
	itself, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(strace, "-f", "-qq", "-o", log,
		"-e", "trace=getsockopt,setsockopt,recvfrom,getsockname,getpeername,ioctl",
		itself, "-test.run=^TestHoldStateSystemCalls$")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		lab.Skip(t, "needs permission to trace system calls: %v: %s", err, out)
	}
	trace := lab.Read(t, log)
	infos, all := strings.Count(trace, "TCP_INFO"), strings.Count(trace, "\n")
	if infos < calls || infos > calls+10 || all > calls+100 {
		t.Errorf("%d system calls, %d of them TCP_INFO, for %d States and the connection, want one for each",
			all, infos, calls)
	}
}

// EmptySegments counts the segments without data that the peer sends, such as its keepalives, which are not an answer.
func TestHoldEmptySegments(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		p := newPeer(t, address)
		h := mustHold(t, s, p.target, HoldOptions{})
		h.next(Established)
		conn := p.accept()
		control := mustHold(t, s, p.target, HoldOptions{})
		control.next(Established)
		other := p.accept()
		for _, c := range []*held{h, control} {
			if n := c.mustState().EmptySegments; n != 1 {
				t.Errorf("%v: %d empty segments after the handshake, want 1: the SYN-ACK", p.target, n)
			}
		}
		write(t, other, "data")
		control.next(Received)
		if err := SetKeepAlive(conn, KeepAlive{Idle: time.Second, Interval: time.Second, Count: 3}); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, fmt.Sprintf("%v has sent 2 keepalives", p.target), func() bool {
			return h.mustState().EmptySegments >= 3
		})
		state := h.mustState()
		if state.LastAnswer.After(state.Established.Add(time.Second/2)) || !state.LastData.IsZero() {
			t.Errorf("%v: state %+v after keepalives of the peer, want no answer since the handshake", p.target, state)
		}
		if n := control.mustState().EmptySegments; n != 1 {
			t.Errorf("%v: %d empty segments of a peer that has sent data only, want 1", p.target, n)
		}
	}
}

// Data that arrives together with the end comes first.
func TestHoldDataBeforeEnd(t *testing.T) {
	s, l := startOne(t)
	p := newPeer(t, "127.0.0.1:0")
	for _, c := range []struct {
		reset bool
		want  Outcome
	}{{want: Closed}, {reset: true, want: Reset}} {
		h := mustHold(t, s, p.target, HoldOptions{Framing: lines})
		h.next(Established)
		conn := p.accept()
		stopped := hold(l)
		write(t, conn, "last\nwords")
		if c.reset {
			conn.SetLinger(0)
		}
		conn.Close()
		close(stopped.release)
		if e := h.next(Received); string(e.Frame) != "last" {
			t.Errorf("Received %q, want last", e.Frame)
		}
		if e := h.next(Ended); e.Outcome != c.want {
			t.Errorf("Ended: %v, want %v", e.Outcome, c.want)
		}
	}
}

// More answers than the loop sees in one turn arrive while it is stopped for longer than the timeout: none is missing.
func TestHoldLateLoopAndCrowd(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	s, l := startOne(t)
	p := newPeer(t, "127.0.0.1:0")
	const n = 2 * eventsPerTurn
	lab.NeedDescriptors(t, 2*n+100)
	var all []*held
	var conns []*net.TCPConn
	for range n {
		h := mustHold(t, s, p.target, HoldOptions{Framing: lines, Heartbeat: ping(time.Minute, 3*time.Second)})
		h.next(Established)
		all, conns = append(all, h), append(conns, p.accept())
	}
	for _, conn := range conns {
		expect(t, conn, "PING\n")
	}
	stopped := hold(l)
	for _, conn := range slices.Backward(conns) { // the first ones are due first, and the loop sees them last
		write(t, conn, "PONG\n")
	}
	time.Sleep(4 * time.Second) // all deadlines have passed
	close(stopped.release)
	for _, h := range all {
		h.next(Answered)
	}
}

// More connections are reset than the loop sees in one turn, and heartbeats are due on all of them: a heartbeat that
// meets the RST does not hide it, nor the data before it.
func TestHoldResetMeetsHeartbeat(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	s, l := startOne(t)
	p := newPeer(t, "127.0.0.1:0")
	const n = 2 * eventsPerTurn
	lab.NeedDescriptors(t, 2*n+100)
	var all []*held
	var conns []*net.TCPConn
	for range n {
		h := mustHold(t, s, p.target, HoldOptions{Framing: lines, Heartbeat: ping(3*time.Second, time.Second)})
		h.next(Established)
		all, conns = append(all, h), append(conns, p.accept())
	}
	next := func(h *held) (e ConnectionEvent) {
		for e = <-h.events; e.Kind == Unanswered; e = <-h.events { // this machine was too slow
		}
		return e
	}
	for i, conn := range conns {
		expect(t, conn, "PING\n")
		write(t, conn, "PONG\n")
		if e := next(all[i]); e.Kind != Answered {
			t.Fatalf("%v: %v, want Answered", all[i].target, e.Kind)
		}
	}
	stopped := hold(l)
	for _, conn := range slices.Backward(conns) { // the first ones are due first, and the loop sees them last
		write(t, conn, "last words\n")
		conn.SetLinger(0)
		conn.Close()
	}
	time.Sleep(4 * time.Second) // all heartbeats are due
	close(stopped.release)
	for _, h := range all {
		if e := next(h); e.Kind != Received && e.Kind != Answered { // the latter if the heartbeat was due first
			t.Errorf("%v: %v, want the last words", h.target, e.Kind)
			continue
		}
		if e := next(h); e.Kind != Ended || e.Outcome != Reset || e.Errno != unix.ECONNRESET {
			t.Errorf("%v: %v: %v, errno %s, want Ended: Reset", h.target, e.Kind, e.Outcome, ErrnoName(e.Errno))
		}
	}
}
