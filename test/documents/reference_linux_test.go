package documents

import (
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// docs/operation.md has the flags as --help prints them.
func TestOperationFlags(t *testing.T) {
	help, err := exporter.Command(t, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("shaker_exporter --help: %v: %s", err, help)
	}
	_, want, _ := strings.Cut(string(help), "Flags:\n")
	want = regexp.MustCompile(`(?m) +$`).ReplaceAllString(strings.Trim(want, "\n"), "")
	if !strings.Contains(lab.Read(t, operationPage), "```text\n"+want+"\n```") {
		t.Errorf("%s lacks the flags that --help prints:\n%s", operationPage, want)
	}
}

// docs/configuration.md has a row for each key of each section, with its default, and no row for any other key. The
// keys are those of examples/shaker.yml, which a test in internal/config compares with the exporter.
func TestConfigurationKeys(t *testing.T) {
	example := lab.Read(t, "examples/shaker.yml")
	uncommented := regexp.MustCompile(`(?m)^( *)#(\w)`).ReplaceAllString(example, "$1$2")
	defaults, keys := keysOf(t, example, "tcp_connect", "tcp"), keysOf(t, uncommented, "tcp_connect", "tcp")
	if len(keys) < 10 || len(defaults) < 5 || len(defaults) >= len(keys) {
		t.Fatalf("examples/shaker.yml has %d keys below tcp, %d of them with a default, want more of both",
			len(keys), len(defaults))
	}
	compareKeys(t, "key", keys, defaults)
	for _, section := range []struct {
		path  []string // of the module and its sections
		least int      // number of keys
	}{
		{path: []string{"tcp_watch", "watch"}, least: 3},
		{path: []string{"redis_held", "hold"}, least: 7},
		{path: []string{"redis_held", "hold", "keepalive"}, least: 3},
		{path: []string{"redis_held", "hold", "heartbeat"}, least: 6},
		{path: []string{"redis_held", "hold", "reconnect"}, least: 2},
		{path: []string{"path_idle", "idle"}, least: 4},
	} {
		name := section.path[len(section.path)-1]
		keys := keysOf(t, uncommented, section.path...)
		if len(keys) < section.least {
			t.Errorf("examples/shaker.yml has the keys %v below %s, want at least %d", keys, name, section.least)
		}
		defaults := keys // the values in the example are the defaults
		switch name {
		case "hold": // heartbeat and greeting are commented out
			defaults = keysOf(t, example, section.path...)
		case "heartbeat": // what is sent and expected has no default
			defaults = map[string]string{}
			for _, key := range []string{"interval", "timeout", "max_frame"} {
				defaults[key] = keys[key]
			}
		}
		compareKeys(t, "key below `"+name+"`", keys, defaults)
	}
}

// compareKeys compares a table of docs/configuration.md with the keys of a section and their defaults.
func compareKeys(t *testing.T, heading string, keys, defaults map[string]string) {
	t.Helper()
	table := rows(t, configurationPage, heading)
	for key := range keys {
		cells, ok := table[key]
		if !ok {
			t.Errorf("%s has no row for the key %s", configurationPage, key)
			continue
		}
		want, ok := defaults[key]
		if ok && cells[0] != want {
			t.Errorf("%s: row %s has the default %q, want %q", configurationPage, key, cells[0], want)
		}
	}
	for key := range table {
		if _, ok := keys[key]; !ok {
			t.Errorf("%s, table %q: a row for %s, which is not a key there", configurationPage, heading, key)
		}
	}
}

// keysOf returns the keys of a section in a configuration, with their values as the file has them. The path begins with
// the name of a module.
func keysOf(t *testing.T, configuration string, path ...string) map[string]string {
	t.Helper()
	var file struct{ Modules map[string]yaml.Node }
	if err := yaml.Unmarshal([]byte(configuration), &file); err != nil {
		t.Fatalf("%v in\n%s", err, configuration)
	}
	values := file.Modules
	for i, name := range path {
		node := values[name]
		values = nil
		if err := node.Decode(&values); err != nil {
			t.Fatalf("module %s: %v", strings.Join(path[:i+1], "."), err)
		}
	}
	keys := make(map[string]string)
	for key, value := range values {
		text, err := yaml.Marshal(&value)
		if err != nil {
			t.Fatalf("%s.%s: %v", strings.Join(path, "."), key, err)
		}
		keys[key] = strings.TrimSpace(string(text))
	}
	return keys
}

// docs/metrics.md has a row for each metric, with its labels, and no row for any other metric.
func TestMetricsTables(t *testing.T) {
	const modules = `modules:
  tcp_connect: {prober: tcp, tcp: {addresses: all, path: always}}
  flows: {prober: tcp, tcp: {flows: 2, path: always}}
  watched: {prober: tcp, watch: {}}
  held: {prober: hold, hold: {heartbeat: {send: "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"}}}
  idle: {prober: idle, idle: {steps: [1s, 4s], probe: {interval: 1s, count: 1}}}
  watched_flows: {prober: tcp, watch: {}, tcp: {flows: 2}}`
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", modules))
	exported := make(map[string]bool)
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.ICMP("192.0.2.1", 3, 13))
	good := network.Hidden(simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2")
	broken := network.Hidden(simnet.RST()).Behind("198.51.100.1", "198.51.100.3")
	network.At("192.0.2.2").Over(func(syn simnet.Segment) *simnet.Host {
		return []*simnet.Host{good, broken}[syn.Src.Port()%2]
	})
	const held = "/probe?target=localhost:10115&module=held"
	lab.Eventually(t, "a heartbeat is answered", func() bool {
		_, body := exporter.Get(t, held)
		return strings.Contains(body, "\nprobe_hold_heartbeats_total 1\n")
	})
	const idle = "/probe?target=localhost:7080&module=idle"
	closeAfter(t, "localhost:7080", 2500*time.Millisecond)
	lab.Eventually(t, "idle connections are measured", func() bool {
		_, body := exporter.Get(t, idle)
		return strings.Contains(body, "probe_idle_told_seconds")
	})
	exporter.StartOn(t, 10116, "--probe.engine=raw") // has metrics of its own
	collect := func(body string) {
		for _, line := range regexp.MustCompile(`(?m)^# TYPE ((?:probe|shaker)_\S+)`).FindAllStringSubmatch(body, -1) {
			exported[line[1]+labelsOf(body, line[1])] = true
		}
	}
	_, body := exporter.Scrape(t, 10116, "/metrics", "")
	collect(body)
	for _, path := range []string{
		"/probe?target=192.0.2.1:1", "/probe?target=192.0.2.2:1&module=flows", "/probe?target=localhost:10115",
		"/probe?target=localhost:10115&module=watched",
		held, idle,
		"/metrics",
	} {
		_, body := exporter.Get(t, path)
		collect(body)
	}
	const ofFlows = "probe_watch_flow_handshakes_total"
	_, body = exporter.Get(t, "/probe?target=localhost:10115&module=watched_flows")
	exported[ofFlows+labelsOf(body, ofFlows)] = true
	if len(exported) < 20 {
		t.Fatalf("the exporter exports %d metrics, want at least 20: %v", len(exported), exported)
	}
	for _, row := range metricRows(t, metricsPage) {
		if !exported[row] {
			t.Errorf("%s has a row for %s, which is not exported", metricsPage, row)
		}
		delete(exported, row)
	}
	for name := range exported {
		t.Errorf("%s has no row for %s, which is exported", metricsPage, name)
	}
}

// closeAfter accepts connections until the test ends, and closes each of them after a time.
func closeAfter(t *testing.T, address string, after time.Duration) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			time.AfterFunc(after, func() { conn.Close() })
		}
	}()
}

// metricRows returns the metric of each row of a page's tables of metrics, with a space and its sorted labels.
func metricRows(t *testing.T, page string) (rows []string) {
	t.Helper()
	row := regexp.MustCompile("(?m)^\\| `((?:probe|shaker)_[a-z_]+)(?:\\{([a-z_,]+)\\})?`")
	for _, found := range row.FindAllStringSubmatch(lab.Read(t, page), -1) {
		labels := strings.Split(found[2], ",")
		slices.Sort(labels)
		rows = append(rows, found[1]+" "+strings.Join(labels, ","))
	}
	return rows
}

// labelsOf returns a space and the sorted names of a metric's labels, without the bounds of histograms and the labels
// of the build information.
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
