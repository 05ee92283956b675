package shaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// The ends of a connection to a host behind three routers, with real kernels.

// dead is a keepalive that ends a connection after 3 s.
var dead = KeepAlive{Idle: time.Second, Interval: time.Second, Count: 2}

// coarse is the resolution of the kernel's ages.
const coarse = 2 * jiffy

// A scene is a connection of each IP version from node 0 of a chain to its host, and what happens to them.
type scene struct {
	t        *testing.T
	chain    *kernel.Chain
	targets  []netip.AddrPort
	accepted []*peer
}

// newScene listens on a port of the host, in a subtest.
func newScene(t *testing.T, chain *kernel.Chain, port int, buffer int) *scene {
	s := &scene{t: t, chain: chain}
	for _, address := range []string{"10.77.4.2", "fd77:4::2"} {
		var l net.Listener
		chain.In(4, func() (err error) {
			config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) {
					if buffer > 0 {
						unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
					}
				})
			}}
			config.SetMultipathTCP(false)
			l, err = config.Listen(context.Background(), "tcp", net.JoinHostPort(address, fmt.Sprint(port)))
			return err
		})
		p := servePeer(t, l)
		s.accepted = append(s.accepted, p)
		s.targets = append(s.targets, p.target)
	}
	return s
}

// hold establishes both connections.
func (s *scene) hold(shaker *Shaker, options HoldOptions) (near []*held, far []*net.TCPConn) {
	s.t.Helper()
	for i, target := range s.targets {
		h := mustHold(s.t, shaker, target, options)
		h.next(Established)
		near = append(near, h)
		far = append(far, s.accepted[i].accept())
	}
	return near, far
}

// forward sets rules for the packets to the host's port 7000 that a router forwards, and removes them when the subtest
// ends.
func (s *scene) forward(node int, rules ...string) {
	s.t.Helper()
	nft := lab.Program(s.t, "nft", "nftables")
	text := "table inet hold {\nchain forward {\ntype filter hook forward priority 0\n"
	for _, rule := range rules {
		text += fmt.Sprintf("tcp dport %d %s\n", holdPort, rule)
	}
	s.chain.Run(node, nft, text+"}\n}\n")
	s.t.Cleanup(func() { s.chain.Run(node, nft, "delete table inet hold") })
}

const holdPort = 7000

// Each end of a connection has its outcome, its errno and its times, with both IP versions.
func TestHoldEnds(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	s := start(t)
	// The second heartbeat is sent after the end of a connection has begun, and before the third one it is over.
	heartbeat := ping(2*time.Second, 300*time.Millisecond)
	drop := func(s *scene, _ []*net.TCPConn) { s.forward(2, "drop") }
	reject := func(s *scene, _ []*net.TCPConn) {
		s.forward(2, "meta nfproto ipv4 reject with icmp host-unreachable",
			"meta nfproto ipv6 reject with icmpv6 addr-unreachable")
	}
	each := func(f func(*net.TCPConn)) func(*scene, []*net.TCPConn) {
		return func(_ *scene, far []*net.TCPConn) {
			for _, conn := range far {
				f(conn)
			}
		}
	}
	for _, c := range []struct {
		name      string
		options   HoldOptions
		end       func(s *scene, far []*net.TCPConn)
		unread    bool    // the peer has not read the first heartbeat
		before    Outcome // of the second heartbeat, if the first one is answered
		want      Outcome
		errno     Errno
		keepAlive bool // it ends because keepalives were not answered
	}{
		{name: "the peer closes",
			end:  each(func(c *net.TCPConn) { c.Close() }),
			want: Closed},
		{name: "the peer closes its writing side",
			end:  each(func(c *net.TCPConn) { c.CloseWrite() }),
			want: Closed},
		{name: "the peer sends an RST",
			end:  each(func(c *net.TCPConn) { c.SetLinger(0); c.Close() }),
			want: Reset, errno: unix.ECONNRESET},
		{name: "the peer is killed with unread data",
			options: HoldOptions{Heartbeat: heartbeat},
			unread:  true,
			end:     each(func(c *net.TCPConn) { c.Close() }),
			want:    Reset, errno: unix.ECONNRESET},
		{name: "the host has vanished",
			options: HoldOptions{KeepAlive: dead},
			end:     drop,
			want:    Timeout, errno: unix.ETIMEDOUT, keepAlive: true},
		{name: "the host has vanished, and data is not acknowledged",
			options: HoldOptions{KeepAlive: dead, Heartbeat: heartbeat},
			end:     drop,
			before:  Timeout,
			want:    Timeout, errno: unix.ETIMEDOUT},
		{name: "a router answers keepalives with an ICMP error",
			options: HoldOptions{KeepAlive: dead},
			end:     reject,
			want:    Timeout, errno: unix.ETIMEDOUT, keepAlive: true},
		{name: "a router answers data with an ICMP error",
			options: HoldOptions{KeepAlive: dead, Heartbeat: heartbeat},
			end:     reject,
			before:  Timeout,
			want:    Unreachable, errno: unix.EHOSTUNREACH},
		{name: "the same without keepalive: the kernel gives up",
			options: HoldOptions{Heartbeat: heartbeat},
			end: func(s *scene, far []*net.TCPConn) {
				kernel.Sysctl(s.t, "net.ipv4.tcp_retries2", "1") // also for IPv6
				reject(s, far)
			},
			before: Timeout,
			want:   Unreachable, errno: unix.EHOSTUNREACH},
		{name: "the host has rebooted",
			options: HoldOptions{KeepAlive: dead},
			end: func(s *scene, _ []*net.TCPConn) {
				// The router has the host's addresses, and no such connection.
				addresses := []string{"10.77.4.2/32", "fd77:4::2/128"}
				change := func(f func(netlink.Link, *netlink.Addr) error) error {
					lo, err := netlink.LinkByName("lo")
					if err != nil {
						return err
					}
					for _, text := range addresses {
						address, parseErr := netlink.ParseAddr(text)
						address.Flags |= unix.IFA_F_NODAD
						err = errors.Join(err, parseErr, f(lo, address))
					}
					return err
				}
				s.chain.In(3, func() error { return change(netlink.AddrAdd) })
				s.t.Cleanup(func() { s.chain.In(3, func() error { return change(netlink.AddrDel) }) })
			},
			want: Reset, errno: unix.ECONNRESET},
	} {
		t.Run(c.name, func(t *testing.T) {
			scene := newScene(t, chain, holdPort, 0)
			near, far := scene.hold(s, c.options)
			for i, conn := range far {
				if c.unread {
					awaitUnread(t, conn, len(heartbeat.Send))
				}
				if c.before != 0 {
					expect(t, conn, "PING\n")
					write(t, conn, "PONG\n")
					near[i].next(Answered)
				}
			}
			cut := time.Now()
			c.end(scene, far)
			for _, h := range near {
				if c.before != 0 {
					if e := h.next(Unanswered); e.Outcome != c.before {
						t.Errorf("%v: Unanswered: %v, want %v", h.target, e.Outcome, c.before)
					}
				}
				e := h.next(Ended)
				if e.Outcome != c.want || e.Errno != c.errno || e.Err != nil || e.Result.Outcome != 0 {
					t.Errorf("%v: Ended: %v, errno %s, error %v, result %+v, want %v, errno %s", h.target,
						e.Outcome, ErrnoName(e.Errno), e.Err, e.Result, c.want, ErrnoName(c.errno))
				}
				if answered := e.State.LastAnswer; c.options.KeepAlive != (KeepAlive{}) && c.want != Reset {
					if silent := e.Time.Sub(answered); silent < dead.DeadAfter()-coarse {
						t.Errorf("%v: ended %v after the last answer, want %v or more",
							h.target, silent, dead.DeadAfter())
					}
				}
				if e.Time.Before(cut) || !e.State.Established.Before(cut) || e.State.Peer != h.target {
					t.Errorf("%v: Ended at %v, state %+v, want an end after %v", h.target, e.Time, e.State, cut)
				}
				if unanswered := e.State.KeepAlivesUnanswered; c.keepAlive && unanswered < dead.Count {
					t.Errorf("%v: %d keepalives unanswered, want %d or more", h.target, unanswered, dead.Count)
				}
				h.none()
			}
		})
	}
}

// awaitUnread waits until data has arrived that the application has not read.
func awaitUnread(tb testing.TB, conn *net.TCPConn, want int) {
	tb.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	lab.Eventually(tb, fmt.Sprintf("%d bytes are unread", want), func() (is bool) {
		raw.Control(func(fd uintptr) {
			n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			is = err == nil && n == want
		})
		return is
	})
}

// What a router does to a connection whose NAT entry it has lost decides how the connection ends, or whether it does.
func TestHoldWithoutNATEntry(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	s := start(t)
	conntrack := lab.Program(t, "conntrack", "conntrack")
	for _, c := range []struct {
		name  string
		loose string // nf_conntrack_tcp_loose: whether the router takes up connections that it does not know
		rule  string // for packets that belong to no connection
		want  Outcome
		errno Errno
	}{
		{name: "silently", loose: "0", rule: "drop", want: Timeout, errno: unix.ETIMEDOUT},
		{name: "with an RST", loose: "0", rule: "reject with tcp reset", want: Reset, errno: unix.ECONNRESET},
		{name: "and takes it up again", loose: "1", rule: "accept"},
	} {
		t.Run(c.name, func(t *testing.T) {
			scene := newScene(t, chain, holdPort, 0)
			for _, protocol := range []string{"ip", "ip6"} {
				nft := lab.Program(t, "nft", "nftables")
				chain.Run(2, nft, "table "+protocol+" nat {\n"+
					"chain postrouting {\ntype nat hook postrouting priority 100\noifname to3 masquerade\n}\n}\n")
				t.Cleanup(func() { chain.Run(2, nft, "delete table "+protocol+" nat") })
			}
			scene.forward(2, "ct state established accept", "tcp flags & (syn|ack) == syn accept", c.rule)
			chain.Run(2, "/bin/sh", "-c", "echo "+c.loose+" >/proc/sys/net/netfilter/nf_conntrack_tcp_loose")
			near, _ := scene.hold(s, HoldOptions{KeepAlive: dead})
			for _, family := range []string{"ipv4", "ipv6"} {
				chain.Run(2, conntrack, "-D", "-f", family, "-p", "tcp", "--dport", fmt.Sprint(holdPort))
			}
			lost := time.Now()
			for _, h := range near {
				if c.want == 0 {
					lab.Eventually(t, fmt.Sprintf("%v answers a keepalive", h.target), func() bool {
						return h.mustState().LastAnswer.After(lost.Add(coarse))
					})
					h.none()
					continue
				}
				if e := h.next(Ended); e.Outcome != c.want || e.Errno != c.errno {
					t.Errorf("%v: Ended: %v, errno %s, want %v, errno %s",
						h.target, e.Outcome, ErrnoName(e.Errno), c.want, ErrnoName(c.errno))
				}
			}
		})
	}
}

// If this host is the reason, a connection mostly ends as if the peer were dead. The kernel remembers another errno if
// it knows one: that of a router's or its own ICMP error for data and, with IPv6, that of a missing route.
func TestHoldLocalFaults(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	s := start(t)
	for _, c := range []struct {
		name    string
		node    int
		fault   func() error // on the node
		idle    [2]Errno     // of a connection without data: IPv4, IPv6
		sending [2]Errno     // of one with data that is not acknowledged
	}{
		{name: "the cable is pulled",
			node:    1,
			fault:   func() error { return onLink("to0", netlink.LinkSetDown) },
			idle:    [2]Errno{unix.ETIMEDOUT, unix.ETIMEDOUT},
			sending: [2]Errno{unix.EHOSTUNREACH, unix.EHOSTUNREACH}}, // neighbour resolution failed
		{name: "the interface is down",
			fault:   func() error { return onLink("to1", netlink.LinkSetDown) },
			idle:    [2]Errno{unix.ETIMEDOUT, unix.ENETUNREACH},
			sending: [2]Errno{unix.ETIMEDOUT, unix.ENETUNREACH}},
		{name: "the routes are gone",
			fault: func() error {
				return errors.Join(deleteRoutes(netlink.FAMILY_V4, "10.77.4.0/24"),
					deleteRoutes(netlink.FAMILY_V6, "fd77:4::/64"))
			},
			idle:    [2]Errno{unix.ETIMEDOUT, unix.ENETUNREACH},
			sending: [2]Errno{unix.ETIMEDOUT, unix.ENETUNREACH}},
		{name: "the addresses are deleted",
			fault: func() error {
				return onLink("to1", func(link netlink.Link) error {
					addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
					for _, address := range addresses {
						err = errors.Join(err, netlink.AddrDel(link, &address))
					}
					return err
				})
			},
			idle:    [2]Errno{unix.ETIMEDOUT, unix.ETIMEDOUT},
			sending: [2]Errno{unix.ETIMEDOUT, unix.ETIMEDOUT}},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := kernel.NewChain(t)
			scene := newScene(t, chain, holdPort, 0)
			near, _ := scene.hold(s, HoldOptions{KeepAlive: dead})
			asking, far := scene.hold(s, HoldOptions{
				KeepAlive: dead,
				Heartbeat: ping(2*time.Second, 300*time.Millisecond),
			})
			for i, conn := range far {
				expect(t, conn, "PING\n")
				write(t, conn, "PONG\n")
				asking[i].next(Answered)
			}
			chain.In(c.node, c.fault)
			for i := range near {
				if e := asking[i].next(Unanswered); e.Outcome != Timeout {
					t.Errorf("%v: Unanswered: %v, want Timeout", e.State.Peer, e.Outcome)
				}
				for _, end := range []struct {
					what string
					e    ConnectionEvent
					want Errno
				}{
					{what: "idle", e: near[i].next(Ended), want: c.idle[i]},
					{what: "sending", e: asking[i].next(Ended), want: c.sending[i]},
				} {
					if outcome, _ := verdict(end.want, ICMP{}); end.e.Outcome != outcome || end.e.Errno != end.want {
						t.Errorf("%v, %s: Ended: %v, errno %s, want %v, errno %s", end.e.State.Peer, end.what,
							end.e.Outcome, ErrnoName(end.e.Errno), outcome, ErrnoName(end.want))
					}
				}
			}
		})
	}
}

func onLink(name string, f func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return f(link)
}

func deleteRoutes(family int, prefix string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
	for _, route := range routes {
		err = errors.Join(err, netlink.RouteDel(&route))
	}
	return err
}

// A process that is stopped and one that does not read differ from a host that is gone: the connection stays, and the
// answer may still come.
func TestHoldSilent(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	s := start(t)
	t.Run("stopped", func(t *testing.T) {
		scene := newScene(t, chain, holdPort, 0)
		near, far := scene.hold(s, HoldOptions{KeepAlive: dead, Heartbeat: ping(time.Second, 300*time.Millisecond)})
		for i, h := range near {
			for range 4 { // longer than the keepalive, which the peer's kernel answers
				if e := h.next(Unanswered); e.Outcome != Silent || e.Errno != 0 {
					t.Errorf("%v: Unanswered: %v, errno %s, want Silent", h.target, e.Outcome, ErrnoName(e.Errno))
				}
			}
			state := h.mustState()
			if state.Unacknowledged != 0 || !state.LastAnswer.After(state.Established.Add(time.Second)) ||
				!state.LastData.IsZero() || state.WindowClosed {
				t.Errorf("%v: state %+v, want all acknowledged, answers to keepalives, and no data", h.target, state)
			}
			expect(t, far[i], "PING\n")
			write(t, far[i], "PONG\n")
			if e := h.next(Answered); e.Latency < 3*time.Second {
				t.Errorf("%v: answered after %v, want 3 s or more", h.target, e.Latency)
			}
			if state := h.mustState(); state.LastData.IsZero() {
				t.Errorf("%v: state %+v, want the time of the answer", h.target, state)
			}
		}
	})
	long := make([]byte, longestSend)
	t.Run("not reading", func(t *testing.T) {
		scene := newScene(t, chain, holdPort, 2048)
		near, far := scene.hold(s, HoldOptions{
			KeepAlive: dead,
			Heartbeat: Heartbeat{Interval: time.Second, Timeout: 300 * time.Millisecond, Send: long},
		})
		for i, h := range near {
			for range 5 {
				if e := h.next(Unanswered); e.Outcome != Silent || e.Errno != 0 {
					t.Errorf("%v: Unanswered: %v, errno %s, want Silent", h.target, e.Outcome, ErrnoName(e.Errno))
				}
			}
			state := h.mustState()
			if !state.WindowClosed || state.Unsent == 0 || state.KeepAlivesUnanswered != 0 {
				t.Errorf("%v: state %+v, want a closed window and unsent data", h.target, state)
			}
			expect(t, far[i], string(long))
			write(t, far[i], "PONG\n")
			h.next(Answered)
			if state := h.mustState(); state.WindowClosed || state.Unsent != 0 {
				t.Errorf("%v: state %+v, want an open window and nothing unsent", h.target, state)
			}
		}
	})
	t.Run("not reading, then gone", func(t *testing.T) {
		scene := newScene(t, chain, holdPort, 2048)
		near, _ := scene.hold(s, HoldOptions{
			KeepAlive: KeepAlive{Idle: 4 * time.Second, Interval: time.Second, Count: 2},
			Heartbeat: Heartbeat{Interval: time.Second, Timeout: 300 * time.Millisecond, Send: long},
		})
		for _, h := range near {
			if e := h.next(Unanswered); e.Outcome != Silent {
				t.Errorf("%v: Unanswered: %v, want Silent", h.target, e.Outcome)
			}
		}
		scene.forward(2, "drop")
		for _, h := range near {
			var last ConnectionEvent
			e := <-h.events
			for ; e.Kind == Unanswered; e = <-h.events {
				last = e
			}
			if last.Outcome != Timeout || e.Kind != Ended || e.Outcome != Timeout || e.State.KeepAlivesUnanswered != 0 {
				t.Errorf("%v: Unanswered: %v, then %v: %v, %d keepalives unanswered, want Timeout, then Ended: "+
					"Timeout, and probes of the window that are not counted as keepalives",
					h.target, last.Outcome, e.Kind, e.Outcome, e.State.KeepAlivesUnanswered)
			}
		}
	})
}

// The control: a connection without keepalive and heartbeat does not learn that its peer is gone.
func TestHoldSeesNothing(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	s := start(t)
	scene := newScene(t, chain, holdPort, 0)
	blind, _ := scene.hold(s, HoldOptions{})
	seeing, _ := scene.hold(s, HoldOptions{KeepAlive: dead})
	scene.forward(2, "drop")
	for i, h := range seeing {
		h.next(Ended)
		blind[i].none()
		state := blind[i].mustState()
		if state.LastAnswer.After(state.Established.Add(coarse)) || state.KeepAlivesUnanswered != 0 {
			t.Errorf("%v: state %+v, want no answer since it was established, and no keepalives", h.target, state)
		}
		// Keepalive can be enabled later. The first one is sent at once.
		if err := blind[i].SetKeepAlive(dead); err != nil {
			t.Fatal(err)
		}
		if e := blind[i].next(Ended); e.Outcome != Timeout {
			t.Errorf("%v: after SetKeepAlive: %v, want Timeout", h.target, e.Outcome)
		}
	}
}
