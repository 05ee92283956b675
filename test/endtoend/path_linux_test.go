package endtoend

import (
	"fmt"
	"net/url"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// What kernels that route do to a SYN, and what an exporter without any capability says of
// it: the verdict, who said so, and the hops on the way there.
func TestChainOfRouters(t *testing.T) {
	chain := kernel.NewChain(t)
	nft := lab.Program(t, "nft", "nftables")
	setpriv := lab.Program(t, "setpriv", "util-linux")
	cmd := exporter.Command(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml",
		"modules: {tcp_connect: {prober: tcp, timeout: 3s, tcp: {path: always}}}"))
	running := exporter.Run(t, exec.Command(setpriv, append([]string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}, cmd.Args...)...))
	if status := running.Status("CapEff"); status != "0000000000000000" {
		t.Fatalf("the exporter has the capabilities %s", status)
	}

	const (
		way4  = "1 10.77.1.2 ttl_exceeded, 2 10.77.2.2 ttl_exceeded, "
		way6  = "1 fd77:1::2 ttl_exceeded, 2 fd77:2::2 ttl_exceeded, "
		host4 = "10.77.4.2:80"
		host6 = "[fd77:4::2]:80"
	)
	type situation struct {
		name   string
		rule   string // of the firewall of the second router
		target string
		want   string // result errno; ICMP; hops
	}
	situations := []situation{
		{"all is well", "", host4, "open ; ; " + way4 + "3 10.77.3.2 ttl_exceeded, 4 10.77.4.2; reached 4"},
		{"all is well", "", host6, "open ; ; " + way6 + "3 fd77:3::2 ttl_exceeded, 4 fd77:4::2; reached 4"},
		{"nobody listens", "", "10.77.4.2:81", "refused ECONNREFUSED; ; " + way4 + "3 10.77.3.2 ttl_exceeded, 4 10.77.4.2; reached 4"},
		{"a router drops", "drop", host4, "timeout ETIMEDOUT; ; " + strings.TrimSuffix(way4, ", ") + "; reached 0"},
		{"a router drops", "drop", host6, "timeout ETIMEDOUT; ; " + strings.TrimSuffix(way6, ", ") + "; reached 0"},
		{"a router refuses in the host's name", "reject with tcp reset", host4, "refused ECONNREFUSED; ; " + way4 + "3 10.77.4.2; reached 3"},
		{"a router refuses in the host's name", "reject with tcp reset", host6, "refused ECONNREFUSED; ; " + way6 + "3 fd77:4::2; reached 3"},
		{"a blackhole", "", "10.77.100.1:80", "timeout ETIMEDOUT; ; " + strings.TrimSuffix(way4, ", ") + "; reached 0"},
		{"a route that is unreachable", "", "10.77.101.1:80", "unreachable EHOSTUNREACH; host_unreachable from 10.77.3.2; " + way4 + "3 10.77.3.2 host_unreachable; reached 0"},
		{"a route that is prohibited", "", "10.77.102.1:80", "prohibited EHOSTUNREACH; admin_prohibited from 10.77.3.2; " + way4 + "3 10.77.3.2 admin_prohibited; reached 0"},
		{"nobody answers a router's ARP", "", "10.77.4.9:80", "unreachable EHOSTUNREACH; host_unreachable from 10.77.3.2; " + way4 + "3 10.77.3.2 ttl_exceeded; reached 0"},
		{"nobody answers a router's neighbour discovery", "", "[fd77:4::9]:80", "unreachable EHOSTUNREACH; host_unreachable from fd77:3::2; " + way6 + "3 fd77:3::2 ttl_exceeded; reached 0"},
		{"nobody answers this host's ARP", "", "10.77.1.9:80", "unreachable EHOSTUNREACH; neighbor_unreachable from 10.77.1.1; ; reached 0"},
		{"nobody answers this host's neighbour discovery", "", "[fd77:1::9]:80", "unreachable EHOSTUNREACH; neighbor_unreachable from fd77:1::1; ; reached 0"},
	}
	for _, with := range [][3]string{
		{"net-unreachable", "unreachable ENETUNREACH", "net_unreachable"},
		{"host-unreachable", "unreachable EHOSTUNREACH", "host_unreachable"},
		{"prot-unreachable", "unreachable ENOPROTOOPT", "protocol_unreachable"},
		{"port-unreachable", "refused ECONNREFUSED", "port_unreachable"},
		{"net-prohibited", "prohibited ENETUNREACH", "net_prohibited"},
		{"host-prohibited", "prohibited EHOSTUNREACH", "host_prohibited"},
		{"admin-prohibited", "prohibited EHOSTUNREACH", "admin_prohibited"},
	} {
		situations = append(situations, situation{"a router rejects with " + with[0], "reject with icmp type " + with[0], host4,
			fmt.Sprintf("%s; %s from 10.77.2.2; %s3 10.77.2.2 %s; reached 0", with[1], with[2], way4, with[2])})
	}
	for _, with := range [][3]string{
		{"no-route", "unreachable ENETUNREACH", "net_unreachable"},
		{"admin-prohibited", "prohibited EACCES", "admin_prohibited"},
		{"addr-unreachable", "unreachable EHOSTUNREACH", "host_unreachable"},
		{"port-unreachable", "refused ECONNREFUSED", "port_unreachable"},
		{"policy-fail", "prohibited EACCES", "policy_failed"},
		{"reject-route", "prohibited EACCES", "route_rejected"},
	} {
		situations = append(situations, situation{"a router rejects with " + with[0], "reject with icmpv6 type " + with[0], host6,
			fmt.Sprintf("%s; %s from fd77:2::2; %s3 fd77:2::2 %s; reached 0", with[1], with[2], way6, with[2])})
	}
	for n := range 3 {
		chain.Route(n, "10.77.96.0/19", fmt.Sprintf("10.77.%d.2", n+1), unix.RTN_UNICAST)
	}
	chain.Route(3, "10.77.100.0/24", "", unix.RTN_BLACKHOLE)
	chain.Route(3, "10.77.101.0/24", "", unix.RTN_UNREACHABLE)
	chain.Route(3, "10.77.102.0/24", "", unix.RTN_PROHIBIT)
	for _, s := range situations {
		t.Run(s.name+"/"+s.target, func(t *testing.T) {
			if s.rule != "" {
				chain.Run(2, nft, "table inet lab { chain forward { type filter hook forward priority 0; tcp flags syn / syn,ack "+s.rule+"; }; }")
				defer chain.Run(2, nft, "delete table inet lab")
			}
			_, body := exporter.Get(t, "/probe?target="+url.QueryEscape(s.target))
			if got := story(body); got != s.want {
				t.Errorf("\n got %s\nwant %s\n%s", got, s.want, body)
			}
		})
	}
}

// story returns what a probe says of the verdict, the ICMP error, and the hops.
func story(body string) string {
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
	verdict := strings.Join(find(`probe_result_info\{result="(\w+)",errno="(\w*)"\} 1`, "%s %s"), "")
	if !strings.Contains(verdict, " ") {
		verdict += " "
	}
	return strings.Join(slices.Concat(
		[]string{verdict},
		[]string{strings.Join(find(`probe_icmp_info\{from="(.*?)",icmp_type="\d+",icmp_code="\d+",icmp="(.*?)"\} 1`, "%[2]s from %[1]s"), "")},
		[]string{strings.Join(find(`probe_path_hop_info\{hop="(\d+)",address="(.*?)",icmp="(.*?)"\} 1`, "%s %s %s"), ", ")},
		[]string{"reached " + reached[0]},
	), "; ")
}
