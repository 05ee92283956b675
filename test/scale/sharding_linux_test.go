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

// A server is a Prometheus that finds the exporters by their names.
type server struct {
	*process.Prometheus
	t *testing.T
}

// startServer starts a Prometheus with a configuration file, on a port. It resolves names by the
// file hosts.
func startServer(t *testing.T, port int, configFile, hosts string, args ...string) server {
	t.Helper()
	cmd := process.WithFiles(t, process.PrometheusCommand(t, port, configFile, args...), map[string]string{"/etc/hosts": hosts})
	return server{process.ServePrometheus(t, cmd, fmt.Sprintf("localhost:%d", port)), t}
}

// hostsFile writes a file of names and their addresses.
func hostsFile(t *testing.T, names map[string]string) string {
	t.Helper()
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	content := fmt.Sprintf("127.0.0.1 localhost %s\n", own) // for which Prometheus asks when it starts
	for name, address := range names {
		content += fmt.Sprintf("%s %s\n", address, name)
	}
	return lab.Write(t, t.TempDir(), "hosts", content)
}

// ready tells whether a Prometheus or an exporter is.
func ready(url string) bool {
	response, err := lab.Client.Get(url + "/-/ready")
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// instances returns the label instance of each series of a vector, in order.
func (s server) instances(expression string) (instances []string) {
	s.t.Helper()
	for _, sample := range s.Query(expression) {
		instances = append(instances, sample.Labels["instance"])
	}
	slices.Sort(instances)
	return instances
}

// since returns the range from a time until now, as an expression has it after a selector.
func since(begin time.Time) string {
	now := time.Now()
	return fmt.Sprintf("[%dms] @ %.3f", max(1, now.Sub(begin).Milliseconds()), float64(now.UnixMilli())/1000)
}

// scraped returns the URLs that are scraped, by the label instance.
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

// scaleExample writes an example of directory scale, with changes, into a directory that has the
// rules and targets beside it, and returns its path.
func scaleExample(t *testing.T, dir, name string, targets []string, changes ...string) string {
	t.Helper()
	for _, file := range lab.Files(t, "../rules/*.yml") {
		lab.Write(t, dir, filepath.Join("rules", filepath.Base(file)), lab.Read(t, file))
	}
	list, err := yaml.Marshal([]map[string][]string{{"targets": targets}})
	if err != nil {
		t.Fatal(err)
	}
	lab.Write(t, dir, "scale/targets/all.yml", string(list))
	return lab.Write(t, dir, filepath.Join("scale", name), changed(t, lab.Read(t, name), changes...))
}

// changed returns a text with changes, pairs of what is there and what is put in its place.
func changed(t *testing.T, text string, changes ...string) string {
	t.Helper()
	for pair := range slices.Chunk(changes, 2) {
		if !strings.Contains(text, pair[0]) {
			t.Fatalf("there is no %q in\n%s", pair[0], text)
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return text
}

// shards are three exporters, as sharding.yml names them, and the network that they probe.
type shards struct {
	t         *testing.T
	network   *simnet.Network
	targets   []string
	hosts     string // a file
	program   string
	exporters [3]*process.Process
}

// roundsApart is the scrape interval in which tests have the examples probe.
const roundsApart = "scrape_interval: 2s"

func newShards(t *testing.T) *shards {
	t.Helper()
	s := &shards{t: t, network: simnet.NewNetwork(t), program: exporter.Command(t).Path}
	s.network.At("10.0.0.0/8:80", simnet.SYNACK())
	for i := range 200 {
		s.targets = append(s.targets, fmt.Sprintf("10.0.%d.%d:80", i/100, i%100))
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]string)
	for i := range s.exporters {
		source := &netlink.Addr{IPNet: netlink.NewIPNet(s.source(i).AsSlice())}
		if err := netlink.AddrAdd(lo, source); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netlink.AddrDel(lo, source) })
		names[fmt.Sprintf("shaker-exporter-%d.shaker-exporter", i)] = fmt.Sprintf("127.0.0.%d", i+1)
		s.start(i)
	}
	s.hosts = hostsFile(t, names)
	return s
}

// source returns the address that an exporter probes from, by which the wire tells them apart.
func (s *shards) source(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}) }

// url returns the URL of an exporter.
func (s *shards) url(i int) string { return fmt.Sprintf("http://127.0.0.%d:10115", i+1) }

// start starts an exporter.
func (s *shards) start(i int) {
	s.t.Helper()
	config := lab.Write(s.t, s.t.TempDir(), "shaker.yml",
		fmt.Sprintf("modules: {tcp_connect: {prober: tcp, tcp: {source_ip_address: %v}}}", s.source(i)))
	s.exporters[i] = process.Start(s.t, exec.Command(s.program, "--config.file="+config, "--web.listen-address="+strings.TrimPrefix(s.url(i), "http://")))
	lab.Eventually(s.t, "the exporter is ready", func() bool { return ready(s.url(i)) })
}

// example writes sharding.yml, with changes, and returns its path.
func (s *shards) example(dir string, changes ...string) string {
	s.t.Helper()
	return scaleExample(s.t, dir, "sharding.yml", s.targets, append([]string{"scrape_interval: 15s", roundsApart, "evaluation_interval: 15s", "evaluation_interval: 1s"}, changes...)...)
}

// handshakes returns how many handshakes were begun with each target, by the address that the
// SYNs came from. A SYN that was sent again is the same handshake.
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
	for _, by := range s.handshakes() {
		total += by[s.source(i)]
	}
	return total
}

// probes returns shaker_probes_total of an exporter.
func (s *shards) probes(i int) (total int) {
	s.t.Helper()
	for _, line := range regexp.MustCompile(`(?m)^shaker_probes_total\{.*\} (.*)$`).FindAllStringSubmatch(lab.Get(s.t, s.url(i)+"/metrics"), -1) {
		var n int
		fmt.Sscan(line[1], &n)
		total += n
	}
	return total
}

// share returns the targets that an exporter has probed.
func (s *shards) share(i int) (targets []string) {
	for target, by := range s.handshakes() {
		if by[s.source(i)] > 0 {
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

// rounds waits until each target has been scraped three times since then.
func (s *shards) rounds(prometheus server, begin time.Time) {
	s.t.Helper()
	lab.Eventually(s.t, "each target has had its turn three times", func() bool {
		return len(prometheus.Query(`count_over_time(up{job="shaker"}`+since(begin)+`) >= 3`)) == len(s.targets)
	})
}

// complaints tells, after some rounds of a Prometheus whose configuration says it wants so many
// exporters, what is wrong with how the targets are spread over them.
func (s *shards) complaints(prometheus server, exporters int) (complaints []string) {
	s.t.Helper()
	s.network.Forget()
	begin := time.Now()
	s.rounds(prometheus, begin)

	// A scrape has the time of its begin, is stored at its end, and its handshake is in between:
	// there may be one at either end of what is looked at here.
	before := s.handshakes()
	scrapes := make(map[string]int)
	for _, sample := range prometheus.Query(`count_over_time(up{job="shaker"}` + since(begin) + `)`) {
		scrapes[sample.Labels["instance"]] += int(sample.Value)
	}
	after := s.handshakes()
	measured := prometheus.instances(`count_over_time(probe_success{job="shaker"}` + since(begin) + `)`)
	sum := func(by map[netip.Addr]int) (total int) {
		for n := range maps.Values(by) {
			total += n
		}
		return total
	}
	size := make(map[netip.Addr]int)
	for _, target := range s.targets {
		if _, found := slices.BinarySearch(measured, target); !found {
			complaints = append(complaints, target+" is not measured")
		}
		if by := slices.Collect(maps.Keys(after[target])); len(by) != 1 {
			complaints = append(complaints, fmt.Sprintf("%s is probed by %v", target, by))
		} else {
			size[by[0]]++
		}
		if n := scrapes[target]; n < sum(before[target])-2 || n > sum(after[target])+1 {
			complaints = append(complaints, fmt.Sprintf("%s: %d scrapes, %d to %d handshakes", target, n, sum(before[target]), sum(after[target])))
		}
	}
	for by, n := range size {
		if even := len(s.targets) / exporters; n < even*3/4 || n > even*5/4 {
			complaints = append(complaints, fmt.Sprintf("%v probes %d of %d targets", by, n, len(s.targets)))
		}
	}
	slices.Sort(complaints)
	return complaints
}

// Each target is probed once in an interval, by one exporter, as the example spreads them; where
// one of these is down, its share is not measured, and is not said to be down; where their
// number changes, the series go on.
func TestSharding(t *testing.T) {
	s := newShards(t)
	dir := t.TempDir()
	prometheus := startServer(t, 9090, s.example(dir), s.hosts)
	check := func(when string, exporters int) {
		t.Helper()
		var complaints []string
		for range 3 { // what has waited in an exporter since before a change is not in all of these
			if complaints = s.complaints(prometheus, exporters); complaints == nil {
				return
			}
		}
		t.Fatalf("%s:\n%s", when, strings.Join(complaints[:min(len(complaints), 10)], "\n"))
	}
	check("at first", 3)
	// With these docs/scale.md says what 100,000 targets are to a Prometheus.
	if other := prometheus.Query(`max_over_time(scrape_samples_scraped{job="shaker"}[1h]) != 12 or count by (instance) ({__name__=~"up|scrape_.+",job="shaker"}) != 5`); len(other) > 0 {
		t.Errorf("a target has twelve series of the exporter and five of Prometheus, and there is %v", other[0])
	}
	const dead = 1
	share := s.share(dead)
	// What an exporter counts is on the wire. A probe that is under way is not counted yet.
	uncounted := func() (handshakes [len(s.exporters)]int) {
		for i := range s.exporters {
			lab.Eventually(t, "no probe ends while they are counted", func() bool {
				counted := s.probes(i)
				handshakes[i] = s.begun(i) - counted
				return s.probes(i) == counted
			})
		}
		return handshakes
	}
	var before, after [len(s.exporters)]int
	for range 3 { // a stall that keeps a probe under way is not in all of these
		before = uncounted()
		s.rounds(prometheus, time.Now())
		if after = uncounted(); after == before {
			break
		}
	}
	if after != before {
		t.Errorf("the handshakes less the probes that are counted are %v, and after some rounds %v", before, after)
	}

	rest := slices.DeleteFunc(slices.Clone(s.targets), func(target string) bool { return slices.Contains(share, target) })
	slices.Sort(rest)
	lab.Eventually(t, "no target is down", func() bool {
		return len(prometheus.Query(`instance:probe_down:last{job="shaker"} == 0`)) == len(s.targets)
	})
	s.exporters[dead].Stop()
	s.network.Forget()
	stopped := time.Now()
	s.rounds(prometheus, stopped)
	if got := prometheus.instances(`sum_over_time(up{job="shaker"}` + since(stopped) + `) == 0`); !slices.Equal(got, share) {
		t.Errorf("up is 0 for %v, want the share of the exporter that is down, %v", got, share)
	}
	if got := prometheus.instances(`count_over_time(probe_success` + since(stopped) + `)`); !slices.Equal(got, rest) {
		t.Errorf("%d targets are measured, want %d", len(got), len(rest))
	}
	if got := prometheus.instances(`sum_over_time(up{job="shaker_exporter"}` + since(stopped) + `) == 0`); !slices.Equal(got, []string{"shaker-exporter-1.shaker-exporter:10115"}) {
		t.Errorf("down are the exporters %v", got)
	}
	said := prometheus.instances(`count_over_time(ALERTS{alertname=~"TargetDown|TargetCutOff"}` + since(stopped) + `)`)
	for _, target := range share {
		if by := s.handshakes()[target]; by != nil {
			t.Errorf("%s was probed by %v meanwhile", target, by)
		}
		if slices.Contains(said, target) {
			t.Errorf("%s was said to be down", target)
		}
	}

	s.start(dead)
	check("after one was down", 3)

	s.example(dir, "modulus: 3", "modulus: 2")
	prometheus.Signal(syscall.SIGHUP)
	lab.Eventually(t, "the first two exporters have all targets", func() bool {
		urls := fmt.Sprint(prometheus.scraped())
		return len(regexp.MustCompile(`//shaker-exporter-[01]\.shaker-exporter:10115/probe`).FindAllString(urls, -1)) == len(s.targets)
	})
	check("with one less", 2)
	if all := prometheus.instances(`count_over_time(probe_success[1h])`); len(all) != len(s.targets) {
		t.Errorf("there are %d series for %d targets", len(all), len(s.targets))
	}
}

// Several servers have a share each, no target is left out, and none is in two of them.
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
		file := scaleExample(t, t.TempDir(), "sharding.yml", targets, "modulus: 1\n", fmt.Sprintf("modulus: %d\n", servers), `regex: "0"`, fmt.Sprintf(`regex: "%d"`, i))
		started = append(started, startServer(t, 9090+i, file, hosts))
	}
	for _, server := range started {
		var share []string
		lab.Eventually(t, "the targets are known", func() bool {
			share = slices.Collect(maps.Keys(server.scraped()))
			return len(share) > len(targets)/2/servers
		})
		for _, target := range share {
			seen[target]++
		}
	}
	for _, target := range targets {
		if seen[target] != 1 {
			t.Errorf("%d servers have %s", seen[target], target)
		}
	}
}

// The pods of statefulset.yml are those of the Deployment, and it has as many of them as
// sharding.yml asks, by the names that it asks for.
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
	parse := func(text string) (o object) {
		t.Helper()
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			t.Fatal(err)
		}
		return o
	}
	first, second, _ := strings.Cut(lab.Read(t, "statefulset.yml"), "\n---\n")
	service, set := parse(first), parse(second)
	// The key is for a rollout that has more pods than there should be.
	deployment := parse(changed(t, lab.Read(t, "../kubernetes/deployment.yml"), "          matchLabelKeys: [pod-template-hash]\n", ""))
	if !reflect.DeepEqual(set.Spec.Template, deployment.Spec.Template) || !reflect.DeepEqual(set.Spec.Selector, deployment.Spec.Selector) {
		t.Errorf("the pods are\n%v\nwant those of the Deployment\n%v", set.Spec, deployment.Spec)
	}
	if labels := map[string]any{"matchLabels": service.Spec.Selector}; !reflect.DeepEqual(set.Spec.Selector, labels) {
		t.Errorf("the set selects %v, and the Service %v", set.Spec.Selector, labels)
	}
	if service.Spec.ClusterIP != "None" || service.Metadata.Name != set.Spec.ServiceName {
		t.Errorf("the pods have no names: the Service %s has the address %q, and the set has the Service %s", service.Metadata.Name, service.Spec.ClusterIP, set.Spec.ServiceName)
	}
	at := func(pod string) string {
		return fmt.Sprintf("%s-%s.%s:%d\n", set.Metadata.Name, pod, service.Metadata.Name, service.Spec.Ports[0].Port)
	}
	wants := []string{fmt.Sprintf("modulus: %d\n        target_label: __tmp_shard\n", set.Spec.Replicas), "replacement: " + at("$1")}
	for i := range set.Spec.Replicas {
		wants = append(wants, "- "+at(strconv.Itoa(i)))
	}
	for _, want := range wants {
		if !strings.Contains(lab.Read(t, "sharding.yml"), want) {
			t.Errorf("sharding.yml lacks %q", want)
		}
	}
}

// What docs/scale.md shows is in the examples, or fits into them, and its command makes of the one
// server's configuration that of the last of three, with the same rules and targets.
func TestScalePage(t *testing.T) {
	page, example := lab.Read(t, "../../docs/scale.md"), lab.Read(t, "sharding.yml")
	steps := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(page, -1)
	if len(steps) != 2 {
		t.Fatalf("the page has %d blocks of YAML", len(steps))
	}
	if !strings.Contains(example, steps[0][1]) {
		t.Errorf("sharding.yml has no\n%s", steps[0][1])
	}
	_, last, _ := strings.Cut(steps[0][1], "__tmp_shard\n")
	file := scaleExample(t, t.TempDir(), "sharding.yml", []string{"192.0.2.1:443"}, last, steps[1][1])
	if out, err := process.Promtool(t, "check", "config", file); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, lab.Read(t, file))
	}
	command := regexp.MustCompile(`\n\$ (sed .* > (.*\.yml))\n`).FindStringSubmatch(page)
	if command == nil {
		t.Fatal("the page has no command")
	}
	shell := exec.Command("sh", "-c", command[1])
	shell.Dir = t.TempDir()
	scaleExample(t, filepath.Join(shell.Dir, "examples"), "sharding.yml", []string{"192.0.2.1:443"})
	if out, err := shell.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command[1], err, out)
	}
	last = filepath.Join(shell.Dir, command[2])
	if got, want := lab.Read(t, last), changed(t, example, "modulus: 1\n", "modulus: 3\n", `regex: "0"`, `regex: "2"`); got != want {
		t.Errorf("%s gives\n%s", command[1], got)
	}
	if out, err := process.Promtool(t, "check", "config", last); err != nil || strings.Contains(out, "WARNING") || !strings.Contains(out, "2 rule files found") {
		t.Errorf("%s: %v\n%s", command[1], err, out)
	}
}

// The control: what spreads the targets otherwise is complained about.
func TestBrokenSharding(t *testing.T) {
	s := newShards(t)
	for i, c := range []struct {
		name, complaint string
		changes         []string
	}{
		{"a shard without an exporter", `10\.0\.\d+\.\d+:80 is not measured`, []string{"modulus: 3", "modulus: 4"}},
		{"the hash of something else", `198\.18\.1\.\d probes 200 of 200 targets`,
			[]string{"source_labels: [__address__]\n        action: hashmod\n        modulus: 3", "source_labels: [__metrics_path__]\n        action: hashmod\n        modulus: 3"}},
		{"a job more", `10\.0\.\d+\.\d+:80: \d+ scrapes, \d+ to \d+ handshakes`,
			[]string{"- job_name: shaker\n", "- &job\n    job_name: shaker\n", "- job_name: shaker_exporter\n", "- <<: *job\n    job_name: again\n  - job_name: shaker_exporter\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			prometheus := startServer(t, 9090+i, s.example(t.TempDir(), c.changes...), s.hosts)
			defer prometheus.Stop()
			complaints := s.complaints(prometheus, 3)
			if !regexp.MustCompile(c.complaint).MatchString(strings.Join(complaints, "\n")) {
				t.Errorf("the complaints are %q, want %s", complaints, c.complaint)
			}
		})
	}
}
