package shaker

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// However long connections live and die in every way, the Shaker uses no more resources than after the first round.
func TestSoakHold(t *testing.T) {
	const each = 100
	lab.NeedDescriptors(t, 20*each)
	silent := silentTarget(t)
	s := start(t)
	asking := HoldOptions{
		Framing:   Framing{Delimiter: "\n", Max: 10},
		Heartbeat: ping(40*time.Millisecond, 30*time.Millisecond),
	}
	ways := []struct {
		name    string
		peer    func(*net.TCPConn) // closes the connection
		target  netip.AddrPort     // if there is no peer
		options HoldOptions
		close   bool // this side closes it, at the first event that is not Established, or at once without a peer
		want    []Outcome
	}{
		{name: "FIN", peer: func(c *net.TCPConn) { c.Close() }, want: []Outcome{Closed}},
		{name: "FIN after data", options: asking, want: []Outcome{Closed, Reset},
			peer: func(c *net.TCPConn) { c.Write([]byte("a\nb\nc")); c.Close() }},
		{name: "RST", peer: func(c *net.TCPConn) { c.SetLinger(0); c.Close() }, want: []Outcome{Reset}},
		{name: "half-closed", want: []Outcome{Closed},
			peer: func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c); c.Close() }},
		{name: "too long", options: asking, want: []Outcome{Mismatch},
			peer: func(c *net.TCPConn) { c.Write(bytes.Repeat([]byte("x"), 100)); io.Copy(io.Discard, c); c.Close() }},
		{name: "echo", options: asking, close: true,
			peer: func(c *net.TCPConn) { io.Copy(c, c); c.Close() }},
		{name: "silent", options: asking, close: true,
			peer: func(c *net.TCPConn) { io.Copy(io.Discard, c); c.Close() }},
		{name: "refused", target: closedPort(t), want: []Outcome{Refused}},
		{name: "no SYN-ACK", target: silent, want: []Outcome{Timeout, 0}, // 0 if the machine was too slow
			options: HoldOptions{Options: Options{Timeout: 50 * time.Millisecond}}},
		{name: "closed while connecting", target: silent, close: true},
	}
	for i := range ways {
		if way := &ways[i]; way.peer != nil {
			p := newPeer(t, "127.0.0.1:0")
			way.target = p.target
			go func() {
				for conn := range p.accepted {
					go way.peer(conn)
				}
			}()
		}
	}
	var total int
	round := func() footprint {
		var over, wrong atomic.Int64
		for range each {
			for _, way := range ways {
				c, err := s.Hold(way.target, way.options, func(c *Connection, e ConnectionEvent) {
					switch {
					case e.Kind == Ended:
						ok := false
						for _, want := range way.want {
							ok = ok || e.Outcome == want
						}
						if !ok {
							wrong.Add(1)
							t.Errorf("%s: %+v, want one of %v", way.name, e, way.want)
						}
						over.Add(1)
					case way.close && e.Kind != Established:
						c.Close()
						over.Add(1)
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				if total++; way.close && way.peer == nil {
					c.Close()
					over.Add(1)
				}
			}
		}
		lab.Eventually(t, "all connections have ended", func() bool { return over.Load() == each*int64(len(ways)) })
		lab.Eventually(t, "the peers have closed their sockets", func() bool {
			return openConnections(t) == 0
		})
		if n := s.engine.backlog.Load(); n != 0 {
			t.Fatalf("%d bytes of events wait after all have been passed on, want 0", n)
		}
		if wrong.Load() > 0 {
			t.FailNow()
		}
		return footprintOf(t, s)
	}
	first := round()
	if first.slots != 0 || first.deadlines != 0 || first.queued != 0 {
		t.Errorf("the footprint after the first round is %+v, want no slots, deadlines or queued tasks", first)
	}
	for began := time.Now(); time.Since(began) < *lab.Soak; {
		last := round()
		// The heap grows for a while, because the mailbox keeps the size of the largest burst of events so far.
		if grown := int64(last.heap) - int64(first.heap); grown > 4<<20 {
			t.Errorf("the heap has grown by %d bytes in %d connections, want 4 MiB at most", grown, total)
		}
		lab.Eventually(t, "the goroutines have ended", func() bool {
			last.goroutines = footprintOf(t, s).goroutines
			return last.goroutines <= first.goroutines
		})
		last.heap, last.goroutines = first.heap, first.goroutines
		if last != first {
			t.Fatalf("the footprint after %d connections is %+v, want %+v as after the first round", total, last, first)
		}
	}
	t.Logf("%d connections: %+v", total, first)
}

// openConnections returns how many sockets of this namespace have a connection.
func openConnections(t *testing.T) (n int) {
	for _, s := range kernel.Sockets(t) {
		if s.State == unix.BPF_TCP_ESTABLISHED || s.State == unix.BPF_TCP_CLOSE_WAIT {
			n++
		}
	}
	return n
}
