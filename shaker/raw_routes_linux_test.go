package shaker

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Without sockets, the Shaker remembers from which address the kernel sends to a target. As soon as an address, a
// route, a rule or an interface changes, a handshake ends as with a socket. Without the messages of netlink it would
// not, as the control shows.
func TestRawFollowsTheRoutes(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	sockets := start(t)
	withoutSocketsIn(t)
	t.Run("the guarantee", func(t *testing.T) {
		raw, _ := startOne(t)
		changeRoutes(t, func(name string, target netip.AddrPort, options Options) {
			if got, want := summary(raw, target, options), summary(sockets, target, options); got != want {
				t.Errorf("%s: without a socket, Shake(%v, %+v) =\n     %s\nwant %s", name, target, options, got, want)
			}
		})
	})
	t.Run("the control", func(t *testing.T) {
		raw, l := startOne(t)
		for group := range int32(32) {
			err := setInt(l.wire.ways.changes, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, group+1)
			if err != nil {
				t.Fatal(err)
			}
		}
		missed := 0
		changeRoutes(t, func(name string, target netip.AddrPort, options Options) {
			if got, want := summary(raw, target, options), summary(sockets, target, options); got != want {
				missed++
				t.Logf("%s is missed", name)
			}
		})
		if missed < 3 {
			t.Errorf("%d changes are missed, want 3 or more", missed)
		}
	})
}

// summary shakes hands and says how that ended.
func summary(s *Shaker, target netip.AddrPort, options Options) string {
	options.Timeout = 5 * time.Second
	r, err := s.Shake(context.Background(), target, &options)
	return fmt.Sprintf("%v, %v, %d SYNs from %v, %+v, error %v",
		r.Outcome, ErrnoName(r.Errno), r.SYNs, r.Local.Addr(), r.ICMP, err)
}

// changeRoutes calls check after each of several changes of how this host reaches targets.
func changeRoutes(t *testing.T, check func(name string, target netip.AddrPort, options Options)) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wire := openWire(t)
	device, err := netlink.LinkByName(wire.Interface())
	must(err)
	address := func(text string) *netlink.Addr {
		a, err := netlink.ParseAddr(text)
		must(err)
		a.Flags |= unix.IFA_F_NODAD
		return a
	}
	route := func(source string, table int) *netlink.Route {
		return &netlink.Route{
			LinkIndex: device.Attrs().Index, Dst: single(target4.Addr()), Table: table, Src: net.ParseIP(source),
		}
	}
	rule := netlink.NewRule()
	rule.Dst, rule.Table, rule.Family = single(target4.Addr()), 1003, netlink.FAMILY_V4

	prohibited := &netlink.Route{Dst: single(target4.Addr()), Type: unix.RTN_PROHIBIT}

	own := Options{Source: netip.MustParseAddr("198.18.0.7")}
	linked := Options{Interface: "near"}
	neighbour := netip.MustParseAddrPort("198.18.4.2:1") // refuses
	link := func(own string) {
		peer := kernel.NewNamespace(t)
		peer.Link("near", "far")
		addAddress(t, "near", own)
		peer.In(func() { addAddress(t, "far", "198.18.4.2/24") })
	}
	for _, step := range []struct {
		name    string
		change  func()
		target  netip.AddrPort
		options Options
	}{
		{name: "no change", change: func() {}, target: target4},
		{name: "no source", change: func() {}, target: target4, options: own},
		{
			name:   "a new address, the source",
			change: func() { must(netlink.AddrAdd(device, address("198.18.0.7/32"))) },
			target: target4, options: own,
		},
		{
			name:   "a new route with the address",
			change: func() { must(netlink.RouteAdd(route("198.18.0.7", 0))) },
			target: target4,
		},
		{
			name: "a policy rule",
			change: func() {
				must(netlink.RouteAdd(route("198.18.0.1", rule.Table)))
				must(netlink.RuleAdd(rule))
			},
			target: target4,
		},
		{name: "the rule deleted", change: func() { must(netlink.RuleDel(rule)) }, target: target4},
		{
			name:   "a deleted address, and its route",
			change: func() { must(netlink.AddrDel(device, address("198.18.0.7/32"))) },
			target: target4,
		},
		{name: "a deleted address, the source", change: func() {}, target: target4, options: own},
		{
			name: "a prohibited target",
			change: func() {
				must(netlink.RouteAdd(prohibited))
			},
			target: target4,
		},
		{
			name: "a permitted target",
			change: func() {
				must(netlink.RouteDel(prohibited))
			},
			target: target4,
		},
		{name: "IPv6, no change", change: func() {}, target: target6},
		{
			name:   "IPv6, a new address that is nearer to the target",
			change: func() { addAddress(t, wire.Interface(), "2001:db8:ffff::7/128") },
			target: target6,
		},
		{
			name:   "IPv6, the address deleted",
			change: func() { must(netlink.AddrDel(device, address("2001:db8:ffff::7/128"))) },
			target: target6,
		},
		{name: "no interface", change: func() {}, target: neighbour, options: linked},
		{name: "a new interface", change: func() { link("198.18.4.1/24") }, target: neighbour, options: linked},
		{
			name: "the interface deleted",
			change: func() {
				near, err := netlink.LinkByName("near")
				must(err)
				must(netlink.LinkDel(near))
			},
			target: neighbour, options: linked,
		},
		{
			name:   "a new interface of the same name",
			change: func() { link("198.18.4.1/24") },
			target: neighbour, options: linked,
		},
		{
			name: "another interface has the name",
			change: func() {
				near, err := netlink.LinkByName("near")
				must(err)
				must(netlink.LinkSetDown(near))
				must(netlink.LinkSetName(near, "former"))
				must(netlink.LinkSetUp(near))
				t.Cleanup(func() { netlink.LinkDel(near) })
				link("198.18.4.9/24")
			},
			target: neighbour, options: linked,
		},
	} {
		step.change()
		check(step.name, step.target, step.options)
	}
}

// A route leads to a next hop that has an identifier (ip-nexthop(8)). If that is replaced, the kernel need not announce
// the route.
func TestRawFollowsNextHops(t *testing.T) {
	wire := openWire(t)
	ip := lab.Program(t, "ip", "iproute2")
	peer := kernel.NewNamespace(t)
	peer.Link("near", "far")
	addAddress(t, "near", "198.18.4.1/24")
	kernel.Sysctl(t, "net.ipv4.nexthop_compat_mode", "0")
	run := func(args string) {
		t.Helper()
		if out, err := exec.Command(ip, strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	run("nexthop add id 7 dev near")
	t.Cleanup(func() { run("nexthop del id 7") }) // and the route
	run("route add 192.0.2.1 nhid 7")
	withoutSocketsIn(t)
	s := start(t)
	for _, step := range []struct{ device, want string }{
		{device: "near", want: "198.18.4.1"}, {device: wire.Interface(), want: "198.18.0.1"},
	} {
		run("nexthop replace id 7 dev " + step.device)
		r, err := inTime(func() (Result, error) {
			return s.Shake(t.Context(), target4, &Options{Timeout: 50 * time.Millisecond})
		})
		if err != nil || r.Local.Addr().String() != step.want {
			t.Errorf("Shake(%v) by a next hop on %s = %+v, error %v, want it from %s",
				target4, step.device, r, err, step.want)
		}
	}
}

// Interfaces and addresses come and go, as with containers. Handshakes that wait for an answer keep no sockets of their
// own open because of that, also with options that bind them to an interface or an address.
func TestDescriptorsDuringLinkChanges(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	syns := make(chan struct{}, 1000)
	wire := simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			syns <- struct{}{}
		}
		return nil
	}, "192.0.2.0/24")
	withoutSocketsIn(t)
	s, _ := startOne(t)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	shake := func(options Options) {
		group.Go(func() { s.Shake(ctx, target4, &options) })
		<-syns
	}
	all := []Options{
		{}, {Interface: wire.Interface()}, {Source: netip.MustParseAddr("198.18.0.1")},
	}
	for _, options := range all {
		shake(options)
	}
	peer := kernel.NewNamespace(t)
	before := lab.Descriptors(t)
	for range 10 {
		peer.Link("passing", "far")
		addAddress(t, "passing", "198.18.6.1/24")
		for _, options := range all {
			shake(options)
		}
		link, err := netlink.LinkByName("passing")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := lab.Descriptors(t); n > before {
		t.Errorf("%d descriptors after interfaces came and went, want %d as before", n, before)
	}
}

// The route to a target is lost while a handshake waits for an answer, so that the SYN cannot be sent again. The
// result is that of a handshake that begins without the route, and no error: this host could measure that it has none.
func TestRouteLostMeanwhile(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	type handshake struct {
		target netip.AddrPort
		route  int // its new type; 0 if the target keeps its route
		want   Result
	}
	v4 := func(i byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 80) }
	v6 := func(i byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: i}), 80)
	}
	silent := Result{Outcome: Timeout, Errno: unix.ETIMEDOUT, SYNs: 2}
	unreachable := Result{Outcome: Unreachable, Errno: unix.EHOSTUNREACH, SYNs: 1}
	prohibited := Result{Outcome: Prohibited, Errno: unix.EACCES, SYNs: 1}
	blackhole := Result{Outcome: Unreachable, Errno: unix.EINVAL, SYNs: 1}
	down := Result{Outcome: Unreachable, Errno: unix.ENETUNREACH, SYNs: 1}
	for _, c := range []struct {
		name string
		down bool // the interface
		all  []handshake
	}{
		{name: "routes", all: []handshake{
			{target: v4(1), want: silent},
			{target: v6(1), want: silent},
			{target: v4(2), route: unix.RTN_UNREACHABLE, want: unreachable},
			{target: v6(2), route: unix.RTN_UNREACHABLE, want: unreachable},
			{target: v4(3), route: unix.RTN_PROHIBIT, want: prohibited},
			{target: v6(3), route: unix.RTN_PROHIBIT, want: prohibited},
			{target: v4(4), route: unix.RTN_BLACKHOLE, want: blackhole},
			{target: v6(4), route: unix.RTN_BLACKHOLE, want: blackhole},
		}},
		{name: "interface", down: true, all: []handshake{{target: v4(1), want: down}, {target: v6(1), want: down}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T) {
				s := start(t)
				wire := simnet.NewWire(t, func(simnet.Segment) [][]byte { return nil }, "192.0.2.0/24", "2001:db8::/32")
				var group sync.WaitGroup
				for _, h := range c.all {
					group.Go(func() {
						// The SYN would be sent again after one second.
						r, err := s.Shake(t.Context(), h.target, &Options{Timeout: 1700 * time.Millisecond})
						if err != nil || r.Outcome != h.want.Outcome || r.Errno != h.want.Errno ||
							r.SYNs != h.want.SYNs || !r.Local.IsValid() {
							t.Errorf("Shake(%v) = %+v, error %v, want %v, %v and %d SYNs from a local address",
								h.target, r, err, h.want.Outcome, ErrnoName(h.want.Errno), h.want.SYNs)
						}
					})
				}
				wire.Await(len(c.all))
				for _, h := range c.all {
					if h.route == 0 {
						continue
					}
					route := &netlink.Route{Dst: single(h.target.Addr()), Type: h.route}
					if err := netlink.RouteAdd(route); err != nil {
						t.Error(err)
					}
					t.Cleanup(func() { netlink.RouteDel(route) })
				}
				if c.down {
					device, err := netlink.LinkByName(wire.Interface())
					if err == nil {
						err = netlink.LinkSetDown(device)
					}
					if err != nil {
						t.Error(err)
					}
				}
				group.Wait()
			})
		})
	}
}
