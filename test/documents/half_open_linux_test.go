package documents

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// entry is a connection that a host tracks, as conntrack(8) lists it.
var entry = regexp.MustCompile(`(?m)^tcp +6 (\d+) (\w+) src=\S+ dst=\S+ sport=\d+ dport=\d+ .*$`)

// What a probe leaves behind, on a router that tracks connections and on both ends, is what
// the page says, beside what a connection leaves that is completed and closed.
func TestConntrack(t *testing.T) {
	const port, probes = 8080, 5
	chain := kernel.NewChain(t)
	prober, router, host := place{chain, 0}, place{chain, 2}, place{chain, 4}
	list := lab.Program(t, "conntrack", "conntrack")
	kernel.ServeUntilEOF(t, host.listen(t, port, net.ListenConfig{}))
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  tcp_connect: {prober: tcp, timeout: 2s}
  path: {prober: tcp, timeout: 3s, tcp: {path: always}}
  fin: {prober: tcp, tcp: {close: fin}}
`))
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	router.rules(t, "table inet page { chain forward { type filter hook forward priority filter; ct state new accept; }; }")
	place{chain, 3}.rules(t, `table inet page { chain forward { type filter hook forward priority filter;
		tcp dport 82 drop; tcp dport 83 reject with icmp type admin-prohibited; }; }`)

	measured := make(map[string][]string)
	for _, c := range []struct {
		name     string
		exporter int
		module   string
		port     int
		state    string // of the router's entries, "" if there are none
	}{
		{"an open port", 10115, "tcp_connect", port, "CLOSE"},
		{"the same, with `path: always`", 10115, "path", port, "CLOSE"},
		{"a closed port", 10115, "tcp_connect", 81, ""},
		{"a silent target", 10115, "tcp_connect", 82, "SYN_SENT"},
		{"a target that a later router prohibits", 10115, "tcp_connect", 83, "SYN_SENT"},
		{"an open port, with `close: fin`", 10115, "fin", port, "TIME_WAIT, assured"},
		{"an open port, with blackbox_exporter", 9115, "tcp_connect", port, "TIME_WAIT, assured"},
		{"a silent target, with blackbox_exporter", 9115, "tcp_connect", 82, "SYN_SENT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			router.Run(router.n, list, "--flush")
			resets, waiting := host.counter(t, "TcpExtEmbryonicRsts"), prober.sockets(unix.BPF_TCP_TIME_WAIT, c.port)
			began := time.Now()
			var probing sync.WaitGroup
			for range probes {
				probing.Go(func() {
					exporter.Scrape(t, c.exporter, fmt.Sprintf("/probe?module=%s&target=10.77.4.2:%d", c.module, c.port), "2.5")
				})
			}
			probing.Wait()

			var left time.Duration
			isThere := func() bool {
				var states []string
				left = 0
				for _, found := range entry.FindAllStringSubmatch(router.output(t, list, "-L", "-p", "tcp"), -1) {
					state := found[2]
					if strings.Contains(found[0], "[ASSURED]") {
						state += ", assured"
					}
					states = append(states, state)
					seconds, err := strconv.Atoi(found[1])
					if err != nil {
						t.Fatal(err)
					}
					left = max(left, time.Duration(seconds)*time.Second)
				}
				distinct := slices.Compact(slices.Clone(states))
				return c.state == "" && len(states) == 0 || len(states) == probes && slices.Equal(distinct, []string{c.state})
			}
			if c.state != "" {
				lab.Eventually(t, "the router's entries are in the state "+c.state, isThere)
			} else if !isThere() { // later they might have been forgotten
				t.Error("the router has entries")
			}
			lab.Eventually(t, "no handshake is half open at the host", func() bool { return host.sockets(unix.BPF_TCP_SYN_RECV, c.port) == 0 })

			cells := []string{"none", "", "0"}
			if c.state != "" {
				// What is left now is what it was less what has passed since, in whole seconds.
				timeout := router.timeout(t, c.state)
				if passed := time.Since(began); left > timeout || left < timeout-passed-time.Second {
					t.Errorf("of %v %v are left after %v", timeout, left, passed)
				}
				cells = []string{c.state, fmt.Sprintf("%.0f s", timeout.Seconds()), fmt.Sprintf("%.0f", 1000./15*timeout.Seconds())}
			}
			each := func(n int) string { return fmt.Sprintf("%g", float64(n)/probes) }
			measured[strings.ReplaceAll(c.name, "`", "")] = append(cells,
				each(host.counter(t, "TcpExtEmbryonicRsts")-resets),
				each(host.sockets(unix.BPF_TCP_TIME_WAIT, c.port)),
				each(prober.sockets(unix.BPF_TCP_TIME_WAIT, c.port)-waiting))
		})
	}
	compareRows(t, halfOpenPage, "probe of", measured)
}

// output returns what a program prints there.
func (p place) output(t *testing.T, program string, args ...string) string {
	t.Helper()
	var out []byte
	p.In(p.n, func() (err error) {
		out, err = exec.Command(program, args...).Output()
		return err
	})
	return string(out)
}

// timeout returns after how long a place forgets a connection in a state.
func (p place) timeout(t *testing.T, state string) time.Duration {
	t.Helper()
	state, _, _ = strings.Cut(state, ",")
	var text []byte
	p.In(p.n, func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_" + strings.ToLower(state))
		return err
	})
	seconds, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}

// An RST that is lost leaves the server half open until it repeats its SYN-ACK: the
// prober's kernel, which knows of no such connection, answers that with another RST.
func TestLostRST(t *testing.T) {
	chain := kernel.NewChain(t)
	host, router := place{chain, 4}, place{chain, 2}
	exporter.Start(t)
	var resets int
	t.Run("lost", func(t *testing.T) {
		router.rules(t, "table inet page { chain forward { type filter hook forward priority filter; tcp flags rst drop; }; }")
		if _, body := exporter.Get(t, "/probe?target=10.77.4.2:80"); !strings.Contains(body, "probe_success 1\n") {
			t.Fatal(body)
		}
		if n := host.sockets(unix.BPF_TCP_SYN_RECV, 80); n != 1 {
			t.Errorf("%d handshakes are half open", n)
		}
		resets = host.counter(t, "TcpExtEmbryonicRsts")
	})
	lab.Eventually(t, "the second RST has ended it", func() bool { return host.sockets(unix.BPF_TCP_SYN_RECV, 80) == 0 })
	if got := host.counter(t, "TcpExtEmbryonicRsts") - resets; got != 1 {
		t.Errorf("%d RSTs ended it", got)
	}
}

// The page's rules do what it says of them: those against tracking leave no entry, and those
// against a flood let the prober through.
func TestHalfOpenRules(t *testing.T) {
	chain := kernel.NewChain(t)
	router := place{chain, 2}
	list := lab.Program(t, "conntrack", "conntrack")
	exporter.Start(t)
	const probes = 200
	// probe returns how many targets are open, and how many SYNs were sent again.
	probe := func(t *testing.T) (open, again int) {
		t.Helper()
		var probing sync.WaitGroup
		bodies := make([]string, probes)
		for i := range bodies {
			probing.Go(func() { _, bodies[i] = exporter.Scrape(t, 10115, "/probe?target=10.77.4.2:443", "4") })
		}
		probing.Wait()
		for _, body := range bodies {
			if strings.Contains(body, "probe_success 1\n") {
				open++
			}
			if !strings.Contains(body, "probe_tcp_syn_retransmits 0\n") {
				again++
			}
		}
		return open, again
	}
	kernel.ServeUntilEOF(t, place{chain, 4}.listen(t, 443, net.ListenConfig{}))
	// rule returns a block of the page for this network.
	rule := func(with string, prober string) string {
		text := strings.ReplaceAll(snippetWith(t, halfOpenPage, "nft", with), "192.0.2.7", prober)
		text = regexp.MustCompile(`#.*`).ReplaceAllString(text, "")
		return strings.NewReplacer("table inet filter", "table inet page", "table inet probes", "table ip page",
			"hook input", "hook forward", "packets drop", "packets counter drop").Replace(text)
	}
	// dropped returns how many SYNs the limit has dropped. A busy machine sends SYNs again, too.
	dropped := func(t *testing.T) int {
		t.Helper()
		rules := router.output(t, lab.Program(t, "nft", "nftables"), "list", "table", "inet", "page")
		counted := regexp.MustCompile(`limit rate .* counter packets (\d+)`).FindStringSubmatch(rules)
		if counted == nil {
			t.Fatal(rules)
		}
		n, err := strconv.Atoi(counted[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	tracked := func() int { return len(entry.FindAllString(router.output(t, list, "-L", "-p", "tcp"), -1)) }

	t.Run("notrack", func(t *testing.T) {
		const track = "table inet page { chain forward { type filter hook forward priority filter; ct state new accept; ct state invalid drop; }; }\n"
		t.Run("control", func(t *testing.T) {
			router.rules(t, track)
			probe(t)
			if tracked() == 0 {
				t.Error("nothing is tracked")
			}
		})
		router.Run(router.n, list, "--flush")
		router.rules(t, track+rule("notrack", "10.77.1.1"))
		if open, _ := probe(t); open != probes || tracked() != 0 {
			t.Errorf("%d of %d open, %d entries", open, probes, tracked())
		}
	})
	t.Run("limit", func(t *testing.T) {
		t.Run("control", func(t *testing.T) {
			router.rules(t, rule("limit rate", "10.77.1.77"))
			if _, again := probe(t); again == 0 || dropped(t) == 0 {
				t.Errorf("%d SYNs are dropped, and those of %d are sent again", dropped(t), again)
			}
		})
		router.rules(t, rule("limit rate", "10.77.1.1"))
		if open, _ := probe(t); open != probes || dropped(t) != 0 {
			t.Errorf("%d of %d open, and %d SYNs were dropped", open, probes, dropped(t))
		}
	})
}
