// Package kernel lets tests use real kernels: it reads the counters and sets the parameters of their network
// namespace, and creates further namespaces that act as hosts and routers. A [Neighbour] is a host at the
// other end of a veth pair. A [Chain] is a row of three routers with a host behind them.
package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// Counters returns the network counters of the namespace. The names are those of nstat(8), such as
// "TcpPassiveOpens" and "TcpExtEmbryonicRsts".
func Counters(t testing.TB) map[string]int {
	t.Helper()
	lab.Need(t)
	counters, err := counters()
	if err != nil {
		t.Fatal(err)
	}
	return counters
}

// counters returns the network counters of this thread's namespace.
func counters() (map[string]int, error) {
	counters := make(map[string]int)
	for _, file := range []string{"snmp", "netstat"} {
		content, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return nil, err
		}
		// The file consists of pairs of lines: "Tcp: Name Name …" and "Tcp: 1 2 …".
		lines := strings.Split(strings.TrimSpace(string(content)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := 1; j < len(names); j++ {
				value, err := strconv.Atoi(values[j])
				if err != nil {
					return nil, fmt.Errorf("%s: %s: %w", file, names[j], err)
				}
				counters[strings.TrimSuffix(names[0], ":")+names[j]] = value
			}
		}
	}
	return counters, nil
}

// A Socket is a TCP socket.
type Socket struct {
	State     int // such as unix.BPF_TCP_LISTEN
	Near, Far int // ports
	Unacked   int // bytes that the application wrote and the peer has not acknowledged
}

// Sockets returns the TCP sockets of the namespace.
func Sockets(t testing.TB) []Socket {
	t.Helper()
	sockets, err := sockets()
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}

// sockets returns the TCP sockets of this thread's namespace.
func sockets() ([]Socket, error) {
	var tables strings.Builder
	for _, file := range []string{"tcp", "tcp6"} {
		content, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 lacks tcp6
			return nil, err
		}
		tables.Write(content)
	}
	return parseSockets(tables.String())
}

// parseSockets returns the sockets in tables such as /proc/net/tcp. The kernel writes a part of a table for each
// read(2), and finds its place again only if the table has not changed in between: parts may be repeated.
func parseSockets(tables string) (sockets []Socket, err error) {
	number := func(text string) int {
		n, parseErr := strconv.ParseInt(text, 16, 64)
		err = errors.Join(err, parseErr)
		return int(n)
	}
	seen := make(map[[2]string]bool)
	for line := range strings.Lines(tables) {
		// After a header, each line is "0: address:port address:port state unacked:unread …".
		fields := strings.Fields(line)
		addresses := [2]string(fields[1:3])
		if fields[0] == "sl" || seen[addresses] {
			continue
		}
		seen[addresses] = true
		_, near, _ := strings.Cut(fields[1], ":")
		_, far, _ := strings.Cut(fields[2], ":")
		unacked, _, _ := strings.Cut(fields[4], ":")
		sockets = append(sockets, Socket{number(fields[3]), number(near), number(far), number(unacked)})
	}
	return sockets, err
}

// TimeWaits returns the number of sockets of the namespace in TIME_WAIT.
func TimeWaits(t testing.TB) int {
	t.Helper()
	lab.Need(t)
	content, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), "\nTCP: ")
	fields := strings.Fields(rest) // name value name value …
	at := slices.Index(fields, "tw")
	if at < 0 {
		t.Fatalf("/proc/net/sockstat has no number of TCP sockets in TIME_WAIT (tw):\n%s", content)
	}
	n, err := strconv.Atoi(fields[at+1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Sysctl sets a kernel parameter of the namespace, such as "net.ipv4.ip_local_port_range", and restores it
// when the test ends.
func Sysctl(t testing.TB, name, value string) {
	t.Helper()
	lab.Need(t)
	file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		t.Fatalf("setting %s to %q: %v", name, value, err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, before, 0); err != nil {
			t.Errorf("restoring %s to %q: %v", name, before, err)
		}
	})
}
