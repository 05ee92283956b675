package documents

import (
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// An ownRule is a rule in the output path of the exporter's host, in the languages of nft and of the two
// iptables. iptables has no rule that covers both IP versions.
type ownRule struct{ nft, iptables, ip6tables string }

var ownRules = []ownRule{
	{nft: "drop", iptables: "DROP", ip6tables: "DROP"},
	{nft: "reject", iptables: "REJECT", ip6tables: "REJECT"},
	{
		nft:       "reject with tcp reset",
		iptables:  "REJECT --reject-with tcp-reset",
		ip6tables: "REJECT --reject-with tcp-reset",
	},
	{
		nft:       "reject with icmpx type admin-prohibited",
		iptables:  "REJECT --reject-with icmp-admin-prohibited",
		ip6tables: "REJECT --reject-with icmp6-adm-prohibited",
	},
	{
		nft:       "reject with icmpx type host-unreachable",
		iptables:  "REJECT --reject-with icmp-host-unreachable",
		ip6tables: "REJECT --reject-with icmp6-addr-unreachable",
	},
	{
		nft:       "reject with icmpx type no-route",
		iptables:  "REJECT --reject-with icmp-net-unreachable",
		ip6tables: "REJECT --reject-with icmp6-no-route",
	},
}

// The page's table shows the result of each firewall rule and route of the exporter's host that keeps a SYN from
// leaving. nftables and iptables give the same results.
func TestOwnFirewall(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	own, router, host := node{chain, 0}, node{chain, 2}, node{chain, 4}
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  tcp_connect: {prober: tcp, timeout: 1500ms}
  quick: {prober: tcp, timeout: 900ms}
`))

	// Each rule has a port of its own, so that all targets are probed at the same time.
	onPort := func(port int) ownTarget {
		return ownTarget{ip4: fmt.Sprintf("10.77.4.2:%d", port), ip6: fmt.Sprintf("[fd77:4::2]:%d", port)}
	}
	measured := make(map[string][]string)
	t.Run("nft", func(t *testing.T) {
		var rules strings.Builder
		targets := make(map[string]ownTarget)
		for i, rule := range ownRules {
			fmt.Fprintf(&rules, "tcp dport %d %s; ", 8000+i, rule.nft)
			targets[rule.nft] = onPort(8000 + i)
		}
		own.rules(t, filterOutput(rules.String()))
		maps.Copy(measured, measureOwn(t, host, targets))
	})
	t.Run("iptables", func(t *testing.T) {
		iptables, ip6tables := lab.Program(t, "iptables", "iptables"), lab.Program(t, "ip6tables", "iptables")
		targets := make(map[string]ownTarget)
		for i, rule := range ownRules {
			match := fmt.Sprintf("-p tcp --dport %d -j ", 9000+i)
			own.iptables(t, iptables, "filter", "OUTPUT", match+rule.iptables)
			own.iptables(t, ip6tables, "filter", "OUTPUT", match+rule.ip6tables)
			targets[rule.nft] = onPort(9000 + i)
		}
		for name, got := range measureOwn(t, host, targets) {
			if want, ok := measured[name]; ok && !slices.Equal(got, want) {
				t.Errorf("the rule of iptables for %q: measured %q, want %q, as for nftables", name, got, want)
			}
		}
	})
	t.Run("routes", func(t *testing.T) {
		targets := map[string]ownTarget{"no route": {ip4: "10.88.0.1:80", ip6: "[fd88::1]:80"}}
		for n, route := range []struct {
			name      string
			routeType int
		}{
			{name: "a route of the type blackhole", routeType: unix.RTN_BLACKHOLE},
			{name: "a route of the type prohibit", routeType: unix.RTN_PROHIBIT},
			{name: "a route of the type unreachable", routeType: unix.RTN_UNREACHABLE},
			{name: "a route of the type throw", routeType: unix.RTN_THROW},
		} {
			addRoute(t, fmt.Sprintf("10.88.%d.0/24", n+1), route.routeType)
			addRoute(t, fmt.Sprintf("fd88:%d::/64", n+1), route.routeType)
			targets[route.name] = ownTarget{
				ip4: fmt.Sprintf("10.88.%d.1:80", n+1), ip6: fmt.Sprintf("[fd88:%d::1]:80", n+1),
			}
		}
		maps.Copy(measured, measureOwn(t, host, targets))
	})
	compareRows(t, faqPage, "on the exporter's host", measured)
	for name, cells := range measured {
		for _, reason := range cells[:2] {
			if strings.HasPrefix(reason, "503 ") {
				continue // no result, so no alert TargetDown
			}
			if cells[2] != "" {
				reason += ", " + cells[2] + " from ADDRESS"
			}
			if !hasReason(t, reason) {
				t.Errorf("%s: no row of the alert TargetDown covers the reason %q of %q", alertsPage, reason, name)
			}
		}
	}
	const absent = "prohibited (EINVAL)" // the control case
	if hasReason(t, absent) {
		t.Errorf("hasReason(%q) = true, want false", absent)
	}

	// The control case: without a retransmission, a rule that drops on the exporter's host looks like one on the path.
	for _, c := range []struct {
		name   string
		node   node
		rules  string
		module string
		want   string // in the response
		failed bool   // whether retransmissions fail on the exporter's host
	}{
		{
			name: "drop on the exporter's host", node: own, rules: filterOutput("tcp dport 80 drop;"),
			module: "tcp_connect", want: "operation not permitted\n", failed: true,
		},
		{
			name: "drop on the exporter's host, no retransmission", node: own,
			rules:  filterOutput("tcp dport 80 drop;"),
			module: "quick", want: `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`,
		},
		{
			name: "drop on the path", node: router, rules: filterForward("tcp dport 80 drop;"),
			module: "tcp_connect", want: `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			const failed = "TcpExtTCPRetransFail"
			c.node.rules(t, c.rules)
			before := own.counter(t, failed)
			_, body := exporter.Scrape(t, exporter.Port, "/probe?module="+c.module+"&target=10.77.4.2:80", "")
			if !strings.Contains(body, c.want) {
				t.Errorf("with module %s: want %q in the response:\n%s", c.module, c.want, body)
			}
			if n := own.counter(t, failed) - before; (n > 0) != c.failed {
				t.Errorf("the probe raised %s by %d, want more than 0: %t", failed, n, c.failed)
			}
		})
	}
}

const alertsPage = "docs/alerts.md"

// hasReason reports whether a row of the alert TargetDown covers a reason, which the alert has as an annotation.
func hasReason(t *testing.T, reason string) bool {
	t.Helper()
	_, table, found := strings.Cut(lab.Read(t, alertsPage), "\n| reason |")
	if !found {
		t.Fatalf("%s has no table with the first column %q", alertsPage, "reason")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.Lines(table) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, quoted := range code.FindAllString(cell, -1) {
			pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.Trim(quoted, "`")), "…", ".+")
			if regexp.MustCompile("^" + pattern + "$").MatchString(reason) {
				return true
			}
		}
	}
	return false
}

// An ownTarget is a target of each IP version.
type ownTarget struct{ ip4, ip6 string }

// measureOwn probes the targets at the same time, and returns the cells of the table's rows by the names of the
// targets. No segment may reach the host.
func measureOwn(t *testing.T, host node, targets map[string]ownTarget) map[string][]string {
	t.Helper()
	const arrived = "TcpInSegs"
	before := host.counter(t, arrived)
	var probing sync.WaitGroup
	var mutex sync.Mutex
	measured := make(map[string][]string)
	for name, target := range targets {
		probing.Go(func() {
			var ip4, ip6 ownReport
			var both sync.WaitGroup
			both.Go(func() { ip4 = probeOwn(t, target.ip4, "10.77.1.1") })
			both.Go(func() { ip6 = probeOwn(t, target.ip6, "fd77:1::1") })
			both.Wait()
			if ip4.icmp != ip6.icmp || ip4.retransmits != ip6.retransmits {
				t.Errorf("%s: IPv4 %+v, IPv6 %+v, want the same icmp and retransmits", name, ip4, ip6)
			}
			mutex.Lock()
			defer mutex.Unlock()
			measured[name] = []string{ip4.reason, ip6.reason, ip4.icmp, ip4.retransmits}
		})
	}
	probing.Wait()
	if n := host.counter(t, arrived) - before; n != 0 {
		t.Errorf("%d segments reached the host, want none", n)
	}
	return measured
}

// An ownReport is what the exporter reports of a probe, as the table shows it: a result, or a fault.
type ownReport struct {
	reason      string // result and errno
	icmp        string // "" if there was no ICMP error
	retransmits string // "" if no SYN was sent
}

// probeOwn probes a target. An ICMP error must come from the exporter's own address.
func probeOwn(t *testing.T, target, own string) ownReport {
	t.Helper()
	status, body := exporter.Scrape(t, exporter.Port, "/probe?target="+target, "")
	if status == 503 && strings.HasSuffix(body, ": operation not permitted\n") {
		return ownReport{reason: "503 (EPERM)"}
	}
	result := regexp.MustCompile(`(?m)^probe_result_info\{result="(\w+)",errno="(\w*)"\} 1$`).FindStringSubmatch(body)
	if result == nil {
		t.Errorf("the probe of %s: status %d, want a result in\n%s", target, status, body)
		return ownReport{}
	}
	if from := submatch(body, `(?m)^probe_icmp_info\{from="([^"]*)"`); from != "" && from != own {
		t.Errorf("the probe of %s: the ICMP error is from %s, want %s:\n%s", target, from, own, body)
	}
	return ownReport{
		reason:      fmt.Sprintf("%s (%s)", result[1], result[2]),
		icmp:        submatch(body, `(?m)^probe_icmp_info\{.*,icmp="(\w+)"\} 1$`),
		retransmits: submatch(body, `(?m)^probe_tcp_syn_retransmits (\d+)$`),
	}
}

// submatch returns what the first group of a regular expression matches, "" if the expression does not match.
func submatch(text, expression string) string {
	found := regexp.MustCompile(expression).FindStringSubmatch(text)
	if found == nil {
		return ""
	}
	return found[1]
}

// addRoute adds a route of a type, such as unix.RTN_BLACKHOLE, on the exporter's host for the rest of the test.
func addRoute(t *testing.T, prefix string, routeType int) {
	t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{Dst: dst, Type: routeType}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatalf("route to %s of type %d: %v", prefix, routeType, err)
	}
	t.Cleanup(func() {
		if err := netlink.RouteDel(route); err != nil {
			t.Errorf("removing the route to %s: %v", prefix, err)
		}
	})
}

// filterOutput returns a table whose chain filters the packets of the node's own programs with the rules.
func filterOutput(rules string) string {
	return "table inet page { chain output { type filter hook output priority filter; " + rules + " }; }"
}
