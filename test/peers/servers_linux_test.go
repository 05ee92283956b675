package peers

import (
	"errors"
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

// addressOf returns the host and port of a server.
func addressOf(port int) string { return net.JoinHostPort(serverAddress, strconv.Itoa(port)) }

// linesOf returns a function that returns the lines of a file.
func linesOf(t *testing.T, file string) func() []string {
	return func() []string { return strings.Split(strings.TrimSuffix(lab.Read(t, file), "\n"), "\n") }
}

// startSSHD starts sshd with further arguments.
func startSSHD(t *testing.T, arguments ...string) server {
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
	process.Start(t, exec.Command(sshd, append([]string{"-D", "-f", config, "-E", log,
		"-o", "HostKey=" + key, "-o", "ListenAddress=" + serverAddress + ":2222"}, arguments...)...)).Listening(2222)
	return server{port: 2222, lines: linesOf(t, log), linesEach: 2, linesNaming: 1}
}

// startNginx starts nginx with further directives for its HTTP server.
func startNginx(t *testing.T, directives ...string) server {
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
			server { listen %[2]s:8080; %[3]s }
		}`, directory, serverAddress, strings.Join(directives, " ")))
	process.Start(t, exec.Command(nginx, "-c", config, "-e", log)).Listening(8080)
	return server{port: 8080, lines: linesOf(t, log), linesEach: 1}
}

// startRedis starts Redis with further arguments.
func startRedis(t *testing.T, arguments ...string) server {
	redis := lab.Program(t, "redis-server", "redis-server")
	log := lab.Write(t, t.TempDir(), "log", "")
	// At the level verbose, Redis logs every accepted connection.
	process.Start(t, exec.Command(redis, append([]string{"--port", "6379", "--bind", serverAddress,
		"--protected-mode", "no", "--loglevel", "verbose", "--logfile", log, "--save", "", "--dir", t.TempDir()},
		arguments...)...)).Listening(6379)
	lines := linesOf(t, log)
	lab.Eventually(t, "Redis is ready", func() bool {
		return strings.Contains(strings.Join(lines(), "\n"), "Ready to accept connections")
	})
	return server{port: 6379, lines: lines, linesEach: 2, linesNaming: 2}
}

// A mariaDB is a MariaDB server, which counts what it regards as errors of this host.
type mariaDB struct {
	t              *testing.T
	client, socket string
}

const mariaDBPort = 3306

// startMariaDB starts MariaDB with further arguments.
func startMariaDB(t *testing.T, arguments ...string) *mariaDB {
	t.Helper()
	mariadbd := lab.Program(t, "mariadbd", "mariadb-server")
	installDB := lab.Program(t, "mariadb-install-db", "mariadb-server")
	client := lab.Program(t, "mariadb", "mariadb-client")
	data := t.TempDir()
	if out, err := exec.Command(installDB, "--no-defaults", "--user=root", "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v: %s", err, out)
	}
	m := &mariaDB{t: t, client: client, socket: filepath.Join(data, "socket")}
	// MariaDB counts only the connections of hosts whose name it can resolve: here, from its own hosts file.
	hosts := lab.Write(t, t.TempDir(), "hosts", serverAddress+" prober.example\n")
	process.Start(t, process.WithFiles(t, exec.Command(mariadbd, append([]string{"--no-defaults", "--user=root",
		"--datadir=" + data, "--socket=" + m.socket, "--bind-address=" + serverAddress,
		fmt.Sprintf("--port=%d", mariaDBPort), "--performance-schema=on", "--log-warnings=2"}, arguments...)...),
		map[string]string{"/etc/hosts": hosts})).Listening(mariaDBPort)
	m.query("create user prober@'%'") // otherwise MariaDB accepts no connection of the prober's host
	return m
}

// query returns the result of an SQL statement.
func (m *mariaDB) query(sql string) string {
	m.t.Helper()
	out, err := exec.Command(m.client, "--no-defaults", "--user=root", "--socket="+m.socket, "--batch",
		"--skip-column-names", "-e", sql).CombinedOutput()
	if err != nil {
		m.t.Fatalf("query %q: %v, want success: %s", sql, err, out)
	}
	return strings.TrimSpace(string(out))
}

// number returns the result of an SQL statement that is a number.
func (m *mariaDB) number(sql string) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.query(sql))
	if err != nil {
		m.t.Fatalf("query %q: %v, want a number", sql, err)
	}
	return n
}

// connectErrors returns how many connection errors MariaDB has counted since it started, or since a client has logged
// in.
func (m *mariaDB) connectErrors() int {
	m.t.Helper()
	return m.number("select coalesce(sum(sum_connect_errors), 0) from performance_schema.host_cache")
}

// awaitBlocked waits until MariaDB has counted as many errors as lead to a block, and checks that this host is blocked.
func (m *mariaDB) awaitBlocked() {
	m.t.Helper()
	lab.Eventually(m.t, "MariaDB has counted 100 connection errors", func() bool { return m.connectErrors() >= 100 })
	if text := m.greeting(); !strings.Contains(text, mariaDBBlocked) {
		m.t.Errorf("after 100 connection errors the greeting of MariaDB is %q, want %q in it", text, mariaDBBlocked)
	}
}

// mariaDBBlocked is in the greeting of MariaDB for a host that it blocks.
const mariaDBBlocked = "is blocked because of many connection errors"

// greeting returns what MariaDB sends first on a new connection.
func (m *mariaDB) greeting() string {
	m.t.Helper()
	conn, err := net.Dial("tcp", addressOf(mariaDBPort))
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 512)
	n, err := conn.Read(buffer)
	if err != nil {
		m.t.Fatalf("read the greeting of MariaDB: %v", err)
	}
	return string(buffer[:n])
}

// startPostgreSQL starts PostgreSQL with further arguments.
func startPostgreSQL(t *testing.T, arguments ...string) server {
	t.Helper()
	initDB := postgreSQLProgram(t, "initdb")
	postgres := postgreSQLProgram(t, "postgres")
	setpriv := lab.Program(t, "setpriv", "util-linux")
	const nobody = 65534 // PostgreSQL refuses to run as root
	as := []string{fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups"}
	data := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(data), 0o755), os.Chown(data, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(setpriv, append(as, initDB, "--pgdata="+data, "--no-sync", "--no-locale", "--auth=trust",
		"--username=postgres")...)
	cmd.Dir = data
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	cmd = exec.Command(setpriv, append(append(as, postgres, "-D", data, "-h", serverAddress, "-p", "5432",
		"-k", data, "-F"), arguments...)...)
	cmd.Dir = data
	process.Start(t, cmd).Listening(5432)
	return server{port: 5432}
}

// postgreSQLProgram returns the path of a program of PostgreSQL, which Debian installs outside of PATH.
func postgreSQLProgram(t *testing.T, name string) string {
	t.Helper()
	programs, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if len(programs) == 0 {
		lab.Skip(t, "needs %s (Debian package postgresql)", name)
	}
	return programs[len(programs)-1]
}
