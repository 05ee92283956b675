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

// Targets on a wire.
var (
	target4, target6 = netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")
	targets          = []netip.AddrPort{target4, target6}
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
	// The kernel takes in packets for an IPv6 address only a moment later.
	lab.Eventually(t, prefix+" is local", func() bool {
		routes, err := netlink.RouteGetWithOptions(address.IP, &netlink.RouteGetOptions{Oif: device})
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

// addDetour makes another interface, behind which is nobody, and routes the targets to it,
// until the test ends. It has no address.
func addDetour(t *testing.T) (device string) {
	t.Helper()
	lab.Need(t)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "detour-of-a-lab" // no name is longer
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

// single is the prefix of one address.
func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// sentByOptions shakes hands with an open target and returns what was sent: the SYN and the
// RST.
func sentByOptions(t *testing.T, wire *simnet.Wire, target netip.AddrPort, options Options) (segments []simnet.Segment) {
	t.Helper()
	wire.Forget()
	if err := options.Check(); err != nil {
		t.Errorf("%+v: Check: %v", options, err)
	}
	options.Timeout = 5 * time.Second
	r, err := start(t).Shake(t.Context(), target, &options)
	if err != nil || r.Outcome != Open {
		t.Fatalf("%v with %+v: %+v, %v", target, options, r, err)
	}
	for s := range wire.SentTo(target) {
		if s.Src != r.Local {
			t.Errorf("%v was sent, but Local is %v", s, r.Local)
		}
		segments = append(segments, s)
	}
	if len(segments) != 2 || !segments[0].SYN || !segments[1].RST {
		t.Fatalf("%v with %+v: %v were sent", target, options, segments)
	}
	return segments
}

func TestSource(t *testing.T) {
	wire := openWire(t)
	addAddress(t, wire.Interface(), "198.18.0.7/32")
	addAddress(t, wire.Interface(), "2001:2::7/128")
	for _, c := range []struct {
		target         netip.AddrPort
		source, sender string
	}{
		{target4, "198.18.0.1", "198.18.0.1"},
		{target4, "198.18.0.7", "198.18.0.7"},
		{target4, "::ffff:198.18.0.1", "198.18.0.1"},
		{target4, "::ffff:198.18.0.7", "198.18.0.7"},
		{target6, "2001:2::1", "2001:2::1"},
		{target6, "2001:2::7", "2001:2::7"},
	} {
		for _, s := range sentByOptions(t, wire, c.target, Options{Source: netip.MustParseAddr(c.source)}) {
			if got := s.Src.Addr().String(); got != c.sender {
				t.Errorf("source %v: %v", c.source, s)
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
			t.Error(err)
		}
		r, err := s.Shake(t.Context(), target, options)
		if err != nil || r.Outcome != Open || r.Local.Addr() != options.Source.WithZone("lo") {
			t.Errorf("source %v: %+v, %v", source, r, err)
		}
	}
}

// A source keeps no local port for itself: one port is enough for two targets at once.
func TestSourceTakesNoPort(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24", "2001:db8::/32")
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	s := start(t)
	for _, c := range []struct{ source, target1, target2 string }{
		{"198.18.0.1", "192.0.2.1:80", "192.0.2.2:80"},
		{"2001:2::1", "[2001:db8::1]:80", "[2001:db8::2]:80"},
	} {
		wire.Forget()
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for _, target := range []string{c.target1, c.target2} {
			group.Go(func() {
				_, err := s.Shake(ctx, netip.MustParseAddrPort(target), &Options{Source: netip.MustParseAddr(c.source)})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%v: %v", target, err)
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
	options := &Options{SourcePorts: PortRange{40100, 40109}, Timeout: 5 * time.Second}
	if err := options.Check(); err != nil {
		t.Error(err)
	}
	for i := range 300 {
		target := netip.AddrPortFrom(targets[i%2].Addr(), uint16(1+i))
		if r, err := s.Shake(t.Context(), target, options); err != nil || r.Outcome != Open {
			t.Fatalf("%v: %+v, %v", target, r, err)
		}
	}
	syns := 0
	for segment := range wire.Sent() {
		if port := segment.Src.Port(); port < 40100 || port > 40109 {
			t.Errorf("%v", segment)
		}
		if segment.SYN {
			syns++
		}
	}
	if syns != 300 {
		t.Errorf("%d SYNs, want 300", syns)
	}
}

// When all source ports are in use towards a target, that is a fault, and other targets are
// not concerned.
func TestSourcePortsRunOut(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24", "2001:db8::/32")
	s := start(t)
	for _, c := range []struct {
		target, other netip.AddrPort
		source        netip.Addr
	}{
		{target4, netip.MustParseAddrPort("192.0.2.2:80"), netip.Addr{}},
		{target4, netip.MustParseAddrPort("192.0.2.2:80"), netip.MustParseAddr("198.18.0.1")},
		{target6, netip.MustParseAddrPort("[2001:db8::2]:80"), netip.Addr{}},
		{target6, netip.MustParseAddrPort("[2001:db8::2]:80"), netip.MustParseAddr("2001:2::1")},
	} {
		wire.Forget()
		patient := Options{SourcePorts: PortRange{40100, 40101}, Source: c.source}
		hasty := patient
		hasty.Timeout = 20 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() { s.Shake(ctx, c.target, &patient) })
		}
		wire.Await(2)
		if r, err := s.Shake(t.Context(), c.target, &hasty); !errors.Is(err, unix.EADDRNOTAVAIL) || r != (Result{}) {
			t.Errorf("%v from %v: %+v, %v", c.target, c.source, r, err)
		}
		if r, err := s.Shake(t.Context(), c.other, &hasty); err != nil || r.Outcome != Timeout {
			t.Errorf("%v from %v: %+v, %v", c.other, c.source, r, err)
		}
		cancel()
		group.Wait()
	}
}

// The routes say the detour, the option says the wire.
func TestInterface(t *testing.T) {
	wire := openWire(t)
	addDetour(t)
	for _, target := range targets {
		sentByOptions(t, wire, target, Options{Interface: wire.Interface()})

		wire.Forget() // the control
		if r, err := start(t).Shake(t.Context(), target, &Options{Timeout: 20 * time.Millisecond}); err != nil || r.Outcome != Timeout {
			t.Errorf("%v: %+v, %v", target, r, err)
		}
		for segment := range wire.SentTo(target) {
			t.Errorf("%v was not sent on the detour", segment)
		}
	}
}

// The routes of a VRF are those of its own table.
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
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: device.Attrs().Index, Dst: single(target.Addr()), Table: kernel.VRFTable}); err != nil {
			t.Fatal(err)
		}
	}
	for _, target := range targets {
		options := &Options{Interface: vrf.Attrs().Name, Timeout: 5 * time.Second}
		if r, err := start(t).Shake(t.Context(), target, options); err != nil || r.Outcome != Open {
			t.Errorf("%v: %+v, %v", target, r, err)
		}
	}
}

// An interface without an address to send from is a way that this host lacks. Without the
// interface there would be one.
func TestInterfaceWithoutAddress(t *testing.T) {
	simnet.NewWire(t, nil, "2001:db8::/32")
	detour := addDetour(t)
	kernel.Sysctl(t, "net.ipv6.conf."+detour+".use_oif_addrs_only", "1")
	target := netip.MustParseAddrPort("[2001:db8::2]:80") // no route of its own leads to the detour
	link, err := netlink.LinkByName(detour)
	if err != nil {
		t.Fatal(err)
	}
	_, prefix, _ := net.ParseCIDR("2001:db8::/32")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: prefix, Priority: 9999}); err != nil {
		t.Fatal(err)
	}
	r, err := start(t).Shake(t.Context(), target, &Options{Interface: detour, Timeout: 5 * time.Second})
	if want := (Result{Outcome: Unreachable, Errno: unix.EADDRNOTAVAIL, Peer: target}); err != nil || r != want {
		t.Errorf("\n got %+v, %v\nwant %+v", r, err, want)
	}
}

func TestDSCP(t *testing.T) {
	wire := openWire(t)
	for _, target := range targets {
		for _, dscp := range []uint8{0, 1, 46, 63} {
			for _, s := range sentByOptions(t, wire, target, Options{DSCP: dscp}) {
				if s.TOS != dscp<<2 {
					t.Errorf("DSCP %d: %v has TOS %#x", dscp, s, s.TOS)
				}
			}
		}
	}
}

func TestTTL(t *testing.T) {
	wire := openWire(t)
	for _, target := range targets {
		for _, c := range []struct{ ttl, sent uint8 }{{0, 64}, {1, 1}, {7, 7}, {255, 255}} {
			for _, s := range sentByOptions(t, wire, target, Options{TTL: c.ttl}) {
				if s.TTL != c.sent {
					t.Errorf("TTL %d: %v has TTL %d", c.ttl, s, s.TTL)
				}
			}
		}
	}
}

// The routes say the detour, but the policy says the wire for a mark.
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
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: device.Attrs().Index, Dst: single(target.Addr()), Table: table}); err != nil {
			t.Fatal(err)
		}
		sentByOptions(t, wire, target, Options{Mark: mark})

		wire.Forget() // the control
		if r, err := start(t).Shake(t.Context(), target, &Options{Mark: 1, Timeout: 20 * time.Millisecond}); err != nil || r.Outcome != Timeout {
			t.Errorf("%v: %+v, %v", target, r, err)
		}
		for segment := range wire.SentTo(target) {
			t.Errorf("%v was not sent on the detour", segment)
		}
	}
}

// A user namespace of its own has no power over the network namespace: there a mark is
// forbidden, and everything else is not.
func TestUnprivileged(t *testing.T) {
	const insideEnv = "SHAKER_TEST_UNPRIVILEGED"
	if os.Getenv(insideEnv) == "" {
		lab.Need(t)
		child := exec.Command("/proc/self/exe", "-test.run=^TestUnprivileged$", "-test.v")
		child.Env = append(os.Environ(), insideEnv+"=1")
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL}
		out, err := child.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestUnprivileged") {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	s, target := start(t), netip.MustParseAddrPort("127.0.0.1:1")
	options := &Options{Mark: 7, Timeout: 5 * time.Second}
	if err := options.Check(); !errors.Is(err, unix.EPERM) || err.Error() != "mark 7: setsockopt: operation not permitted" {
		t.Errorf("Check: %v", err)
	}
	r, err := s.Shake(t.Context(), target, options)
	if !errors.Is(err, unix.EPERM) || err.Error() != "shake 127.0.0.1:1: mark 7: setsockopt: operation not permitted" || r != (Result{}) {
		t.Errorf("%+v, %v", r, err)
	}
	options = &Options{Source: netip.MustParseAddr("127.0.0.2"), SourcePorts: PortRange{40000, 40999}, Interface: "lo", DSCP: 46, TTL: 7,
		Timeout: 5 * time.Second}
	if err := options.Check(); err != nil {
		t.Errorf("Check: %v", err)
	}
	if r, err := s.Shake(t.Context(), target, options); err != nil || r.Outcome != Refused || r.Local.Addr() != options.Source {
		t.Errorf("%+v, %v", r, err)
	}
}

// With FIN the application sees a connection that was opened and closed in due form.
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
			t.Errorf("%+v, %v", r, err)
		}
		conn, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if conn.RemoteAddr().String() != r.Local.String() {
			t.Errorf("accepted %v, want %v", conn.RemoteAddr(), r.Local)
		}
		if data, err := io.ReadAll(conn); len(data) > 0 || err != nil {
			t.Errorf("read %q, %v, want EOF", data, err)
		}
		conn.Close()
		lab.Eventually(t, "there is a TIME_WAIT", func() bool { return kernel.TimeWaits(t) > timeWaits })
		var sent []string
		for _, segment := range capture.Segments() {
			if segment.Src == r.Local {
				sent = append(sent, strings.Fields(segment.String())[3])
			}
		}
		if got := strings.Join(sent, " "); got != "SYN ACK FIN,ACK ACK" {
			t.Errorf("%v were sent", got)
		}
	}
}

// The options change nothing about a handshake with oneself.
func TestHandshakeWithOneselfByOptions(t *testing.T) {
	lab.Need(t)
	s, timeWaits := start(t), kernel.TimeWaits(t)
	for i, address := range []string{"127.0.0.1", "::1"} {
		for j, options := range []Options{{}, {FIN: true}} {
			port := uint16(41_000 + 2*i + j)
			target := netip.AddrPortFrom(netip.MustParseAddr(address), port)
			options.Source, options.SourcePorts, options.Timeout = target.Addr(), PortRange{port, port}, 5*time.Second
			r, err := s.Shake(t.Context(), target, &options)
			if r.Local != target {
				t.Fatalf("%v: nothing was provoked: %+v, %v", target, r, err)
			}
			if got, want := withoutTimes(r), (Result{Outcome: Refused, Errno: unix.ECONNREFUSED, Peer: target}); err != nil || got != want {
				t.Errorf("%v:\n got %+v, %v\nwant %+v", target, got, err, want)
			}
		}
	}
	if n := kernel.TimeWaits(t) - timeWaits; n > 0 {
		t.Errorf("%d ports, on which somebody may want to listen, are left in TIME_WAIT", n)
	}
}

// What this host does not let the options have, Check and Shake say alike.
func TestOptionsThatThisHostLacks(t *testing.T) {
	wire, detour := openWire(t), addDetour(t)
	addAddress(t, "lo", "fe80::1/64")
	s := start(t)
	for _, c := range []struct {
		options Options
		target  netip.AddrPort
		errno   error
		text    string
	}{
		{Options{Interface: "nowhere"}, target4, unix.ENODEV, `interface "nowhere": setsockopt: no such device`},
		{Options{Interface: "nowhere"}, target6, unix.ENODEV, `interface "nowhere": setsockopt: no such device`},
		{Options{Interface: detour + "oratory"}, target4, unix.ENODEV, `interface "detour-of-a-laboratory": setsockopt: no such device`},
		{Options{Interface: "lo\x00"}, target4, unix.ENODEV, `interface "lo\x00": setsockopt: no such device`},
		{Options{Source: netip.MustParseAddr("198.51.100.9")}, target4, unix.EADDRNOTAVAIL,
			"source 198.51.100.9: bind: cannot assign requested address"},
		{Options{Source: netip.MustParseAddr("2001:db8::9")}, target6, unix.EADDRNOTAVAIL,
			"source 2001:db8::9: bind: cannot assign requested address"},
		{Options{Source: netip.MustParseAddr("fe80::9%lo")}, target6, unix.EADDRNOTAVAIL,
			"source fe80::9%lo: bind: cannot assign requested address"},
		{Options{Source: netip.MustParseAddr("fe80::1%nowhere")}, target6, unix.ENODEV,
			`source fe80::1%nowhere: no such device: zone "nowhere": route ip+net: no such network interface`},
	} {
		if err := c.options.Check(); !errors.Is(err, c.errno) || err.Error() != c.text {
			t.Errorf("Check: %v, want %s", err, c.text)
		}
		c.options.Timeout = 5 * time.Second
		r, err := s.Shake(t.Context(), c.target, &c.options)
		if want := fmt.Sprintf("shake %v: %s", c.target, c.text); !errors.Is(err, c.errno) || err.Error() != want || r != (Result{}) {
			t.Errorf("%+v, %v, want %s", r, err, want)
		}
	}
	for segment := range wire.Sent() {
		t.Errorf("%v was sent", segment)
	}
}

// A target's zone that is not the source's or the interface's is the caller's mistake.
func TestZoneThatDoesNotFit(t *testing.T) {
	wire := openWire(t)
	addAddress(t, "lo", "fe80::1/64")
	target := netip.MustParseAddrPort("[fe80::9%" + wire.Interface() + "]:80")
	for _, options := range []Options{{Source: netip.MustParseAddr("fe80::1%lo")}, {Interface: "lo"}} {
		options.Timeout = 5 * time.Second
		if err := options.Check(); err != nil {
			t.Error(err)
		}
		if r, err := start(t).Shake(t.Context(), target, &options); !errors.Is(err, ErrTarget) || r != (Result{}) {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

// To the kernel a broadcast address is one to receive at: it sends from another.
func TestBroadcastSource(t *testing.T) {
	wire := openWire(t)
	addAddress(t, wire.Interface(), "198.18.3.1/24")
	for _, source := range []string{"198.18.3.255", "::ffff:198.18.3.255"} {
		options := &Options{Source: netip.MustParseAddr(source)}
		want := "source " + source + ": a broadcast address: cannot assign requested address"
		if err := options.Check(); !errors.Is(err, unix.EADDRNOTAVAIL) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// The kernel ignores a bound beyond its own range: Check does not.
func TestSourcePortsBeyondTheSystems(t *testing.T) {
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40999")
	for ports, want := range map[PortRange]string{
		{40_000, 40_999}: "",
		{40_500, 40_500}: "",
		{39_999, 40_999}: "source ports 39999-40999: not within net.ipv4.ip_local_port_range, which is 40000-40999",
		{40_000, 41_000}: "source ports 40000-41000: not within net.ipv4.ip_local_port_range, which is 40000-40999",
		{50_000, 50_999}: "source ports 50000-50999: not within net.ipv4.ip_local_port_range, which is 40000-40999",
	} {
		text := ""
		if err := (&Options{SourcePorts: ports}).Check(); err != nil {
			text = err.Error()
		}
		if text != want {
			t.Errorf("%v: %q, want %q", ports, text, want)
		}
	}
}
