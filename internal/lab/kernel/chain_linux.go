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

// A Chain is three routers and a host behind them, each in a network namespace of its own,
// with the kernel's own routing between them. The link that leads to the n-th of them, from
// 1, has the addresses 10.77.n.1 and fd77:n::1 at the near end, and 10.77.n.2 and fd77:n::2
// at the far one. On the last one, the host, every connection to port 80 is accepted.
type Chain struct {
	t     testing.TB
	nodes []*os.File // network namespaces
}

// chainLength is how many namespaces a chain has besides this one.
const chainLength = 4

// NewChain lays a chain for the rest of the test.
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
		// Addresses and links are not in use at once.
		lab.Eventually(t, host+" can be reached", func() bool {
			conn, err := net.DialTimeout("tcp", host, time.Second)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	lab.Eventually(t, "no SYN of these is left at the host", func() bool {
		return !slices.ContainsFunc(c.Sockets(chainLength), func(s Socket) bool { return s.State == unix.BPF_TCP_SYN_RECV })
	})
	return c
}

// newNamespace returns a new network namespace, which stays until the test ends.
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
		lab.Skip(t, "needs a network namespace: %v", err)
	}
	t.Cleanup(func() { namespace.Close() })
	return namespace
}

// In calls f in the n-th namespace, 0 being this one.
func (c *Chain) In(n int, f func() error) {
	c.t.Helper()
	if err := c.in(n, f); err != nil {
		c.t.Fatal(err)
	}
}

func (c *Chain) in(n int, f func() error) error {
	if n == 0 {
		return f()
	}
	enter := func() error {
		return os.NewSyscallError("setns", unix.Setns(int(c.nodes[n-1].Fd()), unix.CLONE_NEWNET))
	}
	return elsewhere(enter, func(netlink.NsFd) error { return f() })
}

// Run runs a program in the n-th namespace.
func (c *Chain) Run(n int, program string, args ...string) {
	c.t.Helper()
	c.In(n, func() error {
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil { // is started by this thread
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// Counters returns the network counters of the n-th namespace, see [Counters].
func (c *Chain) Counters(n int) (found map[string]int) {
	c.t.Helper()
	c.In(n, func() (err error) { found, err = counters(); return err })
	return found
}

// Sockets returns the TCP sockets of the n-th namespace.
func (c *Chain) Sockets(n int) (found []Socket) {
	c.t.Helper()
	c.In(n, func() (err error) { found, err = sockets(); return err })
	return found
}

// link connects the namespaces n-1 and n. Each end is called after the namespace at the
// other one.
func (c *Chain) link(n int) error {
	near, far := fmt.Sprintf("to%d", n), fmt.Sprintf("to%d", n-1)
	err := c.in(n-1, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = near
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: far, PeerNamespace: netlink.NsFd(c.nodes[n-1].Fd())}); err != nil {
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

// setUpBoth gives an interface its addresses of both IP versions and sets it up. Who is not
// there is given up soon.
func setUpBoth(name string, link, host int) error {
	device, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, prefix := range []string{fmt.Sprintf("10.77.%d.%d/24", link, host), fmt.Sprintf("fd77:%d::%d/64", link, host)} {
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

// route makes the n-th namespace a router, which limits no ICMP errors, with routes to all
// links of the chain. This one only gets the routes.
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
		next, over := n, 1 // the near end of the link that leads back
		switch {
		case link == n || link == n+1:
			continue // it is at this end of it
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
				return fmt.Errorf("route to %s by %s: %w", text[0], text[1], err)
			}
		}
	}
	return nil
}

// Route adds a route on the n-th node: by an address, or of a type such as
// unix.RTN_BLACKHOLE if that is "".
func (c *Chain) Route(n int, prefix, by string, routeType int) {
	c.t.Helper()
	c.In(n, func() error {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(by), Type: routeType}); err != nil {
			return fmt.Errorf("route to %s: %w", prefix, err)
		}
		return nil
	})
}

func setSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// listen accepts connections on the last node until the test ends.
func (c *Chain) listen() {
	var l net.Listener
	c.In(chainLength, func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	})
	acceptAll(c.t, l)
}
