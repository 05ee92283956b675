package config

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// parseTCP parses a file with a key of the section tcp.
func parseTCP(key string) (*Config, []string, error) {
	return Parse("shaker.yml", []byte("modules:\n  m:\n    prober: tcp\n    tcp:\n      "+key+"\n"))
}

// What is not there now may come up later.
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
		want := []string{"shaker.yml:5: module m: tcp." + key + " is " + value +
			", which this host does not have: until it does, the module's probes are faults"}
		c, warnings, err := parseTCP(text)
		if c == nil || err != nil || !slices.Equal(warnings, want) {
			t.Errorf("%s: %+v, %v\n got %q\nwant %q", text, c, err, warnings, want)
		}
	}
	for _, text := range []string{"interface: lo", "source_ip_address: 127.0.0.2", "source_ip_address: ::1"} {
		if _, warnings, err := parseTCP(text); err != nil || warnings != nil {
			t.Errorf("%s: %q, %v", text, warnings, err)
		}
	}
}

func TestMarkNeedsCapability(t *testing.T) {
	lab.Need(t)
	const mark = "fwmark: 0xffffffff"
	c, _, err := parseTCP(mark)
	if err != nil || c.Modules["m"].TCP.FWMark != 1<<32-1 {
		t.Errorf("with it: %+v, %v", c, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread is of no use to others
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
			return
		}
		const want = "shaker.yml:5: module m: tcp.fwmark needs CAP_NET_ADMIN or CAP_NET_RAW, which this process lacks: setcap cap_net_raw+ep, or AmbientCapabilities=CAP_NET_RAW in the systemd unit"
		if _, _, err := parseTCP(mark); err == nil || err.Error() != want {
			t.Errorf("without it:\n got %v\nwant %s", err, want)
		}
		for _, text := range []string{"fwmark: 0", "dscp: 63", "ttl: 255", "source_ports: 40000-40999", "interface: lo"} {
			if _, warnings, err := parseTCP(text); err != nil || warnings != nil {
				t.Errorf("%s without any capability: %q, %v", text, warnings, err)
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
	want := "shaker.yml:5: module m: tcp.source_ports cannot be used: source ports 1-65535: not within net.ipv4.ip_local_port_range, which is " + system
	if _, _, err := parseTCP("source_ports: 1-65535"); err == nil || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}
}

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		err           error
		refused, warn string
	}{
		{nil, "", ""},
		{syscall.ENODEV, "", "tcp.x is y, which this host does not have: until it does, the module's probes are faults"},
		{syscall.EADDRNOTAVAIL, "", "tcp.x is y, which this host does not have: until it does, the module's probes are faults"},
		{syscall.EPERM, "tcp.x needs CAP_NET_ADMIN or CAP_NET_RAW, which this process lacks: setcap cap_net_raw+ep, or AmbientCapabilities=CAP_NET_RAW in the systemd unit", ""},
		{syscall.ENOPROTOOPT, "tcp.x is more than this kernel knows, want a newer one: Linux 6.3 knows all", ""},
		{errors.ErrUnsupported, "tcp.x cannot be had on linux", ""},
		{syscall.EMFILE, "tcp.x cannot be used: option: too many open files", ""},
	} {
		f := &file{}
		v := value{Node: &yaml.Node{Kind: yaml.ScalarNode, Value: "y"}, file: f, line: 1, path: "tcp.x"}
		if test.err != nil {
			test.err = fmt.Errorf("option: %w", test.err)
		}
		v.judge(test.err)
		check := func(got []remark, want string) {
			if want == "" && got != nil || want != "" && !slices.Equal(got, []remark{{line: 1, text: want}}) {
				t.Errorf("%v:\n got %v\nwant %s", test.err, got, want)
			}
		}
		check(f.errors, test.refused)
		check(f.warnings, test.warn)
	}
}
