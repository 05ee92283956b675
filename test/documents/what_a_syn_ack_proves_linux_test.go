package documents

import (
	"errors"
	"fmt"
	"net"
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
)

// A place is one of the namespaces of a chain, in which a test runs programs and looks at
// sockets.
type place struct {
	*kernel.Chain
	n int
}

// sockets counts those in a state that have the port at one of their ends.
func (p place) sockets(state, port int) (n int) {
	for _, s := range p.Sockets(p.n) {
		if s.State == state && (s.Near == port || s.Far == port) {
			n++
		}
	}
	return n
}

// counter returns one of the network counters.
func (p place) counter(t *testing.T, name string) int {
	t.Helper()
	value, ok := p.Counters(p.n)[name]
	if !ok {
		t.Fatalf("there is no counter %s", name)
	}
	return value
}

// start starts a program there, and waits until it listens on the port.
func (p place) start(t *testing.T, port int, program string, args ...string) *process.Process {
	t.Helper()
	nsenter := lab.Program(t, "nsenter", "util-linux")
	var namespace *os.File
	p.In(p.n, func() (err error) {
		namespace, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	defer namespace.Close()
	cmd := exec.Command(nsenter, append([]string{"--net=/proc/self/fd/3", program}, args...)...)
	cmd.ExtraFiles = []*os.File{namespace}
	process := process.Start(t, cmd)
	p.awaitListener(t, port)
	return process
}

func (p place) awaitListener(t *testing.T, port int) {
	t.Helper()
	lab.Eventually(t, fmt.Sprintf("somebody listens on port %d", port), func() bool { return p.sockets(unix.BPF_TCP_LISTEN, port) > 0 })
}

// listen listens there for the rest of the test. Nobody is accepted.
func (p place) listen(t *testing.T, port int, config net.ListenConfig) net.Listener {
	t.Helper()
	var l net.Listener
	p.In(p.n, func() (err error) {
		l, err = config.Listen(t.Context(), "tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// rules puts rules in force there for the rest of the test. A kernel that knows them by their
// syntax only makes it skip.
func (p place) rules(t *testing.T, rules string) {
	t.Helper()
	nft := lab.Program(t, "nft", "nftables")
	file := lab.Write(t, t.TempDir(), "rules.nft", "add table inet page; add table ip page\n"+rules+"\n")
	var out []byte
	var err error
	p.In(p.n, func() error {
		out, err = exec.Command(nft, "-f", file).CombinedOutput()
		return nil
	})
	switch {
	case err != nil && strings.Contains(string(out), "syntax error"):
		t.Fatalf("%v: %s", err, out)
	case err != nil:
		lab.Skip(t, "needs rules that this kernel has not: %s", out)
	}
	t.Cleanup(func() { p.Run(p.n, nft, "delete table inet page; delete table ip page") })
}

// Whoever answers a SYN, and whatever is behind it, is told of as the page says, and a
// completed handshake would have told no more.
func TestWhatASYNACKProves(t *testing.T) {
	chain := kernel.NewChain(t)
	host, router := place{chain, 4}, place{chain, 2}
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml",
		"modules: {tcp_connect: {prober: tcp, timeout: 3s}, path: {prober: tcp, timeout: 3s, tcp: {path: always}}}"))
	process.StartBlackbox(t, "test/testdata/blackbox.yml")

	// probe returns what the exporter says of a target, and what a connect comes to.
	probe := func(t *testing.T, module, target string) (cells []string, body string) {
		t.Helper()
		_, body = exporter.Scrape(t, 10115, "/probe?module="+module+"&target="+target, "")
		result := regexp.MustCompile(`(?m)^probe_result_info\{result="(\w+)"`).FindStringSubmatch(body)
		hops := regexp.MustCompile(`(?m)^probe_path_hops (\d+)$`).FindStringSubmatch(body)
		if result == nil || !strings.Contains(body, "\nprobe_success ") || strings.Contains(body, "\nprobe_tcp_ack_sent 1\n") {
			t.Fatal(body)
		}
		if hops == nil {
			hops = []string{"", ""}
		}
		return []string{result[1], hops[1]}, body
	}
	connects := func(t *testing.T, target string) string {
		t.Helper()
		_, body := exporter.Scrape(t, 9115, "/probe?module=tcp_connect&target="+target, "2.5")
		if strings.Contains(body, "\nprobe_success 1\n") {
			return "yes"
		}
		return "no"
	}
	measured := make(map[string][]string)
	// measure does both, for the row of that name, and returns what the exporter says.
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
		lab.Eventually(t, "nginx hangs", nginx.Stopped)
		measure(t, "10.77.4.2:8080")

		// The control: it does not answer a request before it goes on.
		answered := make(chan string, 1)
		go func() { answered <- statusOf("http://10.77.4.2:8080/") }()
		lab.Eventually(t, "the request is there", func() bool { return host.sockets(unix.BPF_TCP_ESTABLISHED, 8080) > 0 })
		status := ""
		select {
		case status = <-answered:
			t.Errorf("nginx hangs and answers %s", status)
		default:
		}
		nginx.Signal(syscall.SIGCONT)
		if status == "" {
			status = <-answered
		}
		if status != "204 No Content" {
			t.Errorf("nginx goes on and answers %s", status)
		}
	})
	t.Run("a program that hangs, with a full accept queue", func(t *testing.T) {
		redis := host.start(t, 6379, lab.Program(t, "redis-server", "redis-server"),
			"--port", "6379", "--protected-mode", "no", "--tcp-backlog", "1", "--save", "", "--dir", t.TempDir())
		redis.Signal(syscall.SIGSTOP)
		lab.Eventually(t, "Redis hangs", redis.Stopped)
		for range 10 { // which takes no place in the queue
			if cells, body := probe(t, "tcp_connect", "10.77.4.2:6379"); cells[0] != "open" {
				t.Fatalf("the queue is empty: %s", body)
			}
		}
		fill(t, host, "10.77.4.2:6379")
		if body := measure(t, "10.77.4.2:6379"); !regexp.MustCompile(`(?m)^probe_tcp_syn_retransmits [1-9]`).MatchString(body) {
			t.Errorf("the SYN was not sent again: %s", body)
		}
		withCookies(t, host)
		if cells, body := probe(t, "tcp_connect", "10.77.4.2:6379"); cells[0] != "timeout" {
			t.Errorf("with SYN cookies: %s", body)
		}
		redis.Signal(syscall.SIGCONT)
		lab.Eventually(t, "Redis has accepted them, and is open", func() bool {
			cells, _ := probe(t, "tcp_connect", "10.77.4.2:6379")
			return cells[0] == "open"
		})
	})
	t.Run("a program that systemd has not started yet", func(t *testing.T) {
		mark := filepath.Join(t.TempDir(), "started")
		host.start(t, 8081, lab.Program(t, "systemd-socket-activate", "systemd"), "--listen=8081",
			"/bin/sh", "-c", "echo started >"+mark+"; exec sleep 600")
		// systemd starts it for whoever is in the accept queue, and into that goes what the kernel
		// counts as opened.
		const opened = "TcpPassiveOpens"
		before := host.counter(t, opened)
		cells, body := probe(t, "path", "10.77.4.2:8081")
		lab.Eventually(t, "no handshake is half open", func() bool { return host.sockets(unix.BPF_TCP_SYN_RECV, 8081) == 0 })
		if host.counter(t, opened) != before {
			t.Errorf("the probe starts it: %s", body)
		}
		measured["a program that systemd has not started yet"] = append(cells, connects(t, "10.77.4.2:8081"))
		lab.Eventually(t, "a connection starts it", func() bool { _, err := os.Stat(mark); return err == nil }) // the control
		if host.counter(t, opened) == before {
			t.Errorf("the connection is not in %s", opened)
		}
	})
	t.Run("a proxy whose backend is down", func(t *testing.T) {
		host.start(t, 8082, lab.Program(t, "nginx", "nginx"), nginxArgs(t, "listen 8082; location / { proxy_pass http://127.0.0.1:81; }")...)
		measure(t, "10.77.4.2:8082")
		if status := statusOf("http://10.77.4.2:8082/"); status != "502 Bad Gateway" {
			t.Errorf("its backend is not down: %s", status)
		}
	})
	t.Run("a sidecar that takes over the port", func(t *testing.T) {
		host.rules(t, "table ip page { chain prerouting { type nat hook prerouting priority dstnat; tcp dport 81 redirect to :80; }; }")
		measure(t, "10.77.4.2:81")
	})
	t.Run("a forwarded port", func(t *testing.T) {
		router.rules(t, "table ip page { chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.77.2.2 tcp dport 8083 dnat to 10.77.4.2:80; }; }")
		measure(t, "10.77.2.2:8083")
	})
	t.Run("a port that is forwarded to a closed port", func(t *testing.T) {
		router.rules(t, "table ip page { chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.77.2.2 tcp dport 8083 dnat to 10.77.4.2:81; }; }")
		measure(t, "10.77.2.2:8083")
	})
	t.Run("a virtual address with two backends, one of them down", func(t *testing.T) {
		router.rules(t, `table ip page { chain prerouting { type nat hook prerouting priority dstnat;
			ip daddr 10.77.2.2 tcp dport 8083 dnat to 10.77.4.2:numgen inc mod 2 map { 0 : 80, 1 : 81 }; }; }`)
		var results, connected []string
		for range 2 { // a trace would take the next backend
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
	t.Run("a Service without endpoints", func(t *testing.T) { // by kube-proxy's rule
		router.rules(t, "table inet page { chain forward { type filter hook forward priority filter; ip daddr 10.77.4.2 tcp dport 80 reject; }; }")
		if body := measure(t, "10.77.4.2:80"); !strings.Contains(body, `probe_icmp_info{from="10.77.2.2",icmp_type="3",icmp_code="3",icmp="port_unreachable"} 1`) {
			t.Errorf("the node does not say so: %s", body)
		}
	})
	t.Run("a firewall that drops", func(t *testing.T) {
		router.rules(t, "table inet page { chain forward { type filter hook forward priority filter; tcp dport 80 drop; }; }")
		measure(t, "10.77.4.2:80")
	})
	t.Run("a transparent proxy on the path", func(t *testing.T) {
		router.listen(t, 3128, net.ListenConfig{})
		router.rules(t, "table ip page { chain prerouting { type nat hook prerouting priority dstnat; tcp dport 81 redirect to :3128; }; }")
		measure(t, "10.77.4.2:81")
		tryTranscript(t, snippet{synackPage, snippetWith(t, synackPage, "console", "probe --path")})
	})
	t.Run("a SYN proxy in front of a silent host", func(t *testing.T) {
		place{chain, 3}.rules(t, "table inet page { chain forward { type filter hook forward priority filter; tcp dport 81 drop; }; }")
		router.rules(t, `table inet page {
			chain prerouting { type filter hook prerouting priority raw; tcp dport 81 tcp flags syn notrack; };
			chain forward { type filter hook forward priority filter; tcp dport 81 ct state invalid,untracked synproxy mss 1200 wscale 7 timestamp sack-perm; };
		}`)
		body := measure(t, "10.77.4.2:81")
		if mss := regexp.MustCompile(`(?m)^probe_tcp_mss_bytes (\d+)$`).FindStringSubmatch(body); mss == nil || mss[1] != "1188" { // less its timestamps
			t.Errorf("the MSS is not the proxy's: %s", body)
		}
	})
	t.Run("SYN cookies", func(t *testing.T) {
		withCookies(t, host)
		before := host.counter(t, "TcpExtSyncookiesSent")
		measure(t, "10.77.4.2:80")
		if host.counter(t, "TcpExtSyncookiesSent") == before {
			t.Error("no cookie was sent")
		}
	})
	t.Run("TCP Fast Open", func(t *testing.T) {
		host.listen(t, 8084, net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
			controlErr := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16) })
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

// withCookies lets a host answer every SYN with a cookie, for the rest of the test.
func withCookies(t *testing.T, host place) {
	t.Helper()
	set := func(value string) {
		host.In(host.n, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(value), 0) })
	}
	set("2")
	t.Cleanup(func() { set("1") })
}

// statusOf returns the status of the answer to a GET, or what went wrong.
func statusOf(url string) string {
	response, err := lab.Client.Get(url)
	if err != nil {
		return err.Error()
	}
	response.Body.Close()
	return response.Status
}

// nginxArgs returns the arguments for an nginx with one server.
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

// fill connects to a program that hangs, for the rest of the test, until its host drops SYNs
// because its accept queue is full.
func fill(t *testing.T, host place, target string) {
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
	lab.Eventually(t, "the accept queue is full", func() bool { return host.counter(t, "TcpExtListenOverflows") > before })
}
