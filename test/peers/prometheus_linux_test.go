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

// promtool has nothing to say against the metrics and the example.
func TestPromtool(t *testing.T) {
	promtool := lab.Program(t, "promtool", "prometheus")
	exporter.Start(t)
	for _, path := range []string{"/probe?target=localhost:10115", "/probe?target=localhost:1", "/metrics"} {
		_, body := exporter.Get(t, path)
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(body)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
	if out, err := process.Promtool(t, "check", "config", "examples/prometheus.yml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// The control: promtool does complain.
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader("probe_Milliseconds 1\n")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("promtool accepts anything: %s", out)
	}
}

// What blackbox_exporter exports of a TCP probe has the same name and value here, but for
// the one metric about its regular expressions.
func TestBlackboxExporter(t *testing.T) {
	exporter.Start(t)
	process.StartBlackbox(t, "test/testdata/blackbox.yml")
	for _, target := range []string{"localhost:10115", "127.0.0.1:10115", "[::1]:10115", "127.0.0.1:1", "absent.invalid:80"} {
		path := "/probe?module=tcp_connect&target=" + url.QueryEscape(target)
		_, theirs := exporter.Scrape(t, 9115, path, "")
		_, ours := exporter.Scrape(t, 10115, path, "")
		compared := 0
		for name, value := range series(theirs) {
			got, ok := series(ours)[name]
			switch {
			case name == "probe_failed_due_to_regex":
			case name == "probe_ip_addr_hash" && value == "0" && !ok: // no address, no hash
			case !ok:
				t.Errorf("%s: no %s", target, name)
			case slices.Contains([]string{"probe_success", "probe_ip_protocol", "probe_ip_addr_hash"}, name) && got != value:
				t.Errorf("%s: %s is %s there and %s here", target, name, value, got)
			default:
				compared++
			}
		}
		if compared < 4 {
			t.Errorf("%s: only %d series to compare in\n%s", target, compared, theirs)
		}
	}
}

// series returns the values of an exposition's unlabelled series by their names.
func series(exposition string) map[string]string {
	values := make(map[string]string)
	for _, line := range regexp.MustCompile(`(?m)^(probe_[a-z_]+) (\S+)$`).FindAllStringSubmatch(exposition, -1) {
		values[line[1]] = line[2]
	}
	return values
}
