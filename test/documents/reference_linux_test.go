package documents

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// docs/operation.md has the flags as --help prints them.
func TestOperationFlags(t *testing.T) {
	help, err := exporter.Command(t, "--help").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	_, want, _ := strings.Cut(string(help), "Flags:\n")
	want = regexp.MustCompile(`(?m) +$`).ReplaceAllString(strings.Trim(want, "\n"), "")
	if !strings.Contains(lab.Read(t, "docs/operation.md"), "```text\n"+want+"\n```") {
		t.Errorf("docs/operation.md lacks\n%s", want)
	}
}

// docs/metrics.md has a row for each metric, with its labels, and no row for others. Each row of README.md is one of
// them.
func TestMetricsTables(t *testing.T) {
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", "modules: {tcp_connect: {prober: tcp, tcp: {addresses: all, path: always}}}"))
	exported := make(map[string]bool)
	simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		return [][]byte{s.ICMPError(s.Dst.Addr(), 3, 13)}
	}, "192.0.2.0/24")
	for _, path := range []string{"/probe?target=192.0.2.1:1", "/probe?target=localhost:10115", "/metrics"} {
		_, body := exporter.Get(t, path)
		for _, line := range regexp.MustCompile(`(?m)^# TYPE ((?:probe|shaker)_\S+)`).FindAllStringSubmatch(body, -1) {
			exported[line[1]+labelsOf(body, line[1])] = true
		}
	}
	if len(exported) < 20 {
		t.Fatalf("only %v", exported)
	}
	rows := func(page string) (rows []string) {
		row := regexp.MustCompile("(?m)^\\| `((?:probe|shaker)_[a-z_]+)(?:\\{([a-z_,]+)\\})?`")
		for _, found := range row.FindAllStringSubmatch(lab.Read(t, page), -1) {
			labels := strings.Split(found[2], ",")
			slices.Sort(labels)
			rows = append(rows, found[1]+" "+strings.Join(labels, ","))
		}
		return rows
	}
	documented := rows("docs/metrics.md")
	for _, row := range documented {
		if !exported[row] {
			t.Errorf("docs/metrics.md has a row for %s, which is not exported", row)
		}
		delete(exported, row)
	}
	readme := rows("README.md")
	if len(readme) < 10 {
		t.Errorf("README.md has rows for %v only", readme)
	}
	for _, row := range readme {
		if !slices.Contains(documented, row) {
			t.Errorf("README.md has a row for %s, docs/metrics.md has none", row)
		}
	}
	for name := range exported {
		t.Errorf("docs/metrics.md has no row for %s", name)
	}
}

// labelsOf returns a space and the names of a metric's labels, in order, but for the bounds
// of histograms and what a build is described by.
func labelsOf(exposition, name string) string {
	series := regexp.MustCompile(`(?m)^` + name + `(?:_sum)?\{(.*)\} `).FindStringSubmatch(exposition)
	if series == nil || name == "shaker_exporter_build_info" {
		return " "
	}
	var labels []string
	for _, label := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(series[1], -1) {
		labels = append(labels, label[1])
	}
	slices.Sort(labels)
	return " " + strings.Join(labels, ",")
}
