package documents

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// A rawFirewall is a row of the table in docs/raw.md about a firewall of the exporter's own host. OUT and IN stand for
// what its rules match: the segments to the target and those from it.
type rawFirewall struct {
	row                         string
	rawOut, rawIn, filter, back string // in the chains output and prerouting with priority raw, output, and input
}

var rawFirewalls = []rawFirewall{
	{
		row:  "input: drop, except ct state established",
		back: "IN ct state established accept; IN drop",
	},
	{
		row:    "drop ct state invalid on input and output",
		filter: "OUT ct state invalid drop", back: "IN ct state invalid drop; IN ct state established accept; IN drop",
	},
	{
		row:    "notrack in both directions, input: accept SYN-ACKs and RSTs",
		rawOut: "OUT notrack", rawIn: "IN notrack",
		back: "IN tcp flags & (syn|ack) == syn|ack accept; IN tcp flags & rst == rst accept; IN drop",
	},
	{
		row:    "notrack for SYNs only, input: drop, except ct state established",
		rawOut: "OUT tcp flags & syn == syn notrack", back: "IN ct state established accept; IN drop",
	},
	{
		row:    "output: drop",
		filter: "OUT drop",
	},
	{
		row:    "output: reject",
		filter: "OUT reject with icmp type admin-prohibited",
	},
	{
		row:    "output: accept only packets of a user (meta skuid)",
		filter: "OUT meta skuid 0 accept; OUT drop",
	},
	{
		row:    "output: drop RSTs",
		filter: "OUT tcp flags & rst == rst drop",
	},
}

// The firewall of the exporter's own host has the effects that the page's table shows, with both engines.
func TestRawFirewall(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	own, host := node{chain, 0}, node{chain, 4}
	conf := lab.Write(t, t.TempDir(), "shaker.yml", "modules: {tcp_connect: {prober: tcp, timeout: 700ms}}")
	ports := map[string]int{"socket": 10116, "raw": 10117}
	for engine, port := range ports {
		exporter.StartOn(t, port, "--config.file="+conf, "--probe.engine="+engine)
	}
	chains := make(map[string]string)
	first := map[string]int{"socket": 8000, "raw": 8100}
	for i, f := range rawFirewalls {
		for _, engine := range []string{"socket", "raw"} {
			port := first[engine] + i
			host.listen(t, port, net.ListenConfig{})
			match := strings.NewReplacer(
				"OUT", fmt.Sprintf("tcp dport %d", port), "IN", fmt.Sprintf("tcp sport %d", port))
			for name, rules := range map[string]string{
				"type filter hook output priority raw":     f.rawOut,
				"type filter hook prerouting priority raw": f.rawIn,
				"type filter hook output priority filter":  f.filter,
				"type filter hook input priority filter":   f.back,
			} {
				if rules != "" {
					chains[name] += match.Replace(rules) + "; "
				}
			}
		}
	}
	text := "table ip page {\n"
	for name, rules := range chains {
		text += fmt.Sprintf("chain c%d { %s; %s}\n", len(text), name, rules)
	}
	own.rules(t, text+"}")

	result := regexp.MustCompile(`probe_result_info\{result="(\w+)"|: operation not (permitted)\n`)
	measured := make(map[string][]string)
	for i, f := range rawFirewalls {
		var cells []string
		halfOpen := "none"
		for _, engine := range []string{"socket", "raw"} {
			port := first[engine] + i
			_, body := exporter.Scrape(t, ports[engine], fmt.Sprintf("/probe?target=10.77.4.2:%d", port), "")
			switch found := result.FindStringSubmatch(body); {
			case found == nil:
				t.Errorf("%s, engine %s: no result in %s", f.row, engine, body)
			case found[2] != "":
				cells = append(cells, "EPERM")
			default:
				cells = append(cells, found[1])
			}
			// The RST may still be on its way. Without one, the connection stays half-open for a minute.
			isHalfOpen := func() bool { return host.sockets(unix.BPF_TCP_SYN_RECV, port) > 0 }
			for end := time.Now().Add(time.Second); isHalfOpen() && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
			}
			if isHalfOpen() {
				halfOpen = map[string]string{"none": engine, "socket": "both"}[halfOpen]
			}
		}
		measured[f.row] = append(cells, halfOpen)
	}
	compareRows(t, "docs/raw.md", "firewall of this host", measured)
}
