package documents

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The page's table of differences shows what Debian's blackbox_exporter and shaker_exporter answer to the same
// requests. The page's other differences are tested, too: timeout, default module and number of series.
func TestDifferencesFromBlackbox(t *testing.T) {
	const modules = `
modules:
  tcp_connect: {prober: tcp}
  web: {prober: http}
  ip4_only: {prober: tcp, tcp: {preferred_ip_protocol: ip4, ip_protocol_fallback: false}}
  from_elsewhere: {prober: tcp, tcp: {preferred_ip_protocol: ip4, source_ip_address: 192.0.2.7}}
`
	file := lab.Write(t, t.TempDir(), "blackbox.yml", modules)
	exporter.Start(t, "--config.file="+file)
	process.StartBlackbox(t, file)
	ssh, err := net.Listen("tcp", "127.0.0.1:22")
	if err != nil {
		t.Fatal(err)
	}
	defer ssh.Close()

	measured := make(map[string][]string)
	for name, query := range map[string]string{
		"an open port":                                    "module=tcp_connect&target=127.0.0.1:10115",
		"a closed port":                                   "module=tcp_connect&target=127.0.0.1:1",
		"a name that does not exist":                      "module=tcp_connect&target=absent.invalid:80",
		"no target":                                       "module=tcp_connect",
		"an unknown module":                               "module=absent&target=127.0.0.1:10115",
		"127.0.0.1%3A10115: encoded twice":                "module=tcp_connect&target=127.0.0.1%253A10115",
		"an open port, with an http module":               "module=web&target=127.0.0.1:10115",
		"localhost:ssh: an open port, by its name":        "module=tcp_connect&target=localhost:ssh",
		"localhost: no port":                              "module=tcp_connect&target=localhost",
		"10.0.0.256:80: no IPv4 address":                  "module=tcp_connect&target=10.0.0.256:80",
		"0.0.0.0:10115: the prober itself":                "module=tcp_connect&target=0.0.0.0:10115",
		"an IPv6 address, with a module for IPv4 only":    "module=ip4_only&target=" + url.QueryEscape("[::1]:10115"),
		"a source_ip_address that the host no longer has": "module=from_elsewhere&target=127.0.0.1:10115",
	} {
		for _, port := range []int{9115, 10115} {
			status, body := exporter.Scrape(t, port, "/probe?"+query, "")
			cell := fmt.Sprint(status)
			if success := regexp.MustCompile(`(?m)^probe_success (\d)$`).FindStringSubmatch(body); success != nil {
				cell += ", probe_success " + success[1]
			}
			measured[name] = append(measured[name], cell)
		}
	}
	compareRows(t, blackboxPage, "requested", measured)

	for _, c := range []struct {
		name          string
		port          int
		path, timeout string
		want          string // in the response
	}{
		{name: "shaker_exporter's timeout of a module without timeout",
			port: 10115, path: "/probe?target=127.0.0.1:10115", timeout: "10", want: "probe_timeout_seconds 5\n"},
		{name: "blackbox_exporter's timeout of a module without timeout",
			port: 9115, path: "/probe?debug=true&module=tcp_connect&target=127.0.0.1:10115", timeout: "10",
			want: "timeout_seconds=9.5"},
		{name: "blackbox_exporter's default module",
			port: 9115, path: "/probe?target=127.0.0.1:10115", want: `"http_2xx"`},
	} {
		if status, body := exporter.Scrape(t, c.port, c.path, c.timeout); !strings.Contains(body, c.want) {
			t.Errorf("%s: GET %s = %d, want %q in\n%s", c.name, c.path, status, c.want, body)
		}
	}
	for target, added := range map[string]int{"127.0.0.1:10115": 7, "127.0.0.1:1": 3} {
		var names [2][]string
		for i, port := range []int{9115, 10115} {
			_, body := exporter.Scrape(t, port, "/probe?module=tcp_connect&target="+target, "")
			names[i] = regexp.MustCompile(`(?m)^probe_[a-z_]+`).FindAllString(body, -1)
		}
		without := func(some, others []string) []string {
			return slices.DeleteFunc(slices.Clone(some), func(name string) bool {
				return slices.Contains(others, name)
			})
		}
		if got := without(names[1], names[0]); len(got) != added {
			t.Errorf("%s: shaker_exporter adds %d series, %q, want %d", target, len(got), got, added)
		}
		want := []string{"probe_failed_due_to_regex"}
		if got := without(names[0], names[1]); !slices.Equal(got, want) {
			t.Errorf("%s: only blackbox_exporter has the series %q, want %q", target, got, want)
		}
	}
}

// With the page's configuration both exporters probe the same targets, and the page's queries find the targets
// for which they disagree. Then the job moves to shaker_exporter with the page's change, and back.
func TestSideBySide(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Need(t)
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	running := exporter.Start(t, "--config.file=test/testdata/blackbox.yml")
	text := snippetWith(t, blackboxPage, "yaml", "job_name: shaker")
	targets := regexp.MustCompile(`(?m)targets:\n(?: +- .*\n)+`)
	if n := len(targets.FindAllString(text, -1)); n < 3 {
		t.Fatalf("the page's configuration has %d lists of targets, want at least 3", n)
	}
	n := 0
	text = targets.ReplaceAllStringFunc(text, func(list string) string {
		if n++; n > 2 { // the exporter itself
			return list
		}
		return `targets: ["127.0.0.1:10115", "127.0.0.1:1"]` + "\n"
	})
	text = strings.ReplaceAll(text, "15s", "1s")
	file := lab.Write(t, t.TempDir(), "prometheus.yml", text)
	prometheus := process.StartPrometheus(t, 9090, file)
	series := func(expression string, want int) func() bool {
		return func() bool { return len(prometheus.Query(expression)) == want }
	}
	lab.Eventually(t, "both jobs have been scraped", series(`probe_success`, 4))
	lab.Eventually(t, "the exporter itself has been scraped", series(`shaker_exporter_build_info`, 1))

	queries := strings.Split(strings.TrimSpace(snippetWith(t, blackboxPage, "promql", "on (instance)")), "\n\n")
	if len(queries) != 2 {
		t.Fatalf("the page has %d queries that compare the exporters, want 2: %q", len(queries), queries)
	}
	if got := prometheus.Query(queries[0]); len(got) != 0 {
		t.Errorf("Query(%s) = %v, want no target for which the exporters disagree", queries[0], got)
	}
	if got := prometheus.Query(queries[1]); len(got) != 2 {
		t.Errorf("Query(%s) = %v, want the durations of 2 targets", queries[1], got)
	}

	// The control case: from now on the port is open for one exporter and closed for the other.
	closed := strings.Replace(text, `"127.0.0.1:10115", "127.0.0.1:1"`, `"127.0.0.1:2", "127.0.0.1:1"`, 1)
	closed = strings.Replace(closed, "target_label: instance\n", `target_label: instance
      - {source_labels: [__param_target], regex: "127.0.0.1:2", target_label: instance, replacement: "127.0.0.1:10115"}
`, 1)
	reconfigure := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		prometheus.Signal(syscall.SIGHUP)
	}
	reconfigure(closed)
	lab.Eventually(t, "the query finds the target for which the exporters disagree", func() bool {
		got := prometheus.Query(queries[0])
		return len(got) == 1 && got[0].Labels["instance"] == "127.0.0.1:10115"
	})

	// The job moves, and back. Only shaker_exporter exports probe_result_info.
	old, changed := changeOf(t, snippetWith(t, blackboxPage, "diff", "replacement"))
	at := strings.Index(text, old)
	if at < 0 {
		t.Fatalf("the page's configuration does not contain the line that the page changes, %q", old)
	}
	moved := text[:at] + changed + text[at+len(old):]
	reconfigure(moved)
	lab.Eventually(t, "the job has moved", series(`probe_result_info{job="tcp"}`, 2))
	running.Stop() // a stopped exporter is not a target that is down
	lab.Eventually(t, "the job is not up", series(`up{job="tcp"} == 0`, 2))
	if got := prometheus.Query(`probe_success{job="tcp"}`); len(got) != 0 {
		t.Errorf("without an exporter, Query(probe_success) = %v, want no series", got)
	}
	reconfigure(text)
	lab.Eventually(t, "the job has moved back, and its series continue", series(`probe_success{job="tcp"}`, 2))
	if got := prometheus.Query(`probe_result_info{job="tcp"}`); len(got) != 0 {
		t.Errorf("after the job moved back, Query(probe_result_info) = %v, want no series", got)
	}
}

// The page's table of blackbox_exporter's own metrics has all of them, and the names that it gives exist here.
func TestOwnMetricsOfBlackbox(t *testing.T) {
	exporter.Start(t)
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	names := func(port int) []string {
		_, body := exporter.Scrape(t, port, "/metrics", "")
		var found []string
		for _, match := range regexp.MustCompile(`(?m)^# TYPE (\w+) `).FindAllStringSubmatch(body, -1) {
			found = append(found, match[1])
		}
		return found
	}
	ours, theirs := names(10115), names(9115)
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !slices.Contains(ours, name) || !slices.Contains(theirs, name) {
			t.Errorf("%s is exported by shaker_exporter: %t, by blackbox_exporter: %t, want both",
				name, slices.Contains(ours, name), slices.Contains(theirs, name))
		}
	}
	table := rows(t, blackboxPage, "own metric of blackbox_exporter")
	for _, name := range theirs {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue // they depend on the version of the client library
		}
		cells, ok := table[name]
		if !ok {
			t.Errorf("%s lacks blackbox_exporter's metric %s", blackboxPage, name)
			continue
		}
		if here, _, _ := strings.Cut(cells[0], ","); (here == "not exported") == slices.Contains(ours, here) {
			t.Errorf("%s: %s is called %q here, want a metric that is exported, or \"not exported\"",
				blackboxPage, name, here)
		}
	}
}

// Every flag of blackbox_exporter exists here, and each flag in the page's table exists.
func TestFlagsOfBlackbox(t *testing.T) {
	blackbox := lab.Program(t, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	flag := regexp.MustCompile(`--(?:\[no-\])?([a-z][a-z.-]*)`)
	flags := func(help []byte) []string {
		var found []string
		for _, match := range flag.FindAllSubmatch(help, -1) {
			found = append(found, string(match[1]))
		}
		return found
	}
	help, err := exec.Command(blackbox, "--help").CombinedOutput()
	theirs := flags(help)
	if err != nil || len(theirs) < 10 {
		t.Fatalf("%s --help has the flags %q, error %v, want at least 10 flags: %s", blackbox, theirs, err, help)
	}
	for flag := range rows(t, blackboxPage, "flag of blackbox_exporter") {
		theirs = append(theirs, strings.TrimPrefix(flag, "--"))
	}
	help, err = exporter.Command(t, "--help").CombinedOutput()
	ours := append(flags(help), "help-long", "help-man") // which kingpin adds
	for _, flag := range theirs {
		if err != nil || !slices.Contains(ours, flag) {
			t.Errorf("shaker_exporter --help has the flags %q, error %v, want --%s, too", ours, err, flag)
		}
	}
}

// With the page's configuration, one job sends each target to the exporter that has its module. Both exporters load
// the same file.
func TestModulesOfOneJob(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Need(t)
	modules := lab.Write(t, t.TempDir(), "blackbox.yml",
		"modules:\n  tcp_connect: {prober: tcp}\n  http_2xx: {prober: http, http: {method: GET}}\n")
	process.StartBlackbox(t, modules)
	exporter.Start(t, "--config.file="+modules)
	text := snippetWith(t, blackboxPage, "yaml", "job_name: endpoints")
	for _, change := range [][2]string{
		{"db.example.com:5432", "127.0.0.1:10115"},
		{"https://www.example.com/", "http://127.0.0.1:10115/"},
		{"scrape_configs:\n", "global: {scrape_interval: 1s}\nscrape_configs:\n"},
	} {
		if strings.Count(text, change[0]) != 1 {
			t.Fatalf("the page's configuration has %q %d times, want once", change[0], strings.Count(text, change[0]))
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	file := lab.Write(t, t.TempDir(), "prometheus.yml", text)
	prometheus := process.StartPrometheus(t, 9090, file)
	series := func(expression string, want int) func() bool {
		return func() bool { return len(prometheus.Query(expression)) == want }
	}
	lab.Eventually(t, "shaker_exporter has probed its target", series(`probe_result_info{result="open"}`, 1))
	lab.Eventually(t, "blackbox_exporter has probed its target", series(`probe_http_status_code == 200`, 1))
	lab.Eventually(t, "both targets are up", series(`up == 1 and probe_success == 1`, 2))

	// The control case: without the rule, blackbox_exporter probes both.
	without, _, found := strings.Cut(text, "      # These modules")
	if !found {
		t.Fatal("the page's configuration lacks the comment of the rule")
	}
	if err := os.WriteFile(file, []byte(without), 0o644); err != nil {
		t.Fatal(err)
	}
	prometheus.Signal(syscall.SIGHUP)
	lab.Eventually(t, "shaker_exporter probes no target", series(`probe_result_info`, 0))
	lab.Eventually(t, "blackbox_exporter probes both targets", series(`probe_success == 1`, 2))
}

// changeOf returns the line that a diff removes, and the line that it adds.
func changeOf(t *testing.T, diff string) (old, changed string) {
	t.Helper()
	for line := range strings.Lines(diff) {
		switch rest := line[1:]; line[0] {
		case '-':
			old += rest
		case '+':
			changed += rest
		}
	}
	if strings.Count(old, "\n") != 1 || strings.Count(changed, "\n") != 1 {
		t.Fatalf("the diff removes %q and adds %q, want one line each", old, changed)
	}
	return old, changed
}
