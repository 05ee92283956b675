package shaker

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// However long connections live and die in every way, the Shaker uses no more resources than after the first round.
func TestSoakHold(t *testing.T) {
	const each, eachRemote = 100, 20
	lab.NeedDescriptors(t, 30*each)
	silent := silentTarget(t)
	remote := newRemotes(t)
	s := start(t)
	asking := HoldOptions{
		Framing:   Framing{Delimiter: "\n", Max: 10},
		Heartbeat: ping(40*time.Millisecond, 30*time.Millisecond),
	}
	ways := []soakWay{
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
	var total int64
	round := func() footprint {
		var begun, over, wrong atomic.Int64
		hold := func(way *soakWay) {
			c, err := s.Hold(way.target, way.options, func(c *Connection, e ConnectionEvent) {
				switch {
				case e.Kind == Ended:
					if !slices.Contains(way.want, e.Outcome) {
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
			if begun.Add(1); way.close && way.peer == nil {
				c.Close()
				over.Add(1)
			}
		}
		for range eachRemote {
			for i := range remote.ways {
				hold(&remote.ways[i])
			}
		}
		remote.kill(begun.Load())
		for range each {
			for i := range ways {
				hold(&ways[i])
			}
		}
		lab.Eventually(t, "all connections have ended", func() bool { return over.Load() == begun.Load() })
		total += begun.Load()
		remote.restore()
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
		// Goroutines of peers may still close their descriptors.
		lab.Eventually(t, "the goroutines have ended", func() bool {
			now := footprintOf(t, s)
			last.goroutines, last.descriptors = now.goroutines, now.descriptors
			return last.goroutines <= first.goroutines
		})
		last.heap, last.goroutines = first.heap, first.goroutines
		if last != first {
			t.Fatalf("the footprint after %d connections is %+v, want %+v as after the first round", total, last, first)
		}
	}
	t.Logf("%d connections: %+v", total, first)
}

// A soakWay is how connections live and end.
type soakWay struct {
	name    string
	peer    func(*net.TCPConn) // closes the connection
	target  netip.AddrPort     // if there is no peer
	options HoldOptions
	close   bool // this side closes it, at the first event that is not Established, or at once without a peer
	want    []Outcome
}

// remotes are connections to a host behind three routers, which die at the same time: a router does not forward what
// this side sends any more.
type remotes struct {
	t     *testing.T
	chain *kernel.Chain
	nft   string
	rules string
	ways  []soakWay

	mu  sync.Mutex
	far []*net.TCPConn // the peers' ends
}

func newRemotes(t *testing.T) *remotes {
	r := &remotes{t: t, chain: kernel.NewChain(t), nft: lab.Program(t, "nft", "nftables")}
	quick := KeepAlive{Idle: time.Second, Interval: time.Second, Count: 1}
	asking := HoldOptions{
		KeepAlive: quick,
		Framing:   lines,
		Heartbeat: ping(500*time.Millisecond, 400*time.Millisecond),
	}
	const unreachable = "meta nfproto ipv4 reject with icmp host-unreachable\n" +
		"tcp dport %[1]d meta nfproto ipv6 reject with icmpv6 addr-unreachable"
	for i, death := range []struct {
		name    string
		rule    string
		options HoldOptions
		want    Outcome
	}{
		{name: "keepalive", rule: "drop", options: HoldOptions{KeepAlive: quick}, want: Timeout},
		{name: "heartbeat not acknowledged", rule: "drop", options: asking, want: Timeout},
		{name: "ICMP error", rule: unreachable, options: asking, want: Unreachable},
	} {
		port := holdPort + i
		r.rules += fmt.Sprintf("tcp dport %[1]d "+death.rule+"\n", port)
		scene := newScene(t, r.chain, port, 0)
		for j, target := range scene.targets {
			r.ways = append(r.ways, soakWay{
				name: fmt.Sprintf("%s, %v", death.name, target), target: target, options: death.options,
				want: []Outcome{death.want},
			})
			go func() {
				for conn := range scene.accepted[j].accepted {
					go r.serve(conn)
				}
			}()
		}
	}
	return r
}

// serve answers heartbeats until restore.
func (r *remotes) serve(conn *net.TCPConn) {
	r.mu.Lock()
	r.far = append(r.far, conn)
	r.mu.Unlock()
	io.Copy(conn, conn)
	conn.SetLinger(0)
	conn.Close()
}

// kill waits until all connections are established at both ends, and stops the forwarding.
func (r *remotes) kill(connections int64) {
	r.t.Helper()
	lab.Eventually(r.t, "the remote peers have accepted all connections", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return int64(len(r.far)) == connections
	})
	r.chain.Run(2, r.nft, "table inet soak {\nchain forward {\ntype filter hook forward priority 0\n"+
		r.rules+"}\n}\n")
}

// restore forwards everything again, and lets the peers close their ends.
func (r *remotes) restore() {
	r.t.Helper()
	r.chain.Run(2, r.nft, "delete table inet soak")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.far {
		conn.SetDeadline(time.Unix(1, 0))
	}
	r.far = nil
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
