package scale

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// proberNames are the vantage points of vantage.yml. The exporter of the first one listens on 127.0.0.1 and probes
// from 10.77.1.11, the next one on 127.0.0.2 and from 10.77.1.12, and so on.
var proberNames = []string{"fra", "nyc", "sin"}

// probers are the exporters of the vantage points, by name. Each exporter probes from its own address, so that a
// router can treat its packets in a special way.
type probers struct {
	t         *testing.T
	chain     *kernel.Chain
	targets   []string
	hosts     string // a file
	program   string
	nft       string // a program
	commands  map[string]*exec.Cmd
	processes map[string]*process.Process
}

// newProbers starts the exporters, and a chain of routers with eight targets at its end.
func newProbers(t *testing.T) *probers {
	t.Helper()
	nft := lab.Program(t, "nft", "nftables")
	p := &probers{t: t, chain: kernel.NewChain(t), program: exporter.Command(t).Path, nft: nft,
		commands: make(map[string]*exec.Cmd), processes: make(map[string]*process.Process)}
	for i := range 8 {
		p.targets = append(p.targets, p.target(i))
		p.chain.In(4, func() error { return addAddress("to3", fmt.Sprintf("10.77.4.%d/24", 11+i)) })
	}
	names := make(map[string]string)
	for i, name := range proberNames {
		if err := addAddress("to1", p.source(name)+"/24"); err != nil {
			t.Fatalf("add the source address of %s: %v", name, err)
		}
		names["shaker."+name+".example.com"] = fmt.Sprintf("127.0.0.%d", i+1)
		p.start(name)
	}
	p.hosts = hostsFile(t, names)
	p.chain.Run(2, nft, "table inet lab { chain forward { type filter hook forward priority 0; }; }")
	return p
}

func addAddress(device, prefix string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, address)
}

// target returns a target by its number.
func (p *probers) target(i int) string { return fmt.Sprintf("10.77.4.%d:80", 11+i) }

// source returns the address from which a vantage point probes.
func (p *probers) source(name string) string {
	return fmt.Sprintf("10.77.1.%d", 11+slices.Index(proberNames, name))
}

// start starts the exporter of a vantage point.
func (p *probers) start(name string) {
	p.t.Helper()
	address := fmt.Sprintf("127.0.0.%d:10115", 1+slices.Index(proberNames, name))
	config := lab.Write(p.t, p.t.TempDir(), "shaker.yml",
		fmt.Sprintf("modules: {tcp_connect: {prober: tcp, tcp: {source_ip_address: %s}}}", p.source(name)))
	p.commands[name] = exec.Command(p.program, "--config.file="+config, "--web.listen-address="+address,
		"--timeout-offset=0.2") // the scrape timeout of these tests is 0.5 s
	p.processes[name] = process.Start(p.t, p.commands[name])
	lab.Eventually(p.t, "the exporter of "+name+" is ready", func() bool { return ready("http://" + address) })
}

// cut adds a rule to the second router about the packets from a vantage point to a target or network. The verdict
// is nftables' drop or reject.
func (p *probers) cut(name, to, verdict string) {
	p.t.Helper()
	rule := fmt.Sprintf("add rule inet lab forward ip saddr %s ip daddr %s %s",
		p.source(name), strings.TrimSuffix(to, ":80"), verdict)
	p.chain.Run(2, p.nft, strings.Fields(rule)...)
}

// repair removes all rules that cut has added.
func (p *probers) repair() {
	p.t.Helper()
	p.chain.Run(2, p.nft, "flush", "chain", "inet", "lab", "forward")
}

// limitDescriptors takes all file descriptors from the exporter of a vantage point, or removes that limit.
func (p *probers) limitDescriptors(name string, limited bool) {
	p.t.Helper()
	var limit unix.Rlimit
	pid := p.commands[name].Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		p.t.Fatalf("get the descriptor limit of %s: %v", name, err)
	}
	limit.Cur = limit.Max
	if limited {
		limit.Cur = 0
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		p.t.Fatalf("set the descriptor limit of %s to %d: %v", name, limit.Cur, err)
	}
}

// The intervals of the tests about vantage points. The rules are 120 times as fast as those of the examples.
var intervals = []string{
	"scrape_interval: 15s", "scrape_interval: 500ms", "evaluation_interval: 15s", "evaluation_interval: 250ms",
}

// writeFastRules writes the rules of the examples, 120 times as fast, below a directory. Only TargetDownFromMost
// waits longer than that, because the scrape interval is only 30 times as short as that of the examples.
func writeFastRules(t *testing.T, dir string) {
	t.Helper()
	for _, file := range lab.Files(t, "../rules/*.yml") {
		rules := lab.Faster(lab.Read(t, file), 120)
		lab.Write(t, dir, filepath.Join("rules", filepath.Base(file)), strings.ReplaceAll(rules, "for: 1s", "for: 3s"))
	}
}

// startVantageServer starts a Prometheus with vantage.yml and fast rules.
func (p *probers) startVantageServer(major process.Major) server {
	p.t.Helper()
	dir := p.t.TempDir()
	file := writeExample(p.t, dir, "vantage.yml", p.targets, intervals...)
	writeFastRules(p.t, dir)
	s := startServer(p.t, major, 9090, file, p.hosts)
	lab.Eventually(p.t, "all targets are open from all vantage points", func() bool {
		return len(s.Query("probe_success == 1")) == len(p.targets)*len(proberNames)
	})
	return s
}

// firing returns the annotation "reason" of each firing alert. The key is the name of the alert, followed by its
// instance and prober, if any.
func (s server) firing() map[string]string {
	s.t.Helper()
	var data struct {
		Alerts []struct {
			State               string
			Labels, Annotations map[string]string
		}
	}
	s.API("alerts", &data)
	firing := make(map[string]string)
	for _, alert := range data.Alerts {
		if alert.State != "firing" {
			continue
		}
		name := alert.Labels["alertname"]
		for _, label := range []string{"instance", "prober"} {
			if alert.Labels[label] != "" {
				name += " " + alert.Labels[label]
			}
		}
		firing[name] = alert.Annotations["reason"]
	}
	return firing
}

// fires waits until an alert fires, with the given reason unless that is "".
func (s server) fires(alert, reason string) {
	s.t.Helper()
	lab.Eventually(s.t, alert+" fires, reason: "+reason, func() bool {
		got, fires := s.firing()[alert]
		return fires && (reason == "" || got == reason)
	})
}

// resolved waits until none of the alerts fires.
func (s server) resolved(alerts ...string) {
	s.t.Helper()
	lab.Eventually(s.t, strings.Join(alerts, ", ")+" resolved", func() bool {
		firing := s.firing()
		return !slices.ContainsFunc(alerts, func(alert string) bool { _, fires := firing[alert]; return fires })
	})
}

// paged fails the test if the targets with a page so far are not the wanted ones.
func (s server) paged(want ...string) {
	s.t.Helper()
	got := s.instances(`count by (instance) (count_over_time(ALERTS{
		alertname=~"TargetDown.*|TargetCutOff", severity="page", alertstate="firing"}[1h]))`)
	if !slices.Equal(got, want) {
		s.t.Errorf("the targets with a page so far are %v, want %v", got, want)
	}
}

// A target that is down from one of three vantage points is a ticket. A target that is down from two of them is a
// page, with the result of each vantage point. A vantage point has no vote while its exporter cannot measure or is
// down, or while the vantage point is cut off from most targets. A missing vote does not end an alert.
func TestVantagePoints(t *testing.T) { process.EachPrometheus(t, testVantagePoints) }

func testVantagePoints(t *testing.T, major process.Major) {
	if lab.Apart(t) {
		return
	}
	p := newProbers(t)
	s := p.startVantageServer(major)
	for alert := range s.firing() {
		if strings.HasPrefix(alert, "TargetDown") || strings.HasPrefix(alert, "Vantage") {
			t.Errorf("all targets are open, and %s fires, want no such alert", alert)
		}
	}
	block := regexp.MustCompile("(?s)```promql.*?```").FindString(lab.Read(t, "../../docs/scale.md"))
	for _, query := range regexp.MustCompile("(?m)^[a-z_ ]+[({].*$").FindAllString(block, -1) {
		lab.Eventually(t, query+" returns a series for each vantage point", func() bool {
			return len(s.Query(strings.ReplaceAll(query, "192.0.2.1:443", p.target(0)))) == len(proberNames)
		})
	}

	p.cut("fra", p.target(0), "drop")
	s.fires("TargetDownFromSome "+p.target(0), "fra: timeout (ETIMEDOUT), nyc: open, sin: open")
	s.paged()

	p.cut("nyc", p.target(0), "reject with tcp reset")
	s.fires("TargetDownFromMost "+p.target(0), "fra: timeout (ETIMEDOUT), nyc: refused (ECONNREFUSED), sin: open")
	s.resolved("TargetDownFromSome " + p.target(0))
	s.paged(p.target(0))

	// Without descriptors, fra cannot measure. Its last vote still counts for the target with a firing alert.
	// Another target, which is down from nyc, is not down from a majority of the other two vantage points.
	p.limitDescriptors("fra", true)
	blind := time.Now()
	p.cut("nyc", p.target(1), "drop")
	lab.Eventually(t, "the page continues while fra, which voted for it, has not measured for 2 s", func() bool {
		return len(s.Query(`ALERTS{alertname="TargetDownFromMost",alertstate="firing"}
			and on (instance) max_over_time(up{prober="fra"}[2s]) == 0`)) == 1
	})
	s.fires("VantagePointBlind fra", "")
	s.fires("TargetDownFromSome "+p.target(1), "nyc: timeout (ETIMEDOUT), sin: open; without a measurement: fra")
	s.paged(p.target(0))
	down := s.Query(fmt.Sprintf(`min_over_time(probe_success{prober="fra",instance!=%q}%s) == 0`,
		p.target(0), since(blind)))
	if len(down) > 0 {
		t.Errorf("without descriptors, fra reports as down: %v, want no result", down)
	}
	p.limitDescriptors("fra", false)
	p.repair()
	lab.Eventually(t, "fra has counted faults with EMFILE", func() bool {
		return len(s.Query(`shaker_faults_total{prober="fra",errno="EMFILE"} > 0`)) == 1
	})
	s.resolved("TargetDownFromMost "+p.target(0), "TargetDownFromSome "+p.target(1), "VantagePointBlind fra")

	// The same, if the exporter is down.
	p.processes["nyc"].Stop()
	p.cut("sin", p.target(2), "drop")
	s.fires("VantagePointBlind nyc", "")
	s.fires("TargetDownFromSome "+p.target(2), "fra: open, sin: timeout (ETIMEDOUT); without a measurement: nyc")
	s.paged(p.target(0))
	p.start("nyc")
	p.repair()
	s.resolved("VantagePointBlind nyc", "TargetDownFromSome "+p.target(2))

	// fra is cut off from all targets. A target that is also down from nyc is down from one of the other two.
	p.cut("fra", "10.77.4.0/24", "reject with icmp type admin-prohibited")
	p.cut("nyc", p.target(3), "drop")
	s.fires("VantagePointDisagrees fra",
		"Its votes do not count. Most frequent there: prohibited (EHOSTUNREACH), 8 times")
	s.fires("TargetDownFromSome "+p.target(3),
		"fra: prohibited (EHOSTUNREACH), nyc: timeout (ETIMEDOUT), sin: open; without a vote: fra")
	s.paged(p.target(0))
	p.repair()
	s.resolved("VantagePointDisagrees fra", "TargetDownFromSome "+p.target(3))
	lost := s.Query(`count_over_time(ALERTS{alertname="VantageQuorumLost",alertstate="firing"}[1h])`)
	if len(lost) > 0 {
		t.Errorf("two vantage points could always measure, and VantageQuorumLost has fired: %v, want no alert", lost)
	}

	// Only sin can measure. One vantage point is not enough for a page about a target, so this has its own page.
	p.processes["nyc"].Stop()
	p.limitDescriptors("fra", true)
	s.fires("VantageQuorumLost", "")
	s.paged(p.target(0))
	p.start("nyc")
	p.limitDescriptors("fra", false)
	s.resolved("VantageQuorumLost", "VantagePointBlind fra", "VantagePointBlind nyc")
}

// Two vantage points have their own Prometheus servers with place.yml. They write to one central server with
// central.yml, and another central server federates them. Each central server gets one result at a time of each
// target and vantage point. These results start pages and use up the error budget. Remote write transfers the
// important series and no others.
func TestCentralServers(t *testing.T) { process.EachPrometheus(t, testCentralServers) }

func testCentralServers(t *testing.T, major process.Major) {
	if lab.Apart(t) {
		return
	}
	p := newProbers(t)
	const native = "--enable-feature=native-histograms" // Prometheus 3 ignores it
	start := func(port int, name, hosts string, replacements []string, args ...string) server {
		t.Helper()
		dir := t.TempDir()
		file := writeExample(t, dir, name, p.targets, append(replacements, intervals...)...)
		writeFastRules(t, dir)
		lab.Write(t, dir, "rules/own.yml",
			"groups: [{name: own, rules: [{record: 'job:up:sum', expr: 'sum by (job) (up)'}]}]")
		return startServer(t, major, port, file, hosts, args...)
	}
	// A series without new samples ends after five minutes. Here, after 2.5 s.
	const lookback = "--query.lookback-delta=2500ms"
	centers := map[string]server{
		"remote write": start(9090, "central.yml", hostsFile(t, nil), nil,
			"--web.enable-remote-write-receiver", native, lookback),
		"federation": start(9094, "central.yml", hostsFile(t, nil),
			[]string{"targets: []", `targets: ["localhost:9091", "localhost:9092"]`}, lookback),
	}
	servers := make(map[string]server) // by vantage point
	for i, name := range []string{"fra", "nyc"} {
		hosts := lab.Write(t, t.TempDir(), "hosts",
			fmt.Sprintf("127.0.0.%d localhost\n127.0.0.1 prometheus.example.com\n%s", i+1, lab.Read(t, p.hosts)))
		replacements := []string{
			"prober: fra", "prober: " + name,
			"\nremote_write:", "\nrule_files: [../rules/own.yml]\nremote_write:",
			// The default of batch_send_deadline, 5s, exceeds the lookback.
			"send_native_histograms: false",
			"send_native_histograms: true\n    queue_config: {batch_send_deadline: 100ms}",
		}
		if major == process.Prometheus3 {
			replacements = append(replacements, "global:\n", "global:\n  scrape_native_histograms: true\n")
		}
		servers[name] = start(9091+i, "place.yml", hosts, replacements, native)
	}
	for how, center := range centers {
		lab.Eventually(t, how+": all targets are open from both vantage points", func() bool {
			return len(center.Query(`probe_success{job="shaker",prober=~"fra|nyc"} == 1`)) == 2*len(p.targets)
		})
	}

	writtenTo := centers["remote write"]
	for _, name := range []string{"up", "probe_success", "probe_result_info", "probe_tcp_rtt_seconds",
		"shaker_probes_total", "job:up:sum"} {
		lab.Eventually(t, name+" has been written", func() bool {
			return len(writtenTo.Query(name+`{prober="fra"}`)) > 0
		})
	}
	lab.Eventually(t, "the native histogram has been written", func() bool {
		return len(writtenTo.Query(`histogram_count(shaker_handshake_seconds{prober="fra"}) > 0`)) > 0
	})
	for _, name := range []string{"probe_duration_seconds", "probe_timeout_seconds", "go_goroutines",
		"process_open_fds", "scrape_duration_seconds"} {
		lab.Eventually(t, name+" is at the vantage point", func() bool { return len(servers["fra"].Query(name)) > 0 })
		if got := writtenTo.Query(name + `{prober!=""}`); len(got) > 0 {
			t.Errorf("remote write has sent %v, want no series of %s", got, name)
		}
	}

	p.cut("fra", p.target(0), "drop")
	p.cut("nyc", p.target(0), "reject with tcp reset")
	for _, center := range centers {
		center.fires("TargetDownFromMost "+p.target(0), "fra: timeout (ETIMEDOUT), nyc: refused (ECONNREFUSED)")
		center.fires("ErrorBudgetBurns", "")
	}
	p.repair()
	for how, center := range centers {
		center.resolved("TargetDownFromMost " + p.target(0))
		lab.Eventually(t, how+": the exporters' own metrics are there", func() bool {
			return len(center.Query(`up{job="shaker_exporter",prober=~"fra|nyc"} == 1
				and on (prober) shaker_probes_total > 0`)) == 2
		})
	}

	for how, center := range centers {
		both := center.Query(`max_over_time(count by (instance, prober) (probe_result_info)[10m:250ms]) > 1`)
		if len(both) > 0 {
			t.Errorf("%s: targets have several results at the same time: %v, want one result each", how, both)
		}
		open := center.Query(`count_over_time(ALERTS{alertname="ForbiddenPortOpen",alertstate="firing"}[10m])`)
		if len(open) > 0 {
			t.Errorf("%s: ForbiddenPortOpen has fired: %v, want no alert, because no port should be closed", how, open)
		}
	}

	servers["nyc"].Stop()
	for _, center := range centers {
		center.fires("VantagePointBlind nyc", "")
		center.paged(p.target(0))
	}
}

// The central server gets every metric that the rules use, by remote write and by federation.
func TestCentralServerGetsWhatRulesNeed(t *testing.T) {
	needed := make(map[string]bool)
	for _, file := range []string{"targets", "prober", "watch", "vantage", "slo"} {
		var rules struct {
			Groups []struct{ Rules []struct{ Expr string } }
		}
		if err := yaml.Unmarshal([]byte(lab.Read(t, "../rules/"+file+".yml")), &rules); err != nil {
			t.Fatalf("rules/%s.yml: %v", file, err)
		}
		for _, group := range rules.Groups {
			for _, r := range group.Rules {
				expr := regexp.MustCompile(`\w+:\w+:\w+`).ReplaceAllString(r.Expr, "")
				for _, name := range regexp.MustCompile(`\b(?:up|(?:probe|shaker)_\w+)\b`).FindAllString(expr, -1) {
					needed[name] = true
				}
			}
		}
	}
	if len(needed) < 8 {
		t.Fatalf("the rules use %d metrics, %v, want at least 8", len(needed), slices.Sorted(maps.Keys(needed)))
	}
	for file, pattern := range map[string]string{
		"place.yml": `(?m)^ +regex: (up\|.*)$`, "central.yml": `__name__=~"(.*)"`,
	} {
		match := regexp.MustCompile(pattern).FindStringSubmatch(lab.Read(t, file))
		if match == nil {
			t.Fatalf("%s has no list of metrics to keep: no match of %s", file, pattern)
		}
		kept := regexp.MustCompile("^(?:" + match[1] + ")$")
		for name := range needed {
			if !kept.MatchString(name) {
				t.Errorf("%s does not keep %s, which a rule uses", file, name)
			}
		}
	}
}

// The configurations are valid.
func TestScaleConfigurations(t *testing.T) {
	process.EachPrometheus(t, func(t *testing.T, major process.Major) {
		for _, name := range []string{"sharding.yml", "vantage.yml", "place.yml", "central.yml"} {
			file := writeExample(t, t.TempDir(), name, []string{"192.0.2.1:443"})
			out, err := major.Promtool(t, "check", "config", file)
			if err != nil || strings.Contains(out, "WARNING") {
				t.Errorf("promtool check config %s: %v, want no error and no warning\n%s", name, err, out)
			}
		}
	})
}

// alertsWithoutReceiver returns the alerts of a Prometheus configuration if it names no Alertmanager. The text is
// that of the file, whose directory contains the rules.
func alertsWithoutReceiver(t *testing.T, file, text string) (alerts []string) {
	t.Helper()
	var config struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []any    `yaml:"scrape_configs"`
		Alerting      struct {
			Alertmanagers []struct {
				StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
			}
		}
	}
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		t.Fatalf("decode %s: %v", file, err)
	}
	if config.ScrapeConfigs == nil { // not a configuration of Prometheus
		return nil
	}
	for _, alertmanager := range config.Alerting.Alertmanagers {
		for _, group := range alertmanager.StaticConfigs {
			if len(group.Targets) > 0 {
				return nil
			}
		}
	}
	alert := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`)
	for _, pattern := range config.RuleFiles {
		for _, rules := range lab.Files(t, filepath.Join(filepath.Dir(file), pattern)) {
			for _, match := range alert.FindAllStringSubmatch(lab.Read(t, rules), -1) {
				alerts = append(alerts, match[1])
			}
		}
	}
	return alerts
}

// Among all examples, each configuration of Prometheus that has alerts names an Alertmanager. The control removes
// the Alertmanager.
func TestAlertsHaveAnAlertmanager(t *testing.T) {
	var withAlerts []string
	alerting := regexp.MustCompile(`(?m)^alerting:\n(?: .*\n)+`)
	for _, file := range append(lab.Files(t, "../*.yml"), lab.Files(t, "../*/*.yml")...) {
		text := lab.Read(t, file)
		if alerts := alertsWithoutReceiver(t, file, text); len(alerts) > 0 {
			t.Errorf("%s names no Alertmanager, and has the alerts %v", file, alerts)
		}
		if len(alertsWithoutReceiver(t, file, alerting.ReplaceAllString(text, ""))) > 0 {
			withAlerts = append(withAlerts, file)
		}
	}
	want := []string{"../prometheus.yml", "../compose/prometheus.yml", "../mesh/prometheus.yml",
		"../scale/central.yml", "../scale/sharding.yml", "../scale/vantage.yml"}
	if !slices.Equal(withAlerts, want) {
		t.Errorf("the configurations with alerts are %v, want %v", withAlerts, want)
	}
}
