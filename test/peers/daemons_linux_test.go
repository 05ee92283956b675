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

// serverAddress is the address on which the servers of these tests listen. It is not a loopback address, because
// some of the servers treat loopback clients differently.
const serverAddress = "198.18.1.1"

// A server is a program of a Debian package that logs its connections.
type server struct {
	port        int
	lines       func() []string // of the log
	linesEach   int             // how many lines the server logs for a connection that sends nothing
	linesNaming int             // how many of these lines contain the client's port
}

// Real servers log nothing about 150 probes: after the probes, a connection is the first thing that they log.
// The control: the servers log 150 connections that send nothing.
func TestRealServersLogNothing(t *testing.T) {
	lab.NeedRoot(t)
	addServerAddress(t)
	exporter.Start(t)
	for name, start := range map[string]func(*testing.T) server{
		"sshd": startSSHD, "nginx": startNginx, "redis": startRedis,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			before := len(s.lines())
			probe(t, s.port, 150)

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
				t.Errorf("after 150 probes and a connection from port %s, %s has logged\n%s\nwant %d lines",
					port, name, strings.Join(logged, "\n"), s.linesEach)
			}

			before = len(s.lines())
			for range 150 {
				connect(t, s.port)
			}
			lab.Eventually(t, name+" logs at least 150 lines for 150 connections", func() bool {
				return len(s.lines())-before >= 150
			})
		})
	}
}

// addServerAddress gives this host the address of the servers.
func addServerAddress(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr(serverAddress + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, address); err != nil {
		t.Fatalf("add the address %v to lo: %v", address, err)
	}
	t.Cleanup(func() { netlink.AddrDel(lo, address) })
}

// probe lets the exporter probe the port n times. Each time the port must be open, and no ACK may be sent.
func probe(t *testing.T, port, n int) {
	t.Helper()
	path := "/probe?target=" + addressOf(port)
	for i := range n {
		status, body := exporter.Get(t, path)
		for _, want := range []string{"probe_success 1\n", "probe_tcp_ack_sent 0\n"} {
			if !strings.Contains(body, want) {
				t.Fatalf("GET %s, number %d, = %d %s\nwant %q in it", path, i+1, status, body, want)
			}
		}
	}
}

// addressOf returns the host and port of a server.
func addressOf(port int) string { return net.JoinHostPort(serverAddress, strconv.Itoa(port)) }

// connect does what other TCP probers do: it connects and closes the connection. It returns the local port.
func connect(t *testing.T, port int) string {
	t.Helper()
	conn, err := net.Dial("tcp", addressOf(port))
	if err != nil {
		t.Fatalf("connect to the server: %v", err)
	}
	conn.Close()
	_, local, _ := net.SplitHostPort(conn.LocalAddr().String())
	return local
}

// linesOf returns a function that returns the lines of a file.
func linesOf(t *testing.T, file string) func() []string {
	return func() []string { return strings.Split(strings.TrimSuffix(lab.Read(t, file), "\n"), "\n") }
}

func startSSHD(t *testing.T) server {
	sshd := lab.Program(t, "sshd", "openssh-server")
	keygen := lab.Program(t, "ssh-keygen", "openssh-client")
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's chroot directory
		t.Fatal(err)
	}
	log := lab.Write(t, t.TempDir(), "log", "")
	config := lab.Write(t, t.TempDir(), "sshd_config", "PidFile none\n")
	process.Start(t, exec.Command(sshd, "-D", "-f", config, "-E", log,
		"-o", "HostKey="+key, "-o", "ListenAddress="+serverAddress+":2222")).Listening(2222)
	return server{port: 2222, lines: linesOf(t, log), linesEach: 2, linesNaming: 1}
}

func startNginx(t *testing.T) server {
	nginx := lab.Program(t, "nginx", "nginx")
	directory := t.TempDir()
	log := filepath.Join(directory, "log")
	// At the level info, nginx logs clients that connect and send nothing.
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
	// At the level verbose, Redis logs every accepted connection.
	process.Start(t, exec.Command(redis, "--port", "6379", "--bind", serverAddress, "--protected-mode", "no",
		"--loglevel", "verbose", "--logfile", log, "--save", "", "--dir", t.TempDir())).Listening(6379)
	lines := linesOf(t, log)
	lab.Eventually(t, "Redis is ready", func() bool {
		return strings.Contains(strings.Join(lines(), "\n"), "Ready to accept connections")
	})
	return server{port: 6379, lines: lines, linesEach: 2, linesNaming: 2}
}

// MariaDB counts the connections of a host that send nothing, and blocks the host after 100 of them. It does not
// count 150 probes. The control: it counts 150 connections that send nothing, and blocks the host.
func TestMariaDBDoesNotBlockTheProber(t *testing.T) {
	lab.NeedRoot(t)
	mariadbd := lab.Program(t, "mariadbd", "mariadb-server")
	installDB := lab.Program(t, "mariadb-install-db", "mariadb-server")
	client := lab.Program(t, "mariadb", "mariadb-client")
	addServerAddress(t)
	exporter.Start(t)
	data := t.TempDir()
	if out, err := exec.Command(installDB, "--no-defaults", "--user=root", "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v: %s", err, out)
	}
	socket := filepath.Join(data, "socket")
	// MariaDB counts only the connections of hosts whose name it can resolve: here, from its own hosts file.
	hosts := lab.Write(t, t.TempDir(), "hosts", serverAddress+" prober.example\n")
	process.Start(t, process.WithFiles(t, exec.Command(mariadbd, "--no-defaults", "--user=root", "--datadir="+data,
		"--socket="+socket, "--bind-address="+serverAddress, "--port=3306", "--performance-schema=on",
		"--log-warnings=2"), map[string]string{"/etc/hosts": hosts})).Listening(3306)
	query := func(sql string) string {
		t.Helper()
		out, err := exec.Command(client, "--no-defaults", "--user=root", "--socket="+socket, "--batch",
			"--skip-column-names", "-e", sql).CombinedOutput()
		if err != nil {
			t.Fatalf("query %q: %v, want success: %s", sql, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	const (
		errors  = "select coalesce(sum(sum_connect_errors), 0) from performance_schema.host_cache"
		aborted = "select variable_value from information_schema.global_status where variable_name = 'aborted_connects'"
	)
	query("create user prober@'%'") // otherwise MariaDB accepts no connection of the prober's host
	probe(t, 3306, 150)
	if e, a := query(errors), query(aborted); e != "0" || a != "0" {
		t.Errorf("after 150 probes MariaDB has counted %s connection errors and %s aborted connections, want 0 and 0",
			e, a)
	}
	if text := greeting(t, 3306); strings.Contains(text, "blocked") {
		t.Errorf("after 150 probes the greeting of MariaDB is %q, want one that does not block this host", text)
	}

	for range 150 {
		connect(t, 3306)
	}
	lab.Eventually(t, "MariaDB has counted 100 connection errors", func() bool {
		n, err := strconv.Atoi(query(errors))
		return err == nil && n >= 100
	})
	const blocked = "is blocked because of many connection errors"
	if text := greeting(t, 3306); !strings.Contains(text, blocked) {
		t.Errorf("after 150 connections that send nothing the greeting of MariaDB is %q, want %q in it", text, blocked)
	}
}

// greeting returns what a server sends first on a new connection.
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
		t.Fatalf("read the greeting of %s: %v", addressOf(port), err)
	}
	return string(buffer[:n])
}
