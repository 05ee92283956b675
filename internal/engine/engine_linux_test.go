package engine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kingpin/v2"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// parse parses flags as a command does.
func parse(t *testing.T, args ...string) (f Flags, err error) {
	t.Helper()
	app := kingpin.New("test", "")
	f.Register(app.Command("serve", "").Default())
	if _, err = app.Parse(args); err == nil {
		err = f.Validate()
	}
	return f, err
}

// An environment variable has the default of --probe.engine, so that a drop-in can set it.
func TestEngineVariable(t *testing.T) {
	for _, c := range []struct {
		variable string
		args     []string
		want     engineName
		err      string
	}{
		{want: socket},
		{variable: "raw", want: raw},
		{variable: "raw", args: []string{"--probe.engine=raw", "--probe.raw-ports=20000-20127"}, want: raw},
		{variable: "raw", args: []string{"--probe.engine=socket"}, want: socket},
		{variable: "tun", want: "tun", err: `SHAKER_PROBE_ENGINE is "tun", want one of socket, raw`},
	} {
		t.Setenv(engineVariable, c.variable)
		f, err := parse(t, c.args...)
		if f.engine != c.want || fmt.Sprint(err) != c.err && (err != nil || c.err != "") {
			t.Errorf("SHAKER_PROBE_ENGINE=%s and flags %q: %q, %v, want %q, %q", c.variable, c.args, f.engine, err,
				c.want, c.err)
		}
	}
}

// The flags accept as many ports as the engine has, and reject everything else with what would be right.
func TestFlags(t *testing.T) {
	const want = "want FIRST-LAST, 128 ports from 1024 on, such as 20000-20127"
	for _, c := range []struct {
		args []string
		err  string
	}{
		{},
		{args: []string{"--probe.engine=socket"}},
		{args: []string{"--probe.engine=raw"}},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=1024-1151"}},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=65408-65535"}},
		{args: []string{"--probe.engine="}, err: `--probe.engine is "", want one of socket, raw`},
		{args: []string{"--probe.engine=tun"}, err: `--probe.engine is "tun", want one of socket, raw`},
		{args: []string{"--probe.raw-ports=20000-20127"}, err: "--probe.raw-ports requires --probe.engine=raw"},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=20000-20128"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=20000-20126"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=1023-1150"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=65409-65536"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=20127-20000"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=20000"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=020000-20127"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=20000-20127-3"}, err: want},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports="}, err: want},
	} {
		if _, err := parse(t, c.args...); fmt.Sprint(err) != c.err && (err != nil || c.err != "") {
			t.Errorf("flags %q: error %v, want %q", c.args, err, c.err)
		}
	}
}

// The engine that the flags choose starts, and holds no more descriptors than the flags say.
func TestStart(t *testing.T) {
	lab.Need(t)
	for _, c := range []struct {
		args []string
		log  string
	}{
		{log: "[engine socket]"},
		{args: []string{"--probe.engine=raw"}, log: "[engine raw raw_ports 32"},
		{args: []string{"--probe.engine=raw", "--probe.raw-ports=20000-20127"}, log: "[engine raw raw_ports 20000-20"},
	} {
		f, err := parse(t, c.args...)
		if err != nil {
			t.Fatal(err)
		}
		before := lab.Descriptors(t)
		s, warnings, err := f.Start()
		if err != nil || warnings != nil {
			t.Fatalf("flags %q: Start() = warnings %q, error %v, want neither", c.args, warnings, err)
		}
		if got := fmt.Sprint(f.Attributes(s)); !strings.HasPrefix(got, c.log) {
			t.Errorf("flags %q: the log has %s, want %s at its beginning", c.args, got, c.log)
		}
		// Each DSCP needs sockets of its own, for each IP version and each loop.
		for i := range 600 {
			target := netip.MustParseAddrPort([]string{"127.0.0.1:1", "[::1]:1"}[i%2])
			_, err := s.Shake(t.Context(), target, &shaker.Options{DSCP: uint8(i / 2 % 64)})
			if err != nil {
				t.Fatalf("flags %q: handshake %d: %v", c.args, i, err)
			}
		}
		if n := lab.Descriptors(t) - before; n > f.Descriptors() {
			t.Errorf("flags %q: the engine holds %d descriptors, want at most %d", c.args, n, f.Descriptors())
		}
		s.Close()
		if n := lab.Descriptors(t); n != before {
			t.Errorf("flags %q: %d descriptors after Close, want %d as before", c.args, n, before)
		}
	}
}

// The error for ports that are in use names one of them, and ports that are free.
func TestTakenPort(t *testing.T) {
	lab.Need(t)
	l, err := net.Listen("tcp", "127.0.0.1:20007")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := parse(t, "--probe.engine=raw", "--probe.raw-ports=20000-20127")
	if err != nil {
		t.Fatal(err)
	}
	before := lab.Descriptors(t)
	_, _, err = f.Start()
	text := fmt.Sprint(err)
	if !strings.Contains(text, "port 20007: bind: address already in use\nhint: ") {
		t.Errorf("Start() with the port 20007 in use: error %s\nwant the port, and a hint", text)
	}
	if n := lab.Descriptors(t); n != before {
		t.Errorf("after the error, %d descriptors are open, want %d as before", n, before)
	}
	free := regexp.MustCompile(`these ports are free: (--probe\.raw-ports=\S+)`).FindStringSubmatch(text)
	if free == nil {
		t.Fatalf("the error names no free ports: %s", text)
	}
	if f, err = parse(t, "--probe.engine=raw", free[1]); err != nil {
		t.Fatalf("the flag of the hint, %s: error %v, want none", free[1], err)
	}
	s, warnings, err := f.Start()
	if err != nil || warnings != nil {
		t.Fatalf("Start() with %s, which is free: warnings %q, error %v, want neither", free[1], warnings, err)
	}
	s.Close()
}

// Ports that the kernel may give to other programs are a warning, unless they are reserved.
func TestEphemeralPorts(t *testing.T) {
	lab.Need(t)
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 49999")
	for _, c := range []struct {
		ports, reserved string
		warns           bool
	}{
		{ports: "20000-20127"},
		{ports: "39872-39999"},
		{ports: "39873-40000", warns: true},
		{ports: "39873-40000", reserved: "40000"},
		{ports: "49999-50126", warns: true},
		{ports: "49999-50126", reserved: "49998-49999"},
		{ports: "50000-50127"},
		{ports: "45000-45127", warns: true},
		{ports: "45000-45127", reserved: "45000-45127"},
		{ports: "45000-45127", reserved: "80,44000-46000"},
		{ports: "45000-45127", reserved: "45000-45126", warns: true},
	} {
		kernel.Sysctl(t, "net.ipv4.ip_local_reserved_ports", c.reserved)
		f, err := parse(t, "--probe.engine=raw", "--probe.raw-ports="+c.ports)
		if err != nil {
			t.Fatal(err)
		}
		s, warnings, err := f.Start()
		if err != nil {
			t.Fatalf("ports %s: %v", c.ports, err)
		}
		s.Close()
		const want = "the kernel gives the ports 40000-49999 to connections"
		if all := strings.Join(warnings, "\n"); c.warns != strings.Contains(all, want) || !c.warns && all != "" {
			t.Errorf("ports %s, reserved %q: warnings %q, want one: %t", c.ports, c.reserved, warnings, c.warns)
		}
	}
}

// A setting with which no answer arrives through a VRF is a warning, for raw only.
func TestVRFWarning(t *testing.T) {
	lab.Need(t)
	for value, warns := range map[string]bool{"0": true, "1": false} {
		kernel.Sysctl(t, "net.ipv4.raw_l3mdev_accept", value)
		for _, engine := range []string{socket, raw} {
			f, err := parse(t, "--probe.engine="+engine)
			if err != nil {
				t.Fatal(err)
			}
			s, warnings, err := f.Start()
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			want := 0
			if warns && engine == raw {
				want = 1
			}
			if len(warnings) != want || want == 1 && !strings.Contains(warnings[0], "raw_l3mdev_accept is 0") {
				t.Errorf("engine %s with raw_l3mdev_accept %s: warnings %q, want %d", engine, value, warnings, want)
			}
		}
	}
}

// Each reason for which the engine cannot start has a hint of its own, and each hint is one line.
func TestHints(t *testing.T) {
	for _, c := range []struct {
		err   error
		hints []string // the beginnings
	}{
		{
			err:   syscall.EPERM,
			hints: []string{"systemd: ", "containers: ", "Kubernetes: ", "elsewhere: setcap ", "docs/raw.md"},
		},
		{err: syscall.EMFILE, hints: []string{"raise the open file limit"}},
		{err: syscall.EACCES, hints: []string{"ports below net.ipv4.ip_unprivileged_port_start"}},
		{err: syscall.EADDRINUSE, hints: []string{"give free ports with --probe.raw-ports"}},
		{err: syscall.ENOPROTOOPT, hints: []string{"raw requires Linux 5.1"}},
		{err: errors.ErrUnsupported, hints: []string{"raw requires Linux 5.1"}},
		{err: syscall.ENOMEM},
	} {
		got := (&Flags{engine: raw}).hints(fmt.Errorf("shaker: %w", c.err))
		ok := len(got) == len(c.hints)
		for i := 0; ok && i < len(got); i++ {
			ok = strings.HasPrefix(got[i], c.hints[i]) && !strings.Contains(got[i], "\n")
		}
		if !ok {
			t.Errorf("hints for %v = %q, want lines that begin with %q", c.err, got, c.hints)
		}
	}
}
