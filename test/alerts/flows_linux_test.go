package alerts

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// One of several routers of equal cost drops packets, another one rejects packets of the other IP version, then one
// loses every second packet. Each time there is a notification of FlowsBroken with the result, the local ports of the
// flows that fail, and the router. It is resolved when the router is repaired. When all routers are broken, there is
// TargetDown instead.
//
// The control is a job that probes the same targets without flows: its results change again and again meanwhile.
func TestFlowsBroken(t *testing.T) { process.EachPrometheus(t, testFlowsBroken) }

func testFlowsBroken(t *testing.T, major process.Major) {
	if lab.Apart(t) {
		return
	}
	const times, members, port = 20, 4, 80
	nft := lab.Program(t, "nft", "nftables")
	fan := kernel.NewFan(t, members)
	fan.Listen(port)
	breakMember := func(member int, rule string) {
		t.Helper()
		fan.Run(member, nft, brokenBy(rule))
	}
	repairMember := func(member int) { fan.Run(member, nft, "delete table inet broken") }
	ip4 := netip.AddrPortFrom(fan.Host(false), port).String()
	ip6 := netip.AddrPortFrom(fan.Host(true), port).String()
	config := lab.Write(t, t.TempDir(), "shaker.yml", `modules:
  tcp_connect: {prober: tcp, timeout: 1s}
  flows: {prober: tcp, tcp: {flows: 32, path: on_failure}}
`)
	exporter.StartOn(t, exporter.Port, "--config.file="+config, "--timeout-offset=0.1")
	pager := newPager(t, times)
	prometheus := startWithFlows(t, major, times, ip4, ip6)
	lab.Eventually(t, "all flows are open", func() bool {
		return len(prometheus.Query("probe_flows == 32 and probe_flows_open == 32")) == 2 &&
			len(prometheus.Query(`probe_success{job="shaker"} == 1`)) == 2
	})
	pager.settle()

	type broken struct {
		target, reason string
		v6             bool
		member         int
	}
	for _, incident := range []struct {
		name       string
		begin, end func()
		broken     []broken
		rare       bool // whether a probe without flows rarely fails
	}{
		{
			name: "one drops, another one rejects",
			begin: func() {
				breakMember(1, "meta nfproto ipv4 drop")
				breakMember(2, "meta nfproto ipv6 meta l4proto tcp reject with tcp reset")
			},
			end: func() { repairMember(1); repairMember(2) },
			broken: []broken{
				{target: ip4, member: 1, reason: "timeout (ETIMEDOUT)"},
				{target: ip6, member: 2, reason: "refused (ECONNREFUSED)", v6: true},
			},
		},
		{
			name:  "one loses every second packet",
			begin: func() { breakMember(3, "numgen random mod 2 0 drop") },
			end:   func() { repairMember(3) },
			rare:  true,
			broken: []broken{
				{target: ip4, member: 3, reason: "timeout (ETIMEDOUT)"},
				{target: ip6, member: 3, reason: "timeout (ETIMEDOUT)", v6: true},
			},
		},
	} {
		t.Run(incident.name, func(t *testing.T) {
			pager.forget()
			incident.begin()
			notified := func(status string) func() bool {
				return func() bool {
					for _, b := range incident.broken {
						if _, ok := pager.notified("/page", status, "FlowsBroken "+b.target); !ok {
							return false
						}
					}
					return true
				}
			}
			lab.Eventually(t, "there is a page for the flows of both targets", notified("firing"))
			for _, b := range incident.broken {
				annotations, _ := pager.notified("/page", "firing", "FlowsBroken "+b.target)
				hop := fmt.Sprintf("%v, behind %v, which all flows pass", fan.Member(b.v6, b.member), fan.Entry(b.v6))
				if annotations["hop"] != hop {
					t.Errorf("FlowsBroken %s: annotation hop = %q, want %q", b.target, annotations["hop"], hop)
				}
				result, ports, _ := strings.Cut(annotations["reason"], " from the local ports ")
				failing := failingPorts(prometheus, b.target)
				if result != b.reason || ports == "" || !isSubset(strings.Split(ports, ", "), failing) {
					t.Errorf("FlowsBroken %s: annotation reason = %q, want %s from some of the ports %q",
						b.target, annotations["reason"], b.reason, failing)
				}
				summary := fmt.Sprintf(`^Some flows to %s are broken: \d+ of 32$`, regexp.QuoteMeta(b.target))
				if !regexp.MustCompile(summary).MatchString(annotations["summary"]) {
					t.Errorf("FlowsBroken %s: annotation summary = %q, want %s",
						b.target, annotations["summary"], summary)
				}
			}
			// The control: without flows, probes fail and succeed in turns. They rarely fail if only half of the
			// packets are lost.
			lab.Eventually(t, "probes without flows have failed and have succeeded", func() bool {
				const plain = `avg_over_time(probe_success{job="shaker"}[20s])`
				return len(prometheus.Query(plain+" > 0 < 1")) == 2 || incident.rare
			})
			for _, s := range prometheus.Query(`avg_over_time(probe_success{job="shaker"}[20s])`) {
				changes := prometheus.Query(fmt.Sprintf(
					`changes(probe_success{job="shaker", instance=%q}[20s])`, s.Labels["instance"]))
				t.Logf("%s without flows: %.0f%% of the probes of the last 20 s have succeeded, %v changes",
					s.Labels["instance"], 100*s.Value, changes[0].Value)
			}
			incident.end()
			lab.Eventually(t, "the page is resolved for both targets", notified("resolved"))
			if wrong := alertsOf(pager, "flows", "TargetDown", "TargetCutOff"); len(wrong) > 0 {
				t.Errorf("notifications of %q about targets some of whose flows are open, want none", wrong)
			}
		})
	}

	for _, job := range []string{"shaker", "flows"} {
		firing := prometheus.Query(fmt.Sprintf(
			`sum(count_over_time(ALERTS{job=%q,alertname="TargetDown",alertstate="firing"}[1h])) or vector(0)`, job))
		t.Logf("job %s: TargetDown was firing at %v evaluations, for targets that are up", job, firing[0].Value)
		if job == "flows" && firing[0].Value > 0 {
			t.Error("TargetDown was firing for targets some of whose flows are open, want that it was not")
		}
	}
	t.Run("all are broken", func(t *testing.T) {
		pager.forget()
		for i := range members {
			breakMember(i, "drop")
		}
		lab.Eventually(t, "there is a page for both targets", func() bool {
			return len(alertsOf(pager, "flows", "TargetDown")) == 2
		})
		if wrong := alertsOf(pager, "flows", "FlowsBroken"); len(wrong) > 0 {
			t.Errorf("notifications of %q about targets none of whose flows is open, want none", wrong)
		}
	})
}

// A queue on one of several paths delays the flows that take this path. There is a ticket with their local ports, and
// no other alert. It is resolved when the queue is gone. The control is a job that probes the same target without
// flows, for which nothing fires.
func TestFlowsUneven(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const times, members, slow, port = 60, 4, 2, 80
	nft := lab.Program(t, "nft", "nftables")
	tc := lab.Program(t, "tc", "iproute2")
	fan := kernel.NewFan(t, members)
	fan.Listen(port)
	target := netip.AddrPortFrom(fan.Host(false), port).String()
	config := lab.Write(t, t.TempDir(), "shaker.yml", `modules:
  tcp_connect: {prober: tcp}
  flows: {prober: tcp, tcp: {flows: 32}}
`)
	exporter.StartOn(t, exporter.Port, "--config.file="+config, "--timeout-offset=0.1")
	pager := newPager(t, times, "group_interval: 5s", "group_interval: 1s")
	prometheus := startWithFlows(t, process.Prometheus3, times, target)
	lab.Eventually(t, "all flows are open", func() bool { return len(prometheus.Query("probe_flows_open == 32")) == 1 })
	pager.settle()
	pager.forget()

	// Each packet takes 7 ms or more, one after the other.
	device := fmt.Sprint("fan", 200+slow)
	fan.Run(slow, tc, "qdisc", "add", "dev", device, "root", "tbf", "rate", "80kbit", "burst", "200b", "latency", "2s")
	name := "FlowsUneven " + target
	lab.Eventually(t, "there is a ticket", func() bool {
		_, ok := pager.notified("/ticket", "firing", name)
		return ok
	})
	annotations, _ := pager.notified("/ticket", "firing", name)
	var ports []string
	localPort := regexp.MustCompile(`from the local port (\d+)`)
	for _, match := range localPort.FindAllStringSubmatch(annotations["reason"], -1) {
		ports = append(ports, match[1])
	}
	fan.Run(slow, tc, "qdisc", "del", "dev", device, "root")
	lab.Eventually(t, "the ticket is resolved", func() bool {
		_, ok := pager.notified("/ticket", "resolved", name)
		return ok
	})
	alerts, _ := pager.firing()
	alerts = slices.DeleteFunc(alerts, func(alert string) bool { // a busy machine delays the exporter
		return strings.HasSuffix(alert, fmt.Sprintf(" localhost:%d", exporter.Port))
	})
	if !slices.Equal(alerts, []string{name}) {
		t.Errorf("notifications of %q about targets, want %q only", alerts, name)
	}

	fan.Run(slow, nft, brokenBy("drop"))
	lab.Eventually(t, "the flows of this path fail", func() bool {
		return len(prometheus.Query("probe_flows_open < 32")) == 1
	})
	if failing := failingPorts(prometheus, target); len(ports) == 0 || !isSubset(ports, failing) {
		t.Errorf("annotation reason = %q, want some of the local ports %q, whose flows take the slow path",
			annotations["reason"], failing)
	}
}

// brokenBy returns a table of nftables that applies a rule to all packets that a router forwards.
func brokenBy(rule string) string {
	return "table inet broken {\nchain forward {\ntype filter hook forward priority 0\n" + rule + "\n}\n}"
}

// startWithFlows starts a Prometheus with the example's configuration, and a job flows for the same targets.
func startWithFlows(t *testing.T, major process.Major, times int, targets ...string) *process.Prometheus {
	t.Helper()
	dir := writeFastExample(t, times, targets...)
	config := lab.Read(t, filepath.Join(dir, "prometheus.yml"))
	job := regexp.MustCompile(`(?m)^  - job_name: shaker\n(?: {4}.*\n)+`).FindString(config)
	job = lab.Replace(t, "prometheus.yml", job,
		"job_name: shaker\n", "job_name: flows\n", "module: [tcp_connect]", "module: [flows]")
	lab.Write(t, dir, "prometheus.yml", config+job)
	return major.Start(t, 9090, filepath.Join(dir, "prometheus.yml"))
}

// failingPorts returns the local ports of the flows to a target that have failed lately.
func failingPorts(prometheus *process.Prometheus, target string) (ports []string) {
	query := fmt.Sprintf(`last_over_time(probe_flow_result_info{instance=%q, result!="open"}[30s])`, target)
	for _, s := range prometheus.Query(query) {
		ports = append(ports, s.Labels["source_port"])
	}
	return ports
}

// isSubset reports whether all of some values are among others.
func isSubset(some, others []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(others, s) })
}

// alertsOf returns the notified alerts of a job with one of the given names.
func alertsOf(p *pager, job string, names ...string) (alerts []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.notifications {
		for _, a := range n.Alerts {
			if a.Labels["job"] == job && slices.Contains(names, a.Labels["alertname"]) && a.Status == "firing" {
				alerts = append(alerts, a.String())
			}
		}
	}
	slices.Sort(alerts)
	return slices.Compact(alerts)
}
