package peers

import (
	"net/url"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// promtool finds nothing wrong with the metrics and with examples/prometheus.yml.
func TestPromtool(t *testing.T) {
	promtool := lab.Program(t, "promtool", "prometheus")
	exporter.Start(t)
	check := func(metrics string) (output string, err error) {
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(metrics)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, path := range []string{"/probe?target=localhost:10115", "/probe?target=localhost:1", "/metrics"} {
		_, body := exporter.Get(t, path)
		if out, err := check(body); err != nil || out != "" {
			t.Errorf("promtool check metrics, of GET %s: %v, %s\nwant success and no output", path, err, out)
		}
	}
	const file = "examples/prometheus.yml"
	if out, err := process.Promtool(t, "check", "config", file); err != nil {
		t.Errorf("promtool check config %s: %v, want success\n%s", file, err, out)
	}
	// The control: promtool rejects a metric whose name breaks its rules.
	const wrong = "probe_Milliseconds 1\n"
	if out, err := check(wrong); err == nil {
		t.Errorf("promtool check metrics, of %q, succeeds with the output %q, want an error", wrong, out)
	}
}

// The exporter has the same metrics of a TCP probe as blackbox_exporter, with the same values where they do not
// vary from probe to probe. The only exception is blackbox_exporter's metric about its regular expressions.
func TestBlackboxExporter(t *testing.T) {
	exporter.Start(t)
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	equal := []string{"probe_success", "probe_ip_protocol", "probe_ip_addr_hash"}
	for _, target := range []string{
		"localhost:10115", "127.0.0.1:10115", "[::1]:10115", "127.0.0.1:1", "absent.invalid:80",
	} {
		path := "/probe?module=tcp_connect&target=" + url.QueryEscape(target)
		_, theirs := exporter.Scrape(t, 9115, path, "")
		_, ours := exporter.Scrape(t, exporter.Port, path, "")
		compared := 0
		for name, want := range series(theirs) {
			got, ok := series(ours)[name]
			switch {
			case name == "probe_failed_due_to_regex":
			case name == "probe_ip_addr_hash" && want == "0" && !ok: // no address, no hash
			case !ok:
				t.Errorf("GET %s = %s\nwant the metric %s in it, as blackbox_exporter has it", path, ours, name)
			case slices.Contains(equal, name) && got != want:
				t.Errorf("GET %s has %s %s, want %s, as blackbox_exporter has it", path, name, got, want)
			default:
				compared++
			}
		}
		if compared < 4 {
			t.Errorf("GET %s has %d series in common with blackbox_exporter, want at least 4, in\n%s",
				path, compared, theirs)
		}
	}
}

// series returns the values of the series without labels in an exposition, by name.
func series(exposition string) map[string]string {
	values := make(map[string]string)
	for _, line := range regexp.MustCompile(`(?m)^(probe_[a-z_]+) (\S+)$`).FindAllStringSubmatch(exposition, -1) {
		values[line[1]] = line[2]
	}
	return values
}
