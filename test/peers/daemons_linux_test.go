package peers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// serverAddress is where the servers of these tests listen. It is no loopback address, to
// which some of them are more lenient.
const serverAddress = "198.18.1.1"

// A server is a real one, from a Debian package.
type server struct {
	port        int
	lines       func() []string // what it has logged so far
	linesEach   int             // how many of them are of a connection that says nothing
	linesNaming int             // how many of those name the client's port
}

// Real servers log nothing of 150 probes: the first thing they log is the connection that
// is made, and closed, after them. The control, 150 of such connections, is logged.
func TestRealServersStaySilent(t *testing.T) {
	lab.NeedRoot(t)
	addServerAddress(t)
	exporter.Start(t)
	for name, start := range map[string]func(*testing.T) server{"sshd": startSSHD, "nginx": startNginx, "redis": startRedis} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			before := len(s.lines())
			probeTimes(t, s.port, 150)

			port := connect(t, s.port)
			lab.Eventually(t, name+" logs the connection", func() bool {
				named := 0
				for _, line := range s.lines()[before:] {
					if strings.Contains(line, port) {
						named++
					}
				}
				return named == s.linesNaming && len(s.lines()) >= before+s.linesEach
			})
			if logged := s.lines()[before:]; len(logged) != s.linesEach {
				t.Errorf("logged besides the one connection, of port %s:\n%s", port, strings.Join(logged, "\n"))
			}

			before = len(s.lines())
			for range 150 {
				connect(t, s.port)
			}
			lab.Eventually(t, name+" logs 150 connections", func() bool { return len(s.lines())-before >= 150 })
		})
	}
}

// addServerAddress gives this host the address of the servers.
func addServerAddress(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr(serverAddress + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.AddrDel(lo, address) })
}

// probeTimes lets the exporter probe the port n times, and it is open each time.
func probeTimes(t *testing.T, port, n int) {
	t.Helper()
	for range n {
		_, body := exporter.Get(t, "/probe?target="+addressOf(port))
		if !strings.Contains(body, "probe_success 1\n") || !strings.Contains(body, "probe_tcp_ack_sent 0\n") {
			t.Fatal(body)
		}
	}
}

func addressOf(port int) string { return net.JoinHostPort(serverAddress, strconv.Itoa(port)) }

// connect does what other TCP probes do: it connects and closes. It returns the local port.
func connect(t *testing.T, port int) string {
	t.Helper()
	conn, err := net.Dial("tcp", addressOf(port))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_, local, _ := net.SplitHostPort(conn.LocalAddr().String())
	return local
}

// linesOf returns the lines of a file.
func linesOf(t *testing.T, file string) func() []string {
	return func() []string { return strings.Split(strings.TrimSuffix(lab.Read(t, file), "\n"), "\n") }
}

func startSSHD(t *testing.T) server {
	sshd := lab.Program(t, "sshd", "openssh-server")
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where sshd locks itself in
		t.Fatal(err)
	}
	log := lab.Write(t, t.TempDir(), "log", "")
	p := process.Start(t, exec.Command(sshd, "-D", "-f", lab.Write(t, t.TempDir(), "sshd_config", "PidFile none\n"), "-E", log,
		"-o", "HostKey="+key, "-o", "ListenAddress="+serverAddress+":2222"))
	p.Listening(2222)
	return server{port: 2222, lines: linesOf(t, log), linesEach: 2, linesNaming: 1}
}

func startNginx(t *testing.T) server {
	nginx := lab.Program(t, "nginx", "nginx")
	directory := t.TempDir()
	log := filepath.Join(directory, "log")
	// At the level info nginx logs clients that connect and say nothing. %s is where.
	config := lab.Write(t, t.TempDir(), "nginx.conf", fmt.Sprintf(`
		daemon off;
		master_process off;
		pid %[1]s/pid;
		error_log %[1]s/log info;
		events {}
		http {
			access_log %[1]s/log;
			client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
			uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
			server { listen %[2]s:8080; }
		}`, directory, serverAddress))
	process.Start(t, exec.Command(nginx, "-c", config, "-e", log)).Listening(8080)
	return server{port: 8080, lines: linesOf(t, log), linesEach: 1}
}

func startRedis(t *testing.T) server {
	redis := lab.Program(t, "redis-server", "redis-server")
	log := lab.Write(t, t.TempDir(), "log", "")
	// At the level verbose Redis logs every accepted connection.
	process.Start(t, exec.Command(redis, "--port", "6379", "--bind", serverAddress, "--protected-mode", "no",
		"--loglevel", "verbose", "--logfile", log, "--save", "", "--dir", t.TempDir())).Listening(6379)
	lines := linesOf(t, log)
	lab.Eventually(t, "Redis is ready", func() bool { return strings.Contains(strings.Join(lines(), "\n"), "Ready to accept connections") })
	return server{port: 6379, lines: lines, linesEach: 2, linesNaming: 2}
}

// MariaDB counts the connections of a host that say nothing, and blocks the host at 100 of
// them. It counts none of 150 probes; 150 that connect and close are the control.
func TestMariaDBDoesNotBlockTheProber(t *testing.T) {
	lab.NeedRoot(t)
	mariadbd := lab.Program(t, "mariadbd", "mariadb-server")
	addServerAddress(t)
	exporter.Start(t)
	data := t.TempDir()
	if out, err := exec.Command("mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v: %s", err, out)
	}
	socket := filepath.Join(data, "socket")
	// MariaDB counts only for hosts whose name it finds, which here a hosts file of its own
	// has to tell it.
	hosts := lab.Write(t, t.TempDir(), "hosts", serverAddress+" prober.example\n")
	process.Start(t, exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts,
		mariadbd, "--no-defaults", "--user=root", "--datadir="+data, "--socket="+socket,
		"--bind-address="+serverAddress, "--port=3306", "--performance-schema=on", "--log-warnings=2")).Listening(3306)
	ask := func(sql string) string {
		t.Helper()
		out, err := exec.Command("mariadb", "--no-defaults", "--user=root", "--socket="+socket, "--batch", "--skip-column-names", "-e", sql).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", sql, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	const (
		errors  = "select coalesce(sum(sum_connect_errors), 0) from performance_schema.host_cache"
		aborted = "select variable_value from information_schema.global_status where variable_name = 'aborted_connects'"
	)
	ask("create user somebody@'%'") // so that the prober's host may connect at all
	probeTimes(t, 3306, 150)
	if e, a := ask(errors), ask(aborted); e != "0" || a != "0" {
		t.Errorf("after 150 probes: %s connect errors in the host cache, %s aborted connects", e, a)
	}
	if text := greeting(t, 3306); strings.Contains(text, "blocked") {
		t.Errorf("MariaDB greets with %q", text)
	}

	for range 150 {
		connect(t, 3306)
	}
	lab.Eventually(t, "MariaDB counts the control's connections", func() bool {
		n, err := strconv.Atoi(ask(errors))
		return err == nil && n >= 100
	})
	if text := greeting(t, 3306); !strings.Contains(text, "is blocked because of many connection errors") {
		t.Errorf("after 150 connections that said nothing MariaDB greets with %q", text)
	}
}

// greeting returns what a server says first.
func greeting(t *testing.T, port int) string {
	t.Helper()
	conn, err := net.Dial("tcp", addressOf(port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 512)
	n, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}
