package documents

import (
	"fmt"
	"maps"
	"net"
	"os"
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

// entry matches an entry of connection tracking, as conntrack(8) lists it.
var entry = regexp.MustCompile(`(?m)^tcp +6 (\d+) (\w+) src=\S+ dst=\S+ sport=\d+ dport=\d+ .*$`)

// The page's table shows what a probe leaves behind on a router that tracks connections, at the target's host
// and at the prober, compared with a connection that is completed and closed.
func TestConntrack(t *testing.T) {
	const port, probes = 8080, 5
	chain := kernel.NewChain(t)
	prober, router, host := node{chain, 0}, node{chain, 2}, node{chain, 4}
	list := lab.Program(t, "conntrack", "conntrack")
	kernel.ServeUntilEOF(t, host.listen(t, port, net.ListenConfig{}))
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  tcp_connect: {prober: tcp, timeout: 2s}
  path: {prober: tcp, timeout: 3s, tcp: {path: always}}
  fin: {prober: tcp, tcp: {close: fin}}
`))
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	router.rules(t, filterForward("ct state new accept;"))
	node{chain, 3}.rules(t, filterForward("tcp dport 82 drop; tcp dport 83 reject with icmp type admin-prohibited;"))

	measured := make(map[string][]string)
	for _, c := range []struct {
		name     string
		exporter int // its port
		module   string
		port     int
		state    string // of the router's entries, "" if there are none
	}{
		{name: "an open port", exporter: 10115, module: "tcp_connect", port: port, state: "CLOSE"},
		{name: "the same, with `path: always`", exporter: 10115, module: "path", port: port, state: "CLOSE"},
		{name: "a closed port", exporter: 10115, module: "tcp_connect", port: 81, state: ""},
		{name: "a silent target", exporter: 10115, module: "tcp_connect", port: 82, state: "SYN_SENT"},
		{name: "a target that a later router prohibits",
			exporter: 10115, module: "tcp_connect", port: 83, state: "SYN_SENT"},
		{name: "an open port, with `close: fin`",
			exporter: 10115, module: "fin", port: port, state: "TIME_WAIT, assured"},
		{name: "an open port, with blackbox_exporter",
			exporter: 9115, module: "tcp_connect", port: port, state: "TIME_WAIT, assured"},
		{name: "a silent target, with blackbox_exporter",
			exporter: 9115, module: "tcp_connect", port: 82, state: "SYN_SENT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			router.Run(router.n, list, "--flush")
			resets := host.counter(t, "TcpExtEmbryonicRsts")
			waiting := prober.localPorts(unix.BPF_TCP_TIME_WAIT, c.port) // of earlier connections
			began := time.Now()
			path := fmt.Sprintf("/probe?module=%s&target=10.77.4.2:%d", c.module, c.port)
			var probing sync.WaitGroup
			for range probes {
				probing.Go(func() {
					if status, body := exporter.Scrape(t, c.exporter, path, "2.5"); status != 200 {
						t.Errorf("port %d: GET %s = %d, want 200:\n%s", c.exporter, path, status, body)
					}
				})
			}
			probing.Wait()

			var listings []string  // of the router's entries, each time their states have changed
			var seen []string      // their states in the last listing
			var left time.Duration // until the router forgets the newest of them
			defer func() {
				if t.Failed() {
					t.Logf("the router's entries, each time their states changed:\n%s", strings.Join(listings, "\n"))
				}
			}()
			asExpected := func() bool {
				var states []string
				left = 0
				listing := router.output(t, list, "-L", "-p", "tcp")
				for _, found := range entry.FindAllStringSubmatch(listing, -1) {
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
				if !slices.Equal(states, seen) || listings == nil {
					seen, listings = slices.Clone(states), append(listings, listing)
				}
				if c.state == "" {
					return len(states) == 0
				}
				return len(states) == probes && slices.Equal(slices.Compact(states), []string{c.state})
			}
			if c.state != "" {
				lab.Eventually(t, fmt.Sprintf("the router has %d entries in the state %s", probes, c.state), asExpected)
			} else if !asExpected() { // later the router might have forgotten them
				t.Errorf("after %d probes of port %d the router has entries, want none", probes, c.port)
			}
			lab.Eventually(t, "no handshake is half open at the host", func() bool {
				return host.sockets(unix.BPF_TCP_SYN_RECV, c.port) == 0
			})

			cells := []string{"none", "", "0"}
			if c.state != "" {
				// The time left is the timeout minus the time since the last packet, in whole seconds.
				timeout := router.timeout(t, c.state)
				if passed := time.Since(began); left > timeout || left < timeout-passed-time.Second {
					t.Errorf("%v after the first probe the router keeps its entries for another %v, "+
						"want the timeout of %v minus that time", passed, left, timeout)
				}
				cells = []string{
					c.state,
					fmt.Sprintf("%.0f s", timeout.Seconds()),
					fmt.Sprintf("%.0f", 1000./15*timeout.Seconds()),
				}
			}
			inTimeWait := prober.localPorts(unix.BPF_TCP_TIME_WAIT, c.port)
			maps.DeleteFunc(inTimeWait, func(port int, _ bool) bool { return waiting[port] })
			each := func(n int) string { return fmt.Sprintf("%g", float64(n)/probes) }
			measured[strings.ReplaceAll(c.name, "`", "")] = append(cells,
				each(host.counter(t, "TcpExtEmbryonicRsts")-resets),
				each(host.sockets(unix.BPF_TCP_TIME_WAIT, c.port)),
				each(len(inTimeWait)))
		})
	}
	compareRows(t, halfOpenPage, "probe of", measured)
}

// The page's table of counters shows what one probe adds to the counters of the target's host and of the prober.
func TestHalfOpenCounters(t *testing.T) {
	const port, probes = 8080, 5
	chain := kernel.NewChain(t)
	prober, host := node{chain, 0}, node{chain, 4}
	kernel.ServeUntilEOF(t, host.listen(t, port, net.ListenConfig{}))
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  tcp_connect: {prober: tcp, timeout: 900ms}
  fin: {prober: tcp, tcp: {close: fin}}
`))
	node{chain, 3}.rules(t, filterForward("tcp dport 82 drop;"))
	const cookies = "/proc/sys/net/ipv4/tcp_syncookies"
	measured := make(map[string][]string)
	for _, c := range []struct {
		name, module string
		port         int
		cookies      string // 2 uses SYN cookies always, 1 if the SYN queue is full
		segments     int    // of one probe that arrive at the host
	}{
		{name: "an open port", module: "tcp_connect", port: port, cookies: "1", segments: 2},
		{name: "an open port that uses SYN cookies", module: "tcp_connect", port: port, cookies: "2", segments: 2},
		{name: "a closed port", module: "tcp_connect", port: 81, cookies: "1", segments: 1},
		{name: "a silent target", module: "tcp_connect", port: 82, cookies: "1", segments: 0},
		{name: "an open port, with close: fin", module: "fin", port: port, cookies: "1", segments: 4},
	} {
		host.In(host.n, func() error { return os.WriteFile(cookies, []byte(c.cookies), 0) })
		before := map[node]map[string]int{host: host.Counters(host.n), prober: prober.Counters(prober.n)}
		grown := func(n node, counter string) int { return n.counter(t, counter) - before[n][counter] }
		path := fmt.Sprintf("/probe?module=%s&target=10.77.4.2:%d", c.module, c.port)
		for range probes {
			if status, body := exporter.Get(t, path); status != 200 {
				t.Errorf("GET %s = %d, want 200:\n%s", path, status, body)
			}
		}
		lab.Eventually(t, fmt.Sprintf("%d segments of each probe of %s arrive", c.segments, c.name), func() bool {
			return grown(host, "TcpInSegs") == c.segments*probes
		})
		var cells []string
		for _, counter := range []string{"TcpExtEmbryonicRsts", "TcpAttemptFails", "TcpOutRsts", "TcpPassiveOpens"} {
			cells = append(cells, fmt.Sprintf("%g", float64(grown(host, counter))/probes))
		}
		for _, counter := range []string{"TcpOutRsts", "TcpEstabResets", "TcpAttemptFails", "TcpExtTCPAbortOnData"} {
			cells = append(cells, fmt.Sprintf("%g", float64(grown(prober, counter))/probes))
		}
		measured[c.name] = cells
	}
	compareRows(t, halfOpenPage, "one probe of", measured)
}

// A lost RST leaves the server half open until the server repeats its SYN-ACK: the prober's kernel, which has
// no such connection, answers the SYN-ACK with another RST.
func TestLostRST(t *testing.T) {
	chain := kernel.NewChain(t)
	host, router := node{chain, 4}, node{chain, 2}
	exporter.Start(t)
	var resets int
	runFirst(t, "lost", func(t *testing.T) {
		router.rules(t, filterForward("tcp flags rst drop;"))
		const path = "/probe?target=10.77.4.2:80"
		if status, body := exporter.Get(t, path); !strings.Contains(body, "probe_success 1\n") {
			t.Fatalf("GET %s = %d, want probe_success 1 in\n%s", path, status, body)
		}
		if n := host.sockets(unix.BPF_TCP_SYN_RECV, 80); n != 1 {
			t.Errorf("while the router drops RSTs, %d handshakes are half open at the host, want 1", n)
		}
		resets = host.counter(t, "TcpExtEmbryonicRsts")
	})
	lab.Eventually(t, "the second RST has ended the handshake", func() bool {
		return host.sockets(unix.BPF_TCP_SYN_RECV, 80) == 0
	})
	if got := host.counter(t, "TcpExtEmbryonicRsts") - resets; got != 1 {
		t.Errorf("TcpExtEmbryonicRsts grew by %d until the handshake ended, want 1", got)
	}
}

// The page's rules do what the page says: without connection tracking there are no entries, and the exception
// from the SYN limit lets the prober through.
func TestHalfOpenRules(t *testing.T) {
	chain := kernel.NewChain(t)
	router := node{chain, 2}
	list := lab.Program(t, "conntrack", "conntrack")
	nft := lab.Program(t, "nft", "nftables")
	exporter.Start(t)
	const probes = 200
	// probe returns how many targets are open, and how many probes sent a SYN more than once.
	probe := func(t *testing.T) (open, retransmitted int) {
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
				retransmitted++
			}
		}
		return open, retransmitted
	}
	kernel.ServeUntilEOF(t, node{chain, 4}.listen(t, 443, net.ListenConfig{}))
	// rule returns a block of rules of the page, adapted to this network.
	rule := func(with, prober string) string {
		text := strings.ReplaceAll(snippetWith(t, halfOpenPage, "nft", with), "192.0.2.7", prober)
		text = regexp.MustCompile(`#.*`).ReplaceAllString(text, "")
		return strings.NewReplacer("table inet filter", "table inet page", "table inet probes", "table ip page",
			"hook input", "hook forward", "packets drop", "packets counter drop").Replace(text)
	}
	// dropped returns how many SYNs the limit dropped. On a busy machine SYNs are also retransmitted for other
	// reasons.
	dropped := func(t *testing.T) int {
		t.Helper()
		rules := router.output(t, nft, "list", "table", "inet", "page")
		counted := regexp.MustCompile(`limit rate .* counter packets (\d+)`).FindStringSubmatch(rules)
		if counted == nil {
			t.Fatalf("the rule with the limit has no counter in\n%s", rules)
		}
		n, err := strconv.Atoi(counted[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	tracked := func() int { return len(entry.FindAllString(router.output(t, list, "-L", "-p", "tcp"), -1)) }

	t.Run("notrack", func(t *testing.T) {
		track := filterForward("ct state new accept; ct state invalid drop;") + "\n"
		runFirst(t, "control", func(t *testing.T) {
			router.rules(t, track)
			probe(t)
			if tracked() == 0 {
				t.Errorf("without the page's rules the router has no entries after %d probes, want some", probes)
			}
		})
		router.Run(router.n, list, "--flush")
		router.rules(t, track+rule("notrack", "10.77.1.1"))
		if open, _ := probe(t); open != probes || tracked() != 0 {
			t.Errorf("with the page's rules %d of %d targets are open and the router has %d entries, want all and none",
				open, probes, tracked())
		}
	})
	t.Run("limit", func(t *testing.T) {
		runFirst(t, "control", func(t *testing.T) {
			router.rules(t, rule("limit rate", "10.77.1.77"))
			if _, retransmitted := probe(t); retransmitted == 0 || dropped(t) == 0 {
				t.Errorf("with an exception for another prober the limit dropped %d SYNs, and %d of %d probes "+
					"retransmitted a SYN, want some of both", dropped(t), retransmitted, probes)
			}
		})
		router.rules(t, rule("limit rate", "10.77.1.1"))
		if open, _ := probe(t); open != probes || dropped(t) != 0 {
			t.Errorf("with the page's rules %d of %d targets are open and the limit dropped %d SYNs, want all and none",
				open, probes, dropped(t))
		}
	})
}
