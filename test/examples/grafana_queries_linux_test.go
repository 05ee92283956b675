package examples

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A grafana sends the queries of dashboards to Prometheus, as Grafana does.
type grafana struct {
	t            testing.TB
	url          string // of Prometheus
	jobs, failed []string
}

// newGrafana returns a grafana with the values that Prometheus has for the variables job and failed.
func newGrafana(t testing.TB, port int, fleet *board) *grafana {
	g := &grafana{t: t, url: fmt.Sprintf("http://localhost:%d", port)}
	g.jobs = g.values(fleet, "job")
	g.failed = g.results(fleet, "failed")
	return g
}

// variableQuery matches the query of a variable with a pattern. It returns the groups of the pattern, and the regular
// expression of the variable.
func (g *grafana) variableQuery(d *board, name, pattern string) (parts []string, regex string) {
	g.t.Helper()
	i := slices.IndexFunc(d.Templating.List, func(v dashboard.VariableModel) bool { return v.Name == name })
	v := d.Templating.List[i]
	query, _ := v.Query.Map["query"].(string)
	m := regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(query)
	if m == nil || orEmpty(v.Definition) != query || *v.Refresh != dashboard.VariableRefreshOnTimeRangeChanged {
		g.t.Fatalf("query of variable %s = %q, want %s as definition, too, refreshed with the time range",
			name, query, pattern)
	}
	return m[1:], orEmpty(v.Regex)
}

const labelValues = `label_values\((.*), (\w+)\)`

// values returns the values that a variable can have.
func (g *grafana) values(d *board, name string) []string {
	g.t.Helper()
	m, _ := g.variableQuery(d, name, labelValues)
	path := "label/" + m[1] + "/values?match[]=" + url.QueryEscape(g.interpolate(m[0], ""))
	var response struct{ Data []string }
	g.get(path, &response)
	return response.Data
}

// valuesWithin returns the values that a variable can have within a short time range. Prometheus itself would consider
// all series of the last hours.
func (g *grafana) valuesWithin(d *board, name string, within time.Duration) (values []string) {
	g.t.Helper()
	m, _ := g.variableQuery(d, name, labelValues)
	query := fmt.Sprintf("group by (%s) (last_over_time(%s[%s]))", m[1], m[0], within)
	for _, s := range g.queryInstant(query, "") {
		values = append(values, s.labels[m[1]])
	}
	slices.Sort(values)
	return values
}

// results returns the values of a variable that Grafana extracts from the result of a query.
func (g *grafana) results(d *board, name string) (values []string) {
	g.t.Helper()
	m, regex := g.variableQuery(d, name, `query_result\((.*)\)`)
	for _, s := range g.queryInstant(m[0], "") {
		var labels []string
		for label, value := range s.labels {
			labels = append(labels, label+`="`+value+`"`)
		}
		text := fmt.Sprintf("{%s} %v %d", strings.Join(labels, ","), s.last(), time.Now().UnixMilli())
		if value := regexp.MustCompile(strings.Trim(regex, "/")).FindStringSubmatch(text); value != nil {
			values = append(values, value[1])
		}
	}
	return values
}

// get decodes a response of Prometheus' API.
func (g *grafana) get(path string, to any) {
	g.t.Helper()
	url := g.url + "/api/v1/" + path
	text := lab.Get(g.t, url)
	if err := json.Unmarshal([]byte(text), to); err != nil {
		g.t.Fatalf("GET %s: %v in %s", url, err, text)
	}
}

const (
	timeRange      = time.Minute     // of the dashboards
	scrapeInterval = 2 * time.Second // long enough for a SYN retransmission within the scrape timeout
)

// interpolate replaces the variables in a query with their values, as Grafana's data source does.
func (g *grafana) interpolate(expression, instance string) string {
	oneOf := func(values []string) string {
		var escaped []string
		for _, value := range values {
			escaped = append(escaped, strings.ReplaceAll(regexp.QuoteMeta(value), `\`, `\\`))
		}
		return "(" + strings.Join(escaped, "|") + ")"
	}
	return strings.NewReplacer(
		everyEvaluation, fmt.Sprintf("%s:%s", timeRange, scrapeInterval),
		everyScrape, fmt.Sprintf("%s:%s", 4*scrapeInterval, scrapeInterval), // with the interval of this Prometheus
		"$__rate_interval", (4 * scrapeInterval).String(),
		"$__range", timeRange.String(),
		"$job", oneOf(g.jobs),
		"$failed", oneOf(g.failed),
		"$instance", instance,
		"$objective", "99.9",
	).Replace(expression)
}

// A series is a series in the result of a query. Each value of a native histogram is the count of its samples.
type series struct {
	labels map[string]string
	values []float64
}

// last returns the latest value.
func (s series) last() float64 { return s.values[len(s.values)-1] }

// queryInstant sends an instant query.
func (g *grafana) queryInstant(expression, instance string) []series {
	g.t.Helper()
	no, yes := false, true
	return g.query(&prometheus.Dataquery{Expr: expression, Range: &no, Instant: &yes}, instance)
}

// query sends a query with the values of the variables.
func (g *grafana) query(query *prometheus.Dataquery, instance string) (result []series) {
	g.t.Helper()
	parameters := url.Values{"query": {g.interpolate(query.Expr, instance)}}
	path := "query"
	if *query.Range {
		path = "query_range"
		now := time.Now()
		parameters.Set("start", strconv.FormatInt(now.Add(-timeRange).Unix(), 10))
		parameters.Set("end", strconv.FormatInt(now.Unix(), 10))
		parameters.Set("step", scrapeInterval.String())
	}
	var response struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  []any // a point: the time, and the value as text
				Values [][]any

				Histograms [][]any // points with histograms
			}
		}
	}
	g.get(path+"?"+parameters.Encode(), &response)
	for _, found := range response.Data.Result {
		s := series{labels: found.Metric}
		if found.Value != nil {
			found.Values = append(found.Values, found.Value)
		}
		for _, point := range found.Histograms {
			histogram := point[1].(map[string]any)
			found.Values = append(found.Values, []any{point[0], histogram["count"]})
		}
		for _, point := range found.Values {
			value, err := strconv.ParseFloat(point[1].(string), 64)
			if err != nil {
				g.t.Fatalf("query %s: %v", query.Expr, err)
			}
			s.values = append(s.values, value)
		}
		result = append(result, s)
	}
	return result
}

// queryAll sends a query with each value that the variable instance can have.
func (g *grafana) queryAll(query *prometheus.Dataquery, instances []string) (result []series) {
	g.t.Helper()
	if !strings.Contains(query.Expr, "$instance") {
		instances = instances[:1]
	}
	for _, instance := range instances {
		result = append(result, g.query(query, instance)...)
	}
	return result
}

// panelNamed returns the panel with a title.
func panelNamed(t testing.TB, d *board, title string) *dashboard.Panel {
	t.Helper()
	for _, p := range panelsOf(d) {
		if orEmpty(p.Title) == title {
			return p
		}
	}
	t.Fatalf("the dashboard has no panel %q", title)
	return nil
}

// dataProblems returns the queries of a dashboard for which Prometheus has no number, and the labels, columns and
// fields of a dashboard that no series has.
func (g *grafana) dataProblems(d *board, instances []string) (problems []string) {
	g.t.Helper()
	for _, p := range panelsOf(d) {
		complain := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("panel %q: ", *p.Title)+fmt.Sprintf(format, args...))
		}
		labels := make(map[string]bool) // of all queries
		for _, query := range queriesOf(p) {
			result := g.queryAll(query, instances)
			finite := func(value float64) bool { return !math.IsNaN(value) && !math.IsInf(value, 0) }
			if !slices.ContainsFunc(result, func(s series) bool { return slices.ContainsFunc(s.values, finite) }) {
				complain("query %s returns no number: %s", *query.RefId, query.Expr)
			}
			has := make(map[string]bool)
			for _, s := range result {
				for label := range s.labels {
					has[label], labels[label] = true, true
				}
			}
			if p.Type == "table" && len(p.Targets) > 1 && has["__name__"] {
				complain("query %s keeps the metric's name, so that its rows differ from those of other queries",
					*query.RefId)
			}
			for _, label := range legendLabel.FindAllStringSubmatch(orEmpty(query.LegendFormat), -1) {
				native := p.Type == "heatmap" && len(has) == 0 // a native histogram has no label le
				if !has[label[1]] && !native {
					complain("the legend of query %s has %s, which no series has", *query.RefId, label[1])
				}
			}
		}
		if p.Type == "table" && !isMatrix(p) {
			for _, problem := range columnProblems(p, labels) {
				complain("%s", problem)
			}
		}
		isMerge := func(t dashboard.DataTransformerConfig) bool { return t.Id == "merge" }
		if slices.ContainsFunc(p.Transformations, isMerge) {
			some := instances
			if !strings.Contains(queriesOf(p)[0].Expr, "$instance") {
				some = instances[:1]
			}
			for _, instance := range some {
				for _, problem := range g.mergeProblems(p, instance) {
					complain("%s", problem)
				}
			}
		}
	}
	return problems
}

// mergeProblems returns the queries of a table that have other rows than the first query. Grafana merges rows that
// agree in the columns which all queries have. If a query returns no series, its only column is the time. Then Grafana
// merges no rows, and a browser compares every row with every other one.
func (g *grafana) mergeProblems(p *dashboard.Panel, instance string) (problems []string) {
	g.t.Helper()
	var results [][]series
	common := make(map[string]int) // the number of results with a label
	for _, query := range queriesOf(p) {
		result := g.query(query, instance)
		results = append(results, result)
		labels := make(map[string]bool)
		for _, s := range result {
			for label := range s.labels {
				labels[label] = true
			}
		}
		for label := range labels {
			common[label]++
		}
	}
	maps.DeleteFunc(common, func(_ string, n int) bool { return n < len(results) })
	keys := slices.Sorted(maps.Keys(common))
	want := formatLabels(results[0], keys...)
	for i, result := range results {
		if got := formatLabels(result, keys...); got != want || len(result) > 0 && len(keys) == 0 {
			problems = append(problems, fmt.Sprintf("query %s has other rows than query A, by the labels %q: %s, "+
				"want %s", *queriesOf(p)[i].RefId, keys, got, want))
		}
	}
	return problems
}

// columnProblems returns the names in a table that are not names of columns, and the columns without a name. The series
// of the table have the given labels.
func columnProblems(p *dashboard.Panel, labels map[string]bool) (problems []string) {
	columns := []string{"Time", "Value"}
	for _, query := range queriesOf(p) {
		columns = append(columns, "Value #"+*query.RefId)
	}
	columns = append(columns, slices.Collect(maps.Keys(labels))...)
	o := organizeOf(p)
	var shown []string
	for _, column := range columns {
		if !o.ExcludeByName[column] {
			shown = append(shown, o.rename(column))
		}
	}
	need := func(columns []string, name, what string) {
		if !slices.Contains(columns, name) {
			problems = append(problems, fmt.Sprintf("%s names a column %q, which does not exist", what, name))
		}
	}
	for name := range o.ExcludeByName {
		need(columns, name, "excludeByName")
	}
	for name := range o.RenameByName {
		need(columns, name, "renameByName")
	}
	for name := range o.IndexByName {
		need(columns, name, "indexByName")
	}
	for _, by := range p.Options.(*table.Options).SortBy {
		need(shown, by.DisplayName, "sortBy")
	}
	for _, override := range p.FieldConfig.Overrides {
		need(shown, fmt.Sprint(override.Matcher.Options), "an override")
		for _, property := range override.Properties {
			if property.Id != "links" {
				continue
			}
			links, _ := dataLinks(property)
			for _, link := range links {
				for _, field := range fieldOfData.FindAllStringSubmatch(link.URL, -1) {
					need(shown, field[1], "a link")
				}
			}
		}
	}
	for label := range labels {
		if _, ok := o.RenameByName[label]; !ok && !o.ExcludeByName[label] && label != "__name__" {
			problems = append(problems, fmt.Sprintf("column %q has no human-readable name", label))
		}
	}
	return problems
}

const grafanaExporter = `
modules:
  tcp_connect: {prober: tcp}
  path: {prober: tcp, tcp: {path: always}}
  all: {prober: tcp, tcp: {addresses: all}}
  fault: {prober: tcp, tcp: {source_ip_address: 203.0.113.9}}
  audit: {prober: tcp, tcp: {valid_results: [refused, timeout]}}
  flows: {prober: tcp, tcp: {flows: 4, path: on_failure}}
  watch: {prober: tcp, timeout: 500ms, watch: {interval: 100ms}, tcp: {valid_results: [open, timeout]}}
  hold:
    prober: hold
    hold: {heartbeat: {interval: 1s, send: "PING\n", expect: ^PONG, frame: {delimiter: "\n"}}, reconnect: {max: 1s}}
  idle: {prober: idle, idle: {steps: [1s, 4s], probe: {interval: 1s, count: 1}}}
`

// Two probers, which are the same exporter with different modules, probe the targets of the job "views", with opposite
// results.
var grafanaPrometheus = `
global: {scrape_interval: ` + scrapeInterval.String() + `, scrape_timeout: ` + scrapeInterval.String() + `}
scrape_configs:
  - job_name: shaker
    metrics_path: /probe
    static_configs:
      - targets: ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80", "absent.test:80", nonsense]
      - {targets: ["192.0.2.4:80", "192.0.2.5:80"], labels: {prober: near}}
      - {targets: ["192.0.2.9:80"], labels: {__param_module: fault}}
      - {targets: ["192.0.2.11:80", "192.0.2.12:80"], labels: {job: paths, prober: near, __param_module: path}}
      - {targets: ["192.0.2.31:80"], labels: {job: flows, prober: near, __param_module: flows}}
      - {targets: ["pair.test:80"], labels: {job: names, prober: near, __param_module: all}}
      - {targets: ["192.0.2.1:80", "192.0.2.2:80"], labels: {job: views, prober: near}}
      - {targets: ["192.0.2.1:80", "192.0.2.2:80"], labels: {job: views, prober: far, __param_module: audit}}
      - {targets: ["192.0.2.1:80"], labels: {job: steady}}
      - {targets: ["lossy.test:80"], labels: {job: watched, prober: near, __param_module: watch}}
      - targets: ["short.test:7001", "silent.test:7002"]
        labels: {job: held, prober: near, __param_module: hold}
      - {targets: ["cut.test:7003"], labels: {job: idle, prober: near, __param_module: idle}}
    relabel_configs:
      - {source_labels: [__address__], target_label: __param_target}
      - {source_labels: [__param_target], target_label: instance}
      - {target_label: __address__, replacement: "localhost:10115"}
  - job_name: shaker_exporter
    static_configs: [{targets: ["localhost:10115"]}]
`

// servePongs answers each line of a client, as long as next returns true for how often it has answered already.
func servePongs(t *testing.T, address string, next func(conn net.Conn, answers int) bool) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	kernel.Serve(t, l, func(conn net.Conn) {
		lines := bufio.NewScanner(conn)
		for answers := 0; lines.Scan(); answers++ {
			if next(conn, answers) {
				io.WriteString(conn, "PONG\n")
			}
		}
	})
}

// cutSilentClients ends each connection with an RST after some time.
func cutSilentClients(t *testing.T, address string, after time.Duration) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	kernel.Serve(t, l, func(conn net.Conn) {
		conn.SetReadDeadline(time.Now().Add(after))
		io.Copy(io.Discard, conn)
		conn.(*net.TCPConn).SetLinger(0)
	})
}

// newGrafanaNetwork starts a simulated network with everything for which a dashboard has a panel, and an exporter.
func newGrafanaNetwork(t *testing.T) *process.Process {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK().After(20*time.Millisecond))
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3")
	network.At("192.0.2.4", simnet.SYNACK()).LosingSYNs(1)
	network.At("192.0.2.5", simnet.ICMP("198.51.100.9", 3, 13))
	network.At("192.0.2.6", simnet.SYNACK()).Losing(0.2, 0)
	network.At("192.0.2.11", simnet.SYNACK().After(10*time.Millisecond)).Behind("198.51.100.1", "198.51.100.2")
	network.At("192.0.2.12").Behind("198.51.100.1", "198.51.100.3")
	network.At("192.0.2.21", simnet.SYNACK())
	network.At("192.0.2.22", simnet.RST())
	good := network.Hidden(simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.4")
	broken := network.Hidden(simnet.RST()).Behind("198.51.100.1", "198.51.100.5")
	network.At("192.0.2.31").Over(func(syn simnet.Segment) *simnet.Host {
		return []*simnet.Host{good, broken}[syn.Src.Port()%2]
	})
	servePongs(t, "127.0.0.1:7001", func(conn net.Conn, answers int) bool {
		if answers == 3 {
			conn.Close()
		}
		return true
	})
	servePongs(t, "127.0.0.1:7002", func(_ net.Conn, answers int) bool { return answers < 1 })
	cutSilentClients(t, "127.0.0.1:7003", 2*time.Second)
	lab.Program(t, "sh", "dash") // for process.WithFiles
	dir := t.TempDir()
	config := lab.Write(t, dir, "shaker.yml", grafanaExporter)
	cmd := exporter.Command(t, "--web.listen-address=127.0.0.1:10115", "--config.file="+config)
	p := process.Start(t, process.WithFiles(t, cmd, map[string]string{
		"/etc/hosts": lab.Write(t, dir, "hosts",
			"127.0.0.1 localhost\n192.0.2.21 pair.test\n192.0.2.22 pair.test\n192.0.2.6 lossy.test\n"+
				"127.0.0.1 short.test\n127.0.0.1 silent.test\n127.0.0.1 cut.test\n"),
		"/etc/resolv.conf": lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n"), // no DNS server listens there
	}))
	p.Listening(exporter.Port)
	return p
}

// Every query of every panel returns what the title of the panel says, with classic and with native histograms. During
// an outage of the exporter, the variables keep their values, and the targets are not measured.
func TestDashboardQueries(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Program(t, "prometheus", "prometheus")
	p := newGrafanaNetwork(t)
	config := lab.Write(t, t.TempDir(), "prometheus.yml", grafanaPrometheus)
	rules := lab.Write(t, t.TempDir(), "targets.yml", lab.Read(t, "rules/targets.yml"))
	evaluation := "evaluation_interval: " + scrapeInterval.String()
	withRules := lab.Write(t, t.TempDir(), "prometheus.yml", "rule_files: ["+rules+"]"+
		strings.Replace(grafanaPrometheus, "global: {", "global: {"+evaluation+", ", 1))
	classic := process.StartPrometheus(t, 9090, config)
	native := process.StartPrometheus(t, 9091, withRules, "--enable-feature=native-histograms")
	t.Run("classic", func(t *testing.T) { testDashboardQueries(t, classic, 9090) })
	t.Run("pages", func(t *testing.T) { testPromQLPages(t, classic) })
	t.Run("native", func(t *testing.T) {
		testDashboardQueries(t, native, 9091)
		if classic := native.Query("shaker_reset_lag_seconds_bucket"); len(classic) > 0 {
			t.Errorf("with native histograms, Prometheus has %d series of a classic one, want none", len(classic))
		}
	})
	for _, r := range rulesOf(t, "rules/prober.yml") {
		if r.Alert != "ResetsLate" {
			continue
		}
		lag := strings.ReplaceAll(r.Expr, "> 0.05", ">= 0")
		if n, m := len(classic.Query(lag)), len(native.Query(lag)); n == 0 || m == 0 {
			t.Errorf("%s finds %d classic histograms and %d native ones, want at least one each", r.Alert, n, m)
		}
	}
	classic.Stop()
	p.Stop()
	t.Run("outage", func(t *testing.T) { testOutage(t, native, 9091) })
}

// testOutage checks that the variables keep their values when the exporter has been down for longer than the time
// range. The targets are not measured, and no panel shows that they are up.
func testOutage(t *testing.T, server *process.Prometheus, port int) {
	const timeRange = 3 * scrapeInterval
	lab.Eventually(t, "no result is left in the time range", func() bool {
		return len(server.Query(fmt.Sprintf("last_over_time(probe_result_info[%s])", timeRange))) == 0
	})
	boards := readBoards(t)
	g := newGrafana(t, port, boards[fleetFile])
	for _, file := range []string{fleetFile, targetFile} {
		if g.jobs = g.valuesWithin(boards[file], "job", timeRange); len(g.jobs) != 9 {
			t.Errorf("%s, during an outage: the values of job are %q, want 9", file, g.jobs)
		}
	}
	if got := g.valuesWithin(boards[targetFile], "instance", timeRange); len(got) != 14 {
		t.Errorf("%s, during an outage: the values of instance are %q, want 14", targetFile, got)
	}
	for title, want := range map[string]string{
		"Targets": "19", "Not measured": "19", "Answering": "", "Down": "", "Losing SYNs": "", "Down now": "",
	} {
		got := ""
		for _, s := range g.query(queriesOf(panelNamed(t, boards[fleetFile], title))[0], "") {
			got += strconv.FormatFloat(s.last(), 'g', -1, 64)
		}
		if got != want {
			t.Errorf("panel %q, during an outage: %q, want %q", title, got, want)
		}
	}
}

// readBoards returns the dashboards by file.
func readBoards(t *testing.T) map[string]*board {
	t.Helper()
	boards := make(map[string]*board)
	for _, file := range []string{fleetFile, targetFile} {
		var err error
		if boards[file], err = readDashboard(lab.Read(t, file)); err != nil {
			t.Fatalf("read %s: %v", file, err)
		}
	}
	return boards
}

// testDashboardQueries checks the results of all queries of the dashboards.
func testDashboardQueries(t *testing.T, server *process.Prometheus, port int) {
	lab.Eventually(t, "each target has been scraped three times, and has a result", func() bool {
		return len(server.Query(`count_over_time(up[5m]) >= 3`)) == 22 &&
			len(server.Query(`probe_idle_rounds_total > 0`)) > 0 &&
			len(server.Query(`count_over_time(shaker_probe_failures_total[5m]) >= 3`)) > 0
	})
	boards := readBoards(t)
	g := newGrafana(t, port, boards[fleetFile])
	instances := g.values(boards[targetFile], "instance")
	want := []string{"flows", "held", "idle", "names", "paths", "shaker", "steady", "views", "watched"}
	if !slices.Equal(g.jobs, want) {
		t.Errorf("the values of job are %q, want %q", g.jobs, want)
	}
	if want := 14; len(instances) != want || !slices.Contains(instances, "pair.test:80") {
		t.Errorf("the values of instance are %q, want %d with pair.test:80", instances, want)
	}

	// A busy machine may miss a scrape, which changes the results.
	var problems []string
	defer func() {
		for _, problem := range problems {
			t.Errorf("the dashboards have a problem: %s", problem)
		}
	}()
	lab.Eventually(t, "the dashboards have no problems", func() bool {
		g.failed = g.results(boards[fleetFile], "failed")
		problems = g.dataProblems(boards[fleetFile], instances)
		problems = append(problems, g.dataProblems(boards[targetFile], instances)...)
		problems = append(problems, g.connectionProblems(boards)...)
		// The result of a held target changes when its connection ends.
		steady := &grafana{t: t, url: g.url, jobs: slices.DeleteFunc(slices.Clone(g.jobs), hasConnections)}
		steady.failed = steady.results(boards[fleetFile], "failed")
		problems = append(problems, steady.fleetProblems(boards[fleetFile])...)
		problems = append(problems, steady.targetProblems(boards[targetFile])...)
		return len(problems) == 0
	})

	// The control: each mistake in a dashboard is found.
	for _, c := range []struct {
		file, panel string
		want        string
		value       any
		path        []any
	}{
		{
			file: fleetFile, panel: "Targets", want: "returns no number", value: `count(up_and_down{job=~"$job"})`,
			path: []any{"targets", 0, "expr"},
		},
		{
			file: fleetFile, panel: "Memory", want: "returns no number",
			value: `process_residing_memory_bytes and on (job, instance) shaker_exporter_build_info`,
			path:  []any{"targets", 0, "expr"},
		},
		{
			file: fleetFile, panel: "Failures by reason", want: "has reason, which no series has",
			value: "{{reason}}", path: []any{"targets", 0, "legendFormat"},
		},
		{
			file: fleetFile, panel: "Down now", want: "keeps the metric's name",
			value: `probe_result_info{job=~"$job"}`, path: []any{"targets", 0, "expr"},
		},
		{
			file: fleetFile, panel: "Down now", want: "query B has other rows",
			value: `max by (job, instance, prober, from, icmp) (probe_icmp_info{job=~"$job"})`,
			path:  []any{"targets", 1, "expr"},
		},
		{
			file: fleetFile, panel: "Down now", want: "query C has other rows",
			value: `probe_path_last_hop{job=~"$job"} < 0`, path: []any{"targets", 2, "expr"},
		},
		{
			file: fleetFile, panel: "Down now", want: `renameByName names a column "errors"`, value: "Errno",
			path: []any{"transformations", 1, "options", "renameByName", "errors"},
		},
		{
			file: fleetFile, panel: "Down now", want: `column "errno" has no human-readable name`, value: nil,
			path: []any{"transformations", 1, "options", "renameByName", "errno"},
		},
		{
			file: fleetFile, panel: "Down now", want: `an override names a column "Goal"`, value: "Goal",
			path: []any{"fieldConfig", "overrides", 0, "matcher", "options"},
		},
		{
			file: fleetFile, panel: "Down now", want: `sortBy names a column "Goal"`, value: "Goal",
			path: []any{"options", "sortBy", 0, "displayName"},
		},
		{
			file: fleetFile, panel: "Down now", want: `a link names a column "Work"`,
			value: "/d/shaker-target?var-job=${__data.fields.Work}&${__url_time_range}",
			path:  []any{"fieldConfig", "overrides", 0, "properties", 1, "value", 0, "url"},
		},
		{
			file: targetFile, panel: "Path now", want: "returns no number",
			value: `probe_path_hop_info{instance="$instance", nothing="is"}`, path: []any{"targets", 0, "expr"},
		},
	} {
		source := lab.Read(t, c.file)
		path := append(panelPath(t, source, c.panel), c.path...)
		d, err := readDashboard(mutateJSON(t, source, c.value, path...))
		if err != nil {
			t.Fatalf("%s with %v = %v: %v", c.file, path, c.value, err)
		}
		got := g.dataProblems(d, instances)
		if !slices.ContainsFunc(got, func(problem string) bool {
			return strings.Contains(problem, c.want) && strings.Contains(problem, c.panel)
		}) {
			t.Errorf("panel %q with %v = %v: the problems are %q, want one with %q",
				c.panel, c.path, c.value, got, c.want)
		}
	}
}

// hasConnections reports whether the targets of a job are held, or their idle timeouts measured.
func hasConnections(job string) bool { return job == "held" || job == "idle" }

// connectionProblems returns the panels about held connections and idle timeouts whose results differ from the state
// of the test's network. The held connections to one target end after three answers, and another target is silent after
// the first one. A third target resets silent connections after two seconds.
func (g *grafana) connectionProblems(boards map[string]*board) (problems []string) {
	g.t.Helper()
	const short, silent, cut = "short.test:7001", "silent.test:7002", "cut.test:7003"
	for _, c := range []struct {
		file, title, instance string
		labels                string
		want                  string
	}{
		{file: fleetFile, title: "Established, but dead", labels: "instance job prober", want: silent + " held near"},
		{file: fleetFile, title: "Shortest lives", labels: "instance job prober", want: short + " held near"},
		{
			file: fleetFile, title: "Held connections", labels: "instance module",
			want: "localhost:10115 hold, localhost:10115 idle",
		},
		{file: fleetFile, title: "Outdated addresses", labels: "job", want: "held"},
		{file: targetFile, title: "Age of the connection", instance: silent, labels: "job prober", want: "held near"},
		{file: targetFile, title: "Age of the connection", instance: "192.0.2.1:80", labels: "job", want: ""},
		{
			file: targetFile, title: "Heartbeats not answered", instance: silent, labels: "result",
			want: "mismatch, silent, timeout",
		},
		{file: fleetFile, title: "Shortest idle timeouts", labels: "instance job prober", want: cut + " idle near"},
		{
			file: targetFile, title: "Steps", instance: cut, labels: "idle result errno",
			want: "1 open, 4 reset ECONNRESET",
		},
	} {
		result := g.query(queriesOf(panelNamed(g.t, boards[c.file], c.title))[0], c.instance)
		if got := formatLabels(result, strings.Fields(c.labels)...); got != c.want {
			problems = append(problems, fmt.Sprintf("panel %q of %q: %s, want %s", c.title, c.instance, got, c.want))
		}
	}
	for _, c := range []struct {
		title, result string
		instance      string
	}{
		{title: "Ends of connections", result: "closed", instance: short},
		{title: "Heartbeats not answered", result: "silent", instance: silent},
	} {
		result := g.query(queriesOf(panelNamed(g.t, boards[targetFile], c.title))[0], c.instance)
		for _, s := range result {
			if grew := slices.Max(s.values) > 0; grew != (s.labels["result"] == c.result) {
				problems = append(problems, fmt.Sprintf("panel %q of %s: %v, want only %s above 0",
					c.title, c.instance, s, c.result))
			}
		}
	}
	for query, want := range map[int][2]float64{0: {1, 2}, 1: {2, 2.5}, 2: {2, 2.5}} { // survived, lost, RST
		got := g.query(queriesOf(panelNamed(g.t, boards[targetFile], "Idle timeout"))[query], cut)
		if len(got) != 1 || got[0].last() < want[0] || got[0].last() > want[1] {
			problems = append(problems, fmt.Sprintf("panel \"Idle timeout\", query %d: %v, want %v", query, got, want))
		}
	}
	ended := g.query(queriesOf(panelNamed(g.t, boards[fleetFile], "Shortest idle timeouts"))[2], "")
	if len(ended) != 1 || ended[0].last() != 0 { // the name of 0 is application
		problems = append(problems, fmt.Sprintf("panel \"Shortest idle timeouts\", query 2: %v, want 0", ended))
	}
	return problems
}

// formatLabels returns the values of some labels of each series as text, sorted.
func formatLabels(result []series, labels ...string) string {
	var texts []string
	for _, s := range result {
		var values []string
		for _, label := range labels {
			values = append(values, s.labels[label])
		}
		texts = append(texts, strings.TrimSpace(strings.Join(values, " ")))
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

// fleetProblems returns the panels of fleet.json whose results differ from the state of the test's network.
func (g *grafana) fleetProblems(d *board) (problems []string) {
	g.t.Helper()
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	result := func(title string, query int) []series {
		return g.query(queriesOf(panelNamed(g.t, d, title))[query], "")
	}
	for title, want := range map[string]float64{
		"Targets": 16, "Answering": 5. / 14, "Down": 9, "Losing SYNs": 1, "Not measured": 2,
	} {
		if got := result(title, 0); len(got) != 1 || math.Abs(got[0].last()-want) > 1e-9 {
			complain("panel %q: %v, want %v", title, got, want)
		}
	}
	for _, c := range []struct {
		title  string
		query  int
		labels string
		want   string
	}{
		{
			title: "Down now", query: 0, labels: "instance job prober result errno",
			want: "192.0.2.12:80 paths near timeout ETIMEDOUT, 192.0.2.1:80 views far open, " +
				"192.0.2.2:80 shaker  refused ECONNREFUSED, 192.0.2.2:80 views near refused ECONNREFUSED, " +
				"192.0.2.31:80 flows near refused ECONNREFUSED, 192.0.2.3:80 shaker  timeout ETIMEDOUT, " +
				"192.0.2.5:80 shaker near prohibited EHOSTUNREACH, " +
				"absent.test:80 shaker  dns_error, pair.test:80 names near refused ECONNREFUSED",
		},
		{
			title: "Down now", query: 1, labels: "instance from icmp",
			want: "192.0.2.12:80, 192.0.2.1:80, 192.0.2.2:80, 192.0.2.2:80, 192.0.2.31:80, 192.0.2.3:80, " +
				"192.0.2.5:80 198.51.100.9 admin_prohibited, absent.test:80, pair.test:80",
		},
		{
			title: "Down now", query: 2, labels: "instance address",
			want: "192.0.2.12:80 198.51.100.3, 192.0.2.1:80, 192.0.2.2:80, 192.0.2.2:80, " +
				"192.0.2.31:80 192.0.2.31, 192.0.2.3:80, 192.0.2.5:80, absent.test:80, pair.test:80",
		},
		{
			title: "Failures by reason", query: 0, labels: "result errno",
			want: "dns_error, open, prohibited EHOSTUNREACH, refused ECONNREFUSED, timeout ETIMEDOUT",
		},
		{
			title: "Slowest targets", query: 0, labels: "instance job prober",
			want: "192.0.2.11:80 paths near, 192.0.2.1:80 shaker, 192.0.2.1:80 steady, " +
				"192.0.2.1:80 views far, 192.0.2.1:80 views near, lossy.test:80 watched near",
		},
		{title: "Most handshakes lost", query: 0, labels: "instance job prober", want: "lossy.test:80 watched near"},
		{title: "Most SYN retransmissions", query: 0, labels: "instance", want: "192.0.2.4:80"},
		{title: "Some flows fail", query: 0, labels: "instance job prober", want: "192.0.2.31:80 flows near"},
		{title: "Where flows fail", query: 0, labels: "address", want: "198.51.100.5"},
		{title: "ICMP errors", query: 0, labels: "from icmp", want: "198.51.100.9 admin_prohibited"},
		{
			title: "Last hops to targets that are down", query: 0, labels: "address",
			want: "192.0.2.31, 198.51.100.3",
		},
		{
			title: "Availability and error budget", query: 1, labels: "job",
			want: "flows, names, paths, shaker, steady, views, watched",
		},
	} {
		if got := formatLabels(result(c.title, c.query), strings.Fields(c.labels)...); got != c.want {
			complain("panel %q, query %d: %s, want %s", c.title, c.query, got, c.want)
		}
	}
	const results = "Results of failed targets"
	problems = append(problems, nameProblems(result(results, 0), panelNamed(g.t, d, results), map[string]string{
		"192.0.2.12:80 paths near": "timeout",
		"192.0.2.31:80 flows near": "refused",
		"192.0.2.2:80 shaker":      "refused",
		"192.0.2.1:80 views far":   "open, unwanted",
		"192.0.2.2:80 views near":  "refused",
		"192.0.2.3:80 shaker":      "timeout",
		"192.0.2.5:80 shaker near": "prohibited",
		"absent.test:80 shaker":    "dns_error",
		"pair.test:80 names near":  "refused",
	}, "instance", "job", "prober")...)
	want := []string{"192.0.2.12:80", "192.0.2.1:80", "192.0.2.2:80", "192.0.2.31:80", "192.0.2.3:80", "192.0.2.5:80",
		"absent.test:80", "pair.test:80"}
	if !slices.Equal(slices.Sorted(slices.Values(g.failed)), want) {
		complain("the values of the variable failed are %q, want %q", g.failed, want)
	}
	// The panel shows the targets of this variable, which may have no values.
	for _, failed := range [][]string{nil, {"192.0.2.3:80", "pair.test:80"}} {
		some := &grafana{t: g.t, url: g.url, jobs: g.jobs, failed: failed}
		shown := some.query(queriesOf(panelNamed(g.t, d, results))[0], "")
		if got, want := formatLabels(shown, "instance"), strings.Join(failed, ", "); got != want {
			complain("panel %q, with %q as failed: %s, want %s", results, failed, got, want)
		}
	}
	const budget = "Availability and error budget"
	for query, want := range []map[string]float64{{"names": 0, "steady": 1}, {"names": -999, "steady": 1}} {
		for _, s := range result(budget, query) {
			if want, ok := want[s.labels["job"]]; ok && math.Abs(s.last()-want) > 1e-6 {
				complain("panel %q, query %d: %v, want %v", budget, query, s, want)
			}
		}
	}
	for title, label := range map[string][2]string{
		"Faults by errno": {"errno", "EADDRNOTAVAIL"}, "Rejected by reason": {"reason", "bad_target"},
	} {
		got := result(title, 0)
		if !slices.ContainsFunc(got, func(s series) bool { return s.labels[label[0]] == label[1] && s.last() > 0 }) {
			complain("panel %q: %v, want %s=%q above 0", title, got, label[0], label[1])
		}
	}
	return problems
}

// nameProblems compares the names that a panel gives to the last values of series with the wanted names, by labels.
func nameProblems(result []series, p *dashboard.Panel, want map[string]string, labels ...string) (problems []string) {
	names := p.FieldConfig.Defaults.Mappings[0].ValueMap.Options
	got := make(map[string]string)
	for _, s := range result {
		got[formatLabels([]series{s}, labels...)] = orEmpty(names[strconv.Itoa(int(s.last()))].Text)
	}
	if !maps.Equal(got, want) {
		problems = append(problems, fmt.Sprintf("panel %q: %v, want %v", *p.Title, got, want))
	}
	return problems
}

// targetProblems returns the panels of target.json whose results differ from the state of the test's network.
func (g *grafana) targetProblems(d *board) (problems []string) {
	g.t.Helper()
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	result := func(title string, query int, instance string) []series {
		return g.query(queriesOf(panelNamed(g.t, d, title))[query], instance)
	}
	for _, c := range []struct {
		title    string
		query    int
		instance string
		labels   string
		want     string
	}{
		{
			title: "Path now", query: 0, instance: "192.0.2.11:80", labels: "hop address icmp",
			want: "1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, 3 192.0.2.11",
		},
		{
			title: "Path now", query: 0, instance: "192.0.2.12:80", labels: "hop address icmp",
			want: "1 198.51.100.1 ttl_exceeded, 2 198.51.100.3 ttl_exceeded",
		},
		{
			title: "RTT per hop", query: 0, instance: "192.0.2.11:80", labels: "hop address",
			want: "1 198.51.100.1, 2 198.51.100.2, 3 192.0.2.11",
		},
		{
			title: "Addresses now", query: 0, instance: "pair.test:80", labels: "ip result errno",
			want: "192.0.2.21 open, 192.0.2.22 refused ECONNREFUSED",
		},
		// one of them has no RTT
		{title: "Addresses now", query: 1, instance: "pair.test:80", labels: "ip", want: "192.0.2.21, 192.0.2.22"},
		{title: "RTT per address", query: 0, instance: "pair.test:80", labels: "ip", want: "192.0.2.21"},
		{title: "RTT per flow", query: 0, instance: "192.0.2.31:80", labels: "source_port", want: "32704, 32706"},
		{
			title: "Where the paths part", query: 0, instance: "192.0.2.31:80", labels: "address flows",
			want: "198.51.100.1 all, 198.51.100.5 those that fail",
		},
		{
			title: "ICMP errors", query: 0, instance: "192.0.2.5:80", labels: "from icmp icmp_type icmp_code",
			want: "198.51.100.9 admin_prohibited 3 13",
		},
		{
			title: "Availability", query: 0, instance: "192.0.2.2:80", labels: "job prober",
			want: "shaker, views far, views near",
		},
		// What was not measured is absent.
		{title: "RTT", query: 0, instance: "192.0.2.3:80", labels: "job", want: ""},
		{title: "Latency", query: 0, instance: "192.0.2.3:80", labels: "job", want: ""},
		{title: "Latency", query: 1, instance: "192.0.2.3:80", labels: "job", want: ""},
		{title: "Latency", query: 2, instance: "192.0.2.3:80", labels: "job", want: ""},
		{title: "MSS", query: 0, instance: "192.0.2.3:80", labels: "job", want: ""},
		{title: "Last success", query: 0, instance: "192.0.2.3:80", labels: "job", want: ""},
		{title: "Last hop", query: 0, instance: "192.0.2.3:80", labels: "job", want: ""},
		{title: "Last hop", query: 0, instance: "192.0.2.12:80", labels: "address", want: "198.51.100.3"},
		{title: "ACKs sent", query: 0, instance: "192.0.2.3:80", labels: "job", want: ""},
	} {
		got := formatLabels(result(c.title, c.query, c.instance), strings.Fields(c.labels)...)
		if got != c.want {
			complain("panel %q, query %d of %s: %s, want %s", c.title, c.query, c.instance, got, c.want)
		}
	}
	for instance, want := range map[string]map[string]string{
		"192.0.2.1:80": {"shaker": "open", "steady": "open", "views far": "open, unwanted", "views near": "open"},
		"192.0.2.3:80": {"shaker": "timeout"},
		"pair.test:80": {"names near": "refused"},
		"nonsense":     {"shaker": "not measured"},
	} {
		for _, title := range []string{"Current result", "Results"} {
			panel := panelNamed(g.t, d, title)
			for _, problem := range nameProblems(result(title, 0, instance), panel, want, "job", "prober") {
				complain("of %s: %s", instance, problem)
			}
		}
	}
	minuteAgo := float64(time.Now().Add(-time.Minute).UnixMilli())
	const perAddress = "Results per address"
	problems = append(problems, nameProblems(result(perAddress, 0, "pair.test:80"), panelNamed(g.t, d, perAddress),
		map[string]string{"192.0.2.21": "open", "192.0.2.22": "refused"}, "ip")...)
	const perFlow = "Results per flow"
	problems = append(problems, nameProblems(result(perFlow, 0, "192.0.2.31:80"), panelNamed(g.t, d, perFlow),
		map[string]string{"32704": "open", "32705": "refused", "32706": "open", "32707": "refused"}, "source_port")...)
	for _, c := range []struct {
		title    string
		query    int
		instance string
		min, max float64
	}{
		{title: "Availability", query: 0, instance: "192.0.2.11:80", min: 1, max: 1},
		{title: "Last hop", query: 0, instance: "192.0.2.12:80", min: 2, max: 2},
		{title: "Last success", query: 0, instance: "192.0.2.11:80", min: minuteAgo, max: minuteAgo + 120e3},
		{title: "RTT", query: 0, instance: "192.0.2.11:80", min: 0.01, max: 1},
		{title: "SYN retransmissions per probe", query: 0, instance: "192.0.2.4:80", min: 1, max: 1},
		{title: "MSS", query: 0, instance: "192.0.2.11:80", min: 1300, max: 1400},
		{title: "ACKs sent", query: 0, instance: "192.0.2.11:80", min: 0, max: 0},
		{title: "Where the path ends", query: 0, instance: "192.0.2.11:80", min: 3, max: 3},
		{title: "Where the path ends", query: 1, instance: "192.0.2.12:80", min: 2, max: 2},
		{title: "Probe duration", query: 1, instance: "192.0.2.11:80", min: 0.01, max: 1},
		{title: "Handshakes lost", query: 0, instance: "lossy.test:80", min: 0.02, max: 0.5},
	} {
		got := result(c.title, c.query, c.instance)
		if len(got) != 1 || got[0].last() < c.min || got[0].last() > c.max {
			complain("panel %q, query %d of %s: %v, want %v to %v", c.title, c.query, c.instance, got, c.min, c.max)
		}
	}
	return problems
}

// The dashboards show a short failure, and a port that is open for a short time and should be closed. If several
// probers probe a target, the dashboards count it once.
func TestDashboardExpressions(t *testing.T) {
	// The port of audited:22 is open for two scrapes, and should be closed. The port of web:443 is closed for two
	// scrapes, and should be open. This is the current state at scrape 11, recent at scrape 14, and no longer
	// visible at scrape 20. All series here also have the label job="shaker".
	course := map[string]string{
		`probe_success{instance="audited:22"}`:                                             "1x9 0 0 1x20",
		`probe_result_info{instance="audited:22", result="refused", errno="ECONNREFUSED"}`: "1x9 stale _ 1x20",
		`probe_result_info{instance="audited:22", result="open"}`:                          "_x10 1 1 stale",
		`probe_success{instance="web:443"}`:                                                "1x9 0 0 1x20",
		`probe_result_info{instance="web:443", result="refused", errno="ECONNREFUSED"}`:    "_x10 1 1 stale",
		`probe_result_info{instance="web:443", result="open"}`:                             "1x9 stale _ 1x20",
		`probe_address_result_info{instance="audited:22", ip="192.0.2.1", result="open"}`:  "_x10 1 1 stale",
		`probe_address_result_info{instance="audited:22", ip="192.0.2.1", result="reset"}`: "1x9 stale _ 1x20",
		`probe_address_result_info{instance="audited:22", ip="192.0.2.2", result="reset"}`: "1x31",
		`probe_address_result_info{instance="web:443", ip="192.0.2.3", result="open"}`:     "1x31",
		`probe_address_result_info{instance="web:443", ip="192.0.2.4", result="open"}`:     "1x9 stale _ 1x20",
		`probe_address_result_info{instance="web:443", ip="192.0.2.4", result="timeout"}`:  "_x10 1 1 stale",
	}
	both := map[string]string{
		`up{instance="seen:1", prober="near"}`:                                                      "1",
		`up{instance="seen:1", prober="far"}`:                                                       "0",
		`up{instance="unknown:1", prober="near"}`:                                                   "0",
		`up{instance="unknown:1", prober="far"}`:                                                    "0",
		`probe_success{instance="down:1", prober="near"}`:                                           "0",
		`probe_success{instance="down:1", prober="far"}`:                                            "0",
		`probe_icmp_info{instance="down:1", prober="near", from="198.51.100.9", icmp="prohibited"}`: "1",
		`probe_icmp_info{instance="down:1", prober="far", from="198.51.100.9", icmp="prohibited"}`:  "1",
		`probe_path_last_hop{instance="down:1", prober="near", address="198.51.100.9"}`:             "3",
		`probe_path_last_hop{instance="down:1", prober="far", address="198.51.100.9"}`:              "5",
	}
	const (
		retransmits = `probe_tcp_syn_retransmits{instance="%s"}`
		resultInfo  = `probe_result_info{instance="%[1]s", result="%[1]s"}`
	)
	losing := map[string]string{`probe_success{instance="open"}`: "1"}
	for _, result := range []string{"open", "refused", "timeout", "unreachable", "prohibited"} {
		losing[fmt.Sprintf(retransmits, result)], losing[fmt.Sprintf(resultInfo, result)] = "2", "1"
	}
	const audited, web = `{job="shaker", instance="audited:22"}`, `{job="shaker", instance="web:443"}`
	address := func(instance, ip string) string {
		return fmt.Sprintf(`{job="shaker", instance="%s", ip="%s"}`, instance, ip)
	}

	type sample struct {
		Labels string  `yaml:"labels"`
		Value  float64 `yaml:"value"`
	}
	type moment struct {
		Expr     string   `yaml:"expr"`
		EvalTime string   `yaml:"eval_time"`
		Samples  []sample `yaml:"exp_samples"`
	}
	boards := readBoards(t)
	g := &grafana{t: t, jobs: []string{"shaker"}, failed: []string{"audited:22", "web:443"}}
	for _, c := range []struct {
		file, panel, instance string
		series                map[string]string
		at                    int // scrapes since the beginning
		want                  []sample
	}{
		{
			file: targetFile, panel: "Current result", instance: "audited:22", series: course, at: 11,
			want: []sample{{Labels: audited, Value: 11}},
		},
		{
			file: targetFile, panel: "Current result", instance: "audited:22", series: course, at: 14,
			want: []sample{{Labels: audited, Value: 2}},
		},
		{
			file: targetFile, panel: "Current result", instance: "web:443", series: course, at: 11,
			want: []sample{{Labels: web, Value: 2}},
		},
		{
			file: targetFile, panel: "Current result", instance: "web:443", series: course, at: 14,
			want: []sample{{Labels: web, Value: 1}},
		},
		{
			file: targetFile, panel: "Results", instance: "audited:22", series: course, at: 11,
			want: []sample{{Labels: audited, Value: 11}},
		},
		{
			file: targetFile, panel: "Results", instance: "audited:22", series: course, at: 14,
			want: []sample{{Labels: audited, Value: 11}},
		},
		{
			file: targetFile, panel: "Results", instance: "audited:22", series: course, at: 20,
			want: []sample{{Labels: audited, Value: 2}},
		},
		{
			file: targetFile, panel: "Results", instance: "web:443", series: course, at: 14,
			want: []sample{{Labels: web, Value: 2}},
		},
		{
			file: targetFile, panel: "Results", instance: "web:443", series: course, at: 20,
			want: []sample{{Labels: web, Value: 1}},
		},
		{
			file: targetFile, panel: "Results per address", instance: "audited:22", series: course, at: 14,
			want: []sample{
				{Labels: address("audited:22", "192.0.2.1"), Value: 11},
				{Labels: address("audited:22", "192.0.2.2"), Value: 3},
			},
		},
		{
			file: targetFile, panel: "Results per address", instance: "audited:22", series: course, at: 20,
			want: []sample{
				{Labels: address("audited:22", "192.0.2.1"), Value: 3},
				{Labels: address("audited:22", "192.0.2.2"), Value: 3},
			},
		},
		{
			file: targetFile, panel: "Results per address", instance: "web:443", series: course, at: 14,
			want: []sample{
				{Labels: address("web:443", "192.0.2.3"), Value: 1},
				{Labels: address("web:443", "192.0.2.4"), Value: 4},
			},
		},
		{
			file: fleetFile, panel: "Results of failed targets", instance: "", series: course, at: 14,
			want: []sample{{Labels: audited, Value: 11}, {Labels: web, Value: 2}},
		},
		{
			file: fleetFile, panel: "Results of failed targets", instance: "", series: course, at: 20,
			want: []sample{{Labels: audited, Value: 2}, {Labels: web, Value: 1}},
		},
		{
			file: fleetFile, panel: "Losing SYNs", instance: "", series: losing, at: 0,
			want: []sample{{Labels: "{}", Value: 2}},
		},
		{
			file: fleetFile, panel: "Not measured", instance: "", series: both, at: 0,
			want: []sample{{Labels: "{}", Value: 1}},
		},
		{
			file: fleetFile, panel: "ICMP errors", instance: "", series: both, at: 0,
			want: []sample{{Labels: `{from="198.51.100.9", icmp="prohibited"}`, Value: 1}},
		},
		{
			file: fleetFile, panel: "Last hops to targets that are down", instance: "", series: both, at: 0,
			want: []sample{{Labels: `{address="198.51.100.9"}`, Value: 1}},
		},
	} {
		var input []map[string]string
		for name, values := range c.series {
			name = strings.Replace(name, "{", `{job="shaker", `, 1)
			input = append(input, map[string]string{"series": name, "values": values})
		}
		test := moment{
			Expr:     g.interpolate(queriesOf(panelNamed(t, boards[c.file], c.panel))[0].Expr, c.instance),
			EvalTime: (time.Duration(c.at) * scrapeInterval).String(),
			Samples:  c.want,
		}
		interval := scrapeInterval.String()
		text, err := yaml.Marshal(map[string]any{"evaluation_interval": interval, "tests": []any{map[string]any{
			"interval": interval, "input_series": input, "promql_expr_test": []moment{test},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := process.Promtool(t, "test", "rules", lab.Write(t, t.TempDir(), "test.yml", string(text)))
		if err != nil {
			t.Errorf("panel %q of %s, instance %q, at scrape %d: promtool test rules: %v, want %v\n%s",
				c.panel, c.file, c.instance, c.at, err, c.want, out)
		}
	}
}
