package shaker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/capture"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Targets on the wires that these tests lay.
var (
	target4 = netip.MustParseAddrPort("192.0.2.1:80")
	target6 = netip.MustParseAddrPort("[2001:db8::1]:80")
	targets = []netip.AddrPort{target4, target6}
)

// openWire lays a wire on which every port is open.
func openWire(t *testing.T) *simnet.Wire {
	t.Helper()
	return simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			return [][]byte{s.SYNACK()}
		}
		return nil
	}, "192.0.2.0/24", "2001:db8::/32")
}

// addAddress gives an interface an address until the test ends.
func addAddress(t *testing.T, device, prefix string) {
	t.Helper()
	link, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr(prefix)
	if err != nil {
		t.Fatal(err)
	}
	address.Flags |= unix.IFA_F_NODAD
	if err := netlink.AddrAdd(link, address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.AddrDel(link, address) })
	// The kernel accepts packets for a new IPv6 address only a moment later.
	lab.Eventually(t, prefix+" is local", func() bool {
		routes, err := netlink.RouteGetWithOptions(address.IP, &netlink.RouteGetOptions{Oif: device})
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

// addDetour creates an interface that leads nowhere and routes the targets to it until the test ends.
// The interface has no address.
func addDetour(t *testing.T) (device string) {
	t.Helper()
	lab.Need(t)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "detour-of-a-lab" // the maximum length of a name
	link := &netlink.Veth{LinkAttrs: attributes, PeerName: "detour-end"}
	if err := netlink.LinkAdd(link); err != nil {
		lab.Skip(t, "needs a veth pair: %v", err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	kernel.Sysctl(t, "net.ipv6.conf."+attributes.Name+".addr_gen_mode", "1") // no link-local address
	for _, name := range []string{attributes.Name, "detour-end"} {
		end, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(end)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, target := range targets {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Dst: single(target.Addr())}); err != nil {
			t.Fatal(err)
		}
	}
	return attributes.Name
}

// single returns the prefix that has only this address.
func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// sentWith shakes hands with an open target and returns what was sent with the options: the SYN and the RST. Without a
// socket, it is the SYN, because the kernel's RST has no options.
func sentWith(t *testing.T, wire *simnet.Wire, target netip.AddrPort, options Options) (segments []simnet.Segment) {
	t.Helper()
	wire.Forget()
	if err := options.Check(); err != nil {
		t.Errorf("Check of %+v: error %v, want none", options, err)
	}
	options.Timeout = 5 * time.Second
	r, err := start(t).Shake(t.Context(), target, &options)
	if err != nil || r.Outcome != Open {
		t.Fatalf("Shake(%v, %+v) = %+v, error %v, want Open", target, options, r, err)
	}
	for s := range wire.SentTo(target) {
		if s.Src != r.Local {
			t.Errorf("%v was sent, want it sent from Local, which is %v", s, r.Local)
		}
		segments = append(segments, s)
	}
	if len(segments) != 2 || !segments[0].SYN || !segments[1].RST {
		t.Fatalf("Shake(%v, %+v) sent %v, want a SYN and an RST", target, options, segments)
	}
	if isRaw() {
		return segments[:1]
	}
	return segments
}

// mustTakeDetour fails the test if SYNs with the options do not take the detour.
func mustTakeDetour(t *testing.T, wire *simnet.Wire, target netip.AddrPort, options Options) {
	t.Helper()
	wire.Forget()
	options.Timeout = 20 * time.Millisecond
	s := start(t)
	r, err := inTime(func() (Result, error) { return s.Shake(t.Context(), target, &options) })
	if err != nil || r.Outcome != Timeout {
		t.Errorf("Shake(%v, %+v) = %+v, error %v, want Timeout", target, options, r, err)
	}
	for segment := range wire.SentTo(target) {
		t.Errorf("%v was sent on the wire, want it sent on the detour", segment)
	}
}

func TestSource(t *testing.T) {
	wire := openWire(t)
	addAddress(t, wire.Interface(), "198.18.0.7/32")
	addAddress(t, wire.Interface(), "2001:2::7/128")
	for _, c := range []struct {
		target       netip.AddrPort
		source, want string
	}{
		{target: target4, source: "198.18.0.1", want: "198.18.0.1"},
		{target: target4, source: "198.18.0.7", want: "198.18.0.7"},
		{target: target4, source: "::ffff:198.18.0.1", want: "198.18.0.1"},
		{target: target4, source: "::ffff:198.18.0.7", want: "198.18.0.7"},
		{target: target6, source: "2001:2::1", want: "2001:2::1"},
		{target: target6, source: "2001:2::7", want: "2001:2::7"},
	} {
		for _, s := range sentWith(t, wire, c.target, Options{Source: netip.MustParseAddr(c.source)}) {
			if got := s.Src.Addr().String(); got != c.want {
				t.Errorf("with the source %v, %v was sent, want it sent from %v", c.source, s, c.want)
			}
		}
	}
}

func TestLinkLocalSource(t *testing.T) {
	lab.Need(t)
	addAddress(t, "lo", "fe80::1/64")
	addAddress(t, "lo", "fe80::2/64")
	target, _ := listen(t, "[fe80::1%lo]:0")
	s := start(t)
	for _, source := range []string{"fe80::1%lo", "fe80::2%lo", "fe80::2%1"} {
		options := &Options{Source: netip.MustParseAddr(source), Timeout: 5 * time.Second}
		if err := options.Check(); err != nil {
			t.Errorf("Check of source %v: error %v, want none", source, err)
		}
		r, err := s.Shake(t.Context(), target, options)
		if want := options.Source.WithZone("lo"); err != nil || r.Outcome != Open || r.Local.Addr() != want {
			t.Errorf("Shake(%v, source %v) = %+v, error %v, want Open from %v", target, source, r, err, want)
		}
	}
}

// A source does not reserve a local port: one port is enough for two targets at the same time.
func TestSourceReservesNoPort(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24", "2001:db8::/32")
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	s := start(t)
	for _, c := range []struct{ source, target1, target2 string }{
		{source: "198.18.0.1", target1: "192.0.2.1:80", target2: "192.0.2.2:80"},
		{source: "2001:2::1", target1: "[2001:db8::1]:80", target2: "[2001:db8::2]:80"},
	} {
		wire.Forget()
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for _, target := range []string{c.target1, c.target2} {
			group.Go(func() {
				options := &Options{Source: netip.MustParseAddr(c.source)}
				r, err := s.Shake(ctx, netip.MustParseAddrPort(target), options)
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Shake(%v, source %v) = %+v, error %v, want %v",
						target, c.source, r, err, context.Canceled)
					cancel()
				}
			})
		}
		lab.Eventually(t, "both SYNs are sent", func() bool {
			sent := 0
			for range wire.Sent() {
				sent++
			}
			return sent == 2 || ctx.Err() != nil
		})
		cancel()
		group.Wait()
	}
}

func TestSourcePorts(t *testing.T) {
	wire := openWire(t)
	s := start(t)
	options := &Options{SourcePorts: PortRange{First: 40100, Last: 40109}, Timeout: 5 * time.Second}
	if err := options.Check(); err != nil {
		t.Errorf("Check of source ports %v: error %v, want none", options.SourcePorts, err)
	}
	for i := range 300 {
		target := netip.AddrPortFrom(targets[i%2].Addr(), uint16(1+i))
		if r, err := s.Shake(t.Context(), target, options); err != nil || r.Outcome != Open {
			t.Fatalf("Shake(%v, source ports %v) = %+v, error %v, want Open",
				target, options.SourcePorts, r, err)
		}
	}
	syns := 0
	for segment := range wire.Sent() {
		if port := segment.Src.Port(); port < 40100 || port > 40109 {
			t.Errorf("%v was sent, want it sent from the ports %v", segment, options.SourcePorts)
		}
		if segment.SYN {
			syns++
		}
	}
	if syns != 300 {
		t.Errorf("%d SYNs were sent, want 300", syns)
	}
}

// If all source ports are in use towards a target, that is a local error. Other targets are not
// affected.
func TestSourcePortsExhausted(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24", "2001:db8::/32")
	s := start(t)
	other4, other6 := netip.MustParseAddrPort("192.0.2.2:80"), netip.MustParseAddrPort("[2001:db8::2]:80")
	for _, c := range []struct {
		target, other netip.AddrPort
		source        netip.Addr
	}{
		{target: target4, other: other4},
		{target: target4, other: other4, source: netip.MustParseAddr("198.18.0.1")},
		{target: target6, other: other6},
		{target: target6, other: other6, source: netip.MustParseAddr("2001:2::1")},
	} {
		wire.Forget()
		options := Options{SourcePorts: PortRange{First: 40100, Last: 40101}, Source: c.source}
		limited := options
		limited.Timeout = 20 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() { s.Shake(ctx, c.target, &options) })
		}
		wire.Await(2)
		r, err := s.Shake(t.Context(), c.target, &limited)
		if !errors.Is(err, unix.EADDRNOTAVAIL) || r != (Result{}) {
			t.Errorf("Shake(%v, source %v) = %+v, error %v, want EADDRNOTAVAIL", c.target, c.source, r, err)
		}
		r, err = inTime(func() (Result, error) { return s.Shake(t.Context(), c.other, &limited) })
		if err != nil || r.Outcome != Timeout {
			t.Errorf("Shake(%v, source %v) = %+v, error %v, want Timeout", c.other, c.source, r, err)
		}
		cancel()
		group.Wait()
	}
}

// The routes lead to the detour, and the option to the wire.
func TestInterface(t *testing.T) {
	wire := openWire(t)
	addDetour(t)
	for _, target := range targets {
		sentWith(t, wire, target, Options{Interface: wire.Interface()})
		mustTakeDetour(t, wire, target, Options{}) // the control
	}
}

// A SYN through a VRF takes the routes of the VRF's own table.
func TestVRF(t *testing.T) {
	wire := openWire(t)
	vrf := kernel.NewVRF(t)
	device, err := netlink.LinkByName(wire.Interface())
	if err == nil {
		err = netlink.LinkSetMaster(device, vrf)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range targets {
		route := &netlink.Route{LinkIndex: device.Attrs().Index, Dst: single(target.Addr()), Table: kernel.VRFTable}
		if err := netlink.RouteReplace(route); err != nil {
			t.Fatal(err)
		}
	}
	for _, target := range targets {
		options := &Options{Interface: vrf.Attrs().Name, Timeout: 5 * time.Second}
		if r, err := start(t).Shake(t.Context(), target, options); err != nil || r.Outcome != Open {
			t.Errorf("Shake(%v, interface %s) = %+v, error %v, want Open", target, options.Interface, r, err)
		}
	}
}

// A target is unreachable through an interface without an address to send from, even if this host has
// such an address elsewhere.
func TestInterfaceWithoutAddress(t *testing.T) {
	simnet.NewWire(t, nil, "2001:db8::/32")
	detour := addDetour(t)
	kernel.Sysctl(t, "net.ipv6.conf."+detour+".use_oif_addrs_only", "1")
	target := netip.MustParseAddrPort("[2001:db8::2]:80") // has no route to the detour yet
	link, err := netlink.LinkByName(detour)
	if err != nil {
		t.Fatal(err)
	}
	_, prefix, _ := net.ParseCIDR("2001:db8::/32")
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: prefix, Priority: 9999}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	r, err := start(t).Shake(t.Context(), target, &Options{Interface: detour, Timeout: 5 * time.Second})
	want := Result{Outcome: Unreachable, Errno: unix.EADDRNOTAVAIL, Peer: target}
	if err != nil || withoutTimes(r) != want {
		t.Errorf("Shake(%v, interface %s) =\n     %+v, error %v\nwant %+v", target, detour, r, err, want)
	}
}

func TestDSCP(t *testing.T) {
	wire := openWire(t)
	for _, target := range targets {
		for _, dscp := range []uint8{0, 1, 46, 63} {
			for _, s := range sentWith(t, wire, target, Options{DSCP: dscp}) {
				if s.TOS != dscp<<2 {
					t.Errorf("with DSCP %d, %v was sent with TOS %#x, want %#x", dscp, s, s.TOS, dscp<<2)
				}
			}
		}
	}
}

func TestTTL(t *testing.T) {
	wire := openWire(t)
	for _, target := range targets {
		for ttl, want := range map[uint8]uint8{0: 64, 1: 1, 7: 7, 255: 255} {
			for _, s := range sentWith(t, wire, target, Options{TTL: ttl}) {
				if s.TTL != want {
					t.Errorf("with TTL %d, %v was sent with TTL %d, want %d", ttl, s, s.TTL, want)
				}
			}
		}
	}
}

// The routes lead to the detour, and policy routing leads packets with a mark to the wire.
func TestMark(t *testing.T) {
	wire := openWire(t)
	addDetour(t)
	device, err := netlink.LinkByName(wire.Interface())
	if err != nil {
		t.Fatal(err)
	}
	const mark, table = 0xfeedbeef, 1002
	for _, target := range targets {
		rule := netlink.NewRule()
		rule.Mark, rule.Table, rule.Family = mark, table, netlink.FAMILY_V4
		if target.Addr().Is6() {
			rule.Family = netlink.FAMILY_V6
		}
		if err := netlink.RuleAdd(rule); err != nil {
			lab.Skip(t, "needs policy routing: %v", err)
		}
		t.Cleanup(func() { netlink.RuleDel(rule) })
		route := &netlink.Route{LinkIndex: device.Attrs().Index, Dst: single(target.Addr()), Table: table}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
		sentWith(t, wire, target, Options{Mark: mark})
		mustTakeDetour(t, wire, target, Options{Mark: 1}) // the control
	}
}

// A process in a new user namespace has no capability in the network namespace. It may not set a mark,
// and it may set every other option.
func TestUnprivileged(t *testing.T) {
	const insideEnv = "SHAKER_TEST_UNPRIVILEGED"
	if os.Getenv(insideEnv) == "" {
		lab.Need(t)
		child := exec.Command("/proc/self/exe", "-test.run=^TestUnprivileged$", "-test.v")
		child.Env = append(os.Environ(), insideEnv+"=1")
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL}
		out, err := child.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestUnprivileged") {
			t.Errorf("the test in a new user namespace: error %v, want a pass:\n%s", err, out)
		}
		return
	}
	s, target := start(t), netip.MustParseAddrPort("127.0.0.1:1")
	options := &Options{Mark: 7, Timeout: 5 * time.Second}
	want := "mark 7: setsockopt: operation not permitted"
	if err := options.Check(); !errors.Is(err, unix.EPERM) || err.Error() != want {
		t.Errorf("Check of mark 7: error %v, want %s", err, want)
	}
	want = "shake 127.0.0.1:1: " + want
	r, err := s.Shake(t.Context(), target, options)
	if !errors.Is(err, unix.EPERM) || err.Error() != want || r != (Result{}) {
		t.Errorf("Shake(%v, mark 7) = %+v, error %v, want error %s", target, r, err, want)
	}
	options = &Options{
		Source:      netip.MustParseAddr("127.0.0.2"),
		SourcePorts: PortRange{First: 40000, Last: 40999},
		Interface:   "lo",
		DSCP:        46,
		TTL:         7,
		Timeout:     5 * time.Second,
	}
	if err := options.Check(); err != nil {
		t.Errorf("Check of %+v: error %v, want none", *options, err)
	}
	r, err = s.Shake(t.Context(), target, options)
	if err != nil || r.Outcome != Refused || r.Local.Addr() != options.Source {
		t.Errorf("Shake(%v, %+v) = %+v, error %v, want Refused from %v", target, *options, r, err, options.Source)
	}
}

// With FIN, the application sees a connection that is opened and closed in the regular way.
func TestFIN(t *testing.T) {
	lab.Need(t)
	s := start(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		server, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		target := server.Addr().(*net.TCPAddr).AddrPort()
		capture, timeWaits := capture.Loopback(t), kernel.TimeWaits(t)
		r, err := s.Shake(t.Context(), target, &Options{FIN: true, Timeout: 5 * time.Second})
		if err != nil || r.Outcome != Open || !r.ACKSent || r.ResetLag != 0 || r.Handshake <= 0 {
			t.Errorf("Shake(%v, FIN) = %+v, error %v, want Open with ACKSent and Handshake, without ResetLag",
				target, r, err)
		}
		conn, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if conn.RemoteAddr().String() != r.Local.String() {
			t.Errorf("the server accepted a connection from %v, want %v", conn.RemoteAddr(), r.Local)
		}
		if data, err := io.ReadAll(conn); len(data) > 0 || err != nil {
			t.Errorf("the server reads %q, error %v, want EOF", data, err)
		}
		conn.Close()
		lab.Eventually(t, "a socket is in TIME_WAIT", func() bool { return kernel.TimeWaits(t) > timeWaits })
		var sent []string
		for _, segment := range capture.Segments() {
			if segment.Src == r.Local {
				sent = append(sent, strings.Fields(segment.String())[3])
			}
		}
		const want = "SYN ACK FIN,ACK ACK"
		if got := strings.Join(sent, " "); got != want {
			t.Errorf("Shake(%v, FIN) sent %s, want %s", target, got, want)
		}
	}
}

// With options, too, a self-connect is Refused, and leaves no port in TIME_WAIT.
func TestSelfConnectWithOptions(t *testing.T) {
	lab.Need(t)
	s, timeWaits := start(t), kernel.TimeWaits(t)
	for i, address := range []string{"127.0.0.1", "::1"} {
		for j, options := range []Options{{}, {FIN: true}} {
			port := uint16(41_000 + 2*i + j)
			target := netip.AddrPortFrom(netip.MustParseAddr(address), port)
			options.Source, options.SourcePorts = target.Addr(), PortRange{First: port, Last: port}
			options.Timeout = 5 * time.Second
			r, err := s.Shake(t.Context(), target, &options)
			if r.Local != target {
				t.Fatalf("the test did not provoke its case: Shake(%v) = %+v, error %v, want the target as Local",
					target, r, err)
			}
			want := Result{Outcome: Refused, Errno: unix.ECONNREFUSED, SYNs: 1, Peer: target}
			if got := withoutTimes(r); err != nil || got != want {
				t.Errorf("Shake(%v, %+v) =\n     %+v, error %v\nwant %+v", target, options, got, err, want)
			}
		}
	}
	if n := kernel.TimeWaits(t) - timeWaits; n > 0 {
		t.Errorf("%d ports are left in TIME_WAIT, want 0", n)
	}
}

// Check and Shake return the same error for options that this host does not have.
func TestUnavailableOptions(t *testing.T) {
	wire, detour := openWire(t), addDetour(t)
	addAddress(t, "lo", "fe80::1/64")
	s := start(t)
	for _, c := range []struct {
		options Options
		target  netip.AddrPort
		errno   error
		text    string
	}{
		{
			options: Options{Interface: "nowhere"},
			target:  target4,
			errno:   unix.ENODEV,
			text:    `interface "nowhere": setsockopt: no such device`,
		},
		{
			options: Options{Interface: "nowhere"},
			target:  target6,
			errno:   unix.ENODEV,
			text:    `interface "nowhere": setsockopt: no such device`,
		},
		{
			options: Options{Interface: detour + "oratory"},
			target:  target4,
			errno:   unix.ENODEV,
			text:    `interface "detour-of-a-laboratory": setsockopt: no such device`,
		},
		{
			options: Options{Interface: detour + "o"}, // the shortest name that the kernel would truncate
			target:  target4,
			errno:   unix.ENODEV,
			text:    `interface "detour-of-a-labo": setsockopt: no such device`,
		},
		{
			options: Options{Interface: "lo\x00"},
			target:  target4,
			errno:   unix.ENODEV,
			text:    `interface "lo\x00": setsockopt: no such device`,
		},
		{
			options: Options{Source: netip.MustParseAddr("198.51.100.9")},
			target:  target4,
			errno:   unix.EADDRNOTAVAIL,
			text:    "source 198.51.100.9: bind: cannot assign requested address",
		},
		{
			options: Options{Source: netip.MustParseAddr("2001:db8::9")},
			target:  target6,
			errno:   unix.EADDRNOTAVAIL,
			text:    "source 2001:db8::9: bind: cannot assign requested address",
		},
		{
			options: Options{Source: netip.MustParseAddr("fe80::9%lo")},
			target:  target6,
			errno:   unix.EADDRNOTAVAIL,
			text:    "source fe80::9%lo: bind: cannot assign requested address",
		},
		{
			options: Options{Source: netip.MustParseAddr("fe80::1%nowhere")},
			target:  target6,
			errno:   unix.ENODEV,
			text:    `source fe80::1%nowhere: this host has no interface "nowhere"`,
		},
	} {
		if err := c.options.Check(); !errors.Is(err, c.errno) || err.Error() != c.text {
			t.Errorf("Check of %+v: error %v, want %s", c.options, err, c.text)
		}
		c.options.Timeout = 5 * time.Second
		r, err := s.Shake(t.Context(), c.target, &c.options)
		want := fmt.Sprintf("shake %v: %s", c.target, c.text)
		if !errors.Is(err, c.errno) || err.Error() != want || r != (Result{}) {
			t.Errorf("Shake(%v, %+v) = %+v, error %v, want error %s", c.target, c.options, r, err, want)
		}
	}
	for segment := range wire.Sent() {
		t.Errorf("%v was sent, want nothing", segment)
	}
}

// A target whose zone does not match the source or the interface is invalid.
func TestMismatchedZone(t *testing.T) {
	wire := openWire(t)
	addAddress(t, "lo", "fe80::1/64")
	target := netip.MustParseAddrPort("[fe80::9%" + wire.Interface() + "]:80")
	for _, options := range []Options{{Source: netip.MustParseAddr("fe80::1%lo")}, {Interface: "lo"}} {
		options.Timeout = 5 * time.Second
		if err := options.Check(); err != nil {
			t.Errorf("Check of %+v: error %v, want none", options, err)
		}
		if r, err := start(t).Shake(t.Context(), target, &options); !errors.Is(err, ErrTarget) || r != (Result{}) {
			t.Errorf("Shake(%v, %+v) = %+v, error %v, want %v", target, options, r, err, ErrTarget)
		}
	}
}

// The kernel binds a socket to a broadcast address, and sends from another address. Check rejects it.
func TestBroadcastSource(t *testing.T) {
	wire := openWire(t)
	addAddress(t, wire.Interface(), "198.18.3.1/24")
	for _, source := range []string{"198.18.3.255", "::ffff:198.18.3.255"} {
		options := &Options{Source: netip.MustParseAddr(source)}
		want := "source " + source + ": a broadcast address: cannot assign requested address"
		if err := options.Check(); !errors.Is(err, unix.EADDRNOTAVAIL) || err.Error() != want {
			t.Errorf("Check of source %s: error %v, want %s", source, err, want)
		}
	}
}

// The kernel ignores a bound outside net.ipv4.ip_local_port_range. Check rejects it.
func TestSourcePortsOutsideSystemRange(t *testing.T) {
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40999")
	const notWithin = "not within net.ipv4.ip_local_port_range, which is 40000-40999"
	for ports, want := range map[PortRange]string{
		{First: 40_000, Last: 40_999}: "",
		{First: 40_500, Last: 40_500}: "",
		{First: 39_999, Last: 40_999}: "source ports 39999-40999: " + notWithin,
		{First: 40_000, Last: 41_000}: "source ports 40000-41000: " + notWithin,
		{First: 50_000, Last: 50_999}: "source ports 50000-50999: " + notWithin,
	} {
		text := ""
		if err := (&Options{SourcePorts: ports}).Check(); err != nil {
			text = err.Error()
		}
		if text != want {
			t.Errorf("Check of source ports %v: error %q, want %q", ports, text, want)
		}
	}
}

// The options of a handshake that decide which way packets take are those of its trace.
func TestOptionsOfRoute(t *testing.T) {
	route := Options{
		Source:      netip.MustParseAddr("192.0.2.1"),
		SourcePorts: PortRange{First: 40000, Last: 40009},
		Interface:   "lo",
		DSCP:        46,
		Mark:        7,
	}
	all := route
	all.Timeout, all.TTL, all.FIN = time.Second, 3, true
	if got := all.ofRoute(); got != route {
		t.Errorf("ofRoute of %+v = %+v, want %+v", all, got, route)
	}
	for _, o := range []Options{{}, route, all} {
		if got := o.share().get(); got != o {
			t.Errorf("the shared options of %+v are %+v", o, got)
		}
	}
	if copied := all; all.share() != copied.share() || all.share() == route.share() {
		t.Error("shared options are not equal if and only if the options are")
	}
	if got := (Options{}).share(); got != (sharedOptions{}) {
		t.Errorf("the shared options of %+v are %+v, want the zero value", Options{}, got)
	}
}

// Check leaves no descriptor open. It accepts a zone that matches the interface, and an IPv4 address that is
// link-local needs no zone.
func TestCheckOfOptions(t *testing.T) {
	lab.Need(t)
	addAddress(t, "lo", "fe80::1/64")
	addAddress(t, "lo", "169.254.1.1/32")
	descriptors := lab.Descriptors(t)
	for _, options := range []Options{
		{},
		{Source: netip.MustParseAddr("127.0.0.1")},
		{Source: netip.MustParseAddr("::1")},
		{Source: netip.MustParseAddr("169.254.1.1")},
		{Source: netip.MustParseAddr("fe80::1%lo"), Interface: "lo"},
	} {
		if err := options.Check(); err != nil {
			t.Errorf("Check of %+v: error %v, want none", options, err)
		}
	}
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors afterwards, want %d as before", now, descriptors)
	}
}
