package peers

import (
	"net"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

// Real servers log nothing about 150 probes: after the probes, a connection is the first thing that they log.
// The control: the servers log 150 connections that send nothing.
func TestRealServersLogNothing(t *testing.T) {
	lab.NeedRoot(t)
	addServerAddress(t)
	exporter.Start(t)
	for name, start := range map[string]func(*testing.T, ...string) server{
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

// MariaDB counts the connections of a host that send nothing, and blocks the host after 100 of them. It does not
// count 150 probes. The control: it counts 150 connections that send nothing, and blocks the host.
func TestMariaDBDoesNotBlockTheProber(t *testing.T) {
	lab.NeedRoot(t)
	addServerAddress(t)
	exporter.Start(t)
	m := startMariaDB(t)
	const aborted = "select variable_value from information_schema.global_status " +
		"where variable_name = 'aborted_connects'"
	probe(t, mariaDBPort, 150)
	if e, a := m.connectErrors(), m.number(aborted); e != 0 || a != 0 {
		t.Errorf("after 150 probes MariaDB has counted %d connection errors and %d aborted connections, want 0 and 0",
			e, a)
	}
	if text := m.greeting(); strings.Contains(text, mariaDBBlocked) {
		t.Errorf("after 150 probes the greeting of MariaDB is %q, want one that does not block this host", text)
	}
	for range 150 {
		connect(t, mariaDBPort)
	}
	m.awaitBlocked()
}
