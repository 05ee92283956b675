package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A Chain is a row of four nodes, three routers and a host behind them. Each node is a network namespace of
// its own, and the kernels route between them. The nodes have the numbers 1 to 4; node 0 is the namespace of
// the test. Link n connects node n-1 with node n. Its addresses are 10.77.n.1 and fd77:n::1 on node n-1, and
// 10.77.n.2 and fd77:n::2 on node n. The host, node 4, accepts every connection to port 80.
type Chain struct {
	t     testing.TB
	nodes []*os.File // network namespaces of the nodes from 1
}

// chainLength is the number of nodes, not counting node 0.
const chainLength = 4

// NewChain creates a chain that exists until the test ends.
func NewChain(t testing.TB) *Chain {
	t.Helper()
	lab.Need(t)
	c := &Chain{t: t}
	for range chainLength {
		c.nodes = append(c.nodes, newNamespace(t))
	}
	for n := 1; n <= chainLength; n++ {
		if err := c.link(n); err != nil {
			lab.Skip(t, "needs veth pairs between network namespaces: %v", err)
		}
	}
	for n := 0; n <= chainLength; n++ {
		c.In(n, func() error { return route(n) })
	}
	c.listen()
	for _, host := range []string{"10.77.4.2:80", "[fd77:4::2]:80"} {
		// It takes a moment until the kernel uses new addresses and links.
		lab.Eventually(t, host+" is reachable", func() bool {
			conn, err := net.DialTimeout("tcp", host, time.Second)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	// A segment that arrives later would surprise a test that counts them.
	lab.Eventually(t, "the host has no handshake or connection", func() bool {
		return !slices.ContainsFunc(c.Sockets(chainLength), func(s Socket) bool {
			return s.State != unix.BPF_TCP_LISTEN && s.State != unix.BPF_TCP_TIME_WAIT
		})
	})
	return c
}

// newNamespace returns a new network namespace that exists until the test ends.
func newNamespace(t testing.TB) *os.File {
	t.Helper()
	var namespace *os.File
	err := elsewhere(enterNew, func(netlink.NsFd) (err error) {
		if err := lab.LoopbackUp(); err != nil {
			return err
		}
		namespace, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		lab.Skip(t, "needs a further network namespace: %v", err)
	}
	t.Cleanup(func() { namespace.Close() })
	return namespace
}

// In calls f in the namespace of node n. An error of f fails the test.
func (c *Chain) In(n int, f func() error) {
	c.t.Helper()
	if err := c.in(n, f); err != nil {
		c.t.Fatalf("on node %d: %v", n, err)
	}
}

// in is like In, but returns the error.
func (c *Chain) in(n int, f func() error) error {
	if n == 0 {
		return f()
	}
	enter := func() error {
		return os.NewSyscallError("setns", unix.Setns(int(c.nodes[n-1].Fd()), unix.CLONE_NEWNET))
	}
	return elsewhere(enter, func(netlink.NsFd) error { return f() })
}

// Run runs a program on node n.
func (c *Chain) Run(n int, program string, args ...string) {
	c.t.Helper()
	c.In(n, func() error {
		// The program gets the namespace of the thread that starts it, which is this one.
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// Counters returns the network counters of node n, see [Counters].
func (c *Chain) Counters(n int) (found map[string]int) {
	c.t.Helper()
	c.In(n, func() (err error) { found, err = counters(); return err })
	return found
}

// Sockets returns the TCP sockets of node n.
func (c *Chain) Sockets(n int) (found []Socket) {
	c.t.Helper()
	c.In(n, func() (err error) { found, err = sockets(); return err })
	return found
}

// link creates link n, between the nodes n-1 and n. The interface at each end is named after the node at
// the other end.
func (c *Chain) link(n int) error {
	near, far := fmt.Sprintf("to%d", n), fmt.Sprintf("to%d", n-1)
	err := c.in(n-1, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = near
		peer := netlink.NsFd(c.nodes[n-1].Fd())
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: far, PeerNamespace: peer})
		if err != nil {
			return err
		}
		return setUpBoth(near, n, 1)
	})
	if err != nil {
		return err
	}
	if n == 1 {
		c.t.Cleanup(func() { netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: near}}) })
	}
	return c.in(n, func() error { return setUpBoth(far, n, 2) })
}

// setUpBoth adds the addresses of both IP versions to one end of a link and sets the interface up. Neighbour
// resolution on it fails quickly: it repeats a request after 100 ms.
func setUpBoth(name string, link, host int) error {
	device, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, prefix := range []string{
		fmt.Sprintf("10.77.%d.%d/24", link, host),
		fmt.Sprintf("fd77:%d::%d/64", link, host),
	} {
		address, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		address.Flags |= unix.IFA_F_NODAD
		if err := netlink.AddrAdd(device, address); err != nil {
			return err
		}
	}
	return errors.Join(netlink.LinkSetUp(device),
		setSysctl("net/ipv4/neigh/"+name+"/retrans_time_ms", "100"),
		setSysctl("net/ipv6/neigh/"+name+"/retrans_time_ms", "100"))
}

// route makes node n a router and adds routes to all links of the chain. The router sends ICMP errors
// without a rate limit. Node 0 gets only the routes.
func route(n int) error {
	for _, setting := range [][2]string{
		{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv4/icmp_ratelimit", "0"}, {"net/ipv6/icmp/ratelimit", "0"},
	} {
		if n == 0 {
			break
		}
		if err := setSysctl(setting[0], setting[1]); err != nil {
			return err
		}
	}
	for link := 1; link <= chainLength; link++ {
		next, over := n, 1 // the other end of the link to the previous node
		switch {
		case link == n || link == n+1:
			continue // this node is at one end of the link
		case link > n:
			next, over = n+1, 2
		}
		for _, text := range [][2]string{
			{fmt.Sprintf("10.77.%d.0/24", link), fmt.Sprintf("10.77.%d.%d", next, over)},
			{fmt.Sprintf("fd77:%d::/64", link), fmt.Sprintf("fd77:%d::%d", next, over)},
		} {
			_, prefix, err := net.ParseCIDR(text[0])
			if err != nil {
				return err
			}
			if err := netlink.RouteReplace(&netlink.Route{Dst: prefix, Gw: net.ParseIP(text[1])}); err != nil {
				return fmt.Errorf("route to %s via %s: %w", text[0], text[1], err)
			}
		}
	}
	return nil
}

// Route adds a route on node n: via a router, or, if the router is "", a route of a type such as
// unix.RTN_BLACKHOLE.
func (c *Chain) Route(n int, prefix, router string, routeType int) {
	c.t.Helper()
	c.In(n, func() error {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(router), Type: routeType}); err != nil {
			return fmt.Errorf("route to %s: %w", prefix, err)
		}
		return nil
	})
}

// setSysctl sets a kernel parameter of this thread's namespace.
func setSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// listen accepts connections on the host until the test ends.
func (c *Chain) listen() {
	var l net.Listener
	c.In(chainLength, func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	})
	acceptAll(c.t, l)
}
