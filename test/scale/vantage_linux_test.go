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

// places are the vantage points of vantage.yml. Each has an exporter, which probes from an
// address of its own, so that a router on the way can tell them apart.
type places struct {
	t         *testing.T
	chain     *kernel.Chain
	targets   []string
	hosts     string // a file
	program   string
	exporters map[string]*exec.Cmd
	processes map[string]*process.Process
}

// placeNames are the places in the order of their addresses: the first one probes from 10.77.1.11,
// and its exporter is at 127.0.0.1.
var placeNames = []string{"fra", "nyc", "sin"}

// newPlaces starts the exporters, with eight targets at the end of a chain of routers.
func newPlaces(t *testing.T) *places {
	t.Helper()
	p := &places{t: t, chain: kernel.NewChain(t), program: exporter.Command(t).Path,
		exporters: make(map[string]*exec.Cmd), processes: make(map[string]*process.Process)}
	for i := range 8 {
		p.targets = append(p.targets, p.target(i))
		p.chain.In(4, func() error { return addAddress("to3", fmt.Sprintf("10.77.4.%d/24", 11+i)) })
	}
	names := make(map[string]string)
	for i, place := range placeNames {
		if err := addAddress("to1", p.source(place)+"/24"); err != nil {
			t.Fatal(err)
		}
		names["shaker."+place+".example.com"] = fmt.Sprintf("127.0.0.%d", i+1)
		p.start(place)
	}
	p.hosts = hostsFile(t, names)
	p.chain.Run(2, lab.Program(t, "nft", "nftables"), "table inet lab { chain forward { type filter hook forward priority 0; }; }")
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
func (p *places) target(i int) string { return fmt.Sprintf("10.77.4.%d:80", 11+i) }

// source returns the address that a place probes from.
func (p *places) source(place string) string {
	return fmt.Sprintf("10.77.1.%d", 11+slices.Index(placeNames, place))
}

// start starts the exporter of a place.
func (p *places) start(place string) {
	p.t.Helper()
	address := fmt.Sprintf("127.0.0.%d:10115", 1+slices.Index(placeNames, place))
	config := lab.Write(p.t, p.t.TempDir(), "shaker.yml", fmt.Sprintf("modules: {tcp_connect: {prober: tcp, tcp: {source_ip_address: %s}}}", p.source(place)))
	p.exporters[place] = exec.Command(p.program, "--config.file="+config, "--web.listen-address="+address)
	p.processes[place] = process.Start(p.t, p.exporters[place])
	lab.Eventually(p.t, "the exporter is ready", func() bool { return ready("http://" + address) })
}

// cut has the second router drop, reject or otherwise treat what a place sends to an address.
func (p *places) cut(place, to, how string) {
	p.t.Helper()
	p.chain.Run(2, "nft", strings.Fields(fmt.Sprintf("add rule inet lab forward ip saddr %s ip daddr %s %s", p.source(place), strings.TrimSuffix(to, ":80"), how))...)
}

// repair undoes all that was cut.
func (p *places) repair() {
	p.t.Helper()
	p.chain.Run(2, "nft", "flush", "chain", "inet", "lab", "forward")
}

// descriptors sets how many descriptors the exporter of a place may have, or sets that back.
func (p *places) descriptors(place string, limited bool) {
	p.t.Helper()
	var limit unix.Rlimit
	pid := p.exporters[place].Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		p.t.Fatal(err)
	}
	limit.Cur = limit.Max
	if limited {
		limit.Cur = 0
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		p.t.Fatal(err)
	}
}

// quick are the rules of an example, sixty times as fast. A page waits longer than that, for a
// scrape here does not take a sixtieth of its time.
func quick(t *testing.T, dir string) {
	t.Helper()
	for _, file := range lab.Files(t, "../rules/*.yml") {
		lab.Write(t, dir, filepath.Join("rules", filepath.Base(file)), strings.ReplaceAll(lab.Faster(lab.Read(t, file)), "for: 2s", "for: 6s"))
	}
}

// watch starts the example's Prometheus, with its rules sixty times as fast.
func (p *places) watch() server {
	p.t.Helper()
	dir := p.t.TempDir()
	file := scaleExample(p.t, dir, "vantage.yml", p.targets, "scrape_interval: 15s", "scrape_interval: 1s", "evaluation_interval: 15s", "evaluation_interval: 500ms")
	quick(p.t, dir)
	s := startServer(p.t, 9090, file, p.hosts)
	lab.Eventually(p.t, "all targets are open from everywhere", func() bool {
		return len(s.Query("probe_success == 1")) == len(p.targets)*len(placeNames)
	})
	return s
}

// firing returns the alerts that fire and, if they are about a target, which, each with the reason.
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
		if alert.State == "firing" {
			about := alert.Labels["alertname"]
			for _, label := range []string{"instance", "prober"} {
				if alert.Labels[label] != "" {
					about += " " + alert.Labels[label]
				}
			}
			firing[about] = alert.Annotations["reason"]
		}
	}
	return firing
}

// fires waits until an alert fires with that reason, if any.
func (s server) fires(alert, reason string) {
	s.t.Helper()
	lab.Eventually(s.t, alert+" fires: "+reason, func() bool {
		got, fires := s.firing()[alert]
		return fires && (reason == "" || got == reason)
	})
}

// resolved waits until no alert of those fires.
func (s server) resolved(alerts ...string) {
	s.t.Helper()
	lab.Eventually(s.t, strings.Join(alerts, ", ")+" resolved", func() bool {
		firing := s.firing()
		return !slices.ContainsFunc(alerts, func(alert string) bool { _, fires := firing[alert]; return fires })
	})
}

// paged fails the test if somebody was woken up so far for other targets than these.
func (s server) paged(want ...string) {
	s.t.Helper()
	got := s.instances(`count by (instance) (count_over_time(ALERTS{alertname=~"TargetDown.*|TargetCutOff",severity="page",alertstate="firing"}[1h]))`)
	if !slices.Equal(got, want) {
		s.t.Errorf("there were pages for %v, want %v", got, want)
	}
}

// A target that is down from one of three places is a ticket, from two it is a page, with what
// each of them saw. A place whose exporter is in trouble has no vote, and neither has one that is
// cut off from most targets; that it has none ends no alert.
func TestVantagePoints(t *testing.T) {
	p := newPlaces(t)
	s := p.watch()
	for alert := range s.firing() {
		if strings.HasPrefix(alert, "TargetDown") || strings.HasPrefix(alert, "Vantage") {
			t.Errorf("nothing is wrong, and there is %s", alert)
		}
	}
	for _, query := range regexp.MustCompile("(?m)^[a-z_ ]+[({].*$").FindAllString(regexp.MustCompile("(?s)```promql.*?```").FindString(lab.Read(t, "../../docs/scale.md")), -1) {
		lab.Eventually(t, query+" finds each place", func() bool {
			return len(s.Query(strings.ReplaceAll(query, "192.0.2.1:443", p.target(0)))) == len(placeNames)
		})
	}

	p.cut("fra", p.target(0), "drop")
	s.fires("TargetDownFromSome "+p.target(0), "fra: timeout (ETIMEDOUT), nyc: open, sin: open")
	s.paged()

	p.cut("nyc", p.target(0), "reject with tcp reset")
	s.fires("TargetDownFromMost "+p.target(0), "fra: timeout (ETIMEDOUT), nyc: refused (ECONNREFUSED), sin: open")
	s.resolved("TargetDownFromSome " + p.target(0))
	s.paged(p.target(0))

	// Without descriptors fra sees nothing. What it saw last still counts for what is down already,
	// but another target that is down from nyc is not down from most of those that can see it.
	p.descriptors("fra", true)
	blind := time.Now()
	p.cut("nyc", p.target(1), "drop")
	lab.Eventually(t, "a page goes on when one that voted for it cannot measure", func() bool {
		return len(s.Query(`ALERTS{alertname="TargetDownFromMost",alertstate="firing"} and on (instance) max_over_time(up{prober="fra"}[4s]) == 0`)) == 1
	})
	s.fires("VantagePointBlind fra", "")
	s.fires("TargetDownFromSome "+p.target(1), "nyc: timeout (ETIMEDOUT), sin: open; without a measurement: fra")
	s.paged(p.target(0))
	if down := s.Query(fmt.Sprintf(`min_over_time(probe_success{prober="fra",instance!=%q}%s) == 0`, p.target(0), since(blind))); len(down) > 0 {
		t.Errorf("fra could not measure, and said that these are down: %v", down)
	}
	p.descriptors("fra", false)
	p.repair()
	lab.Eventually(t, "fra says that it had no descriptors", func() bool {
		return len(s.Query(`shaker_faults_total{prober="fra",errno="EMFILE"} > 0`)) == 1
	})
	s.resolved("TargetDownFromMost "+p.target(0), "TargetDownFromSome "+p.target(1), "VantagePointBlind fra")

	// The same if an exporter is not there.
	p.processes["nyc"].Stop()
	p.cut("sin", p.target(2), "drop")
	s.fires("VantagePointBlind nyc", "")
	s.fires("TargetDownFromSome "+p.target(2), "fra: open, sin: timeout (ETIMEDOUT); without a measurement: nyc")
	s.paged(p.target(0))
	p.start("nyc")
	p.repair()
	s.resolved("VantagePointBlind nyc", "TargetDownFromSome "+p.target(2))

	// fra is cut off from everything: one that is down from nyc besides is down from one of two.
	p.cut("fra", "10.77.4.0/24", "reject with icmp type admin-prohibited")
	p.cut("nyc", p.target(3), "drop")
	s.fires("VantagePointDisagrees fra", "Its votes do not count. Most frequent there: prohibited (EHOSTUNREACH), 8 times")
	s.fires("TargetDownFromSome "+p.target(3), "fra: prohibited (EHOSTUNREACH), nyc: timeout (ETIMEDOUT), sin: open; without a vote: fra")
	s.paged(p.target(0))
	p.repair()
	s.resolved("VantagePointDisagrees fra", "TargetDownFromSome "+p.target(3))
	if lost := s.Query(`count_over_time(ALERTS{alertname="VantageQuorumLost",alertstate="firing"}[1h])`); len(lost) > 0 {
		t.Errorf("there were always two that could measure, and there was %v", lost)
	}

	// Only sin is left: nobody would be woken up for a target any more, but for that.
	p.processes["nyc"].Stop()
	p.descriptors("fra", true)
	s.fires("VantageQuorumLost", "")
	s.paged(p.target(0))
	p.start("nyc")
	p.descriptors("fra", false)
	s.resolved("VantageQuorumLost", "VantagePointBlind fra", "VantagePointBlind nyc")
}

// Two places have a Prometheus of their own, as the example has it, which writes to a central one,
// or is asked by it. There the verdicts come together, one at a time of each target and place, and
// make a page and cost a budget, and there is what is worth keeping and nothing else.
func TestPlaces(t *testing.T) {
	p := newPlaces(t)
	const native = "--enable-feature=native-histograms"
	start := func(port int, name, hosts string, changes []string, args ...string) server {
		t.Helper()
		dir := t.TempDir()
		file := scaleExample(t, dir, name, p.targets, append(changes, "scrape_interval: 15s", "scrape_interval: 1s", "evaluation_interval: 15s", "evaluation_interval: 500ms")...)
		quick(t, dir)
		lab.Write(t, dir, "rules/own.yml", "groups: [{name: own, rules: [{record: 'job:up:sum', expr: 'sum by (job) (up)'}]}]")
		return startServer(t, port, file, hosts, args...)
	}
	// What has not been heard of for five minutes is gone: here, five seconds.
	const soon = "--query.lookback-delta=5s"
	centers := map[string]server{
		"write": start(9090, "central.yml", hostsFile(t, nil), nil, "--web.enable-remote-write-receiver", native, soon),
		"asked": start(9094, "central.yml", hostsFile(t, nil), []string{"targets: []", `targets: ["localhost:9091", "localhost:9092"]`}, soon),
	}
	there := make(map[string]server)
	for i, place := range []string{"fra", "nyc"} {
		hosts := lab.Write(t, t.TempDir(), "hosts", fmt.Sprintf("127.0.0.%d localhost\n127.0.0.1 prometheus.example.com\n%s", i+1, lab.Read(t, p.hosts)))
		there[place] = start(9091+i, "place.yml", hosts, []string{
			"prober: fra", "prober: " + place,
			"\nremote_write:", "\nrule_files: [../rules/own.yml]\nremote_write:",
			"send_native_histograms: false", "send_native_histograms: true\n    queue_config: {batch_send_deadline: 100ms}", // not 5s, which is "soon"
		}, native)
	}
	for how, center := range centers {
		lab.Eventually(t, how+": all targets are open from both places", func() bool {
			return len(center.Query(`probe_success{job="shaker",prober=~"fra|nyc"} == 1`)) == 2*len(p.targets)
		})
	}

	written := centers["write"]
	for _, name := range []string{"up", "probe_success", "probe_result_info", "probe_tcp_rtt_seconds", "shaker_probes_total", "job:up:sum"} {
		lab.Eventually(t, name+" has been written", func() bool { return len(written.Query(name+`{prober="fra"}`)) > 0 })
	}
	lab.Eventually(t, "the native histogram has been written", func() bool {
		return len(written.Query(`histogram_count(shaker_handshake_seconds{prober="fra"}) > 0`)) > 0
	})
	for _, name := range []string{"probe_duration_seconds", "probe_timeout_seconds", "go_goroutines", "process_open_fds", "scrape_duration_seconds"} {
		lab.Eventually(t, name+" is at the place", func() bool { return len(there["fra"].Query(name)) > 0 })
		if got := written.Query(name + `{prober!=""}`); len(got) > 0 {
			t.Errorf("%s has been written: %v", name, got)
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
		lab.Eventually(t, how+": the exporters themselves are known", func() bool {
			return len(center.Query(`up{job="shaker_exporter",prober=~"fra|nyc"} == 1 and on (prober) shaker_probes_total > 0`)) == 2
		})
	}

	for how, center := range centers {
		if both := center.Query(`max_over_time(count by (instance, prober) (probe_result_info)[10m:250ms]) > 1`); len(both) > 0 {
			t.Errorf("%s: what was open is still so when it is down: %v", how, both)
		}
		if open := center.Query(`count_over_time(ALERTS{alertname="ForbiddenPortOpen",alertstate="firing"}[10m])`); len(open) > 0 {
			t.Errorf("%s: no port should be closed, and there was %v", how, open)
		}
	}

	there["nyc"].Stop()
	for _, center := range centers {
		center.fires("VantagePointBlind nyc", "")
		center.paged(p.target(0))
	}
}

// Whatever the rules look at comes from a place to a center.
func TestPlacesSendWhatRulesNeed(t *testing.T) {
	needed := make(map[string]bool)
	for _, file := range []string{"targets", "prober", "vantage", "slo"} {
		var rules struct {
			Groups []struct{ Rules []struct{ Expr string } }
		}
		if err := yaml.Unmarshal([]byte(lab.Read(t, "../rules/"+file+".yml")), &rules); err != nil {
			t.Fatal(err)
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
		t.Fatalf("the rules need only %v", slices.Collect(maps.Keys(needed)))
	}
	for file, pattern := range map[string]string{"place.yml": `(?m)^ +regex: (up\|.*)$`, "central.yml": `__name__=~"(.*)"`} {
		match := regexp.MustCompile(pattern).FindStringSubmatch(lab.Read(t, file))
		if match == nil {
			t.Fatalf("%s does not say what is kept", file)
		}
		kept := regexp.MustCompile("^(?:" + match[1] + ")$")
		for name := range needed {
			if !kept.MatchString(name) {
				t.Errorf("%s leaves out %s, which a rule needs", file, name)
			}
		}
	}
}

// The configurations are valid.
func TestScaleConfigurations(t *testing.T) {
	for _, file := range []string{"sharding.yml", "vantage.yml", "place.yml", "central.yml"} {
		if out, err := process.Promtool(t, "check", "config", scaleExample(t, t.TempDir(), file, []string{"192.0.2.1:443"})); err != nil || strings.Contains(out, "WARNING") {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// A told is what is read of a Prometheus' configuration to find out who is told of its alerts.
type told struct {
	RuleFiles     []string `yaml:"rule_files"`
	ScrapeConfigs []any    `yaml:"scrape_configs"`
	Alerting      struct {
		Alertmanagers []struct {
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		}
	}
}

// untold returns the alerts of a configuration, if nobody is told of them: of a file, with that
// text in it.
func untold(t *testing.T, file, text string) (alerts []string) {
	t.Helper()
	var config told
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if config.ScrapeConfigs == nil { // it is no configuration of a Prometheus
		return nil
	}
	for _, alertmanager := range config.Alerting.Alertmanagers {
		for _, group := range alertmanager.StaticConfigs {
			if len(group.Targets) > 0 {
				return nil
			}
		}
	}
	for _, pattern := range config.RuleFiles {
		for _, rules := range lab.Files(t, filepath.Join(filepath.Dir(file), pattern)) {
			for _, alert := range regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(lab.Read(t, rules), -1) {
				alerts = append(alerts, alert[1])
			}
		}
	}
	return alerts
}

// Each configuration of a Prometheus among all examples that has alerts says who is told.
func TestSomebodyIsTold(t *testing.T) {
	var with []string
	block := regexp.MustCompile(`(?m)^alerting:\n(?: .*\n)+`)
	for _, file := range append(lab.Files(t, "../*.yml"), lab.Files(t, "../*/*.yml")...) {
		text := lab.Read(t, file)
		if alerts := untold(t, file, text); len(alerts) > 0 {
			t.Errorf("%s: nobody is told of %v", file, alerts)
		}
		// The control: nobody is, without that.
		if len(untold(t, file, block.ReplaceAllString(text, ""))) > 0 {
			with = append(with, file)
		}
	}
	want := []string{"../prometheus.yml", "../compose/prometheus.yml", "../scale/central.yml", "../scale/sharding.yml", "../scale/vantage.yml"}
	if !slices.Equal(with, want) {
		t.Errorf("the configurations with alerts are %v, want %v", with, want)
	}
}
