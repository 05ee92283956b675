package scale

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A server is a Prometheus that resolves the names of the exporters with a hosts file.
type server struct {
	*process.Prometheus
	t *testing.T
}

// startServer starts a Prometheus with a configuration file and a hosts file, on a port of localhost. It
// scrapes no target for the first 5 s: Prometheus waits that long before it uses the targets that it discovered.
func startServer(
	t *testing.T, major process.Major, port int, configFile, hosts string, args ...string,
) server {
	t.Helper()
	lab.Program(t, "sh", "dash") // for process.WithFiles
	cmd := process.WithFiles(t, major.Command(t, port, configFile, args...),
		map[string]string{"/etc/hosts": hosts})
	return server{process.ServePrometheus(t, cmd, fmt.Sprintf("localhost:%d", port)), t}
}

// hostsFile writes a hosts file with the names and their addresses.
func hostsFile(t *testing.T, names map[string]string) string {
	t.Helper()
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	content := fmt.Sprintf("127.0.0.1 localhost %s\n", own) // Prometheus resolves the host's own name when it starts
	for name, address := range names {
		content += fmt.Sprintf("%s %s\n", address, name)
	}
	return lab.Write(t, t.TempDir(), "hosts", content)
}

// ready reports whether the Prometheus or the exporter at a URL is ready.
func ready(url string) bool {
	response, err := lab.Client.Get(url + "/-/ready")
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// instances returns the label instance of each series of an instant vector, sorted.
func (s server) instances(expression string) (instances []string) {
	s.t.Helper()
	for _, sample := range s.Query(expression) {
		instances = append(instances, sample.Labels["instance"])
	}
	slices.Sort(instances)
	return instances
}

// since returns the PromQL range from a time until now, to be appended to a selector.
func since(begin time.Time) string {
	now := time.Now()
	return fmt.Sprintf("[%dms] @ %.3f", max(1, now.Sub(begin).Milliseconds()), float64(now.UnixMilli())/1000)
}

// scraped returns the scrape URL of each active target, by the label instance.
func (s server) scraped() map[string]string {
	s.t.Helper()
	var data struct {
		ActiveTargets []struct {
			Labels    map[string]string
			ScrapeURL string
		}
	}
	s.API("targets?state=active", &data)
	urls := make(map[string]string)
	for _, target := range data.ActiveTargets {
		urls[target.Labels["instance"]] = target.ScrapeURL
	}
	return urls
}

// writeExample writes a file of examples/scale, with replacements, below a directory. It also writes the rules and
// a file with the targets to where the example expects them. It returns the path of the example.
func writeExample(t *testing.T, dir, name string, targets []string, replacements ...string) string {
	t.Helper()
	for _, file := range lab.Files(t, "../rules/*.yml") {
		lab.Write(t, dir, filepath.Join("rules", filepath.Base(file)), lab.Read(t, file))
	}
	list, err := yaml.Marshal([]map[string][]string{{"targets": targets}})
	if err != nil {
		t.Fatal(err)
	}
	lab.Write(t, dir, "scale/targets/all.yml", string(list))
	return lab.Write(t, dir, filepath.Join("scale", name), replace(t, lab.Read(t, name), replacements...))
}

// replace returns a text with replacements: pairs of old and new text. It fails the test if an old text is missing.
func replace(t *testing.T, text string, replacements ...string) string {
	t.Helper()
	for pair := range slices.Chunk(replacements, 2) {
		if !strings.Contains(text, pair[0]) {
			t.Fatalf("want to replace %q, which is missing in\n%s", pair[0], text)
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return text
}

// shards are three exporters with the names that sharding.yml uses, and the network that they probe.
type shards struct {
	t         *testing.T
	network   *simnet.Network
	hosts     string // a file
	program   string
	exporters [3]*process.Process
}

func newShards(t *testing.T) *shards {
	t.Helper()
	s := &shards{t: t, network: simnet.NewNetwork(t), program: exporter.Command(t).Path}
	s.network.At("10.0.0.0/8:80", simnet.SYNACK())
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]string)
	for i := range s.exporters {
		source := &netlink.Addr{IPNet: netlink.NewIPNet(s.source(i).AsSlice())}
		if err := netlink.AddrAdd(lo, source); err != nil {
			t.Fatalf("add %v to lo: %v", source, err)
		}
		t.Cleanup(func() { netlink.AddrDel(lo, source) })
		names[fmt.Sprintf("shaker-exporter-%d.shaker-exporter", i)] = fmt.Sprintf("127.0.0.%d", i+1)
		s.start(i)
	}
	s.hosts = hostsFile(t, names)
	return s
}

// openTargets returns n open targets in the network 10.x.0.0/16, sorted.
func openTargets(x, n int) (targets []string) {
	for i := range n {
		targets = append(targets, fmt.Sprintf("10.%d.%d.%d:80", x, i/100, i%100))
	}
	slices.Sort(targets)
	return targets
}

// source returns the address from which an exporter probes. It identifies the exporter in the recorded packets.
func (s *shards) source(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}) }

// url returns the URL of an exporter.
func (s *shards) url(i int) string { return fmt.Sprintf("http://127.0.0.%d:10115", i+1) }

// start starts an exporter.
func (s *shards) start(i int) {
	s.t.Helper()
	config := lab.Write(s.t, s.t.TempDir(), "shaker.yml",
		fmt.Sprintf("modules: {tcp_connect: {prober: tcp, tcp: {source_ip_address: %v}}}", s.source(i)))
	s.exporters[i] = process.Start(s.t, exec.Command(s.program, "--config.file="+config,
		"--web.listen-address="+strings.TrimPrefix(s.url(i), "http://")))
	lab.Eventually(s.t, s.url(i)+" is ready", func() bool { return ready(s.url(i)) })
}

// writeSharding writes sharding.yml with targets, a scrape interval and replacements, and returns its path.
func writeSharding(t *testing.T, dir string, targets []string, interval string, replacements ...string) string {
	t.Helper()
	return writeExample(t, dir, "sharding.yml", targets, append([]string{
		"scrape_interval: 15s", "scrape_interval: " + interval,
		"evaluation_interval: 15s", "evaluation_interval: 1s"}, replacements...)...)
}

// handshakes returns how many handshakes were begun with each target, by the source address of the SYNs.
// Retransmitted SYNs belong to the same handshake.
func (s *shards) handshakes() map[string]map[netip.Addr]int {
	type handshake struct {
		src, dst netip.AddrPort
		seq      uint32
	}
	seen := make(map[handshake]bool)
	count := make(map[string]map[netip.Addr]int)
	for segment := range s.network.Sent() {
		h := handshake{segment.Src, segment.Dst, segment.Seq}
		if !segment.SYN || seen[h] {
			continue
		}
		seen[h] = true
		target := segment.Dst.String()
		if count[target] == nil {
			count[target] = make(map[netip.Addr]int)
		}
		count[target][segment.Src.Addr()]++
	}
	return count
}

// begun returns how many handshakes an exporter has begun.
func (s *shards) begun(i int) (total int) {
	for _, bySource := range s.handshakes() {
		total += bySource[s.source(i)]
	}
	return total
}

// probes returns the sum of shaker_probes_total of an exporter.
func (s *shards) probes(i int) (total int) {
	s.t.Helper()
	counters := regexp.MustCompile(`(?m)^shaker_probes_total\{.*\} (.*)$`)
	for _, line := range counters.FindAllStringSubmatch(lab.Get(s.t, s.url(i)+"/metrics"), -1) {
		var n int
		fmt.Sscan(line[1], &n)
		total += n
	}
	return total
}

// share returns the targets that an exporter has probed, sorted.
func (s *shards) share(i int) (targets []string) {
	for target, bySource := range s.handshakes() {
		if bySource[s.source(i)] > 0 {
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

// scrapedThrice waits until a Prometheus has scraped each of n targets three times since a time.
func (s *shards) scrapedThrice(prometheus server, n int, begin time.Time) {
	s.t.Helper()
	lab.Eventually(s.t, fmt.Sprintf("each of %d targets has been scraped three times", n), func() bool {
		return len(prometheus.Query(`count_over_time(up{job="shaker"}`+since(begin)+`) >= 3`)) == n
	})
}

// problems returns what is wrong with how a Prometheus, since begin, has distributed its targets over a number of
// exporters. The network must have recorded all packets since then.
func (s *shards) problems(prometheus server, targets []string, exporters int, begin time.Time) (problems []string) {
	s.t.Helper()
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	// A scrape has the timestamp of its beginning and is stored at its end. Its handshake is in between. So
	// the counts may differ by one scrape at each end of the range.
	before := s.handshakes()
	scrapes := make(map[string]int)
	for _, sample := range prometheus.Query(`count_over_time(up{job="shaker"}` + since(begin) + `)`) {
		scrapes[sample.Labels["instance"]] += int(sample.Value)
	}
	after := s.handshakes()
	measured := prometheus.instances(`count_over_time(probe_success{job="shaker"}` + since(begin) + `)`)
	sum := func(bySource map[netip.Addr]int) (total int) {
		for n := range maps.Values(bySource) {
			total += n
		}
		return total
	}
	size := make(map[netip.Addr]int)
	for _, target := range targets {
		if _, found := slices.BinarySearch(measured, target); !found {
			complain("%s is not measured", target)
		}
		if sources := slices.Collect(maps.Keys(after[target])); len(sources) != 1 {
			complain("%s is probed from %v", target, sources)
		} else {
			size[sources[0]]++
		}
		if n := scrapes[target]; n < sum(before[target])-2 || n > sum(after[target])+1 {
			complain("%s: %d scrapes, %d to %d handshakes", target, n, sum(before[target]), sum(after[target]))
		}
	}
	for source, n := range size {
		if even := len(targets) / exporters; n < even*3/4 || n > even*5/4 {
			complain("%v probes %d of %d targets", source, n, len(targets))
		}
	}
	slices.Sort(problems)
	return problems
}

// Each target is probed once in each scrape interval, by one exporter, as the example distributes the targets. If
// an exporter is down, its share of the targets is not measured, and not reported as down. If the number of
// exporters changes, the series continue.
func TestSharding(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	s := newShards(t)
	dir := t.TempDir()
	targets := openTargets(0, 200)
	const interval = "1s"
	prometheus := startServer(t, process.Prometheus2, 9090, writeSharding(t, dir, targets, interval), s.hosts)
	check := func(when string, exporters int) {
		t.Helper()
		var problems []string
		for range 3 { // probes that an exporter had queued before a change are in the first range only
			s.network.Forget()
			begin := time.Now()
			s.scrapedThrice(prometheus, len(targets), begin)
			if problems = s.problems(prometheus, targets, exporters, begin); problems == nil {
				return
			}
		}
		t.Fatalf("%s, the distribution of the targets has %d problems, want none. The first ones:\n%s",
			when, len(problems), strings.Join(problems[:min(len(problems), 10)], "\n"))
	}
	check("at first", 3)
	// docs/scale.md calculates the load of 100,000 targets from these numbers of series.
	const seriesQuery = `max_over_time(scrape_samples_scraped{job="shaker"}[1h]) != 12
		or count by (instance) ({__name__=~"up|scrape_.+",job="shaker"}) != 5`
	if other := prometheus.Query(seriesQuery); len(other) > 0 {
		t.Errorf("%d targets have another number of series, such as %v, want 12 of the exporter and 5 of Prometheus",
			len(other), other[0])
	}
	const dead = 1
	share := s.share(dead)
	// uncounted returns, for each exporter, the handshakes on the wire minus the probes that the exporter has
	// counted. An exporter counts a probe when the probe ends.
	uncounted := func() (handshakes [len(s.exporters)]int) {
		for i := range s.exporters {
			lab.Eventually(t, "no probe ends while the handshakes are counted", func() bool {
				counted := s.probes(i)
				handshakes[i] = s.begun(i) - counted
				return s.probes(i) == counted
			})
		}
		return handshakes
	}
	var before, after [len(s.exporters)]int
	for range 3 { // a stall that delays a probe is in one of these ranges only
		before = uncounted()
		s.scrapedThrice(prometheus, len(targets), time.Now())
		if after = uncounted(); after == before {
			break
		}
	}
	if after != before {
		t.Errorf("handshakes on the wire minus probes counted = %v, and %v after three more scrapes, want the same",
			before, after)
	}

	rest := slices.DeleteFunc(slices.Clone(targets), func(target string) bool { return slices.Contains(share, target) })
	lab.Eventually(t, "no target is down", func() bool {
		return len(prometheus.Query(`instance:probe_down:last{job="shaker"} == 0`)) == len(targets)
	})
	s.exporters[dead].Stop()
	s.network.Forget()
	stopped := time.Now()
	s.scrapedThrice(prometheus, len(targets), stopped)
	failed := prometheus.instances(`sum_over_time(up{job="shaker"}` + since(stopped) + `) == 0`)
	if !slices.Equal(failed, share) {
		t.Errorf("while an exporter is down, up is 0 for %v, want the share of the exporter, %v", failed, share)
	}
	measured := prometheus.instances(`count_over_time(probe_success` + since(stopped) + `)`)
	if !slices.Equal(measured, rest) {
		t.Errorf("while an exporter is down, %d targets are measured: %v, want the other %d: %v",
			len(measured), measured, len(rest), rest)
	}
	down := prometheus.instances(`sum_over_time(up{job="shaker_exporter"}` + since(stopped) + `) == 0`)
	if want := []string{"shaker-exporter-1.shaker-exporter:10115"}; !slices.Equal(down, want) {
		t.Errorf("the exporters that are down are %v, want %v", down, want)
	}
	alerted := prometheus.instances(`count_over_time(
		ALERTS{alertname=~"TargetDown|TargetCutOff"}` + since(stopped) + `)`)
	for _, target := range share {
		if sources := s.handshakes()[target]; sources != nil {
			t.Errorf("while its exporter is down, %s is probed from %v, want no probe", target, sources)
		}
		if slices.Contains(alerted, target) {
			t.Errorf("while its exporter is down, %s has an alert, want none", target)
		}
	}

	s.start(dead)
	check("after the exporter has come back", 3)

	writeSharding(t, dir, targets, interval, "modulus: 3", "modulus: 2")
	prometheus.Signal(syscall.SIGHUP)
	lab.Eventually(t, "the first two exporters have all targets", func() bool {
		urls := fmt.Sprint(prometheus.scraped())
		ofBoth := regexp.MustCompile(`//shaker-exporter-[01]\.shaker-exporter:10115/probe`)
		return len(ofBoth.FindAllString(urls, -1)) == len(targets)
	})
	check("with two exporters", 2)
	if all := prometheus.instances(`count_over_time(probe_success[1h])`); len(all) != len(targets) {
		t.Errorf("after the number of exporters has changed, there are %d series of probe_success for %d targets, "+
			"want one each", len(all), len(targets))
	}
}

// Several Prometheus servers share the targets: each target belongs to exactly one of them.
func TestSharesOfServers(t *testing.T) {
	const servers = 3
	var targets []string
	for i := range 200 {
		targets = append(targets, fmt.Sprintf("192.0.2.1:%d", i+1))
	}
	hosts := hostsFile(t, nil)
	seen := make(map[string]int)
	var started []server
	for i := range servers {
		file := writeExample(t, t.TempDir(), "sharding.yml", targets,
			"modulus: 1\n", fmt.Sprintf("modulus: %d\n", servers), `regex: "0"`, fmt.Sprintf(`regex: "%d"`, i))
		started = append(started, startServer(t, process.Prometheus2, 9090+i, file, hosts))
	}
	for i, server := range started {
		var share []string
		lab.Eventually(t, fmt.Sprintf("server %d has at least half of its share", i), func() bool {
			share = slices.Collect(maps.Keys(server.scraped()))
			return len(share) > len(targets)/2/servers
		})
		for _, target := range share {
			seen[target]++
		}
	}
	for _, target := range targets {
		if seen[target] != 1 {
			t.Errorf("%d servers have the target %s, want 1", seen[target], target)
		}
	}
}

// The pods of statefulset.yml are the pods of the Deployment. Their number and their names are those in
// sharding.yml.
func TestStatefulSet(t *testing.T) {
	type object struct {
		Metadata struct{ Name string }
		Spec     struct {
			ClusterIP   string `yaml:"clusterIP"`
			ServiceName string `yaml:"serviceName"`
			Replicas    int
			Selector    any
			Template    any
			Ports       []struct{ Port int }
		}
	}
	parse := func(file, text string) (o object) {
		t.Helper()
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			t.Fatalf("decode %s: %v", file, err)
		}
		return o
	}
	first, second, _ := strings.Cut(lab.Read(t, "statefulset.yml"), "\n---\n")
	service, set := parse("statefulset.yml", first), parse("statefulset.yml", second)
	// The key is for rollouts of a Deployment, which may have more pods than replicas.
	deployment := parse("deployment.yml", replace(t, lab.Read(t, "../kubernetes/deployment.yml"),
		"          matchLabelKeys: [pod-template-hash]\n", ""))
	if !reflect.DeepEqual(set.Spec.Template, deployment.Spec.Template) {
		t.Errorf("the pods of statefulset.yml are\n%v\nwant those of deployment.yml\n%v",
			set.Spec.Template, deployment.Spec.Template)
	}
	if !reflect.DeepEqual(set.Spec.Selector, deployment.Spec.Selector) {
		t.Errorf("the selector of statefulset.yml is %v, want that of deployment.yml, %v",
			set.Spec.Selector, deployment.Spec.Selector)
	}
	if labels := map[string]any{"matchLabels": service.Spec.Selector}; !reflect.DeepEqual(set.Spec.Selector, labels) {
		t.Errorf("the StatefulSet selects %v, want the selector of the Service, %v", set.Spec.Selector, labels)
	}
	if service.Spec.ClusterIP != "None" {
		t.Errorf("clusterIP of the Service = %q, want None, so that the pods have names", service.Spec.ClusterIP)
	}
	if service.Metadata.Name != set.Spec.ServiceName {
		t.Errorf("serviceName of the StatefulSet = %q, want the name of the Service, %q",
			set.Spec.ServiceName, service.Metadata.Name)
	}
	at := func(pod string) string {
		return fmt.Sprintf("%s-%s.%s:%d\n", set.Metadata.Name, pod, service.Metadata.Name, service.Spec.Ports[0].Port)
	}
	wants := []string{
		fmt.Sprintf("modulus: %d\n        target_label: __tmp_shard\n", set.Spec.Replicas),
		"replacement: " + at("$1"),
	}
	for i := range set.Spec.Replicas {
		wants = append(wants, "- "+at(strconv.Itoa(i)))
	}
	for _, want := range wants {
		if !strings.Contains(lab.Read(t, "sharding.yml"), want) {
			t.Errorf("sharding.yml does not contain %q", want)
		}
	}
}

// The YAML in docs/scale.md is in sharding.yml, or replaces a part of it. The command in docs/scale.md makes, from
// the configuration of a single server, the configuration of the last of three servers, with the same rules and
// targets.
func TestScalePage(t *testing.T) {
	page, example := lab.Read(t, "../../docs/scale.md"), lab.Read(t, "sharding.yml")
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(page, -1)
	if len(blocks) != 2 {
		t.Fatalf("docs/scale.md has %d blocks of YAML, want 2", len(blocks))
	}
	if !strings.Contains(example, blocks[0][1]) {
		t.Errorf("sharding.yml does not contain\n%s", blocks[0][1])
	}
	t.Run("names without numbers", func(t *testing.T) {
		_, lastStep, _ := strings.Cut(blocks[0][1], "__tmp_shard\n")
		file := writeExample(t, t.TempDir(), "sharding.yml", []string{"192.0.2.1:443"}, lastStep, blocks[1][1])
		if out, err := process.Promtool(t, "check", "config", file); err != nil {
			t.Errorf("promtool check config: %v, want no error\n%s\n%s", err, out, lab.Read(t, file))
		}
	})
	t.Run("command", func(t *testing.T) {
		command := regexp.MustCompile(`\n\$ (sed .* > (.*\.yml))\n`).FindStringSubmatch(page)
		if command == nil {
			t.Fatal("docs/scale.md has no sed command")
		}
		shell := exec.Command(lab.Program(t, "sh", "dash"), "-c", command[1])
		lab.Program(t, "sed", "sed")
		shell.Dir = t.TempDir()
		writeExample(t, filepath.Join(shell.Dir, "examples"), "sharding.yml", []string{"192.0.2.1:443"})
		if out, err := shell.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, want no error\n%s", command[1], err, out)
		}
		file := filepath.Join(shell.Dir, command[2])
		want := replace(t, example, "modulus: 1\n", "modulus: 3\n", `regex: "0"`, `regex: "2"`)
		if got := lab.Read(t, file); got != want {
			t.Errorf("%s makes\n%s\nwant\n%s", command[1], got, want)
		}
		out, err := process.Promtool(t, "check", "config", file)
		if err != nil || strings.Contains(out, "WARNING") || !strings.Contains(out, "5 rule files found") {
			t.Errorf("promtool check config, after %s: %v, want 5 rule files and no warning\n%s", command[1], err, out)
		}
	})
}

// The control of TestSharding: if a configuration distributes the targets in another way, problems are found. Each
// configuration has its own Prometheus and its own targets, so that all of them can be measured at the same time.
func TestBrokenSharding(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	s := newShards(t)
	cases := []struct {
		name         string
		replacements []string
		want         string // a regular expression

		targets    []string
		prometheus server
	}{
		{
			name:         "shard without exporter",
			replacements: []string{"modulus: 3", "modulus: 4"},
			want:         `10\.\d+\.\d+\.\d+:80 is not measured`,
		},
		{
			name: "hash of another label",
			replacements: []string{
				"source_labels: [__address__]\n        action: hashmod\n        modulus: 3",
				"source_labels: [__metrics_path__]\n        action: hashmod\n        modulus: 3",
			},
			want: `198\.18\.1\.\d probes 100 of 100 targets`,
		},
		{
			name: "second job",
			replacements: []string{
				"- job_name: shaker\n", "- &job\n    job_name: shaker\n",
				"- job_name: shaker_exporter\n", "- <<: *job\n    job_name: again\n  - job_name: shaker_exporter\n",
			},
			want: `10\.\d+\.\d+\.\d+:80: \d+ scrapes, \d+ to \d+ handshakes`,
		},
	}
	for i := range cases {
		c := &cases[i]
		c.targets = openTargets(i, 100)
		file := writeSharding(t, t.TempDir(), c.targets, "2s", c.replacements...)
		c.prometheus = startServer(t, process.Prometheus2, 9090+i, file, s.hosts)
	}
	s.network.Forget()
	begin := time.Now()
	for _, c := range cases {
		s.scrapedThrice(c.prometheus, len(c.targets), begin)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			problems := s.problems(c.prometheus, c.targets, 3, begin)
			if !regexp.MustCompile(c.want).MatchString(strings.Join(problems, "\n")) {
				t.Errorf("the problems are %q, want one that matches %s", problems, c.want)
			}
		})
	}
}
