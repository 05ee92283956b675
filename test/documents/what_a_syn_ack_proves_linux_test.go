package documents

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The page's table shows the result and the hops for each thing that may be at a port, and whether the
// completed handshake of blackbox_exporter succeeds.
func TestWhatASYNACKProves(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	host, router := node{chain, 4}, node{chain, 2}
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  tcp_connect: {prober: tcp, timeout: 3s}
  path: {prober: tcp, timeout: 3s, tcp: {path: always}}
`))
	process.StartBlackbox(t, "test/testdata/blackbox.yml")

	// probe returns the result of a target and, with the module path, the hop at which the target answered. The final
	// ACK must be withheld. The kernel sends it if the machine stands still for 200 ms: then another probe must do.
	probe := func(t *testing.T, module, target string) (cells []string, body string) {
		t.Helper()
		path := "/probe?module=" + module + "&target=" + target
		status, body := exporter.Scrape(t, 10115, path, "")
		for range 2 {
			if strings.Contains(body, "\nprobe_tcp_ack_sent 1\n") {
				status, body = exporter.Scrape(t, 10115, path, "")
			}
		}
		result := regexp.MustCompile(`(?m)^probe_result_info\{result="(\w+)"`).FindStringSubmatch(body)
		if result == nil || !strings.Contains(body, "\nprobe_success ") {
			t.Fatalf("GET %s = %d, want a result in\n%s", path, status, body)
		}
		if strings.Contains(body, "\nprobe_tcp_ack_sent 1\n") {
			t.Fatalf("GET %s: the final ACK was sent, want it withheld:\n%s", path, body)
		}
		hops := regexp.MustCompile(`(?m)^probe_path_hops (\d+)$`).FindStringSubmatch(body)
		if hops == nil {
			hops = []string{"", ""}
		}
		return []string{result[1], hops[1]}, body
	}
	// connects returns whether blackbox_exporter connects to a target, "yes" or "no".
	connects := func(t *testing.T, target string) string {
		t.Helper()
		_, body := exporter.Scrape(t, 9115, "/probe?module=tcp_connect&target="+target, "2.5")
		if strings.Contains(body, "\nprobe_success 1\n") {
			return "yes"
		}
		return "no"
	}
	measured := make(map[string][]string)
	// measure probes a target with both exporters for the row with the subtest's name, and returns the
	// response of shaker_exporter.
	measure := func(t *testing.T, target string) string {
		t.Helper()
		cells, body := probe(t, "path", target)
		_, name, _ := strings.Cut(t.Name(), "/")
		measured[strings.ReplaceAll(name, "_", " ")] = append(cells, connects(t, target))
		return body
	}

	t.Run("a program that listens", func(t *testing.T) { measure(t, "10.77.4.2:80") })
	t.Run("a closed port", func(t *testing.T) { measure(t, "10.77.4.2:81") })
	t.Run("a program that hangs", func(t *testing.T) {
		nginx := host.start(t, 8080, lab.Program(t, "nginx", "nginx"), nginxArgs(t, "listen 8080; return 204;")...)
		nginx.Signal(syscall.SIGSTOP)
		lab.Eventually(t, "nginx is stopped", nginx.Stopped)
		measure(t, "10.77.4.2:8080")

		// The control case: nginx answers a request only after it continues.
		const url = "http://10.77.4.2:8080/"
		answered := make(chan string, 1)
		go func() { answered <- statusOf(url) }()
		lab.Eventually(t, "the request's connection is established at the host", func() bool {
			return host.sockets(unix.BPF_TCP_ESTABLISHED, 8080) > 0
		})
		status := ""
		select {
		case status = <-answered:
			t.Errorf("GET %s = %s while nginx is stopped, want no answer", url, status)
		default:
		}
		nginx.Signal(syscall.SIGCONT)
		if status == "" {
			status = <-answered
		}
		if status != "204 No Content" {
			t.Errorf("GET %s = %s after nginx continued, want 204 No Content", url, status)
		}
	})
	t.Run("a program that hangs, with a full accept queue", func(t *testing.T) {
		redis := host.start(t, 6379, lab.Program(t, "redis-server", "redis-server"),
			"--port", "6379", "--protected-mode", "no", "--tcp-backlog", "1", "--save", "", "--dir", t.TempDir())
		redis.Signal(syscall.SIGSTOP)
		lab.Eventually(t, "Redis is stopped", redis.Stopped)
		for range 10 { // a probe takes no slot in the queue
			if cells, body := probe(t, "tcp_connect", "10.77.4.2:6379"); cells[0] != "open" {
				t.Fatalf("with an empty accept queue the result is %s, want open:\n%s", cells[0], body)
			}
		}
		fill(t, host, "10.77.4.2:6379")
		retransmits := regexp.MustCompile(`(?m)^probe_tcp_syn_retransmits [1-9]`)
		if body := measure(t, "10.77.4.2:6379"); !retransmits.MatchString(body) {
			t.Errorf("with a full accept queue the SYN was not retransmitted, "+
				"want probe_tcp_syn_retransmits above 0 in\n%s", body)
		}
		withCookies(t, host)
		if cells, body := probe(t, "tcp_connect", "10.77.4.2:6379"); cells[0] != "timeout" {
			t.Errorf("with a full accept queue and SYN cookies the result is %s, want timeout:\n%s", cells[0], body)
		}
		redis.Signal(syscall.SIGCONT)
		lab.Eventually(t, "Redis has accepted the connections, and the port is open", func() bool {
			cells, _ := probe(t, "tcp_connect", "10.77.4.2:6379")
			return cells[0] == "open"
		})
	})
	t.Run("a program that systemd has not started yet", func(t *testing.T) {
		shell := lab.Program(t, "sh", "dash")
		mark := filepath.Join(t.TempDir(), "started")
		host.start(t, 8081, lab.Program(t, "systemd-socket-activate", "systemd"), "--listen=8081",
			shell, "-c", "echo started >"+mark+"; exec sleep 600")
		// systemd starts the program for a connection in the accept queue, and the kernel counts every
		// connection that enters the queue.
		const opened = "TcpPassiveOpens"
		before := host.counter(t, opened)
		cells, body := probe(t, "path", "10.77.4.2:8081")
		lab.Eventually(t, "no handshake is half open at the host", func() bool {
			return host.sockets(unix.BPF_TCP_SYN_RECV, 8081) == 0
		})
		if after := host.counter(t, opened); after != before {
			t.Errorf("the probe raised %s from %d to %d, want no connection in the accept queue:\n%s",
				opened, before, after, body)
		}
		measured["a program that systemd has not started yet"] = append(cells, connects(t, "10.77.4.2:8081"))
		// The control case.
		lab.Eventually(t, "a connection starts the program", func() bool { _, err := os.Stat(mark); return err == nil })
		if host.counter(t, opened) == before {
			t.Errorf("the connection did not raise %s, want more than %d", opened, before)
		}
	})
	t.Run("a proxy whose backend is down", func(t *testing.T) {
		host.start(t, 8082, lab.Program(t, "nginx", "nginx"),
			nginxArgs(t, "listen 8082; location / { proxy_pass http://127.0.0.1:81; }")...)
		measure(t, "10.77.4.2:8082")
		const url = "http://10.77.4.2:8082/"
		if status := statusOf(url); status != "502 Bad Gateway" {
			t.Errorf("GET %s = %s, want 502 Bad Gateway", url, status)
		}
	})
	t.Run("a sidecar that takes over the port", func(t *testing.T) {
		host.rules(t, natPrerouting("tcp dport 81 redirect to :80;"))
		measure(t, "10.77.4.2:81")
	})
	t.Run("a forwarded port", func(t *testing.T) {
		router.rules(t, natPrerouting("ip daddr 10.77.2.2 tcp dport 8083 dnat to 10.77.4.2:80;"))
		measure(t, "10.77.2.2:8083")
	})
	t.Run("a port that is forwarded to a closed port", func(t *testing.T) {
		router.rules(t, natPrerouting("ip daddr 10.77.2.2 tcp dport 8083 dnat to 10.77.4.2:81;"))
		measure(t, "10.77.2.2:8083")
	})
	t.Run("a virtual address with two backends, one of them down", func(t *testing.T) {
		router.rules(t, natPrerouting(
			"ip daddr 10.77.2.2 tcp dport 8083 dnat to 10.77.4.2:numgen inc mod 2 map { 0 : 80, 1 : 81 };"))
		var results, connected []string
		for range 2 { // without the path: its trace would reach the next backend
			cells, _ := probe(t, "tcp_connect", "10.77.2.2:8083")
			results = append(results, cells[0])
		}
		for range 2 {
			connected = append(connected, connects(t, "10.77.2.2:8083"))
		}
		slices.Sort(results)
		slices.Sort(connected)
		slices.Reverse(connected)
		measured["a virtual address with two backends, one of them down"] = []string{
			strings.Join(results, ", "), "", strings.Join(connected, ", ")}
	})
	t.Run("a Service without endpoints", func(t *testing.T) { // the rule is kube-proxy's
		router.rules(t, filterForward("ip daddr 10.77.4.2 tcp dport 80 reject;"))
		const icmp = `probe_icmp_info{from="10.77.2.2",icmp_type="3",icmp_code="3",icmp="port_unreachable"} 1`
		if body := measure(t, "10.77.4.2:80"); !strings.Contains(body, icmp) {
			t.Errorf("the response lacks %s:\n%s", icmp, body)
		}
	})
	t.Run("a firewall that drops", func(t *testing.T) {
		router.rules(t, filterForward("tcp dport 80 drop;"))
		measure(t, "10.77.4.2:80")
	})
	t.Run("a transparent proxy on the path", func(t *testing.T) {
		router.listen(t, 3128, net.ListenConfig{})
		router.rules(t, natPrerouting("tcp dport 81 redirect to :3128;"))
		measure(t, "10.77.4.2:81")
		tryTranscript(t, snippet{synackPage, snippetWith(t, synackPage, "console", "probe --path")}, exporter.Steady)
	})
	t.Run("a SYN proxy in front of a silent host", func(t *testing.T) {
		node{chain, 3}.rules(t, filterForward("tcp dport 81 drop;"))
		router.rules(t, `table inet page {
			chain prerouting { type filter hook prerouting priority raw; tcp dport 81 tcp flags syn notrack; };
			chain forward { type filter hook forward priority filter;
				tcp dport 81 ct state invalid,untracked synproxy mss 1200 wscale 7 timestamp sack-perm; };
		}`)
		const mss = "\nprobe_tcp_mss_bytes 1188\n" // the proxy's MSS minus the timestamps
		if body := measure(t, "10.77.4.2:81"); !strings.Contains(body, mss) {
			t.Errorf("the response lacks the proxy's MSS, want %q in\n%s", mss, body)
		}
	})
	t.Run("nftables' synproxy in front of a program", func(t *testing.T) {
		router.rules(t, synproxyRules(t, 80, "forward", withoutRemedy))
		router.withStrictTracking(t)
		measure(t, "10.77.4.2:80")
	})
	t.Run("SYN cookies", func(t *testing.T) {
		withCookies(t, host)
		before := host.counter(t, "TcpExtSyncookiesSent")
		received := host.counter(t, "TcpExtSyncookiesRecv")
		measure(t, "10.77.4.2:80")
		if host.counter(t, "TcpExtSyncookiesSent") == before {
			t.Errorf("TcpExtSyncookiesSent is still %d after the probe, want more", before)
		}
		// The host takes only the ACK of blackbox_exporter for a final ACK, and not the RST of the probe.
		lab.Eventually(t, "the connection of blackbox_exporter returned its cookie", func() bool {
			return host.counter(t, "TcpExtSyncookiesRecv") > received
		})
		if n := host.counter(t, "TcpExtSyncookiesRecv") - received; n != 1 {
			t.Errorf("%d SYN cookies came back, want 1, of the connection and not of the probe", n)
		}
	})
	t.Run("TCP Fast Open", func(t *testing.T) {
		host.listen(t, 8084, net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
			controlErr := conn.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16)
			})
			return errors.Join(err, controlErr)
		}})
		measure(t, "10.77.4.2:8084")
	})
	t.Run("MPTCP", func(t *testing.T) {
		var config net.ListenConfig
		config.SetMultipathTCP(true)
		host.listen(t, 8085, config)
		measure(t, "10.77.4.2:8085")
	})
	compareRows(t, synackPage, "what is at the port", measured)
}

// What synproxyRules does with the rule that keeps the RST of a probe from the proxy.
const (
	withRemedy    = true
	withoutRemedy = false
)

// synproxyRules returns the rules of the page's SYN proxy for a port and a hook, with or without the remedy. The
// proxy has an MSS by which its SYN-ACKs can be told from those of the host.
func synproxyRules(t *testing.T, port int, hook string, remedy bool) string {
	t.Helper()
	rules := snippetWith(t, synackPage, "nft", "synproxy")
	if !remedy {
		lines := regexp.MustCompile(`(?m)^.*# before synproxy\n`)
		if n := len(lines.FindAllString(rules, -1)); n != 1 {
			t.Fatalf("%s: %d lines end with the comment that marks the remedy, want 1:\n%s", synackPage, n, rules)
		}
		rules = lines.ReplaceAllString(rules, "")
	}
	return strings.NewReplacer("table inet filter", "table inet page", "hook forward", "hook "+hook,
		"dport 443", fmt.Sprintf("dport %d", port), "mss 1460", "mss 1200").Replace(rules)
}

// nftables' synproxy takes the RST of a probe for the final ACK, so that the application sees a connection. With
// the page's remedy the application sees only the connections of clients, and so it does with iptables' SYNPROXY, and
// without any remedy if the SYN is sent without a socket: then the RST has no ACK.
func TestSynproxy(t *testing.T) {
	chain := kernel.NewChain(t)
	router, host := node{chain, 2}, node{chain, 4}
	exporter.Start(t)
	accepted := host.accept(t, 443)
	const probes = 20

	// probe probes the target. The MSS shows that the proxy answers.
	probe := func(t *testing.T, target string, mss int) {
		t.Helper()
		_, body := exporter.Get(t, "/probe?target="+target)
		for _, want := range []string{
			"\nprobe_success 1\n", "\nprobe_tcp_ack_sent 0\n", fmt.Sprintf("\nprobe_tcp_mss_bytes %d\n", mss),
		} {
			if !strings.Contains("\n"+body, want) {
				t.Fatalf("the probe of %s through the proxy lacks %q:\n%s", target, want, body)
			}
		}
	}
	// next returns the next connection that the application accepts.
	next := func(t *testing.T, after string) net.Conn {
		t.Helper()
		select {
		case conn := <-accepted:
			t.Cleanup(func() { conn.Close() })
			conn.SetDeadline(time.Now().Add(time.Minute))
			return conn
		case <-time.After(time.Minute):
			t.Fatalf("the application has accepted no connection within a minute after %s", after)
			return nil
		}
	}
	// unseen probes the target with one of the engines, and connects to it through the proxy as an ordinary client
	// does. The application accepts connections in the order of their handshakes: if it saw a probe, it would accept
	// the probe first.
	unseen := func(t *testing.T, target string, probe func(t *testing.T, target string, mss int)) {
		t.Helper()
		for range probes {
			probe(t, target, 1200)
		}
		client, err := net.DialTimeout("tcp", target, time.Minute)
		if err != nil {
			t.Fatalf("an ordinary connection through the proxy: %v", err)
		}
		defer client.Close()
		client.SetDeadline(time.Now().Add(time.Minute))
		conn := next(t, "a client connected")
		if got, want := conn.RemoteAddr().String(), client.LocalAddr().String(); got != want {
			t.Fatalf("after %d probes the application has accepted %s, want only the client %s", probes, got, want)
		}
		const greeting = "hello"
		got := make([]byte, len(greeting))
		_, writeErr := io.WriteString(conn, greeting)
		_, readErr := io.ReadFull(client, got)
		if err := errors.Join(writeErr, readErr); err != nil || string(got) != greeting {
			t.Errorf("the client received %q through the proxy, error %v, want %q", got, err, greeting)
		}
	}

	raw, err := shaker.New(&shaker.Config{Raw: &shaker.Raw{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	// probeWithoutSocket is like probe, but sends the SYN without a socket.
	probeWithoutSocket := func(t *testing.T, target string, mss int) {
		t.Helper()
		r, err := raw.Shake(t.Context(), netip.MustParseAddrPort(target), &shaker.Options{Timeout: time.Minute})
		if err != nil || r.Outcome != shaker.Open || r.MSS != mss {
			t.Fatalf("Shake(%s) through the proxy, without a socket = %+v, error %v, want Open and the MSS %d",
				target, r, err, mss)
		}
	}

	for _, c := range []struct {
		node node
		hook string
	}{
		{node: router, hook: "forward"},
		{node: host, hook: "input"},
	} {
		for _, target := range []string{"10.77.4.2:443", "[fd77:4::2]:443"} {
			t.Run(c.hook+" "+target, func(t *testing.T) {
				t.Run("without the remedy", func(t *testing.T) {
					c.node.rules(t, synproxyRules(t, 443, c.hook, withoutRemedy))
					c.node.withStrictTracking(t)
					for range probes {
						probe(t, target, 1200)
						conn := next(t, "a probe")
						if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
							t.Errorf("the application reads from the probe's connection: %v, want ECONNRESET", err)
						}
					}
				})
				t.Run("without the remedy, with timestamps", func(t *testing.T) {
					const rejected = "TcpExtTSEcrRejected"
					before, ok := host.Counters(host.n)[rejected]
					if !ok {
						lab.Skip(t, "needs a kernel that has the counter %s", rejected)
					}
					rules := synproxyRules(t, 443, c.hook, withoutRemedy)
					c.node.rules(t, strings.Replace(rules, " sack-perm", " timestamp sack-perm", 1))
					c.node.withStrictTracking(t)
					probe(t, target, 1188) // minus the timestamps
					lab.Eventually(t, "the host has rejected the ACK of the proxy", func() bool {
						return host.counter(t, rejected) > before
					})
				})
				t.Run("with the remedy", func(t *testing.T) {
					c.node.rules(t, synproxyRules(t, 443, c.hook, withRemedy))
					c.node.withStrictTracking(t)
					unseen(t, target, probe)
				})
				// Linux 6.18's synproxy takes an IPv6 segment for an IPv4 one to check its checksum, and drops it,
				// unless a network card has checked it. A veth pair does so only for segments of sockets.
				if !strings.HasPrefix(target, "[") {
					t.Run("without the remedy, without a socket", func(t *testing.T) {
						c.node.rules(t, synproxyRules(t, 443, c.hook, withoutRemedy))
						c.node.withStrictTracking(t)
						unseen(t, target, probeWithoutSocket)
					})
				}
				t.Run("iptables", func(t *testing.T) {
					iptables := lab.Program(t, "iptables", "iptables")
					if strings.HasPrefix(target, "[") {
						iptables = lab.Program(t, "ip6tables", "iptables")
					}
					c.node.iptables(t, iptables, "raw", "PREROUTING", "-p tcp --dport 443 --syn -j CT --notrack")
					c.node.iptables(t, iptables, "filter", strings.ToUpper(c.hook), "-p tcp --dport 443 "+
						"-m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --mss 1200 --wscale 7 --sack-perm")
					c.node.withStrictTracking(t)
					unseen(t, target, probe)
				})
			})
		}
	}
}

// accept accepts connections of both IP versions to a port of the node for the rest of the test.
func (n node) accept(t *testing.T, port int) <-chan net.Conn {
	t.Helper()
	var l net.Listener
	n.In(n.n, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	conns := make(chan net.Conn, 1000)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			conns <- conn
		}
	})
	t.Cleanup(func() { l.Close(); accepting.Wait() })
	return conns
}

// iptables appends a rule, without quotes, to a chain of the node for the rest of the test. It skips the test if
// the kernel does not support the rule.
func (n node) iptables(t *testing.T, program, table, chain, rule string) {
	t.Helper()
	run := func(command string) (out []byte, err error) {
		args := append([]string{"-t", table, command, chain}, strings.Fields(rule)...)
		n.In(n.n, func() error {
			out, err = exec.Command(program, args...).CombinedOutput()
			return nil
		})
		return out, err
	}
	if out, err := run("-A"); err != nil {
		lab.Skip(t, "needs a kernel that supports the iptables rule %q: %v: %s", rule, err, out)
	}
	t.Cleanup(func() { run("-D") })
}

// withStrictTracking makes the node's connection tracking regard a final ACK without a SYN as invalid for the
// rest of the test, as synproxy requires.
func (n node) withStrictTracking(t *testing.T) {
	t.Helper()
	set := func(value string) {
		n.In(n.n, func() error {
			return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte(value), 0)
		})
	}
	set("0")
	t.Cleanup(func() { set("1") })
}

// withCookies makes a host answer every SYN with a SYN cookie for the rest of the test.
func withCookies(t *testing.T, host node) {
	t.Helper()
	set := func(value string) {
		host.In(host.n, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(value), 0) })
	}
	set("2")
	t.Cleanup(func() { set("1") })
}

// statusOf returns the status of the response to a GET request, or the error.
func statusOf(url string) string {
	response, err := lab.Client.Get(url)
	if err != nil {
		return err.Error()
	}
	response.Body.Close()
	return response.Status
}

// nginxArgs returns the arguments of nginx for one server.
func nginxArgs(t *testing.T, server string) []string {
	t.Helper()
	directory := t.TempDir()
	return []string{"-e", directory + "/log", "-c", lab.Write(t, t.TempDir(), "nginx.conf", fmt.Sprintf(`
		daemon off;
		user root root;
		master_process off;
		pid %[1]s/pid;
		error_log %[1]s/log;
		events {}
		http {
			access_log off;
			client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
			uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
			server { %[2]s }
		}`, directory, server))}
}

// fill connects to a program that hangs until the host drops SYNs because the program's accept queue is full.
// The connections stay open for the rest of the test.
func fill(t *testing.T, host node, target string) {
	t.Helper()
	before := host.counter(t, "TcpExtListenOverflows")
	dialer := net.Dialer{Timeout: time.Minute}
	var dialling sync.WaitGroup
	conns := make(chan net.Conn, 8)
	for range cap(conns) {
		dialling.Go(func() {
			if conn, err := dialer.DialContext(t.Context(), "tcp", target); err == nil {
				conns <- conn
			}
		})
	}
	t.Cleanup(func() {
		dialling.Wait()
		close(conns)
		for conn := range conns {
			conn.Close()
		}
	})
	lab.Eventually(t, "the accept queue is full", func() bool {
		return host.counter(t, "TcpExtListenOverflows") > before
	})
}
