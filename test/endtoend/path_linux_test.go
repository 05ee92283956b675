package endtoend

import (
	"fmt"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// An exporter without any capability reports what a chain of real routers does to a SYN: the result, the ICMP
// error and the router that sent it, and the hops of the path.
func TestChainOfRouters(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	setpriv := lab.Program(t, "setpriv", "util-linux")
	cmd := exporter.Command(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml",
		"modules: {tcp_connect: {prober: tcp, timeout: 3s, tcp: {path: always}}}"))
	running := exporter.Run(t, exec.Command(setpriv,
		append([]string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}, cmd.Args...)...))
	if got := running.Status("CapEff"); got != "0000000000000000" {
		t.Fatalf("the exporter has the capabilities %s, want none", got)
	}

	const (
		host4 = "10.77.4.2:80"
		host6 = "[fd77:4::2]:80"

		// The first hops of every path, with nothing or something after them.
		only4 = "1 10.77.1.2 ttl_exceeded, 2 10.77.2.2 ttl_exceeded"
		only6 = "1 fd77:1::2 ttl_exceeded, 2 fd77:2::2 ttl_exceeded"
		hops4 = only4 + ", "
		hops6 = only6 + ", "
	)
	type condition struct {
		name   string
		rule   string // of the firewall of the second router
		target string
		want   string // as summary formats it
	}
	conditions := []condition{
		{
			name: "open", target: host4,
			want: "open ; ; " + hops4 + "3 10.77.3.2 ttl_exceeded, 4 10.77.4.2; reached 4",
		},
		{
			name: "open", target: host6,
			want: "open ; ; " + hops6 + "3 fd77:3::2 ttl_exceeded, 4 fd77:4::2; reached 4",
		},
		{
			name: "closed", target: "10.77.4.2:81",
			want: "refused ECONNREFUSED; ; " + hops4 + "3 10.77.3.2 ttl_exceeded, 4 10.77.4.2; reached 4",
		},
		{
			name: "a router drops the SYN", rule: "drop", target: host4,
			want: "timeout ETIMEDOUT; ; " + only4 + "; reached 0",
		},
		{
			name: "a router drops the SYN", rule: "drop", target: host6,
			want: "timeout ETIMEDOUT; ; " + only6 + "; reached 0",
		},
		{
			name: "a router sends a RST in the host's name", rule: "reject with tcp reset", target: host4,
			want: "refused ECONNREFUSED; ; " + hops4 + "3 10.77.4.2; reached 3",
		},
		{
			name: "a router sends a RST in the host's name", rule: "reject with tcp reset", target: host6,
			want: "refused ECONNREFUSED; ; " + hops6 + "3 fd77:4::2; reached 3",
		},
		{
			name: "a blackhole route", target: "10.77.100.1:80",
			want: "timeout ETIMEDOUT; ; " + only4 + "; reached 0",
		},
		{
			name: "an unreachable route", target: "10.77.101.1:80",
			want: "unreachable EHOSTUNREACH; host_unreachable from 10.77.3.2; " + hops4 +
				"3 10.77.3.2 host_unreachable; reached 0",
		},
		{
			name: "a prohibited route", target: "10.77.102.1:80",
			want: "prohibited EHOSTUNREACH; admin_prohibited from 10.77.3.2; " + hops4 +
				"3 10.77.3.2 admin_prohibited; reached 0",
		},
		{
			name: "no reply to a router's ARP", target: "10.77.4.9:80",
			want: "unreachable EHOSTUNREACH; host_unreachable from 10.77.3.2; " + hops4 +
				"3 10.77.3.2 ttl_exceeded; reached 0",
		},
		{
			name: "no reply to a router's neighbour discovery", target: "[fd77:4::9]:80",
			want: "unreachable EHOSTUNREACH; host_unreachable from fd77:3::2; " + hops6 +
				"3 fd77:3::2 ttl_exceeded; reached 0",
		},
		{
			name: "no reply to this host's ARP", target: "10.77.1.9:80",
			want: "unreachable EHOSTUNREACH; neighbor_unreachable from 10.77.1.1; ; reached 0",
		},
		{
			name: "no reply to this host's neighbour discovery", target: "[fd77:1::9]:80",
			want: "unreachable EHOSTUNREACH; neighbor_unreachable from fd77:1::1; ; reached 0",
		},
	}
	for _, reject := range []struct{ with, result, icmp string }{
		{with: "net-unreachable", result: "unreachable ENETUNREACH", icmp: "net_unreachable"},
		{with: "host-unreachable", result: "unreachable EHOSTUNREACH", icmp: "host_unreachable"},
		{with: "prot-unreachable", result: "unreachable ENOPROTOOPT", icmp: "protocol_unreachable"},
		{with: "port-unreachable", result: "refused ECONNREFUSED", icmp: "port_unreachable"},
		{with: "net-prohibited", result: "prohibited ENETUNREACH", icmp: "net_prohibited"},
		{with: "host-prohibited", result: "prohibited EHOSTUNREACH", icmp: "host_prohibited"},
		{with: "admin-prohibited", result: "prohibited EHOSTUNREACH", icmp: "admin_prohibited"},
	} {
		conditions = append(conditions, condition{
			name: "a router rejects the SYN with " + reject.with, target: host4,
			rule: "reject with icmp type " + reject.with,
			want: fmt.Sprintf("%[1]s; %[2]s from 10.77.2.2; %[3]s3 10.77.2.2 %[2]s; reached 0",
				reject.result, reject.icmp, hops4),
		})
	}
	for _, reject := range []struct{ with, result, icmp string }{
		{with: "no-route", result: "unreachable ENETUNREACH", icmp: "net_unreachable"},
		{with: "admin-prohibited", result: "prohibited EACCES", icmp: "admin_prohibited"},
		{with: "addr-unreachable", result: "unreachable EHOSTUNREACH", icmp: "host_unreachable"},
		{with: "port-unreachable", result: "refused ECONNREFUSED", icmp: "port_unreachable"},
		{with: "policy-fail", result: "prohibited EACCES", icmp: "policy_failed"},
		{with: "reject-route", result: "prohibited EACCES", icmp: "route_rejected"},
	} {
		conditions = append(conditions, condition{
			name: "a router rejects the SYN with " + reject.with, target: host6,
			rule: "reject with icmpv6 type " + reject.with,
			want: fmt.Sprintf("%[1]s; %[2]s from fd77:2::2; %[3]s3 fd77:2::2 %[2]s; reached 0",
				reject.result, reject.icmp, hops6),
		})
	}
	for n := range 3 {
		chain.Route(n, "10.77.96.0/19", fmt.Sprintf("10.77.%d.2", n+1), unix.RTN_UNICAST)
	}
	chain.Route(3, "10.77.100.0/24", "", unix.RTN_BLACKHOLE)
	chain.Route(3, "10.77.101.0/24", "", unix.RTN_UNREACHABLE)
	chain.Route(3, "10.77.102.0/24", "", unix.RTN_PROHIBIT)
	for _, c := range conditions {
		t.Run(c.name+"/"+c.target, func(t *testing.T) {
			if c.rule != "" {
				nft := lab.Program(t, "nft", "nftables")
				chain.Run(2, nft, "table inet lab { chain forward { type filter hook forward priority 0; "+
					"tcp flags syn / syn,ack "+c.rule+"; }; }")
				defer chain.Run(2, nft, "delete table inet lab")
			}
			path := "/probe?target=" + url.QueryEscape(c.target)
			status, body := exporter.Get(t, path)
			if got := summary(body); got != c.want {
				t.Errorf("GET %s = %d with\n%s\nwant\n%s\nin\n%s", path, status, got, c.want, body)
			}
		})
	}
}

// summary formats the response to a probe as "result errno; ICMP error from router; hops; reached hop".
func summary(body string) string {
	find := func(pattern, format string) []string {
		var found []string
		for _, match := range regexp.MustCompile("(?m)^"+pattern).FindAllStringSubmatch(body, -1) {
			arguments := make([]any, len(match)-1)
			for i, text := range match[1:] {
				arguments[i] = text
			}
			found = append(found, strings.TrimSpace(fmt.Sprintf(format, arguments...)))
		}
		return found
	}
	reached := find(`probe_path_hops (\d+)`, "%s")
	if reached == nil {
		reached = []string{"0"}
	}
	result := strings.Join(find(`probe_result_info\{result="(\w+)",errno="(\w*)"\} 1`, "%s %s"), "")
	if !strings.Contains(result, " ") {
		result += " "
	}
	const icmpInfo = `probe_icmp_info\{from="(.*?)",icmp_type="\d+",icmp_code="\d+",icmp="(.*?)"\} 1`
	const hopInfo = `probe_path_hop_info\{hop="(\d+)",address="(.*?)",icmp="(.*?)"\} 1`
	return strings.Join([]string{
		result,
		strings.Join(find(icmpInfo, "%[2]s from %[1]s"), ""),
		strings.Join(find(hopInfo, "%s %s %s"), ", "),
		"reached " + reached[0],
	}, "; ")
}
