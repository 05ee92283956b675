package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A Fan is a host that can be reached over several routers of equal cost, the members. A router in front of them, the
// entry, chooses a member for each flow by its addresses and ports. Behind them is another router, the exit, which
// sends what comes back directly to the entry, so that a broken member only loses what it should forward to the host.
// Each node is a network namespace of its own:
//
//	test namespace -- entry == members == exit -- host
//	                    \________________/
//
// A test has one Fan at most.
type Fan struct {
	t                 testing.TB
	entry, exit, host *os.File
	members           []*os.File
}

// The addresses of a Fan end in 1 on the side of the test, and in 2 on the side of the host.
const (
	fanToEntry  = 0   // the link between the test and the entry
	fanToHost   = 1   // the link between the exit and the host
	fanBack     = 2   // the link between the entry and the exit
	fanToMember = 100 // the link between the entry and the first member, and so on
	fanToExit   = 200 // the link between the first member and the exit, and so on
)

// fanAddress returns an address of a link, with the length of its network if prefix is set.
func fanAddress(v6 bool, link, host int) netip.Prefix {
	if v6 {
		return netip.MustParsePrefix(fmt.Sprintf("fd80:%d::%d/64", link, host))
	}
	return netip.MustParsePrefix(fmt.Sprintf("10.80.%d.%d/24", link, host))
}

// NewFan creates a fan with a number of members, up to 50. It exists until the test ends.
func NewFan(t testing.TB, members int) *Fan {
	t.Helper()
	lab.Need(t)
	f := &Fan{t: t, entry: newNamespace(t), exit: newNamespace(t), host: newNamespace(t)}
	for range members {
		f.members = append(f.members, newNamespace(t))
	}
	f.link(fanToEntry, nil, f.entry)
	t.Cleanup(func() { netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "fan0"}}) })
	f.link(fanToHost, f.exit, f.host)
	f.link(fanBack, f.entry, f.exit)
	for i, member := range f.members {
		f.link(fanToMember+i, f.entry, member)
		f.link(fanToExit+i, member, f.exit)
	}
	for _, v6 := range []bool{false, true} {
		near, far := fanAddress(v6, fanToEntry, 1), fanAddress(v6, fanToHost, 2)
		f.route(nil, far, fanAddress(v6, fanToEntry, 2))
		f.route(f.host, near, fanAddress(v6, fanToHost, 1))
		f.route(f.exit, near, fanAddress(v6, fanBack, 1))
		var hops []netip.Prefix
		for i, member := range f.members {
			hops = append(hops, fanAddress(v6, fanToMember+i, 2))
			f.route(member, near, fanAddress(v6, fanToMember+i, 1))
			f.route(member, far, fanAddress(v6, fanToExit+i, 2))
		}
		f.route(f.entry, far, hops...)
	}
	for _, host := range []netip.Addr{f.Host(false), f.Host(true)} {
		lab.Eventually(t, host.String()+" is reachable", func() bool {
			for range 4 * members { // so that all members know their neighbours
				conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(host, 1).String(), 2*time.Second)
				if err == nil {
					conn.Close()
				}
				if !errors.Is(err, unix.ECONNREFUSED) {
					return false
				}
			}
			return true
		})
	}
	return f
}

// Host returns an address of the host.
func (f *Fan) Host(v6 bool) netip.Addr { return fanAddress(v6, fanToHost, 2).Addr() }

// Entry returns the address with which the entry answers.
func (f *Fan) Entry(v6 bool) netip.Addr { return fanAddress(v6, fanToEntry, 2).Addr() }

// Member returns the address with which a member answers, from 0.
func (f *Fan) Member(v6 bool, i int) netip.Addr { return fanAddress(v6, fanToMember+i, 2).Addr() }

// IsExit reports whether the exit answers with an address, which depends on the member from which a packet has come.
func (f *Fan) IsExit(addr netip.Addr) bool {
	for i := range f.members {
		if addr == fanAddress(addr.Is6(), fanToExit+i, 2).Addr() {
			return true
		}
	}
	return false
}

// link connects two nodes. nil is the namespace of the test.
func (f *Fan) link(n int, near, far *os.File) {
	f.t.Helper()
	name := fmt.Sprintf("fan%d", n)
	err := within(near, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = name
		peer := netlink.NsFd(far.Fd())
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: name, PeerNamespace: peer})
	})
	if err != nil {
		lab.Skip(f.t, "needs veth pairs between network namespaces: %v", err)
	}
	for side, namespace := range []*os.File{near, far} {
		if err := within(namespace, func() error { return setUpFan(name, n, side+1, namespace != nil) }); err != nil {
			f.t.Fatalf("link %d: %v", n, err)
		}
	}
}

// hashFields are those by which a router chooses between routes: source and destination address, protocol, and source
// and destination port, as with fib_multipath_hash_policy=1. But with that policy, a kernel uses the hash that another
// namespace of the same kernel has noted in the packet's metadata, which is random for each socket.
const hashFields = "55"

func setUpFan(name string, link, host int, router bool) error {
	device, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		address, err := netlink.ParseAddr(fanAddress(v6, link, host).String())
		if err != nil {
			return err
		}
		address.Flags |= unix.IFA_F_NODAD
		if err := netlink.AddrAdd(device, address); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(device); err != nil || !router {
		return err
	}
	return errors.Join(
		setSysctl("net/ipv4/ip_forward", "1"), setSysctl("net/ipv6/conf/all/forwarding", "1"),
		setSysctl("net/ipv4/fib_multipath_hash_fields", hashFields),
		setSysctl("net/ipv6/fib_multipath_hash_fields", hashFields),
		setSysctl("net/ipv4/fib_multipath_hash_policy", "3"),
		setSysctl("net/ipv6/fib_multipath_hash_policy", "3"),
		setSysctl("net/ipv4/icmp_ratelimit", "0"), setSysctl("net/ipv6/icmp/ratelimit", "0"),
		ifExists(setSysctl("net/ipv4/icmp_msgs_burst", "1000")), // older kernels have one for all namespaces
		// An answer comes from the address at which the packet has arrived.
		setSysctl("net/ipv4/icmp_errors_use_inbound_ifaddr", "1"),
	)
}

// ifExists ignores the error if a file is missing.
func ifExists(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// route adds a route on a node to the network of an address, over one router or several.
func (f *Fan) route(on *os.File, to netip.Prefix, over ...netip.Prefix) {
	f.t.Helper()
	_, network, err := net.ParseCIDR(to.String())
	if err != nil {
		f.t.Fatal(err)
	}
	route := netlink.Route{Dst: network}
	if len(over) == 1 {
		route.Gw = net.IP(over[0].Addr().AsSlice())
	} else {
		for _, router := range over {
			route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: net.IP(router.Addr().AsSlice())})
		}
	}
	if err := within(on, func() error { return netlink.RouteAdd(&route) }); err != nil {
		f.t.Fatalf("route to %v over %v: %v", to, over, err)
	}
}

// Run runs a program on a member.
func (f *Fan) Run(member int, program string, args ...string) {
	f.t.Helper()
	f.run(f.members[member], program, args...)
}

// RunOnExit runs a program on the exit.
func (f *Fan) RunOnExit(program string, args ...string) {
	f.t.Helper()
	f.run(f.exit, program, args...)
}

// RunOnHost runs a program on the host.
func (f *Fan) RunOnHost(program string, args ...string) {
	f.t.Helper()
	f.run(f.host, program, args...)
}

func (f *Fan) run(on *os.File, program string, args ...string) {
	f.t.Helper()
	err := within(on, func() error {
		// The program gets the namespace of the thread that starts it, which is this one.
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// Listen accepts connections on a port of the host until the test ends.
func (f *Fan) Listen(port uint16) {
	f.t.Helper()
	var l net.Listener
	err := within(f.host, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	acceptAll(f.t, l)
}
