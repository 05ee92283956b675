package examples

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A notification is what Alertmanager sends to a webhook.
type notification struct {
	receiver string // the path of its URL
	Alerts   []alert
	GroupKey string
}

type alert struct {
	Status              string
	Labels, Annotations map[string]string
}

func (a alert) String() string {
	labels := a.Labels
	return strings.TrimSpace(fmt.Sprintf("%s %s %s%s", labels["alertname"], labels["instance"], labels["at"], labels["errno"]))
}

// A pager is who is told by an Alertmanager with the configuration of the example.
type pager struct {
	t  *testing.T
	mu sync.Mutex
	of []notification
}

// newPager starts an Alertmanager that is sixty times as fast as the example, and its receiver.
func newPager(t *testing.T) *pager {
	t.Helper()
	lab.Need(t)
	program := lab.Program(t, "prometheus-alertmanager", "prometheus-alertmanager")
	p := &pager{t: t}
	listener, err := net.Listen("tcp", "localhost:9095")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: p}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) })
	t.Cleanup(func() { server.Close(); serving.Wait() })
	file := lab.Write(t, t.TempDir(), "alertmanager.yml", lab.Faster(lab.Read(t, "alertmanager.yml")))
	process.Start(t, exec.Command(program, "--config.file="+file, "--storage.path="+t.TempDir(),
		"--web.listen-address=localhost:9093", "--cluster.listen-address=")).Listening(9093)
	return p
}

// ServeHTTP takes a notification.
func (p *pager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := notification{receiver: r.URL.Path}
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
		p.t.Errorf("webhook: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of = append(p.of, n)
}

// told returns what was said of an alert to a receiver with that status.
func (p *pager) told(receiver, status, name string) (annotations map[string]string, found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.of {
		for _, a := range n.Alerts {
			if n.receiver == receiver && a.Status == status && a.String() == name {
				annotations, found = a.Annotations, true // the last one counts
			}
		}
	}
	return annotations, found
}

// all returns all alerts that fire and that somebody was told of, each once, and the groups they
// were in.
func (p *pager) all() (alerts, groups []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.of {
		groups = append(groups, n.GroupKey)
		for _, a := range n.Alerts {
			if a.Status == "firing" {
				alerts = append(alerts, a.String())
			}
		}
	}
	slices.Sort(alerts)
	slices.Sort(groups)
	return slices.Compact(alerts), slices.Compact(groups)
}

// states returns what Alertmanager does with an alert, by instance: it is active or suppressed.
func (p *pager) states(name string) map[string]string {
	p.t.Helper()
	body := lab.Get(p.t, "http://localhost:9093/api/v2/alerts?filter=alertname="+name)
	var alerts []struct {
		Labels map[string]string
		Status struct{ State string }
	}
	if err := json.Unmarshal([]byte(body), &alerts); err != nil {
		p.t.Fatalf("%s: %v", body, err)
	}
	states := make(map[string]string)
	for _, a := range alerts {
		states[a.Labels["instance"]] = a.Status.State
	}
	return states
}

// forget forgets all notifications.
func (p *pager) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of = nil
}

// startPrometheus starts a Prometheus that is sixty times as fast as the example, with its
// rules and these targets.
func startPrometheus(t *testing.T, targets ...string) *process.Prometheus {
	t.Helper()
	dir := t.TempDir()
	for _, file := range lab.Files(t, "rules/*.yml") {
		lab.Write(t, dir, file, lab.Faster(lab.Read(t, file)))
	}
	config := lab.Faster(lab.Read(t, "prometheus.yml"))
	list := ""
	for _, target := range targets {
		list += fmt.Sprintf("          - %q\n", target)
	}
	for _, change := range [][2]string{
		{"          - localhost:10115\n          - localhost:1\n          - 192.0.2.1:443\n", list},
		{"scrape_interval: 250ms", "scrape_interval: 500ms"}, // room for a timeout
		{"  - rules/slo.yml\n", ""}, // an outage of a few seconds is all there is
	} {
		if strings.Count(config, change[0]) != 1 {
			t.Fatalf("the example has no %q", change[0])
		}
		config = strings.Replace(config, change[0], change[1], 1)
	}
	return process.StartPrometheus(t, 9090, lab.Write(t, dir, "prometheus.yml", config))
}

// A target is broken in each of five ways, and the notification says which, with the errno;
// then it is repaired, and that is told, too. Nothing else is.
func TestAlerts(t *testing.T) {
	chain := kernel.NewChain(t)
	nft := lab.Program(t, "nft", "nftables")
	ip := lab.Program(t, "ip", "iproute2")
	dir := t.TempDir()
	hosts := lab.Write(t, dir, "hosts", "127.0.0.1 localhost web.example\n")
	resolv := lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n")
	simnet.ServeDNS(t, "127.0.0.1:53", nil) // there is no name
	config := lab.Write(t, dir, "shaker.yml", "modules: {tcp_connect: {prober: tcp, tcp: {path: on_failure}}}")
	shaker := process.WithFiles(t, exporter.Command(t, "--config.file="+config, "--timeout-offset=0.1"),
		map[string]string{"/etc/hosts": hosts, "/etc/resolv.conf": resolv})
	process.Start(t, shaker).Listening(10115)
	redis := startRedis(t)

	const stopped, firewalled, unrouted, nameless = "127.0.0.1:6379", "10.77.4.2:80", "[fd77:4::2]:80", "web.example:10115"
	pager := newPager(t)
	prometheus := startPrometheus(t, stopped, firewalled, unrouted, nameless)
	lab.Eventually(t, "all is well", func() bool {
		return len(prometheus.Query("probe_success == 1")) == 4 && len(prometheus.Query(`up{job="shaker_exporter"} == 1`)) == 1
	})

	var limit unix.Rlimit
	descriptors := func(soft uint64) {
		t.Helper()
		if err := unix.Prlimit(shaker.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: soft, Max: limit.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Prlimit(shaker.Process.Pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	rewrite := func(content string) {
		if err := os.WriteFile(hosts, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name               string
		breaks, repairs    func()
		alert              string
		annotation, reason string   // how it begins
		also               []string // in the same group
		keeps              func()   // it broken
	}{
		{"stopped",
			func() { redis.Stop() },
			func() { redis = startRedis(t) },
			"TargetDown " + stopped, "reason", "refused (ECONNREFUSED)", nil, nil},
		{"firewalled",
			func() {
				chain.Run(2, nft, "table inet lab { chain forward { type filter hook forward priority 0; ip daddr 10.77.4.2 tcp flags syn / syn,ack reject with icmp type admin-prohibited; }; }")
			},
			func() { chain.Run(2, nft, "delete table inet lab") },
			"TargetDown " + firewalled, "reason", "prohibited (EHOSTUNREACH), admin_prohibited from 10.77.2.2, the last hop that answers is ", nil, nil},
		{"unrouted",
			func() { chain.Run(1, ip, "-6", "route", "del", "fd77:4::/64") },
			func() { chain.Route(1, "fd77:4::/64", "fd77:2::2", unix.RTN_UNICAST) },
			"TargetDown " + unrouted, "reason", "unreachable (ENETUNREACH), net_unreachable from fd77:1::2", nil, nil},
		{"name gone",
			func() { rewrite("127.0.0.1 localhost\n") },
			func() { rewrite("127.0.0.1 localhost web.example\n") },
			"TargetDown " + nameless, "reason", "dns_not_found", nil, nil},
		{"prober out of descriptors",
			func() { descriptors(0) },
			func() { descriptors(limit.Cur) },
			"ProberFaults localhost:10115 EMFILE", "summary", "The exporter at localhost:10115 cannot measure: EMFILE",
			[]string{"ProberBlind"},
			func() { // If Prometheus loses its connection meanwhile, it takes a descriptor for another.
				if len(prometheus.Query(`up{job="shaker_exporter"} == 0`)) > 0 {
					descriptors(limit.Cur)
				} else {
					descriptors(0)
				}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pager.forget()
			c.breaks()
			want := append(c.also, c.alert)
			told := func(status string) func() bool {
				return func() bool {
					return !slices.ContainsFunc(want, func(alert string) bool {
						_, told := pager.told("/page", status, alert)
						return !told
					})
				}
			}
			lab.Eventually(t, "somebody is woken up", func() bool {
				if c.keeps != nil {
					c.keeps()
				}
				return told("firing")()
			})
			annotations, _ := pager.told("/page", "firing", c.alert)
			if got := annotations[c.annotation]; !strings.HasPrefix(got, c.reason) {
				t.Errorf("%s: %s is %q, want %q", c.alert, c.annotation, got, c.reason)
			}
			c.repairs()
			lab.Eventually(t, "somebody may sleep again", told("resolved"))
			if alerts, groups := pager.all(); !slices.Equal(alerts, want) || len(groups) != 1 {
				t.Errorf("told of %q in %q, want %q in one group", alerts, groups, want)
			}
		})
	}
}

// startRedis starts a server for the rest of the test, or until it is stopped.
func startRedis(t *testing.T) *process.Process {
	t.Helper()
	program := lab.Program(t, "redis-server", "redis-server")
	redis := process.Start(t, exec.Command(program, "--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir()))
	redis.Listening(6379)
	return redis
}

// A router dies, and five targets with it. There is one notification for the router, which has
// the targets, and none for each of them. A sixth, behind another router, is told of by itself.
func TestOneDeadRouterPagesOnce(t *testing.T) {
	network := simnet.NewNetwork(t)
	behind := []string{"198.51.100.1", "198.51.100.2"}
	var targets, want []string
	for i := range 5 {
		target := fmt.Sprintf("192.0.2.%d:443", i+1)
		network.At(target, simnet.SYNACK()).Behind(behind...)
		targets = append(targets, target)
		want = append(want, "TargetCutOff "+target+" 198.51.100.1")
	}
	network.At("203.0.113.1:22", simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.3")
	config := lab.Write(t, t.TempDir(), "shaker.yml", "modules: {tcp_connect: {prober: tcp, tcp: {path: on_failure}}}")
	exporter.StartOn(t, 10115, "--config.file="+config, "--timeout-offset=0.1")
	pager := newPager(t)
	prometheus := startPrometheus(t, append(targets, "203.0.113.1:22")...)
	lab.Eventually(t, "all is well", func() bool { return len(prometheus.Query("probe_success == 1")) == 6 })

	for _, target := range targets {
		network.At(target).Behind("198.51.100.1", "") // the next router, and all beyond it, are silent
	}
	network.At("203.0.113.1:22", simnet.RST()).Behind("198.51.100.1", "198.51.100.3")
	want = append(want, "TargetDown 203.0.113.1:22")
	slices.Sort(want)
	lab.Eventually(t, "all of it has been told", func() bool {
		alerts, _ := pager.all()
		return slices.Equal(alerts, want) || len(alerts) > len(want)
	})
	lab.Eventually(t, "the targets are down, too, and nobody is to be told of five of them", func() bool {
		states := pager.states("TargetDown")
		return len(states) == 6 && states["203.0.113.1:22"] == "active" &&
			!slices.ContainsFunc(targets, func(target string) bool { return states[target] != "suppressed" })
	})
	for _, target := range targets {
		network.At(target, simnet.SYNACK()).Behind(behind...)
	}
	lab.Eventually(t, "the end has been told", func() bool {
		for _, name := range want {
			if _, told := pager.told("/page", "resolved", name); !told && strings.HasPrefix(name, "TargetCutOff") {
				return false
			}
		}
		return true
	})
	alerts, groups := pager.all()
	if !slices.Equal(alerts, want) || len(groups) != 2 {
		t.Errorf("told of %q in %q, want %q in two groups", alerts, groups, want)
	}
}

// amtool has nothing to say against the configuration, which sends alerts where they belong, and
// finds what is wrong in another one.
func TestAlertmanagerConfig(t *testing.T) {
	amtool := lab.Program(t, "amtool", "prometheus-alertmanager")
	if out, err := exec.Command(amtool, "check-config", "alertmanager.yml").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for alert, want := range map[string]string{
		"alertname=TargetDown severity=page":                "page",
		"alertname=TargetCutOff severity=page at=192.0.2.1": "page",
		"alertname=ExporterDown severity=page":              "page",
		"alertname=ExporterDown severity=page prober=fra":   "ticket", // there are others
		"alertname=ProberBlind severity=page":               "page",
		"alertname=VantageQuorumLost severity=page":         "page",
		"alertname=SYNsLost severity=ticket":                "ticket",
	} {
		args := append([]string{"config", "routes", "test", "--config.file=alertmanager.yml"}, strings.Fields(alert)...)
		if out, err := exec.Command(amtool, args...).Output(); err != nil || string(out) != want+"\n" {
			t.Errorf("%s goes to %s, %v, want %s", alert, out, err, want)
		}
	}
	wrong := strings.Replace(lab.Read(t, "alertmanager.yml"), "receiver: page", "receiver: nobody", 1)
	file := lab.Write(t, t.TempDir(), filepath.Base("alertmanager.yml"), wrong)
	if out, err := exec.Command(amtool, "check-config", file).CombinedOutput(); err == nil {
		t.Errorf("amtool accepts a receiver that is not there: %s", out)
	}
}
