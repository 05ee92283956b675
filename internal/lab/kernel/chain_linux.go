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

// link creates link n, between the nodes n-1 and n.
func (c *Chain) link(n int) error {
	err := c.connect(n, n-1, n)
	if n == 1 && err == nil {
		c.t.Cleanup(func() { netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "to1"}}) })
	}
	return err
}

// connect creates a link between two nodes. The interface at each end is named after the node at the other end.
func (c *Chain) connect(link, a, b int) error {
	near, far := fmt.Sprintf("to%d", b), fmt.Sprintf("to%d", a)
	err := c.in(a, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = near
		peer := netlink.NsFd(c.nodes[b-1].Fd())
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: far, PeerNamespace: peer})
		if err != nil {
			return err
		}
		return setUpBoth(near, link, 1)
	})
	if err != nil {
		return err
	}
	return c.in(b, func() error { return setUpBoth(far, link, 2) })
}

// Fork puts another router, node 5, beside node 2: link 6 is between the nodes 1 and 5, and link 7 between the nodes 5
// and 3. Node 1 balances the packets to the host between the two of them, by flow, according to a policy
// (fib_multipath_hash_policy in the kernel's ip-sysctl documentation). All packets from the host take node 2.
func (c *Chain) Fork(policy string) {
	c.t.Helper()
	const fork = chainLength + 1
	c.nodes = append(c.nodes, newNamespace(c.t))
	if err := errors.Join(c.connect(6, 1, fork), c.connect(7, fork, 3)); err != nil {
		c.t.Fatal(err)
	}
	c.In(fork, func() error {
		return errors.Join(
			forward(),
			replaceRoute("10.77.1.0/24", "10.77.6.1"), replaceRoute("fd77:1::/64", "fd77:6::1"),
			replaceRoute("10.77.4.0/24", "10.77.7.2"), replaceRoute("fd77:4::/64", "fd77:7::2"))
	})
	c.In(0, func() error {
		return errors.Join(replaceRoute("10.77.6.0/24", "10.77.1.2"), replaceRoute("fd77:6::/64", "fd77:1::2"))
	})
	c.In(1, func() error {
		return errors.Join(
			setSysctl("net/ipv4/fib_multipath_hash_policy", policy),
			setSysctl("net/ipv6/fib_multipath_hash_policy", policy),
			replaceRoute("10.77.4.0/24", "10.77.2.2", "10.77.6.2"),
			replaceRoute("fd77:4::/64", "fd77:2::2", "fd77:6::2"))
	})
	c.In(3, func() error { // it must not mind that packets arrive from node 5 and are answered through node 2
		return errors.Join(
			setSysctl("net/ipv4/conf/all/rp_filter", "0"),
			setSysctl("net/ipv4/conf/to5/rp_filter", "0"))
	})
	c.In(fork, func() error {
		for _, neighbour := range []string{"10.77.6.1", "fd77:6::1", "10.77.7.2", "fd77:7::2"} {
			// It takes a moment until the kernel uses new addresses and links.
			lab.Eventually(c.t, neighbour+" is a neighbour of node 5", func() bool {
				_, err := net.DialTimeout("tcp", net.JoinHostPort(neighbour, "9"), time.Second)
				return errors.Is(err, unix.ECONNREFUSED)
			})
		}
		return nil
	})
}

// replaceRoute sets the route to a prefix. With several routers, they share the packets.
func replaceRoute(prefix string, routers ...string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	route := &netlink.Route{Dst: dst}
	if len(routers) == 1 {
		route.Gw = net.ParseIP(routers[0])
	} else {
		for _, router := range routers {
			route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: net.ParseIP(router)})
		}
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route to %s via %v: %w", prefix, routers, err)
	}
	return nil
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

// forward makes this thread's namespace a router, which sends ICMP errors without a rate limit.
func forward() error {
	for _, setting := range [][2]string{
		{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv4/icmp_ratelimit", "0"}, {"net/ipv6/icmp/ratelimit", "0"},
	} {
		if err := setSysctl(setting[0], setting[1]); err != nil {
			return err
		}
	}
	return nil
}

// route makes node n a router and adds routes to all links of the chain. Node 0 gets only the routes.
func route(n int) error {
	if n > 0 {
		if err := forward(); err != nil {
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
		err := errors.Join(
			replaceRoute(fmt.Sprintf("10.77.%d.0/24", link), fmt.Sprintf("10.77.%d.%d", next, over)),
			replaceRoute(fmt.Sprintf("fd77:%d::/64", link), fmt.Sprintf("fd77:%d::%d", next, over)))
		if err != nil {
			return err
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
