package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A Middlebox is a router between the test's namespace and a host, each in a network namespace of its own. A test may
// have several of them at once, unlike a [Chain].
type Middlebox struct {
	Host netip.Addr // of the host behind it

	t            testing.TB
	router, host *os.File
}

var middleboxes atomic.Int32

// NewMiddlebox creates a router that forwards everything, with a host behind it. They exist until the test ends.
func NewMiddlebox(t testing.TB) *Middlebox {
	t.Helper()
	lab.Need(t)
	n := middleboxes.Add(1)
	m := &Middlebox{t: t, router: newNamespace(t), host: newNamespace(t)}
	near, far := fmt.Sprintf("middlebox%d", n), "host"
	m.Host = netip.AddrFrom4([4]byte{10, 79, byte(n), 2})
	for _, link := range []struct {
		in           *os.File // nil: the namespace of the test
		name, prefix string
		peer         *os.File
		peerName     string
		peerPrefix   string
	}{
		{nil, near, fmt.Sprintf("10.78.%d.1/24", n), m.router, "near", fmt.Sprintf("10.78.%d.2/24", n)},
		{m.router, "far", fmt.Sprintf("10.79.%d.1/24", n), m.host, far, m.Host.String() + "/24"},
	} {
		err := within(link.in, func() error {
			attributes := netlink.NewLinkAttrs()
			attributes.Name = link.name
			peer := netlink.NsFd(link.peer.Fd())
			err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: link.peerName, PeerNamespace: peer})
			if err != nil {
				return err
			}
			return setUp(link.name, link.prefix)
		})
		if err != nil {
			lab.Skip(t, "needs veth pairs between network namespaces: %v", err)
		}
		if err := within(link.peer, func() error { return setUp(link.peerName, link.peerPrefix) }); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: near}}) })
	route := func(prefix, router string) func() error {
		return func() error {
			_, dst, err := net.ParseCIDR(prefix)
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(router)})
		}
	}
	err := errors.Join(
		route(fmt.Sprintf("10.79.%d.0/24", n), fmt.Sprintf("10.78.%d.2", n))(),
		within(m.router, func() error { return setSysctl("net/ipv4/ip_forward", "1") }),
		within(m.host, route("0.0.0.0/0", fmt.Sprintf("10.79.%d.1", n))),
	)
	if err != nil {
		t.Fatal(err)
	}
	// It takes a moment until the kernel uses new addresses and links, and without an answer it asks for a neighbour
	// again only after a second.
	lab.Eventually(t, m.Host.String()+" is reachable", func() bool {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(m.Host, 1).String(), 2*time.Second)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
	return m
}

// within calls f in a namespace, nil for that of the caller.
func within(namespace *os.File, f func() error) error {
	if namespace == nil {
		return f()
	}
	return elsewhere(func() error {
		return os.NewSyscallError("setns", unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET))
	}, func(netlink.NsFd) error { return f() })
}

// Run runs a program on the router.
func (m *Middlebox) Run(program string, args ...string) {
	m.t.Helper()
	err := within(m.router, func() error {
		// The program gets the namespace of the thread that starts it, which is this one.
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// Sysctl sets a kernel parameter of the router, such as "net.netfilter.nf_conntrack_tcp_loose".
func (m *Middlebox) Sysctl(name, value string) {
	m.t.Helper()
	err := within(m.router, func() error { return setSysctl(strings.ReplaceAll(name, ".", "/"), value) })
	if err != nil {
		m.t.Fatalf("setting %s to %q: %v", name, value, err)
	}
}

// Listen listens on a port of the host, until the test ends.
func (m *Middlebox) Listen(port uint16) net.Listener {
	m.t.Helper()
	var l net.Listener
	err := within(m.host, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(m.Host, port).String())
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	return l
}
