package documents

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// A node is one of the network namespaces of a chain.
type node struct {
	*kernel.Chain
	n int
}

// sockets returns how many sockets in a state have the port at either end.
func (n node) sockets(state, port int) (count int) {
	for _, s := range n.Sockets(n.n) {
		if s.State == state && (s.Near == port || s.Far == port) {
			count++
		}
	}
	return count
}

// localPorts returns the local ports of the sockets in a state that are connected to the port.
func (n node) localPorts(state, port int) map[int]bool {
	ports := make(map[int]bool)
	for _, s := range n.Sockets(n.n) {
		if s.State == state && s.Far == port {
			ports[s.Near] = true
		}
	}
	return ports
}

// counter returns one of the node's network counters.
func (n node) counter(t *testing.T, name string) int {
	t.Helper()
	value, ok := n.Counters(n.n)[name]
	if !ok {
		t.Fatalf("node %d has no network counter %s", n.n, name)
	}
	return value
}

// start starts a program in the node's namespace, and waits until the program listens on the port.
func (n node) start(t *testing.T, port int, program string, args ...string) *process.Process {
	t.Helper()
	nsenter := lab.Program(t, "nsenter", "util-linux")
	var namespace *os.File
	n.In(n.n, func() (err error) {
		namespace, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	defer namespace.Close()
	cmd := exec.Command(nsenter, append([]string{"--net=/proc/self/fd/3", program}, args...)...)
	cmd.ExtraFiles = []*os.File{namespace}
	process := process.Start(t, cmd)
	n.awaitListener(t, port)
	return process
}

func (n node) awaitListener(t *testing.T, port int) {
	t.Helper()
	lab.Eventually(t, fmt.Sprintf("a program listens on port %d of node %d", port, n.n), func() bool {
		return n.sockets(unix.BPF_TCP_LISTEN, port) > 0
	})
}

// listen listens in the node's namespace for the rest of the test. It does not accept connections.
func (n node) listen(t *testing.T, port int, config net.ListenConfig) net.Listener {
	t.Helper()
	var l net.Listener
	n.In(n.n, func() (err error) {
		l, err = config.Listen(t.Context(), "tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// rules adds nftables rules to the tables "inet page" and "ip page" of the node for the rest of the test. It
// skips the test if the kernel does not support the rules.
func (n node) rules(t *testing.T, rules string) {
	t.Helper()
	nft := lab.Program(t, "nft", "nftables")
	file := lab.Write(t, t.TempDir(), "rules.nft", "add table inet page; add table ip page\n"+rules+"\n")
	var out []byte
	var err error
	n.In(n.n, func() error {
		out, err = exec.Command(nft, "-f", file).CombinedOutput()
		return nil
	})
	switch {
	case err != nil && strings.Contains(string(out), "syntax error"):
		t.Fatalf("nft -f: %v: %s", err, out)
	case err != nil:
		lab.Skip(t, "needs a kernel that supports these nftables rules: %s", out)
	}
	t.Cleanup(func() { n.Run(n.n, nft, "delete table inet page; delete table ip page") })
}

// filterForward returns a table whose chain filters forwarded packets with the rules.
func filterForward(rules string) string {
	return "table inet page { chain forward { type filter hook forward priority filter; " + rules + " }; }"
}

// natPrerouting returns a table whose chain translates the destination of arriving connections with the rules.
func natPrerouting(rules string) string {
	return "table ip page { chain prerouting { type nat hook prerouting priority dstnat; " + rules + " }; }"
}

// output returns what a program prints in the node's namespace.
func (n node) output(t *testing.T, program string, args ...string) string {
	t.Helper()
	var out []byte
	n.In(n.n, func() (err error) {
		out, err = exec.Command(program, args...).Output()
		return err
	})
	return string(out)
}

// timeout returns how long the node's connection tracking keeps an entry in a state.
func (n node) timeout(t *testing.T, state string) time.Duration {
	t.Helper()
	state, _, _ = strings.Cut(state, ",")
	var text []byte
	n.In(n.n, func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_" + strings.ToLower(state))
		return err
	})
	seconds, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}

// runFirst runs a subtest on which the rest of the test depends. If the subtest fails or is skipped, the
// test stops.
func runFirst(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	passed := false
	t.Run(name, func(t *testing.T) {
		f(t)
		passed = !t.Failed()
	})
	switch {
	case t.Failed():
		t.FailNow()
	case !passed:
		t.Skipf("needs the subtest %q, which was skipped or not selected", name)
	}
}
