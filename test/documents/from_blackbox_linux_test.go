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

// What the page says of where the exporters differ is what Debian's blackbox_exporter and
// this one answer to the same requests.
func TestDifferencesFromBlackbox(t *testing.T) {
	const modules = `
modules:
  tcp_connect: {prober: tcp}
  ip4_only: {prober: tcp, tcp: {preferred_ip_protocol: ip4, ip_protocol_fallback: false}}
  from_elsewhere: {prober: tcp, tcp: {preferred_ip_protocol: ip4, source_ip_address: 192.0.2.7}}
`
	file := lab.Write(t, t.TempDir(), "blackbox.yml", modules)
	exporter.Start(t, "--config.file="+file)
	blackbox := lab.Program(t, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	process.Start(t, exec.Command(blackbox, "--config.file="+file)).Listening(9115)
	ssh, err := net.Listen("tcp", "127.0.0.1:22")
	if err != nil {
		t.Fatal(err)
	}
	defer ssh.Close()

	measured := make(map[string][]string)
	for name, query := range map[string]string{
		"an open port":               "module=tcp_connect&target=127.0.0.1:10115",
		"a closed port":              "module=tcp_connect&target=127.0.0.1:1",
		"a name that does not exist": "module=tcp_connect&target=absent.invalid:80",
		"no target":                  "module=tcp_connect",
		"an unknown module":          "module=absent&target=127.0.0.1:10115",
		"localhost:ssh: an open port, by its name":        "module=tcp_connect&target=localhost:ssh",
		"localhost: no port":                              "module=tcp_connect&target=localhost",
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

	// A module without timeout may take 5 s here, and there as long as Prometheus waits.
	if _, body := exporter.Scrape(t, 10115, "/probe?target=127.0.0.1:10115", "10"); !strings.Contains(body, "probe_timeout_seconds 5\n") {
		t.Errorf("the timeout is not 5 s in\n%s", body)
	}
	if _, body := exporter.Scrape(t, 9115, "/probe?debug=true&module=tcp_connect&target=127.0.0.1:10115", "10"); !strings.Contains(body, "timeout_seconds=9.5") {
		t.Errorf("blackbox_exporter's timeout is not 9.5 s in\n%s", body)
	}
	// Without a module it is tcp_connect here, and another one there.
	if _, body := exporter.Scrape(t, 9115, "/probe?target=127.0.0.1:10115", ""); !strings.Contains(body, `"http_2xx"`) {
		t.Errorf("blackbox_exporter's default module is not http_2xx: %s", body)
	}
	for target, added := range map[string]int{"127.0.0.1:10115": 7, "127.0.0.1:1": 3} {
		var names [2][]string
		for i, port := range []int{9115, 10115} {
			_, body := exporter.Scrape(t, port, "/probe?module=tcp_connect&target="+target, "")
			names[i] = regexp.MustCompile(`(?m)^probe_[a-z_]+`).FindAllString(body, -1)
		}
		without := func(these, those []string) []string {
			return slices.DeleteFunc(slices.Clone(these), func(name string) bool { return slices.Contains(those, name) })
		}
		if ours := without(names[1], names[0]); len(ours) != added {
			t.Errorf("%s: %d series are added, want %d: %s", target, len(ours), added, ours)
		}
		if gone := without(names[0], names[1]); !slices.Equal(gone, []string{"probe_failed_due_to_regex"}) {
			t.Errorf("%s: without a successor are %s", target, gone)
		}
	}
}

// Both exporters watch the same targets by the page's configuration, and its queries say
// where they disagree. Then the job moves by the page's change, and back.
func TestSideBySide(t *testing.T) {
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	running := exporter.Start(t, "--config.file=test/testdata/blackbox.yml")
	lab.Program(t, "promtool", "prometheus") // for the pages' own check
	text := snippetWith(t, blackboxPage, "yaml", "job_name: shaker")
	targets := regexp.MustCompile(`(?m)targets:\n(?: +- .*\n)+`)
	if n := len(targets.FindAllString(text, -1)); n < 3 {
		t.Fatalf("the page's configuration has %d lists of targets", n)
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
	lab.Eventually(t, "and the exporter itself", series(`shaker_exporter_build_info`, 1))

	queries := strings.Split(strings.TrimSpace(snippetWith(t, blackboxPage, "promql", "on (instance)")), "\n\n")
	if len(queries) != 2 {
		t.Fatalf("the page has %d queries about both", len(queries))
	}
	if got := prometheus.Query(queries[0]); len(got) != 0 {
		t.Errorf("they disagree: %v", got)
	}
	if got := prometheus.Query(queries[1]); len(got) != 2 {
		t.Errorf("no comparison of durations: %v", got)
	}

	// The control: to the one the port is open, and to the other it is closed from now on.
	closed := strings.Replace(text, `targets: ["127.0.0.1:10115", "127.0.0.1:1"]`, `targets: ["127.0.0.1:2", "127.0.0.1:1"]`, 1)
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
	lab.Eventually(t, "the query says where they disagree", func() bool {
		got := prometheus.Query(queries[0])
		return len(got) == 1 && got[0].Labels["instance"] == "127.0.0.1:10115"
	})

	// The job moves, and back. What says who answers is the one thing that blackbox_exporter
	// does not export.
	old, changed := changeOf(t, snippetWith(t, blackboxPage, "diff", "replacement"))
	at := strings.Index(text, old)
	if at < 0 {
		t.Fatalf("the page's configuration has no %q", old)
	}
	moved := text[:at] + changed + text[at+len(old):]
	reconfigure(moved)
	lab.Eventually(t, "the job has moved", series(`probe_result_info{job="tcp"}`, 2))
	running.Stop() // which is no target that is down
	lab.Eventually(t, "the job is not up", series(`up{job="tcp"} == 0`, 2))
	if got := prometheus.Query(`probe_success{job="tcp"}`); len(got) != 0 {
		t.Errorf("without an exporter: %v", got)
	}
	reconfigure(text)
	lab.Eventually(t, "the job has moved back, and goes on", series(`probe_success{job="tcp"}`, 2))
	if got := prometheus.Query(`probe_result_info{job="tcp"}`); len(got) != 0 {
		t.Errorf("it has not moved back: %v", got)
	}
}

// changeOf returns the lines that a diff takes away, and those that it puts there.
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
		t.Fatalf("the change is not one line: %s", diff)
	}
	return old, changed
}
