package documents

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const smokepingPort = 9374

// startSmokeping starts Debian's smokeping_prober. It pings the hosts.
func startSmokeping(t *testing.T, hosts ...string) {
	t.Helper()
	lab.Need(t)
	program := lab.Program(t, "prometheus-smokeping-prober", "prometheus-smokeping-prober")
	// The group of this process may open sockets for pings: smokeping_prober needs no privilege then. The kernel does
	// not accept the previous range, which contains no group, in a user namespace.
	const groups = "/proc/sys/net/ipv4/ping_group_range"
	if err := os.WriteFile(groups, []byte("0 0"), 0); err != nil {
		t.Fatal(err)
	}
	file := lab.Write(t, t.TempDir(), "smokeping.yml",
		"targets: [{hosts: ["+strings.Join(hosts, ", ")+"], network: ip4}]")
	process.Start(t, exec.Command(program, "--config.file="+file)).Listening(smokepingPort)
}

// migrationFromSmokeping returns the section of the page that is about smokeping_prober.
func migrationFromSmokeping(t *testing.T) string {
	t.Helper()
	const heading = "\n## Migrating from smokeping_prober\n"
	_, section, found := strings.Cut(lab.Read(t, watchPage), heading)
	if !found {
		t.Fatalf("%s lacks the section %q", watchPage, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// The page's table of smokeping_prober's metrics has all that Debian's smokeping_prober exports, and no other. The
// labels of its targets are those that the page names.
func TestMetricsOfSmokeping(t *testing.T) {
	startSmokeping(t, "127.0.0.1")
	section := migrationFromSmokeping(t)
	var metrics string
	lab.Eventually(t, "smokeping_prober has had a reply", func() bool {
		_, metrics = exporter.Scrape(t, smokepingPort, "/metrics", "")
		return strings.Contains(metrics, "\nsmokeping_response_ttl{")
	})
	var theirs []string
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (smokeping_\w+) `).FindAllStringSubmatch(metrics, -1) {
		theirs = append(theirs, family[1])
	}
	named := regexp.MustCompile(`\bsmokeping_\w+_\w+`).FindAllString(section, -1)
	family := regexp.MustCompile(`_(?:bucket|count|sum)$`)
	for i, name := range named {
		if !slices.Contains(theirs, name) {
			named[i] = family.ReplaceAllString(name, "")
		}
		if !slices.Contains(theirs, named[i]) {
			t.Errorf("%s names %s, which smokeping_prober does not export; it exports %q", watchPage, name, theirs)
		}
	}
	for _, name := range theirs {
		if !slices.Contains(named, name) {
			t.Errorf("%s lacks smokeping_prober's metric %s", watchPage, name)
		}
		series := regexp.MustCompile(`(?m)^` + name + `(?:_sum)?\{(.*)\}`).FindStringSubmatch(metrics)
		if series == nil || strings.HasPrefix(name, "smokeping_prober_") {
			continue // it is not about a target
		}
		for _, label := range regexp.MustCompile(`(\w+)=`).FindAllStringSubmatch(series[1], -1) {
			if !strings.Contains(section, "`"+label[1]+"`") {
				t.Errorf("%s lacks the label %s of smokeping_prober's metric %s", watchPage, label[1], name)
			}
		}
	}
}

// Each flag that the section names is one of smokeping_prober's, and the interval has the same default.
func TestFlagsOfSmokeping(t *testing.T) {
	program := lab.Program(t, "prometheus-smokeping-prober", "prometheus-smokeping-prober")
	help, err := exec.Command(program, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v: %s", program, err, help)
	}
	flags := regexp.MustCompile("`--([a-z.-]+)`").FindAllStringSubmatch(migrationFromSmokeping(t), -1)
	if len(flags) == 0 {
		t.Errorf("%s names no flag of smokeping_prober, want some", watchPage)
	}
	for _, flag := range flags {
		if !regexp.MustCompile(`--` + regexp.QuoteMeta(flag[1]) + `[ =]`).Match(help) {
			t.Errorf("%s names --%s, which is not one of smokeping_prober's flags:\n%s", watchPage, flag[1], help)
		}
	}
	c, _, err := config.Parse("shaker.yml", []byte("modules: {watched: {prober: tcp, watch: {}}}"))
	if err != nil {
		t.Fatal(err)
	}
	theirs := regexp.MustCompile(`--ping\.interval=(\S+)`).FindSubmatch(help)
	if ours := c.Modules["watched"].Watch.Interval; theirs == nil || ours != time.Second || string(theirs[1]) != "1s" {
		t.Errorf("the default interval is %v, and that of smokeping_prober is %q, want 1s of both as on %s",
			ours, theirs, watchPage)
	}
}

// With smokeping_prober and the page's module and job side by side, each expression in either column of the page's
// table has a result in Prometheus. For a host that answers and a silent one, both loss rates are right.
func TestQueriesOfSmokeping(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const silent = "192.0.2.1"
	simnet.NewWire(t, nil, silent+"/32")
	startSmokeping(t, "127.0.0.1", silent)
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml",
		snippetWith(t, watchPage, "yaml", "tcp_watch: {")))
	job := snippetWith(t, watchPage, "yaml", "job_name: shaker_watch")
	const example = `"db.example:5432"`
	if !strings.Contains(job, example) {
		t.Fatalf("the job of %s lacks the target %s:\n%s", watchPage, example, job)
	}
	prometheus := process.StartPrometheus(t, 9090, lab.Write(t, t.TempDir(), "prometheus.yml",
		"global: {scrape_interval: 1s}\n"+
			strings.Replace(job, example, `"127.0.0.1:10115", "`+silent+`:443"`, 1)+`
  - job_name: smokeping
    static_configs: [{targets: ["localhost:9374"]}]
  - job_name: shaker_exporter
    static_configs: [{targets: ["localhost:10115"]}]
`))

	table := regexp.MustCompile(`(?m)^\| .*smokeping_.*$`).FindAllString(migrationFromSmokeping(t), -1)
	tried := 0
	for _, row := range table {
		for _, code := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(row, -1) {
			if !regexp.MustCompile(`(?:smokeping|probe|shaker)_`).MatchString(code[1]) {
				continue // a key of the configuration
			}
			tried++
			lab.Eventually(t, code[1]+" has a result", func() bool { return len(prometheus.Query(code[1])) > 0 })
		}
	}
	if tried < 10 {
		t.Errorf("the table of %s has %d expressions, want at least 10", watchPage, tried)
	}

	// The first query of the page is the share of lost handshakes.
	_, ours, _ := strings.Cut(snippetWith(t, watchPage, "promql", "Share of handshakes"), "\n")
	ours, _, _ = strings.Cut(ours, "\n")
	const theirs = "1 - rate(smokeping_response_duration_seconds_count[5m]) / rate(smokeping_requests_total[5m])"
	if !strings.Contains(strings.Join(table, "\n"), theirs) {
		t.Fatalf("the table of %s lacks %s", watchPage, theirs)
	}
	shares := func(query, label string) func(target string) float64 {
		return func(target string) float64 {
			for _, sample := range prometheus.Query(query) {
				if sample.Labels[label] == target {
					return sample.Value
				}
			}
			return -1
		}
	}
	our, their := shares(ours, "instance"), shares(theirs, "host")
	lab.Eventually(t, "both have lost all packets to the silent host", func() bool {
		return our(silent+":443") == 1 && their(silent) == 1
	})
	if got := our("127.0.0.1:10115"); got != 0 {
		t.Errorf("the share of lost handshakes of a host that answers is %v, want 0", got)
	}
	// Pings in flight are lost ones for smokeping_prober's query.
	if got := their("127.0.0.1"); got < 0 || got > 0.9 {
		t.Errorf("the share of lost pings of a host that answers is %v, want less than 0.9", got)
	}
}
