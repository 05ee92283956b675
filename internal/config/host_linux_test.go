package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// lacks ends a warning.
const lacks = ", which this host does not have: until it does, probes with this module are answered with 503"

// parseTCP parses a file with a key of the section tcp.
func parseTCP(key string) (*Config, []string, error) {
	return Parse("shaker.yml", []byte("modules:\n  m:\n    prober: tcp\n    tcp:\n      "+key+"\n"))
}

// An address or interface that is missing now may appear later.
func TestWarnings(t *testing.T) {
	lab.Need(t)
	for _, text := range []string{
		"interface: eth9",
		"source_ip_address: 192.0.2.7",
		"source_ip_address: 2001:db8::7",
		"source_ip_address: fe80::7%eth9",
		"source_ip_address: fe80::7%lo",
	} {
		key, value, _ := strings.Cut(text, ": ")
		want := []string{"shaker.yml:5: module m: tcp." + key + " is " + value + lacks}
		c, warnings, err := parseTCP(text)
		if c == nil || err != nil || !slices.Equal(warnings, want) {
			t.Errorf("Parse(%s) = %+v, %v\n got warnings %q\nwant warnings %q", text, c, err, warnings, want)
		}
	}
	for _, text := range []string{"interface: lo", "source_ip_address: 127.0.0.2", "source_ip_address: ::1"} {
		if _, warnings, err := parseTCP(text); err != nil || warnings != nil {
			t.Errorf("Parse(%s) = %q, %v, want no warnings and no error", text, warnings, err)
		}
	}
}

// A source address is checked together with the module's interface, if this host has the interface.
func TestSourceOptions(t *testing.T) {
	lab.Need(t)
	source := netip.MustParseAddr("127.0.0.2")
	for name, want := range map[string]string{"": "", "lo": "lo", "eth9": ""} {
		got := sourceOptions(&TCP{SourceIPAddress: source, Interface: name})
		if want := (shaker.Options{Source: source, Interface: want}); got != want {
			t.Errorf("sourceOptions(%v, interface %q) = %+v, want %+v", source, name, got, want)
		}
	}
}

// This host has an address of a VRF only together with the VRF. The order of the keys does not
// matter, and the warning is about the source address.
func TestSourceInVRF(t *testing.T) {
	vrf := kernel.NewVRF(t)
	for _, address := range []string{"192.0.2.7/32", "2001:db8::7/128"} {
		addr, err := netlink.ParseAddr(address)
		if err == nil {
			addr.Flags = unix.IFA_F_NODAD // usable at once
			err = netlink.AddrAdd(vrf, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
		source := "source_ip_address: " + addr.IP.String()
		iface := "interface: " + vrf.Attrs().Name
		for _, text := range []string{source + "\n      " + iface, iface + "\n      " + source} {
			if _, warnings, err := parseTCP(text); err != nil || warnings != nil {
				t.Errorf("Parse(%s) = %q, %v, want no warnings and no error", text, warnings, err)
			}
		}
		want := []string{"shaker.yml:5: module m: tcp.source_ip_address is " + addr.IP.String() + lacks}
		if _, warnings, err := parseTCP(source); err != nil || !slices.Equal(warnings, want) {
			t.Errorf("Parse(%s): %v\n got warnings %q\nwant warnings %q", source, err, warnings, want)
		}
	}
}

// The source address and the interface have a warning each, on the line of their own key.
func TestSourceAndInterfaceWarnings(t *testing.T) {
	lab.Need(t)
	for text, want := range map[string][]string{
		"source_ip_address: 192.0.2.7\n      interface: lo":   {"5: module m: tcp.source_ip_address is 192.0.2.7"},
		"interface: lo\n      source_ip_address: 192.0.2.7":   {"6: module m: tcp.source_ip_address is 192.0.2.7"},
		"source_ip_address: 127.0.0.2\n      interface: eth9": {"6: module m: tcp.interface is eth9"},
		"source_ip_address: 192.0.2.7\n      interface: eth9": {
			"5: module m: tcp.source_ip_address is 192.0.2.7",
			"6: module m: tcp.interface is eth9",
		},
	} {
		for i := range want {
			want[i] = "shaker.yml:" + want[i] + lacks
		}
		if _, warnings, err := parseTCP(text); err != nil || !slices.Equal(warnings, want) {
			t.Errorf("Parse(%s): %v\n got warnings %q\nwant warnings %q", text, err, warnings, want)
		}
	}
}

const noCapability = "needs CAP_NET_ADMIN or CAP_NET_RAW, which this process lacks: " +
	"use setcap cap_net_raw+ep, or AmbientCapabilities=CAP_NET_RAW in the systemd unit"

func TestMarkNeedsCapability(t *testing.T) {
	lab.Need(t)
	const mark = "fwmark: 0xffffffff"
	c, _, err := parseTCP(mark)
	if err != nil || c.Modules["m"].TCP.FWMark != 1<<32-1 {
		t.Errorf("Parse(%s) with the capability = %+v, %v, want the mark 0xffffffff", mark, c, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, so that the thread without capabilities is not reused
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
			return
		}
		const want = "shaker.yml:5: module m: tcp.fwmark " + noCapability
		if _, _, err := parseTCP(mark); err == nil || err.Error() != want {
			t.Errorf("Parse(%s) without the capability:\n got %v\nwant %s", mark, err, want)
		}
		for _, text := range []string{
			"fwmark: 0", "dscp: 63", "ttl: 255", "source_ports: 40000-40999", "interface: lo",
		} {
			if _, warnings, err := parseTCP(text); err != nil || warnings != nil {
				t.Errorf("Parse(%s) without any capability = %q, %v, want neither warnings nor an error",
					text, warnings, err)
			}
		}
	}()
	<-done
}

func TestSourcePortsOutsideOfTheSystems(t *testing.T) {
	lab.Need(t)
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	system := strings.Join(strings.Fields(string(text)), "-")
	want := "shaker.yml:5: module m: tcp.source_ports cannot be used: source ports 1-65535: " +
		"not within net.ipv4.ip_local_port_range, which is " + system
	if _, _, err := parseTCP("source_ports: 1-65535"); err == nil || err.Error() != want {
		t.Errorf("Parse(source_ports: 1-65535):\n got %v\nwant %s", err, want)
	}
}

// The ports of flows that the kernel may give to connections are a warning, unless they are reserved.
func TestFlowPortsGivenToConnections(t *testing.T) {
	lab.Need(t)
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 49999")
	for _, c := range []struct {
		ports, reserved string
		warns           string // the ports that the warning wants to be reserved, "" if there is none
	}{
		{ports: "20000-20003"},
		{ports: "39998-40010"},
		{ports: "39999-40010", warns: "39999-40000"},
		{ports: "45000-45010", warns: "45000-45001"},
		{ports: "45000-45010", reserved: "45000-45001"},
		{ports: "45000-45010", reserved: "45001", warns: "45000-45001"},
	} {
		kernel.Sysctl(t, "net.ipv4.ip_local_reserved_ports", c.reserved)
		var want []string
		if c.warns != "" {
			want = []string{"shaker.yml:5: module m: tcp.source_ports is " + c.ports + ", and the kernel gives the " +
				"ports 40000-49999 to connections (net.ipv4.ip_local_port_range): probes leave a flow out while its " +
				"port is in use. Want other ports, or " + c.warns + " in net.ipv4.ip_local_reserved_ports"}
		}
		if _, warnings, err := parseTCP("{flows: 2, source_ports: " + c.ports + "}"); err != nil ||
			!slices.Equal(warnings, want) {
			t.Errorf("flows: 2, source_ports: %s, reserved %q:\n got %q, error %v\nwant %q",
				c.ports, c.reserved, warnings, err, want)
		}
	}
}

// The ports of flows that are in use are one warning.
func TestFlowPortsInUse(t *testing.T) {
	lab.Need(t)
	for _, port := range []string{":20001", ":20003", ":20004"} {
		l, err := net.Listen("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	_, warnings, err := parseTCP("{flows: 4, source_ports: 20000-20010}")
	want := []string{"shaker.yml:5: module m: tcp.source_ports is 20000-20010, but these ports are in use: " +
		"20001, 20003. Until they are free, probes leave their flows out"}
	if err != nil || !slices.Equal(warnings, want) {
		t.Errorf("with three ports in use:\n got %q, error %v\nwant %q", warnings, err, want)
	}
}

func TestJudge(t *testing.T) {
	const missing = "tcp.x is y" + lacks
	for _, test := range []struct {
		err           error
		refused, warn string
	}{
		{err: nil},
		{err: syscall.ENODEV, warn: missing},
		{err: syscall.EADDRNOTAVAIL, warn: missing},
		{err: syscall.EPERM, refused: "tcp.x " + noCapability},
		{
			err:     syscall.ENOPROTOOPT,
			refused: "tcp.x is not supported by this kernel: Linux 6.3 or later supports every key",
		},
		{err: errors.ErrUnsupported, refused: "tcp.x is not supported on linux"},
		{err: syscall.EMFILE, refused: "tcp.x cannot be used: option: too many open files"},
	} {
		f := &file{}
		v := value{Node: &yaml.Node{Kind: yaml.ScalarNode, Value: "y"}, file: f, line: 1, path: "tcp.x"}
		if test.err != nil {
			test.err = fmt.Errorf("option: %w", test.err)
		}
		v.judge(test.err)
		check := func(kind string, got []problem, want string) {
			if want == "" && got != nil || want != "" && !slices.Equal(got, []problem{{line: 1, text: want}}) {
				t.Errorf("judge(%v): %s %v, want %q", test.err, kind, got, want)
			}
		}
		check("errors", f.errors, test.refused)
		check("warnings", f.warnings, test.warn)
	}
}
