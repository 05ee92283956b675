package endtoend

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const (
	rawEngine = "--probe.engine=raw"
	rawPorts  = "20000-20127"
	rawFlag   = "--probe.raw-ports=" + rawPorts
)

// isRawPort reports whether a port is one of rawPorts.
func isRawPort(port int) bool { return 20000 <= port && port <= 20127 }

const rawConfig = `
modules:
  tcp_connect: {prober: tcp, timeout: 500ms}
  every_address: {prober: tcp, timeout: 500ms, tcp: {addresses: all}}
  watched: {prober: tcp, timeout: 300ms, watch: {interval: 100ms}}
  ports: {prober: tcp, timeout: 500ms, tcp: {source_ports: 40000-40999}}
  fin: {prober: tcp, timeout: 500ms, tcp: {close: fin}}
  held: {prober: hold, hold: {keepalive: {idle: 15s, interval: 5s, count: 3}}}
  idle: {prober: idle, idle: {steps: [1s, 2s], probe: {interval: 1s, count: 1}}}
`

// series returns the series of an exposition, without their values.
func series(exposition string) (names []string) {
	for line := range strings.Lines(exposition) {
		if !strings.HasPrefix(line, "#") {
			names = append(names, line[:strings.LastIndex(line, " ")])
		}
	}
	slices.Sort(names)
	return names
}

// difference returns the names that only one of the sorted lists has.
func difference(a, b []string) (only []string) {
	for _, name := range append(slices.Clone(a), b...) {
		if slices.Contains(a, name) != slices.Contains(b, name) {
			only = append(only, name)
		}
	}
	return only
}

// Both engines export the same series, whatever the result is, in scrapes, between them and on the command line. The
// status page, /logs and debug=true have the same results.
func TestRawSeries(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("2001:db8::1", simnet.SYNACK())
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3", simnet.ICMP("198.51.100.9", 3, 1))
	conf := "--config.file=" + lab.Write(t, t.TempDir(), "shaker.yml", rawConfig)
	ports := map[string]int{"socket": 10116, "raw": 10117}
	for engine, port := range ports {
		exporter.StartOn(t, port, conf, "--probe.engine="+engine)
	}
	targets := map[string]string{
		"192.0.2.1:80":     `result="open"`,
		"[2001:db8::1]:80": `result="open"`,
		"192.0.2.2:80":     `result="refused"`,
		"192.0.2.3:80":     `result="unreachable"`,
		"192.0.2.4:80":     `result="timeout"`,
	}
	for _, module := range []string{"tcp_connect", "every_address", "watched", "ports", "fin"} {
		for _, target := range slices.Sorted(maps.Keys(targets)) {
			want := targets[target]
			path := "/probe?module=" + module + "&target=" + target
			got := make(map[string][]string)
			for engine, port := range ports {
				_, body := exporter.Scrape(t, port, path, "10")
				if module == "watched" { // registered now
					_, body = exporter.Scrape(t, port, path, "10")
				}
				if !strings.Contains(body, want) {
					t.Errorf("%s with engine %s = %s, want %s", path, engine, body, want)
				}
				got[engine] = series(body)
			}
			if only := difference(got["socket"], got["raw"]); only != nil || len(got["raw"]) < 8 {
				t.Errorf("%s: only one of the engines has the series %q, want none of %d", path, only, len(got["raw"]))
			}
		}
	}
	for engine, port := range ports {
		_, body := exporter.Scrape(t, port, "/probe?module=watched&target=192.0.2.1:80", "10")
		if !strings.Contains(body, "probe_watch_handshakes_total{") {
			t.Errorf("the scrape of a watched target with engine %s lacks probe_watch_handshakes_total:\n%s",
				engine, body)
		}
		for _, c := range []struct{ path, want string }{
			{path: "/", want: "192.0.2.2:80"},
			{path: "/logs?target=192.0.2.2:80", want: "refused"},
			{path: "/probe?target=192.0.2.1:80&debug=true", want: "RST, final ACK sent: false"},
		} {
			if status, body := exporter.Scrape(t, port, c.path, ""); status != 200 || !strings.Contains(body, c.want) {
				t.Errorf("%s with engine %s = %d %s, want 200 and %q", c.path, engine, status, body, c.want)
			}
		}
		_, body = exporter.Scrape(t, port, "/probe?target=192.0.2.1:80&debug=true", "")
		if strings.Contains(body, " bytes, TTL 64\n") != (engine == "raw") {
			t.Errorf("debug=true with engine %s prints\n%s\nwant the TTL of the SYN-ACK only from raw", engine, body)
		}
	}
	own := make(map[string][]string)
	for engine, port := range ports {
		_, body := exporter.Scrape(t, port, "/metrics", "")
		own[engine] = slices.DeleteFunc(series(body), func(name string) bool {
			return !strings.HasPrefix(name, "shaker_")
		})
	}
	want := []string{
		`shaker_engine_info{engine="socket"}`,
		`shaker_engine_info{engine="raw"}`,
		`shaker_raw_resets_checked_total`,
		`shaker_raw_resets_missing_total`,
		`shaker_raw_segments_dropped_total{reason="foreign"}`,
		`shaker_raw_segments_dropped_total{reason="forged"}`,
		`shaker_raw_segments_dropped_total{reason="late"}`,
		`shaker_raw_segments_dropped_total{reason="lost"}`,
	}
	if only := difference(own["socket"], own["raw"]); !slices.Equal(only, want) {
		t.Errorf("only one of the engines has the series %q on /metrics, want %q", only, want)
	}

	outputs := make(map[string]string)
	for engine := range ports {
		args := []string{conf, "probe", "--probe.engine=" + engine, "--output=json"}
		args = append(args, slices.Sorted(maps.Keys(targets))...)
		out, _ := exporter.Command(t, args...).Output() // exits with 1, because some targets are not open
		lines := slices.Sorted(strings.Lines(exporter.Steady(string(out))))
		outputs[engine] = strings.Join(lines, "")
	}
	if outputs["raw"] != outputs["socket"] || strings.Count(outputs["raw"], "\n") != len(targets) {
		t.Errorf("probe --output=json prints with sockets\n%s\nand without\n%s\nwant the same, a line for each target",
			outputs["socket"], outputs["raw"])
	}
}

// Handshakes that need a socket use one without a word, and not the ports of SYNs without a socket.
func TestRawUsesSockets(t *testing.T) {
	conf := "--config.file=" + lab.Write(t, t.TempDir(), "shaker.yml", rawConfig)
	p := exporter.Start(t, conf, "--log.level=debug", rawEngine, rawFlag)
	l, err := net.Listen("tcp", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan int, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			accepted <- conn.RemoteAddr().(*net.TCPAddr).Port
			defer conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close() })

	from := regexp.MustCompile(`SYN from 127\.0\.0\.1:(\d+) to`)
	for module, raw := range map[string]bool{"tcp_connect": true, "fin": false, "ports": false} {
		_, body := exporter.Get(t, "/probe?debug=true&target=127.0.0.1:7000&module="+module)
		var port int
		if found := from.FindStringSubmatch(body); found != nil {
			fmt.Sscan(found[1], &port)
		}
		if isRawPort(port) != raw || port == 0 || !strings.Contains(body, "\nprobe_success 1\n") {
			t.Errorf("module %s: the SYN is from port %d, want one of %s: %t, and success, in\n%s",
				module, port, rawPorts, raw, body)
		}
	}
	for _, module := range []string{"held", "idle"} {
		lab.Eventually(t, "module "+module+" has connections", func() bool {
			exporter.Scrape(t, exporter.Port, "/probe?target=127.0.0.1:7000&module="+module, "")
			return exporter.Metric(t, fmt.Sprintf("shaker_held_connections{module=%q}", module)) > 0 &&
				len(accepted) > map[string]int{"held": 1, "idle": 2}[module]
		})
	}
	for range len(accepted) {
		if port := <-accepted; isRawPort(port) {
			t.Errorf("a connection comes from port %d, want none of %s", port, rawPorts)
		}
	}
	if log := p.Output(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") ||
		!strings.Contains(log, "engine=raw raw_ports="+rawPorts[:8]) {
		t.Errorf("the log has\n%s\nwant the engine and its ports, and no warning", log)
	}
}

// Without CAP_NET_RAW the commands exit with 1 and say what is missing, and how to provide it. With the capability
// alone they run. The control is the other engine.
func TestRawCapability(t *testing.T) {
	lab.NeedRoot(t)
	program, err := os.Open(exporter.Command(t).Path)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	setpriv := lab.Program(t, "setpriv", "util-linux")
	as := func(capabilities string, args ...string) *exec.Cmd {
		all := append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
			"--inh-caps=" + capabilities, "--ambient-caps=" + capabilities, "--bounding-set=" + capabilities,
			"/proc/self/fd/3"}, args...)
		cmd := exec.Command(setpriv, all...)
		cmd.ExtraFiles = []*os.File{program} // nobody else may enter its directory
		return cmd
	}
	const none, one = "-all", "-all,+net_raw"
	probe := []string{"probe", "127.0.0.1:1"}
	for _, args := range [][]string{{rawEngine}, append(probe, rawEngine)} {
		out, err := as(none, args...).CombinedOutput()
		exit, ok := err.(*exec.ExitError)
		if !ok || exit.ExitCode() != 1 {
			t.Errorf("%q without a capability: %v, want exit status 1", args, err)
		}
		for _, want := range []string{
			"shaker_exporter: --probe.engine=raw: shaker: SYNs without a socket: raw sockets need CAP_NET_RAW: ",
			"\nhint: systemd: ", "\nhint: containers: ", "\nhint: Kubernetes: ",
			"\nhint: elsewhere: setcap cap_net_raw=ep ",
		} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%q without a capability prints\n%s\nwant %q in it", args, out, want)
			}
		}
	}
	for _, c := range []struct{ capabilities, engine string }{
		{capabilities: one, engine: rawEngine}, {capabilities: none, engine: "--probe.engine=socket"},
	} {
		out, _ := as(c.capabilities, append(probe, c.engine)...).CombinedOutput()
		if want := "seq=1 refused ECONNREFUSED"; !strings.Contains(string(out), want) {
			t.Errorf("probe %s with capabilities %s prints\n%s\nwant %q in it", c.engine, c.capabilities, out, want)
		}
	}
}

// A port that is in use is an error that names the port, and ports that are free.
func TestRawPortTaken(t *testing.T) {
	lab.Need(t)
	l, err := net.Listen("tcp", "127.0.0.1:20010")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, args := range [][]string{{rawEngine, rawFlag}, {"probe", "127.0.0.1:1", rawEngine, rawFlag}} {
		out, err := exporter.Command(t, args...).CombinedOutput()
		exit, ok := err.(*exec.ExitError)
		if !ok || exit.ExitCode() != 1 {
			t.Errorf("%q with a port in use: %v, want exit status 1", args, err)
		}
		for _, want := range []string{"port 20010: bind: address already in use", "free: --probe.raw-ports="} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%q with a port in use prints\n%s\nwant %q in it", args, out, want)
			}
		}
	}
}

// A reload keeps the ports and opens no further descriptors. After SIGTERM, during which a probe ends, the ports are
// free and no raw socket is left.
func TestRawReloadAndShutdown(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	dir := t.TempDir()
	file := lab.Write(t, dir, "shaker.yml", rawConfig)
	p := exporter.Start(t, "--config.file="+file, "--timeout-offset=0", rawEngine, rawFlag)
	probe := func() {
		t.Helper()
		for _, target := range []string{"127.0.0.1:1", "[::1]:1"} {
			if status, body := exporter.Get(t, "/probe?target="+target); status != 200 {
				t.Fatalf("probe of %s = %d %s, want 200", target, status, body)
			}
		}
	}
	for range 8 { // so that both loops have opened their sockets
		probe()
	}
	before := exporter.Metric(t, "process_open_fds")
	for i := range 3 {
		lab.Write(t, dir, "shaker.yml", rawConfig+fmt.Sprintf("  more_%d: {prober: tcp}\n", i))
		request := exporter.NewRequest(t, http.MethodPost, exporter.Port, "/-/reload")
		if status, body := exporter.Do(t, request); status != 200 {
			t.Fatalf("reload = %d %s, want 200", status, body)
		}
		probe()
	}
	// A connection of this test may still be open at first.
	lab.Eventually(t, fmt.Sprintf("no more than %d descriptors are open after three reloads", before), func() bool {
		return exporter.Metric(t, "process_open_fds") <= before
	})
	answer := make(chan string)
	go func() {
		status, body := exporter.Scrape(t, exporter.Port, "/probe?target=192.0.2.1:443", "10")
		answer <- fmt.Sprintf("%d\n%s", status, body)
	}()
	wire.Await(1)
	p.Signal(syscall.SIGTERM)
	if got := <-answer; !strings.Contains(got, `result="timeout"`) {
		t.Errorf("the probe that runs during the shutdown = %s\nwant a timeout", got)
	}
	if code := p.Wait(); code != 0 {
		t.Errorf("after SIGTERM the exporter exits with %d, want 0", code)
	}
	for port := 20000; port <= 20127; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Errorf("after SIGTERM, port %d is still in use: %v", port, err)
			continue
		}
		l.Close()
	}
	for _, name := range []string{"raw", "raw6"} {
		if sockets := lab.Read(t, "/proc/thread-self/net/"+name); strings.Count(sockets, "\n") != 1 {
			t.Errorf("after SIGTERM, /proc/net/%s has\n%s\nwant no socket", name, sockets)
		}
	}
}

// Handshakes without sockets need no local port, however many run at the same time. The control is the other engine.
func TestRawExhaustion(t *testing.T) {
	const callers = 64 // raw has so many ports for each target, and as many on another loop
	for _, engine := range []string{"socket", "raw"} {
		t.Run(engine, func(t *testing.T) {
			wire, open := newGate(t)
			exporter.Start(t, anyNumber, "--probe.engine="+engine)
			kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40049")
			answers := make(chan exporter.Answer, callers)
			var group sync.WaitGroup
			t.Cleanup(func() { open(); group.Wait() })
			for i := range callers {
				from := exporter.Call(t, i)
				group.Go(func() { answers <- from.Get(t, openTarget) })
			}
			if engine == "socket" {
				if a := <-answers; !strings.HasSuffix(a.Body, "connect: cannot assign requested address\n") {
					t.Errorf("with 50 local ports, the first of %d probes ends with %+v, want that no port is left",
						callers, a)
				}
				return
			}
			wire.Await(callers)
			open()
			for range callers {
				if a := <-answers; !a.Open() {
					t.Errorf("a probe without a socket got %+v, want an open target", a)
				}
			}
		})
	}
}

// The default limit of probes in flight leaves room for the descriptors of the engine.
func TestRawOpenFiles(t *testing.T) {
	p := process.Start(t, withDescriptors(t, 1000, exporter.Command(t, rawEngine)))
	p.Listening(exporter.Port)
	limit := exporter.Metric(t, "shaker_probes_in_flight_limit")
	if open := exporter.Metric(t, "process_open_fds"); limit < 100 || open+3*limit > 1000-32 {
		t.Errorf("with 1000 descriptors, of which %d are open, %d probes may be in flight, "+
			"want at least 100, and three descriptors for each", open, limit)
	}
}

// If a firewall of this host drops RSTs, the exporter logs that, and its metrics count the handshakes. Before, nothing
// is logged.
func TestRawWithoutRSTs(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Need(t)
	target := kernel.NewNeighbour(t).Target
	p := exporter.Start(t, rawEngine)
	probe := func(times int) {
		t.Helper()
		for range times {
			_, body := exporter.Get(t, fmt.Sprintf("/probe?target=%v", target))
			if !strings.Contains(body, "\nprobe_success 1\n") {
				t.Fatalf("probe of %v = %s, want success", target, body)
			}
		}
	}
	const checked, missing = "shaker_raw_resets_checked_total", "shaker_raw_resets_missing_total"
	probe(10)
	if n := exporter.Metric(t, checked); n < 5 {
		t.Errorf("%s is %v after 10 probes, want 5 or more", checked, n)
	}
	const warning = "The RSTs of this host do not arrive"
	if log, n := p.Output(), exporter.Metric(t, missing); strings.Contains(log, warning) || n != 0 {
		t.Fatalf("%s is %v without a firewall, and the log has\n%s\nwant 0 and no warning", missing, n, log)
	}
	kernel.Firewall(t, "chain output { type filter hook output priority 0; tcp flags rst drop; }")
	probe(20) // fewer than there are ports, for no port is free at the target any more
	lab.Eventually(t, "the missing RSTs are logged", func() bool {
		exporter.Get(t, "/probe?target=127.0.0.1:1") // a handshake receives what has arrived before
		return strings.Contains(p.Output(), warning)
	})
	if n := exporter.Metric(t, missing); n < 10 {
		t.Errorf("%s is %v, want 10 or more", missing, n)
	}
}
