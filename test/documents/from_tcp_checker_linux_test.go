package documents

import (
	"regexp"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// With the job that replaces the daemon of tcp-shaker, each expression of the table has a result. The expression for a
// kind of error counts the target with this error, and no other.
func TestQueriesOfTCPChecker(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	simnet.NewWire(t, nil, "192.0.2.0/24") // nothing answers
	simnet.ServeDNS(t, "127.0.0.1:53", nil)
	lab.Program(t, "sh", "dash") // for process.WithFiles
	exporter.Run(t, process.WithFiles(t, exporter.Command(t, "--timeout-offset=0.2"), map[string]string{
		"/etc/resolv.conf": lab.Write(t, t.TempDir(), "resolv.conf", "nameserver 127.0.0.1\n"),
	}))
	job := snippetWith(t, libraryPage, "yaml", "job_name: shaker")
	config := lab.Replace(t, libraryPage, job,
		"- example.com:443\n", "- 127.0.0.1:10115\n          - 127.0.0.1:1\n",
		"- db.example.com:5432\n", "- 192.0.2.1:443\n          - none.example.com:443\n",
		"scrape_interval: 15s", "scrape_interval: 1s")
	prometheus := process.Prometheus3.Start(t, 9090, lab.Write(t, t.TempDir(), "prometheus.yml", config))

	_, section, found := strings.Cut(lab.Read(t, libraryPage), "\n| daemon | shaker_exporter |\n")
	if !found {
		t.Fatalf("%s has no table about the daemon", libraryPage)
	}
	section, _, _ = strings.Cut(section, "\n\n")
	targets := map[string]string{"timeout": "192.0.2.1:443", "connect": "127.0.0.1:1", "other": "none.example.com:443"}
	tried := 0
	for line := range strings.Lines(section) {
		_, ours, _ := strings.Cut(strings.Trim(line, "|\n"), "|")
		kind := regexp.MustCompile(`error_type="(\w+)"`).FindStringSubmatch(line)
		for _, code := range regexp.MustCompile("`([^`]*probe_[^`]*)`").FindAllStringSubmatch(ours, -1) {
			tried++
			query := code[1]
			lab.Eventually(t, query+" has a result", func() bool { return len(prometheus.Query(query)) > 0 })
			if kind == nil {
				continue
			}
			for _, s := range prometheus.Query(query) {
				if s.Labels["instance"] != targets[kind[1]] || s.Value < 1 {
					t.Errorf("Query(%s) has %v of %s, want at least 1, of %s only",
						query, s.Value, s.Labels["instance"], targets[kind[1]])
				}
			}
			delete(targets, kind[1])
		}
	}
	if tried < 5 || len(targets) > 0 {
		t.Errorf("the table of %s has %d expressions, and none for the errors %v, want at least 5, for all of them",
			libraryPage, tried, targets)
	}
}
