package alerts

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// A notification is a message of Alertmanager to a webhook.
type notification struct {
	receiver string // the path of its URL
	Alerts   []alert
	GroupKey string
}

type alert struct {
	Status              string
	Labels, Annotations map[string]string
}

// String returns the name of the alert, followed by its instance and its at or errno, if any.
func (a alert) String() string {
	l := a.Labels
	return strings.TrimSpace(fmt.Sprintf("%s %s %s%s", l["alertname"], l["instance"], l["at"], l["errno"]))
}

// A pager is the webhook that an Alertmanager with the configuration of the example notifies.
type pager struct {
	t             *testing.T
	mu            sync.Mutex
	notifications []notification
}

// newPager starts an Alertmanager that is so many times as fast as the example, and its webhook. The replacements are
// pairs of old and new text of that configuration.
func newPager(t *testing.T, times int, replacements ...string) *pager {
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
	config := lab.Replace(t, "alertmanager.yml", lab.Faster(lab.Read(t, "alertmanager.yml"), times), replacements...)
	cmd := exec.Command(program, "--config.file="+lab.Write(t, t.TempDir(), "alertmanager.yml", config),
		"--storage.path="+t.TempDir(), "--web.listen-address=localhost:9093", "--cluster.listen-address=")
	process.Start(t, cmd).Listening(9093)
	return p
}

// ServeHTTP receives a notification.
func (p *pager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := notification{receiver: r.URL.Path}
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
		p.t.Errorf("decode the notification to %s: %v", r.URL.Path, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notifications = append(p.notifications, n)
}

// notified returns the annotations with which a receiver was last notified of an alert with a status. ok reports
// whether there was such a notification.
func (p *pager) notified(receiver, status, name string) (annotations map[string]string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.notifications {
		for _, a := range n.Alerts {
			if n.receiver == receiver && a.Status == status && a.String() == name {
				annotations, ok = a.Annotations, true
			}
		}
	}
	return annotations, ok
}

// firing returns all firing alerts in the notifications, without duplicates, and the keys of all groups.
func (p *pager) firing() (alerts, groups []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.notifications {
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

// states returns Alertmanager's state of an alert, active or suppressed, by instance.
func (p *pager) states(name string) map[string]string {
	p.t.Helper()
	const url = "http://localhost:9093/api/v2/alerts?filter=alertname="
	body := lab.Get(p.t, url+name)
	var alerts []struct {
		Labels map[string]string
		Status struct{ State string }
	}
	if err := json.Unmarshal([]byte(body), &alerts); err != nil {
		p.t.Fatalf("GET %s: %v in %s", url+name, err, body)
	}
	states := make(map[string]string)
	for _, a := range alerts {
		states[a.Labels["instance"]] = a.Status.State
	}
	return states
}

// settle waits until no alert is active and each notified alert has been reported as resolved. Prometheus scrapes
// nothing in its first seconds, which is long enough for ExporterDown to fire.
func (p *pager) settle() {
	p.t.Helper()
	lab.Eventually(p.t, "no alert is active, and each notified alert is resolved", func() bool {
		if lab.Get(p.t, "http://localhost:9093/api/v2/alerts") != "[]\n" {
			return false
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		status := make(map[string]string)
		for _, n := range p.notifications {
			for _, a := range n.Alerts {
				status[n.receiver+" "+a.String()] = a.Status
			}
		}
		return !slices.Contains(slices.Collect(maps.Values(status)), "firing")
	})
}

// forget removes all notifications.
func (p *pager) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notifications = nil
}

// startPrometheus starts a Prometheus with the files of writeFastExample.
func startPrometheus(t *testing.T, major process.Major, times int, targets ...string) *process.Prometheus {
	t.Helper()
	return major.Start(t, 9090, filepath.Join(writeFastExample(t, times, targets...), "prometheus.yml"))
}

// writeFastExample writes prometheus.yml with the given targets, and the rules, all so many times as fast as the
// examples, and returns their directory. Prometheus scrapes half as often as that, so that a probe has time to time
// out. It has no objectives, because the test has outages of a few seconds and nothing else, and no watched or held
// targets.
func writeFastExample(t *testing.T, times int, targets ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, file := range lab.Files(t, "rules/*.yml") {
		lab.Write(t, dir, file, lab.Faster(lab.Read(t, file), times))
	}
	list := ""
	for _, target := range targets {
		list += fmt.Sprintf("          - %q\n", target)
	}
	config := lab.Replace(t, "prometheus.yml", lab.Faster(lab.Read(t, "prometheus.yml"), times),
		"          - localhost:10115\n          - localhost:1\n          - 192.0.2.1:443\n", list,
		lab.Faster("scrape_interval: 15s", times), lab.Faster("scrape_interval: 30s", times),
		"  - rules/slo.yml\n", "")
	for _, name := range []string{"shaker_watch", "shaker_hold"} {
		job := regexp.MustCompile(`(?m)^  - job_name: ` + name + `\n(?: {4}.*\n)+`)
		if !job.MatchString(config) {
			t.Fatalf("prometheus.yml has no job %s:\n%s", name, config)
		}
		config = job.ReplaceAllString(config, "")
	}
	lab.Write(t, dir, "prometheus.yml", config)
	return dir
}

// An incident is a network condition of a target, or trouble of the prober.
type incident struct {
	name        string
	begin, end  func()
	whileFiring func() // called again and again until there is a notification; nil does nothing

	alert  string
	also   []string  // other alerts in the same group
	reason [2]string // the name of an annotation of the alert, and how it begins
}

// A target is down in each of four ways, and the notification contains the reason with the errno. In the fifth
// incident, the exporter cannot measure. After each incident, the alert is reported as resolved. There are no other
// notifications. The first incident is alone; the next three are at the same time, so that their reasons could be
// mixed up.
func TestAlerts(t *testing.T) { process.EachPrometheus(t, testAlerts) }

func testAlerts(t *testing.T, major process.Major) {
	if lab.Apart(t) {
		return
	}
	nft := lab.Program(t, "nft", "nftables")
	ip := lab.Program(t, "ip", "iproute2")
	lab.Program(t, "sh", "dash") // for process.WithFiles
	redis := startRedis(t)
	chain := kernel.NewChain(t)
	dir := t.TempDir()
	hosts := lab.Write(t, dir, "hosts", "127.0.0.1 localhost web.example\n")
	resolv := lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n")
	simnet.ServeDNS(t, "127.0.0.1:53", nil) // it knows no name
	config := lab.Write(t, dir, "shaker.yml", "modules: {tcp_connect: {prober: tcp, tcp: {path: on_failure}}}")
	shaker := process.WithFiles(t, exporter.Command(t, "--config.file="+config, "--timeout-offset=0.1"),
		map[string]string{"/etc/hosts": hosts, "/etc/resolv.conf": resolv})
	process.Start(t, shaker).Listening(exporter.Port)

	const (
		stopped    = "127.0.0.1:6379"
		firewalled = "10.77.4.2:80"
		unrouted   = "[fd77:4::2]:80"
		nameless   = "web.example:10115"
	)
	pager := newPager(t, 60, "group_interval: 5s", "group_interval: 1s")
	prometheus := startPrometheus(t, major, 60, stopped, firewalled, unrouted, nameless)
	lab.Eventually(t, "all targets and the exporter are up", func() bool {
		return len(prometheus.Query("probe_success == 1")) == 4 &&
			len(prometheus.Query(`up{job="shaker_exporter"} == 1`)) == 1
	})

	var limit unix.Rlimit
	setDescriptors := func(soft uint64) {
		t.Helper()
		changed := &unix.Rlimit{Cur: soft, Max: limit.Max}
		if err := unix.Prlimit(shaker.Process.Pid, unix.RLIMIT_NOFILE, changed, nil); err != nil {
			t.Fatalf("set the descriptor limit of the exporter to %d: %v", soft, err)
		}
	}
	if err := unix.Prlimit(shaker.Process.Pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatalf("get the descriptor limit of the exporter: %v", err)
	}
	rewriteHosts := func(content string) {
		if err := os.WriteFile(hosts, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const reject = `table inet lab { chain forward { type filter hook forward priority 0;
		ip daddr 10.77.4.2 tcp flags syn / syn,ack reject with icmp type admin-prohibited; }; }`
	for _, incidents := range [][]incident{
		{
			{
				name:   "stopped",
				begin:  func() { redis.Stop() },
				end:    func() { redis = startRedis(t) },
				alert:  "TargetDown " + stopped,
				reason: [2]string{"reason", "refused (ECONNREFUSED)"},
			},
		},
		{
			{
				name:  "firewalled",
				begin: func() { chain.Run(2, nft, reject) },
				end:   func() { chain.Run(2, nft, "delete table inet lab") },
				alert: "TargetDown " + firewalled,
				reason: [2]string{"reason",
					"prohibited (EHOSTUNREACH), admin_prohibited from 10.77.2.2, the last hop that answers is "},
			},
			{
				name:   "unrouted",
				begin:  func() { chain.Run(1, ip, "-6", "route", "del", "fd77:4::/64") },
				end:    func() { chain.Route(1, "fd77:4::/64", "fd77:2::2", unix.RTN_UNICAST) },
				alert:  "TargetDown " + unrouted,
				reason: [2]string{"reason", "unreachable (ENETUNREACH), net_unreachable from fd77:1::2"},
			},
			{
				name:   "name removed",
				begin:  func() { rewriteHosts("127.0.0.1 localhost\n") },
				end:    func() { rewriteHosts("127.0.0.1 localhost web.example\n") },
				alert:  "TargetDown " + nameless,
				reason: [2]string{"reason", "dns_not_found"},
			},
		},
		{
			{
				name:  "prober out of descriptors",
				begin: func() { setDescriptors(0) },
				end:   func() { setDescriptors(limit.Cur) },
				// If Prometheus loses its connection for /metrics, it needs a descriptor for a new one.
				whileFiring: func() {
					if len(prometheus.Query(`up{job="shaker_exporter"} == 0`)) > 0 {
						setDescriptors(limit.Cur)
					} else {
						setDescriptors(0)
					}
				},
				alert:  "ProberFaults localhost:10115 EMFILE",
				also:   []string{"ProberBlind"},
				reason: [2]string{"summary", "The exporter at localhost:10115 cannot measure: EMFILE"},
			},
		},
	} {
		var names, want []string
		for _, i := range incidents {
			names = append(names, i.name)
			want = append(append(want, i.alert), i.also...)
		}
		slices.Sort(want)
		t.Run(strings.Join(names, ", "), func(t *testing.T) {
			pager.settle()
			pager.forget()
			for _, i := range incidents {
				i.begin()
			}
			notified := func(status string) bool {
				return !slices.ContainsFunc(want, func(alert string) bool {
					_, ok := pager.notified("/page", status, alert)
					return !ok
				})
			}
			lab.Eventually(t, fmt.Sprintf("there is a page for %q", want), func() bool {
				for _, i := range incidents {
					if i.whileFiring != nil {
						i.whileFiring()
					}
				}
				return notified("firing")
			})
			for _, i := range incidents {
				annotations, _ := pager.notified("/page", "firing", i.alert)
				if got := annotations[i.reason[0]]; !strings.HasPrefix(got, i.reason[1]) {
					t.Errorf("%s: annotation %s = %q, want %q at its beginning",
						i.alert, i.reason[0], got, i.reason[1])
				}
			}
			for _, i := range incidents {
				i.end()
			}
			lab.Eventually(t, fmt.Sprintf("%q are reported as resolved", want), func() bool {
				return notified("resolved")
			})
			if alerts, groups := pager.firing(); !slices.Equal(alerts, want) || len(groups) != 1 {
				t.Errorf("notifications of the alerts %q in the groups %q, want %q in one group", alerts, groups, want)
			}
		})
	}
}

// startRedis starts a Redis server, which runs until it is stopped or the test ends.
func startRedis(t *testing.T) *process.Process {
	t.Helper()
	program := lab.Program(t, "redis-server", "redis-server")
	redis := process.Start(t, exec.Command(program,
		"--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir()))
	redis.Listening(6379)
	return redis
}

// A router with five targets behind it dies. There is one notification, of TargetCutOff with the address of the last
// router that answers and all five targets, and no TargetDown of these targets. A sixth target, behind another
// router, has its own notification.
func TestOneDeadRouterPagesOnce(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const times = 20
	pager := newPager(t, times)
	network := simnet.NewNetwork(t)
	behind := []string{"198.51.100.1", "198.51.100.2"}
	const other = "203.0.113.1:22"
	var targets, want []string
	for i := range 5 {
		target := fmt.Sprintf("192.0.2.%d:443", i+1)
		network.At(target, simnet.SYNACK()).Behind(behind...)
		targets = append(targets, target)
		want = append(want, "TargetCutOff "+target+" 198.51.100.1")
	}
	network.At(other, simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.3")
	config := lab.Write(t, t.TempDir(), "shaker.yml", "modules: {tcp_connect: {prober: tcp, tcp: {path: on_failure}}}")
	exporter.StartOn(t, exporter.Port, "--config.file="+config, "--timeout-offset=0.1")
	// A third of a probe's 1.4 s is enough to find the end of the path.
	prometheus := startPrometheus(t, process.Prometheus3, times, append(targets, other)...)
	lab.Eventually(t, "all targets are up", func() bool { return len(prometheus.Query("probe_success == 1")) == 6 })

	for _, target := range targets {
		network.At(target).Behind("198.51.100.1", "") // the second router and the target do not answer
	}
	network.At(other, simnet.RST()).Behind("198.51.100.1", "198.51.100.3")
	want = append(want, "TargetDown "+other)
	slices.Sort(want)
	lab.Eventually(t, fmt.Sprintf("there are notifications of %q", want), func() bool {
		alerts, _ := pager.firing()
		return slices.Equal(alerts, want) || len(alerts) > len(want)
	})
	lab.Eventually(t, "TargetDown is active for "+other+" and suppressed for the other targets", func() bool {
		states := pager.states("TargetDown")
		return len(states) == 6 && states[other] == "active" &&
			!slices.ContainsFunc(targets, func(target string) bool { return states[target] != "suppressed" })
	})
	for _, target := range targets {
		network.At(target, simnet.SYNACK()).Behind(behind...)
	}
	lab.Eventually(t, "TargetCutOff is reported as resolved for all targets", func() bool {
		for _, name := range want {
			if _, ok := pager.notified("/page", "resolved", name); !ok && strings.HasPrefix(name, "TargetCutOff") {
				return false
			}
		}
		return true
	})
	alerts, groups := pager.firing()
	if !slices.Equal(alerts, want) || len(groups) != 2 {
		t.Errorf("notifications of the alerts %q in the groups %q, want %q in two groups", alerts, groups, want)
	}
}

// amtool accepts the configuration, which routes each alert to the right receiver. The control is a receiver that
// does not exist.
func TestAlertmanagerConfig(t *testing.T) {
	amtool := lab.Program(t, "amtool", "prometheus-alertmanager")
	if out, err := exec.Command(amtool, "check-config", "alertmanager.yml").CombinedOutput(); err != nil {
		t.Errorf("amtool check-config alertmanager.yml: %v, want no error\n%s", err, out)
	}
	for alert, want := range map[string]string{
		"alertname=TargetDown severity=page":                "page",
		"alertname=TargetCutOff severity=page at=192.0.2.1": "page",
		"alertname=ExporterDown severity=page":              "page",
		"alertname=ExporterDown severity=page prober=fra":   "ticket", // there are other vantage points
		"alertname=ProberBlind severity=page":               "page",
		"alertname=VantageQuorumLost severity=page":         "page",
		"alertname=SYNsLost severity=ticket":                "ticket",
	} {
		args := append([]string{"config", "routes", "test", "--config.file=alertmanager.yml"}, strings.Fields(alert)...)
		if out, err := exec.Command(amtool, args...).Output(); err != nil || string(out) != want+"\n" {
			t.Errorf("the receiver of %s is %q, %v, want %s", alert, out, err, want)
		}
	}
	wrong := strings.Replace(lab.Read(t, "alertmanager.yml"), "receiver: page", "receiver: missing", 1)
	file := lab.Write(t, t.TempDir(), "alertmanager.yml", wrong)
	if out, err := exec.Command(amtool, "check-config", file).CombinedOutput(); err == nil {
		t.Errorf("amtool check-config accepts a receiver that does not exist, want an error:\n%s", out)
	}
}
