package probe

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A host that lacks an IP version probes the addresses of the other one, if the module permits it. Otherwise the
// address is unreachable. The same holds for a host whose kernel has no IPv6: see TestKernelWithoutIPv6.
func TestHostLacksIPVersion(t *testing.T) {
	newProber(t, Options{}) // in a namespace of its own
	listen(t, "127.0.0.1:7004")
	names := simnet.Names{}
	for name, addrs := range map[string][]string{
		"local":  {"127.0.0.1", "::1"},
		"both":   {"127.0.0.1", "2001:db8::1"},
		"six":    {"2001:db8::1"},
		"four":   {"192.0.2.1", "::1"},
		"denied": {"127.0.0.66", "2001:db8::1"},
	} {
		for _, label := range []string{"ok", "silent4", "broken4"} {
			names[name+"."+label+".example"] = addrs
		}
	}
	p := newProber(t, Options{
		Config: parse(t, `
targets: {deny: ["127.0.0.66:*"]}
modules:
  first: {prober: tcp, timeout: 500ms}
  first4: {prober: tcp, timeout: 500ms, tcp: {preferred_ip_protocol: ip4}}
  only6: {prober: tcp, timeout: 500ms, tcp: {ip_protocol_fallback: false}}
  all: {prober: tcp, timeout: 500ms, tcp: {addresses: all}}
  all6: {prober: tcp, timeout: 500ms, tcp: {addresses: all, ip_protocol_fallback: false}}
`),
		DialDNS: simnet.NewDNS(t, names),
	})
	type want struct{ module, target, result, errno, probed, leftOut string }
	check := func(t *testing.T, wants []want) {
		for _, c := range wants {
			report, err := p.Probe(t.Context(), request(t, p, c.target, c.module))
			if err != nil {
				t.Errorf("Probe(%s) with module %s = %v, want a report", c.target, c.module, err)
				continue
			}
			var probed []netip.Addr
			for _, v := range report.Each() {
				if addr := v.Handshake.Peer.Addr(); addr.IsValid() {
					probed = append(probed, addr)
				}
			}
			leftOut := ""
			if err := errors.Join(report.Resolution.LeftOut...); err != nil {
				leftOut = err.Error()
			}
			got := want{c.module, c.target, report.Result, report.Errno, joined(probed), leftOut}
			if got != c {
				t.Errorf("Probe(%s) with module %s = %+v, want %+v", c.target, c.module, got, c)
			}
		}
	}

	// The interfaces have no IPv6 address, not even ::1: so it is in a container of Docker.
	t.Run("no address", func(t *testing.T) {
		kernel.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
		const open, unreachable, errno = "open", "unreachable", "EADDRNOTAVAIL"
		left := func(target string) string { return "target " + target + ": this host has no IPv6 (EADDRNOTAVAIL)" }
		check(t, []want{
			{module: "first", target: "local.ok.example.:7004", result: open, probed: "127.0.0.1",
				leftOut: left("[::1]:7004")},
			{module: "first", target: "both.ok.example.:7004", result: open, probed: "127.0.0.1",
				leftOut: left("[2001:db8::1]:7004")},
			{module: "all", target: "both.ok.example.:7004", result: open, probed: "127.0.0.1",
				leftOut: left("[2001:db8::1]:7004")},
			{module: "first4", target: "both.ok.example.:7004", result: open, probed: "127.0.0.1"},
			{module: "first", target: "both.silent4.example.:7004", result: config.DNSTimeout,
				leftOut: left("[2001:db8::1]:7004")},
			{module: "first", target: "both.broken4.example.:7004", result: config.DNSError,
				leftOut: left("[2001:db8::1]:7004")},
			{module: "all", target: "both.broken4.example.:7004", result: config.DNSError,
				leftOut: left("[2001:db8::1]:7004")},
			{module: "first", target: "denied.ok.example.:7004", result: unreachable, errno: errno,
				probed: "2001:db8::1", leftOut: "target 127.0.0.66:7004 may not be probed: " +
					"targets.deny 127.0.0.66/32:* forbids it"},
			{module: "first", target: "six.ok.example.:7004", result: unreachable, errno: errno, probed: "2001:db8::1"},
			{module: "all", target: "six.ok.example.:7004", result: unreachable, errno: errno, probed: "2001:db8::1"},
			{module: "only6", target: "both.ok.example.:7004", result: unreachable, errno: errno,
				probed: "2001:db8::1"},
			{module: "all6", target: "both.ok.example.:7004", result: unreachable, errno: errno, probed: "2001:db8::1"},
			{module: "first", target: "[::1]:7004", result: unreachable, errno: errno, probed: "::1"},
			{module: "all", target: "[::1]:7004", result: unreachable, errno: errno, probed: "::1"},
		})
	})

	// The host has only addresses with which it reaches itself.
	t.Run("no route", func(t *testing.T) {
		const left6 = "target [2001:db8::1]:7004: this host has no IPv6 (ENETUNREACH)"
		check(t, []want{
			{module: "first", target: "local.ok.example.:7004", result: "refused", errno: "ECONNREFUSED",
				probed: "::1"},
			{module: "first", target: "both.ok.example.:7004", result: "open", probed: "127.0.0.1", leftOut: left6},
			{module: "all", target: "both.ok.example.:7004", result: "open", probed: "127.0.0.1", leftOut: left6},
			{module: "only6", target: "both.ok.example.:7004", result: "unreachable", errno: "ENETUNREACH",
				probed: "2001:db8::1"},
			{module: "first4", target: "four.ok.example.:7004", result: "refused", errno: "ECONNREFUSED", probed: "::1",
				leftOut: "target 192.0.2.1:7004: this host has no IPv4 (ENETUNREACH)"},
		})
	})

	// The usual host without IPv6: it has an IPv4 address, and of IPv6 nothing but ::1 and link-local addresses.
	t.Run("no global address", func(t *testing.T) {
		wire := simnet.NewWire(t, nil)
		link, err := netlink.LinkByName(wire.Interface())
		if err != nil {
			t.Fatal(err)
		}
		global, link6 := address(t, "2001:2::1/128"), address(t, "fe80::7/64")
		if err := errors.Join(netlink.AddrDel(link, global), netlink.AddrAdd(link, link6)); err != nil {
			t.Fatal(err)
		}
		check(t, []want{
			{module: "first", target: "both.ok.example.:7004", result: "open", probed: "127.0.0.1",
				leftOut: "target [2001:db8::1]:7004: this host has no IPv6 (ENETUNREACH)"},
		})
	})

	// A control: the host has IPv6, but no route to the target. That is not hidden.
	t.Run("lost route", func(t *testing.T) {
		simnet.NewWire(t, nil)
		check(t, []want{
			{module: "first", target: "both.ok.example.:7004", result: "unreachable", errno: "ENETUNREACH",
				probed: "2001:db8::1"},
			{module: "all", target: "both.ok.example.:7004", result: "unreachable", errno: "ENETUNREACH",
				probed: "127.0.0.1 2001:db8::1"},
			{module: "first4", target: "four.ok.example.:7004", result: "unreachable", errno: "ENETUNREACH",
				probed: "192.0.2.1"},
		})
	})
}

// A verdict of the network is not one about this host.
func TestLacksFamily(t *testing.T) {
	lab.Need(t) // this host has only ::1
	peer := netip.MustParseAddrPort("[2001:db8::1]:80")
	router := shaker.ICMP{From: netip.MustParseAddr("2001:db8:ffff::7"), Type: 1}
	for _, c := range []struct {
		result shaker.Result
		want   bool
	}{
		{result: shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.ENETUNREACH, Peer: peer}, want: true},
		{result: shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.EAFNOSUPPORT, Peer: peer}, want: true},
		{result: shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.EADDRNOTAVAIL, Peer: peer}, want: true},
		{result: shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.EHOSTUNREACH, Peer: peer}},
		{result: shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.ENETUNREACH, Peer: peer, ICMP: router}},
		{result: shaker.Result{Outcome: shaker.Timeout, Errno: syscall.ETIMEDOUT, Peer: peer}},
		{result: shaker.Result{Outcome: shaker.Open, Peer: peer}},
	} {
		if got := lacksFamily(&Verdict{Handshake: c.result}); got != c.want {
			t.Errorf("lacksFamily(%+v) = %t, want %t", c.result, got, c.want)
		}
	}
}

// address parses an address with a prefix length.
func address(t *testing.T, text string) *netlink.Addr {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
