package examples

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
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
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A grafana asks Prometheus for what is on a dashboard.
type grafana struct {
	t            testing.TB
	url          string // of Prometheus
	jobs, failed []string
}

// newGrafana finds the values of the variables job and failed.
func newGrafana(t testing.TB, port int, fleet *board) *grafana {
	g := &grafana{t: t, url: fmt.Sprintf("http://localhost:%d", port)}
	g.jobs = g.values(fleet, "job")
	g.failed = g.results(fleet, "failed")
	return g
}

// variableQuery takes the query of a variable apart.
func (g *grafana) variableQuery(d *board, name, pattern string) (parts []string, regex string) {
	g.t.Helper()
	i := slices.IndexFunc(d.Templating.List, func(v dashboard.VariableModel) bool { return v.Name == name })
	v := d.Templating.List[i]
	query, _ := v.Query.Map["query"].(string)
	m := regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(query)
	if m == nil || orEmpty(v.Definition) != query || *v.Refresh != dashboard.VariableRefreshOnTimeRangeChanged {
		g.t.Fatalf("variable %s: %q", name, query)
	}
	return m[1:], orEmpty(v.Regex)
}

const labelValues = `label_values\((.*), (\w+)\)`

// values returns what there is to choose from for a variable.
func (g *grafana) values(d *board, name string) []string {
	g.t.Helper()
	m, _ := g.variableQuery(d, name, labelValues)
	var answer struct{ Data []string }
	decodeJSON(g.t, lab.Get(g.t, g.url+"/api/v1/label/"+m[1]+"/values?match[]="+url.QueryEscape(g.interpolate(m[0], ""))), &answer)
	return answer.Data
}

// valuesWithin returns what there is to choose from where the time range is short, and the storage
// looks at it closely. Prometheus does so hours later.
func (g *grafana) valuesWithin(d *board, name string, within time.Duration) (values []string) {
	g.t.Helper()
	m, _ := g.variableQuery(d, name, labelValues)
	for _, l := range g.instant(fmt.Sprintf("group by (%s) (last_over_time(%s[%s]))", m[1], m[0], within), "") {
		values = append(values, l.labels[m[1]])
	}
	slices.Sort(values)
	return values
}

// results returns the values of a variable that are in the result of a query.
func (g *grafana) results(d *board, name string) (values []string) {
	g.t.Helper()
	m, regex := g.variableQuery(d, name, `query_result\((.*)\)`)
	for _, l := range g.instant(m[0], "") {
		var labels []string
		for label, value := range l.labels {
			labels = append(labels, label+`="`+value+`"`)
		}
		text := fmt.Sprintf("{%s} %v %d", strings.Join(labels, ","), l.last(), time.Now().UnixMilli())
		if value := regexp.MustCompile(strings.Trim(regex, "/")).FindStringSubmatch(text); value != nil {
			values = append(values, value[1])
		}
	}
	return values
}

func decodeJSON(t testing.TB, text string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// The time range of the dashboards, and the interval from one scrape to the next.
const (
	timeRange      = time.Minute
	scrapeInterval = 3 * time.Second
)

// interpolate puts the values of variables into a query, as Grafana's data source does.
func (g *grafana) interpolate(expression, instance string) string {
	all := func(values []string) string {
		var escaped []string
		for _, value := range values {
			escaped = append(escaped, strings.ReplaceAll(regexp.QuoteMeta(value), `\`, `\\`))
		}
		return "(" + strings.Join(escaped, "|") + ")"
	}
	return strings.NewReplacer(
		everyScrape, fmt.Sprintf("%s:%s", 4*scrapeInterval, scrapeInterval), // of this Prometheus
		"$__rate_interval", (4 * scrapeInterval).String(),
		"$__range", timeRange.String(),
		"$job", all(g.jobs),
		"$failed", all(g.failed),
		"$instance", instance,
		"$objective", "99.9",
	).Replace(expression)
}

// A gotSeries is a series that a query returns.
type gotSeries struct {
	labels map[string]string
	values []float64
}

// last returns the latest value.
func (l gotSeries) last() float64 { return l.values[len(l.values)-1] }

// instant sends a query about now.
func (g *grafana) instant(expression, instance string) []gotSeries {
	g.t.Helper()
	no, yes := false, true
	return g.ask(&prometheus.Dataquery{Expr: expression, Range: &no, Instant: &yes}, instance)
}

// ask sends a query with the values of variables, as Grafana does.
func (g *grafana) ask(query *prometheus.Dataquery, instance string) (lines []gotSeries) {
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
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  []any // time, and the value as text
				Values [][]any
			}
		}
	}
	decodeJSON(g.t, lab.Get(g.t, g.url+"/api/v1/"+path+"?"+parameters.Encode()), &answer)
	for _, series := range answer.Data.Result {
		l := gotSeries{labels: series.Metric}
		if series.Value != nil {
			series.Values = append(series.Values, series.Value)
		}
		for _, point := range series.Values {
			value, err := strconv.ParseFloat(point[1].(string), 64)
			if err != nil {
				g.t.Fatal(err)
			}
			l.values = append(l.values, value)
		}
		lines = append(lines, l)
	}
	return lines
}

// askAll sends a query with each value that the variable instance can have.
func (g *grafana) askAll(query *prometheus.Dataquery, instances []string) (lines []gotSeries) {
	g.t.Helper()
	if !strings.Contains(query.Expr, "$instance") {
		instances = instances[:1]
	}
	for _, instance := range instances {
		lines = append(lines, g.ask(query, instance)...)
	}
	return lines
}

// panelNamed returns the panel with a title.
func panelNamed(t testing.TB, d *board, title string) *dashboard.Panel {
	t.Helper()
	for _, p := range panelsOf(d) {
		if orEmpty(p.Title) == title {
			return p
		}
	}
	t.Fatalf("there is no panel %q", title)
	return nil
}

// dataComplaints says what of a dashboard finds nothing in Prometheus: queries without a
// number, and labels, columns and fields that no series has.
func (g *grafana) dataComplaints(d *board, instances []string) (wrong []string) {
	g.t.Helper()
	for _, p := range panelsOf(d) {
		complain := func(format string, args ...any) {
			wrong = append(wrong, fmt.Sprintf("panel %q: ", *p.Title)+fmt.Sprintf(format, args...))
		}
		labels := make(map[string]bool) // of all queries
		for _, query := range queriesOf(p) {
			lines := g.askAll(query, instances)
			finite := func(value float64) bool { return !math.IsNaN(value) && !math.IsInf(value, 0) }
			if !slices.ContainsFunc(lines, func(l gotSeries) bool { return slices.ContainsFunc(l.values, finite) }) {
				complain("query %s finds nothing: %s", *query.RefId, query.Expr)
			}
			of := make(map[string]bool)
			for _, l := range lines {
				for label := range l.labels {
					of[label], labels[label] = true, true
				}
			}
			if p.Type == "table" && len(p.Targets) > 1 && of["__name__"] {
				complain("query %s keeps the metric's name, by which its rows differ from others", *query.RefId)
			}
			for _, label := range legendLabel.FindAllStringSubmatch(orEmpty(query.LegendFormat), -1) {
				if !of[label[1]] {
					complain("the legend of query %s has %s, which no series has", *query.RefId, label[1])
				}
			}
		}
		if p.Type == "table" {
			for _, w := range columnComplaints(p, labels) {
				complain("%s", w)
			}
		}
		if slices.ContainsFunc(p.Transformations, func(t dashboard.DataTransformerConfig) bool { return t.Id == "merge" }) {
			some := instances
			if !strings.Contains(queriesOf(p)[0].Expr, "$instance") {
				some = instances[:1]
			}
			for _, instance := range some {
				for _, w := range g.mergeComplaints(p, instance) {
					complain("%s", w)
				}
			}
		}
	}
	return wrong
}

// mergeComplaints says which queries of a table have not the rows of the first one. What tells the
// rows apart are the columns that all queries have, and one that finds nothing has but the time.
// Then nothing can be merged, and a browser compares each row with each other one.
func (g *grafana) mergeComplaints(p *dashboard.Panel, instance string) (wrong []string) {
	g.t.Helper()
	var answers [][]gotSeries
	common := make(map[string]int) // in how many answers a label is
	for _, query := range queriesOf(p) {
		lines := g.ask(query, instance)
		answers = append(answers, lines)
		labels := make(map[string]bool)
		for _, l := range lines {
			for label := range l.labels {
				labels[label] = true
			}
		}
		for label := range labels {
			common[label]++
		}
	}
	maps.DeleteFunc(common, func(_ string, n int) bool { return n < len(answers) })
	keys := slices.Sorted(maps.Keys(common))
	want := tellLabels(answers[0], keys...)
	for i, answer := range answers {
		if got := tellLabels(answer, keys...); got != want || len(answer) > 0 && len(keys) == 0 {
			wrong = append(wrong, fmt.Sprintf("query %s has other rows than query A by %q: %s, want %s", *queriesOf(p)[i].RefId, keys, got, want))
		}
	}
	return wrong
}

// columnComplaints says which names of a table are those of no column, where its series have
// the given labels.
func columnComplaints(p *dashboard.Panel, labels map[string]bool) (wrong []string) {
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
			wrong = append(wrong, fmt.Sprintf("%s names a column %q, which is not there", what, name))
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
	for label := range labels { // or else a person sees a name that is not for people
		if _, is := o.RenameByName[label]; !is && !o.ExcludeByName[label] && label != "__name__" {
			wrong = append(wrong, fmt.Sprintf("column %q has no name for people", label))
		}
	}
	return wrong
}

const grafanaExporter = `
modules:
  tcp_connect: {prober: tcp}
  path: {prober: tcp, tcp: {path: always}}
  all: {prober: tcp, tcp: {addresses: all}}
  fault: {prober: tcp, tcp: {source_ip_address: 203.0.113.9}}
  audit: {prober: tcp, tcp: {valid_results: [refused, timeout]}}
`

// The interval is short, but long enough for a SYN to be sent again. Two probers, which are
// really one, look at the targets of job "views" and find the opposite.
const grafanaPrometheus = `
global: {scrape_interval: 3s, scrape_timeout: 3s}
scrape_configs:
  - job_name: shaker
    metrics_path: /probe
    static_configs:
      - targets: ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80", "absent.test:80", nonsense]
      - {targets: ["192.0.2.4:80", "192.0.2.5:80"], labels: {prober: near}}
      - {targets: ["192.0.2.9:80"], labels: {__param_module: fault}}
      - {targets: ["192.0.2.11:80", "192.0.2.12:80"], labels: {job: paths, prober: near, __param_module: path}}
      - {targets: ["pair.test:80"], labels: {job: names, prober: near, __param_module: all}}
      - {targets: ["192.0.2.1:80", "192.0.2.2:80"], labels: {job: views, prober: near}}
      - {targets: ["192.0.2.1:80", "192.0.2.2:80"], labels: {job: views, prober: far, __param_module: audit}}
      - {targets: ["192.0.2.1:80"], labels: {job: steady}}
    relabel_configs:
      - {source_labels: [__address__], target_label: __param_target}
      - {source_labels: [__param_target], target_label: instance}
      - {target_label: __address__, replacement: "localhost:10115"}
  - job_name: shaker_exporter
    static_configs: [{targets: ["localhost:10115"]}]
`

// newGrafanaNetwork lays a network where everything is that a dashboard has a panel for, and
// lets an exporter probe it.
func newGrafanaNetwork(t *testing.T) *process.Process {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK().After(20*time.Millisecond))
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3")
	network.At("192.0.2.4", simnet.SYNACK()).LosingSYNs(1)
	network.At("192.0.2.5", simnet.ICMP("198.51.100.9", 3, 13))
	network.At("192.0.2.11", simnet.SYNACK().After(10*time.Millisecond)).Behind("198.51.100.1", "198.51.100.2")
	network.At("192.0.2.12").Behind("198.51.100.1", "198.51.100.3")
	network.At("192.0.2.21", simnet.SYNACK())
	network.At("192.0.2.22", simnet.RST())
	dir := t.TempDir()
	config := lab.Write(t, dir, "shaker.yml", grafanaExporter)
	cmd := exporter.Command(t, "--web.listen-address=127.0.0.1:10115", "--config.file="+config)
	p := process.Start(t, process.WithFiles(t, cmd, map[string]string{
		"/etc/hosts":       lab.Write(t, dir, "hosts", "127.0.0.1 localhost\n192.0.2.21 pair.test\n192.0.2.22 pair.test\n"),
		"/etc/resolv.conf": lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n"), // where there is none
	}))
	p.Listening(10115)
	return p
}

// Every query of every panel finds what its title says, be the exporter's histograms classic
// or native in Prometheus. With the rules what is down is not forgotten when the exporter is.
func TestDashboardQueries(t *testing.T) {
	p := newGrafanaNetwork(t)
	config := lab.Write(t, t.TempDir(), "prometheus.yml", grafanaPrometheus)
	rules := lab.Write(t, t.TempDir(), "targets.yml", lab.Read(t, "rules/targets.yml"))
	withRules := lab.Write(t, t.TempDir(), "prometheus.yml", "rule_files: ["+rules+"]"+
		strings.Replace(grafanaPrometheus, "global: {", "global: {evaluation_interval: 3s, ", 1))
	classic := process.StartPrometheus(t, 9090, config)
	native := process.StartPrometheus(t, 9091, withRules, "--enable-feature=native-histograms")
	t.Run("classic", func(t *testing.T) { testDashboardQueries(t, classic, 9090) })
	t.Run("docs/promql.md", func(t *testing.T) { testPromQLPage(t, classic) })
	t.Run("native", func(t *testing.T) {
		testDashboardQueries(t, native, 9091)
		if len(native.Query("shaker_reset_lag_seconds_bucket")) > 0 {
			t.Error("the histograms are classic")
		}
	})
	for _, r := range rulesOf(t, "rules/prober.yml") {
		lag := strings.ReplaceAll(r.Expr, "> 0.05", ">= 0")
		if r.Alert == "ResetsLate" && (len(classic.Query(lag)) == 0 || len(native.Query(lag)) == 0) {
			t.Errorf("%s knows %d classic histograms and %d native ones", r.Alert, len(classic.Query(lag)), len(native.Query(lag)))
		}
	}
	classic.Stop()
	p.Stop()
	t.Run("outage", func(t *testing.T) { testOutage(t, native, 9091) })
}

// When the exporter has been down for longer than the time range, the targets are still there to
// choose from, and they are not measured: nothing says that they are well.
func testOutage(t *testing.T, server *process.Prometheus, port int) {
	const timeRange = 15 * time.Second
	lab.Eventually(t, "no verdict is left in the time range", func() bool {
		return len(server.Query(fmt.Sprintf("last_over_time(probe_result_info[%s])", timeRange))) == 0
	})
	boards := readBoards(t)
	g := newGrafana(t, port, boards[fleetFile])
	for _, file := range []string{fleetFile, targetFile} {
		if g.jobs = g.valuesWithin(boards[file], "job", timeRange); len(g.jobs) != 5 {
			t.Errorf("%s: jobs %q, want 5", file, g.jobs)
		}
	}
	if got := g.valuesWithin(boards[targetFile], "instance", timeRange); len(got) != 9 {
		t.Errorf("instances %q, want 9", got)
	}
	for title, want := range map[string]string{"Targets": "14", "Not measured": "14", "Answering": "", "Down": "", "Losing SYNs": "", "Down now": ""} {
		got := ""
		for _, l := range g.ask(queriesOf(panelNamed(t, boards[fleetFile], title))[0], "") {
			got += strconv.FormatFloat(l.last(), 'g', -1, 64)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", title, got, want)
		}
	}
}

// readBoards reads the dashboards.
func readBoards(t *testing.T) map[string]*board {
	t.Helper()
	boards := make(map[string]*board)
	for _, file := range []string{fleetFile, targetFile} {
		var err error
		if boards[file], err = readDashboard(lab.Read(t, file)); err != nil {
			t.Fatal(err)
		}
	}
	return boards
}

func testDashboardQueries(t *testing.T, server *process.Prometheus, port int) {
	lab.Eventually(t, "all is scraped three times", func() bool {
		return len(server.Query(`count_over_time(up[5m]) >= 3`)) == 17 && len(server.Query(`count_over_time(shaker_probe_failures_total[5m]) >= 3`)) > 0
	})
	boards := readBoards(t)
	g := newGrafana(t, port, boards[fleetFile])
	instances := g.values(boards[targetFile], "instance")
	if want := []string{"names", "paths", "shaker", "steady", "views"}; !slices.Equal(g.jobs, want) {
		t.Errorf("jobs %q, want %q", g.jobs, want)
	}
	if want := 9; len(instances) != want || !slices.Contains(instances, "pair.test:80") {
		t.Errorf("instances %q, want %d", instances, want)
	}

	// A busy machine may miss a scrape, which is then another truth.
	var wrong []string
	defer func() {
		for _, w := range wrong {
			t.Error(w)
		}
	}()
	lab.Eventually(t, "the dashboards are right", func() bool {
		g.failed = g.results(boards[fleetFile], "failed")
		wrong = g.dataComplaints(boards[fleetFile], instances)
		wrong = append(wrong, g.dataComplaints(boards[targetFile], instances)...)
		wrong = append(wrong, g.fleetComplaints(boards[fleetFile])...)
		wrong = append(wrong, g.targetComplaints(boards[targetFile])...)
		return len(wrong) == 0
	})

	// The control: of each thing that can be wrong something is said.
	for _, c := range []struct {
		file, panel string
		want        string
		value       any
		path        []any
	}{
		{fleetFile, "Targets", "finds nothing", `count(up_and_down{job=~"$job"})`, []any{"targets", 0, "expr"}},
		{fleetFile, "Memory", "finds nothing", `process_residing_memory_bytes and on (job, instance) shaker_exporter_build_info`, []any{"targets", 0, "expr"}},
		{fleetFile, "Failures by reason", "has reason, which no series has", "{{reason}}", []any{"targets", 0, "legendFormat"}},
		{fleetFile, "Down now", "keeps the metric's name", `probe_result_info{job=~"$job"}`, []any{"targets", 0, "expr"}},
		{fleetFile, "Down now", "query B has other rows", `max by (job, instance, prober, from, icmp) (probe_icmp_info{job=~"$job"})`, []any{"targets", 1, "expr"}},
		{fleetFile, "Down now", "query C has other rows", `probe_path_last_hop{job=~"$job"} < 0`, []any{"targets", 2, "expr"}},
		{fleetFile, "Down now", `renameByName names a column "errors"`, "Errno", []any{"transformations", 1, "options", "renameByName", "errors"}},
		{fleetFile, "Down now", `column "errno" has no name`, nil, []any{"transformations", 1, "options", "renameByName", "errno"}},
		{fleetFile, "Down now", `an override names a column "Goal"`, "Goal", []any{"fieldConfig", "overrides", 0, "matcher", "options"}},
		{fleetFile, "Down now", `sortBy names a column "Goal"`, "Goal", []any{"options", "sortBy", 0, "displayName"}},
		{fleetFile, "Down now", `a link names a column "Work"`, "/d/shaker-target?var-job=${__data.fields.Work}&${__url_time_range}",
			[]any{"fieldConfig", "overrides", 0, "properties", 1, "value", 0, "url"}},
		{targetFile, "Path now", "finds nothing", `probe_path_hop_info{instance="$instance", nothing="is"}`, []any{"targets", 0, "expr"}},
	} {
		source := lab.Read(t, c.file)
		changed := mutateJSON(t, source, c.value, append([]any{"panels", panelIndex(t, source, c.panel)}, c.path...)...)
		d, err := readDashboard(changed)
		if err != nil {
			t.Fatal(err)
		}
		said := g.dataComplaints(d, instances)
		if !slices.ContainsFunc(said, func(w string) bool { return strings.Contains(w, c.want) && strings.Contains(w, c.panel) }) {
			t.Errorf("%s %v = %v: want %q, got %q", c.panel, c.path, c.value, c.want, said)
		}
	}
}

// tellLabels writes the labels of lines that are named, the lines in order.
func tellLabels(lines []gotSeries, labels ...string) string {
	var texts []string
	for _, l := range lines {
		var values []string
		for _, label := range labels {
			values = append(values, l.labels[label])
		}
		texts = append(texts, strings.TrimSpace(strings.Join(values, " ")))
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

// fleetComplaints says where the dashboard of the fleet does not say what is true of the
// test's network.
func (g *grafana) fleetComplaints(d *board) (wrong []string) {
	g.t.Helper()
	ask := func(title string, query int) []gotSeries {
		return g.ask(queriesOf(panelNamed(g.t, d, title))[query], "")
	}
	for title, want := range map[string]float64{"Targets": 14, "Answering": 4. / 12, "Down": 8, "Losing SYNs": 1, "Not measured": 2} {
		if got := ask(title, 0); len(got) != 1 || math.Abs(got[0].last()-want) > 1e-9 {
			wrong = append(wrong, fmt.Sprintf("%s: %v, want %v", title, got, want))
		}
	}
	for _, c := range []struct {
		title  string
		query  int
		labels string
		want   string
	}{
		{"Down now", 0, "instance job prober result errno", "192.0.2.12:80 paths near timeout ETIMEDOUT, 192.0.2.1:80 views far open, " +
			"192.0.2.2:80 shaker  refused ECONNREFUSED, 192.0.2.2:80 views near refused ECONNREFUSED, " +
			"192.0.2.3:80 shaker  timeout ETIMEDOUT, 192.0.2.5:80 shaker near prohibited EHOSTUNREACH, absent.test:80 shaker  dns_error, " +
			"pair.test:80 names near refused ECONNREFUSED"},
		{"Down now", 1, "instance from icmp", "192.0.2.12:80, 192.0.2.1:80, 192.0.2.2:80, 192.0.2.2:80, 192.0.2.3:80, " +
			"192.0.2.5:80 198.51.100.9 admin_prohibited, absent.test:80, pair.test:80"},
		{"Down now", 2, "instance address", "192.0.2.12:80 198.51.100.3, 192.0.2.1:80, 192.0.2.2:80, 192.0.2.2:80, 192.0.2.3:80, 192.0.2.5:80, absent.test:80, pair.test:80"},
		{"Failures by reason", 0, "result errno", "dns_error, open, prohibited EHOSTUNREACH, refused ECONNREFUSED, timeout ETIMEDOUT"},
		{"Slowest targets", 0, "instance job prober", "192.0.2.11:80 paths near, 192.0.2.1:80 shaker, 192.0.2.1:80 steady, 192.0.2.1:80 views far, 192.0.2.1:80 views near"},
		{"Most SYN retransmissions", 0, "instance", "192.0.2.4:80"},
		{"ICMP errors", 0, "from icmp", "198.51.100.9 admin_prohibited"},
		{"Last hops to targets that are down", 0, "address", "198.51.100.3"},
		{"Availability and error budget", 1, "job", "names, paths, shaker, steady, views"},
	} {
		if got := tellLabels(ask(c.title, c.query), strings.Fields(c.labels)...); got != c.want {
			wrong = append(wrong, fmt.Sprintf("%s, query %d: %s, want %s", c.title, c.query, got, c.want))
		}
	}
	wrong = append(wrong, namedWrongly(ask("Results of failed targets", 0), panelNamed(g.t, d, "Results of failed targets"), map[string]string{
		"192.0.2.12:80 paths near": "timeout", "192.0.2.2:80 shaker": "refused", "192.0.2.1:80 views far": "open, unwanted", "192.0.2.2:80 views near": "refused",
		"192.0.2.3:80 shaker": "timeout", "192.0.2.5:80 shaker near": "prohibited", "absent.test:80 shaker": "dns_error", "pair.test:80 names near": "refused",
	}, "instance", "job", "prober")...)
	// The targets that are shown are those of a variable, and there may be none.
	if want := []string{"192.0.2.12:80", "192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80", "192.0.2.5:80", "absent.test:80", "pair.test:80"}; !slices.Equal(slices.Sorted(slices.Values(g.failed)), want) {
		wrong = append(wrong, fmt.Sprintf("failed: %q, want %q", g.failed, want))
	}
	for _, failed := range [][]string{nil, {"192.0.2.3:80", "pair.test:80"}} {
		some := &grafana{t: g.t, url: g.url, jobs: g.jobs, failed: failed}
		lines := some.ask(queriesOf(panelNamed(g.t, d, "Results of failed targets"))[0], "")
		if got, want := tellLabels(lines, "instance"), strings.Join(failed, ", "); got != want {
			wrong = append(wrong, fmt.Sprintf("failed: %s, want %s", got, want))
		}
	}
	for query, want := range []map[string]float64{{"names": 0, "steady": 1}, {"names": -999, "steady": 1}} {
		for _, l := range ask("Availability and error budget", query) {
			if want, exact := want[l.labels["job"]]; exact && math.Abs(l.last()-want) > 1e-6 {
				wrong = append(wrong, fmt.Sprintf("availability and error budget, query %d: %v, want %v", query, l, want))
			}
		}
	}
	for title, label := range map[string][2]string{"Faults by errno": {"errno", "EADDRNOTAVAIL"}, "Rejected by reason": {"reason", "bad_request"}} {
		if !slices.ContainsFunc(ask(title, 0), func(l gotSeries) bool { return l.labels[label[0]] == label[1] && l.last() > 0 }) {
			wrong = append(wrong, fmt.Sprintf("%s: no %s", title, label[1]))
		}
	}
	return wrong
}

// namedWrongly says which lines do not end with a value that their panel gives the name that
// is wanted, and which lines are too many or missing.
func namedWrongly(lines []gotSeries, p *dashboard.Panel, want map[string]string, labels ...string) (wrong []string) {
	names := p.FieldConfig.Defaults.Mappings[0].ValueMap.Options
	got := make(map[string]string)
	for _, l := range lines {
		got[tellLabels([]gotSeries{l}, labels...)] = orEmpty(names[strconv.Itoa(int(l.last()))].Text)
	}
	if !maps.Equal(got, want) {
		wrong = append(wrong, fmt.Sprintf("%s: %v, want %v", *p.Title, got, want))
	}
	return wrong
}

// targetComplaints says where the dashboard of a target does not say what is true of the
// test's network.
func (g *grafana) targetComplaints(d *board) (wrong []string) {
	g.t.Helper()
	ask := func(title string, query int, instance string) []gotSeries {
		return g.ask(queriesOf(panelNamed(g.t, d, title))[query], instance)
	}
	for _, c := range []struct {
		title    string
		query    int
		instance string
		labels   string
		want     string
	}{
		{"Path now", 0, "192.0.2.11:80", "hop address icmp", "1 198.51.100.1 ttl_exceeded, 2 198.51.100.2 ttl_exceeded, 3 192.0.2.11"},
		{"Path now", 0, "192.0.2.12:80", "hop address icmp", "1 198.51.100.1 ttl_exceeded, 2 198.51.100.3 ttl_exceeded"},
		{"RTT per hop", 0, "192.0.2.11:80", "hop address", "1 198.51.100.1, 2 198.51.100.2, 3 192.0.2.11"},
		{"Addresses now", 0, "pair.test:80", "ip result errno", "192.0.2.21 open, 192.0.2.22 refused ECONNREFUSED"},
		{"Addresses now", 1, "pair.test:80", "ip", "192.0.2.21, 192.0.2.22"}, // of which one has no RTT
		{"RTT per address", 0, "pair.test:80", "ip", "192.0.2.21"},
		{"ICMP errors", 0, "192.0.2.5:80", "from icmp icmp_type icmp_code", "198.51.100.9 admin_prohibited 3 13"},
		{"Availability", 0, "192.0.2.2:80", "job prober", "shaker, views far, views near"},
		// What was not measured is absent.
		{"RTT", 0, "192.0.2.3:80", "job", ""},
		{"Latency", 0, "192.0.2.3:80", "job", ""},
		{"Latency", 1, "192.0.2.3:80", "job", ""},
		{"Latency", 2, "192.0.2.3:80", "job", ""},
		{"MSS", 0, "192.0.2.3:80", "job", ""},
		{"ACKs sent", 0, "192.0.2.3:80", "job", ""},
	} {
		if got := tellLabels(ask(c.title, c.query, c.instance), strings.Fields(c.labels)...); got != c.want {
			wrong = append(wrong, fmt.Sprintf("%s, query %d of %s: %s, want %s", c.title, c.query, c.instance, got, c.want))
		}
	}
	for instance, want := range map[string]map[string]string{
		"192.0.2.1:80": {"shaker": "open", "steady": "open", "views far": "open, unwanted", "views near": "open"},
		"192.0.2.3:80": {"shaker": "timeout"},
		"pair.test:80": {"names near": "refused"},
		"nonsense":     {"shaker": "not measured"},
	} {
		for _, title := range []string{"Current result", "Results"} {
			wrong = append(wrong, namedWrongly(ask(title, 0, instance), panelNamed(g.t, d, title), want, "job", "prober")...)
		}
	}
	wrong = append(wrong, namedWrongly(ask("Results per address", 0, "pair.test:80"), panelNamed(g.t, d, "Results per address"),
		map[string]string{"192.0.2.21": "open", "192.0.2.22": "refused"}, "ip")...)
	for _, c := range []struct {
		title    string
		query    int
		instance string
		min, max float64
	}{
		{"Availability", 0, "192.0.2.11:80", 1, 1},
		{"RTT", 0, "192.0.2.11:80", 0.01, 1},
		{"SYN retransmissions per probe", 0, "192.0.2.4:80", 1, 1},
		{"MSS", 0, "192.0.2.11:80", 1300, 1400},
		{"ACKs sent", 0, "192.0.2.11:80", 0, 0},
		{"Where the path ends", 0, "192.0.2.11:80", 3, 3},
		{"Where the path ends", 1, "192.0.2.12:80", 2, 2},
		{"Probe duration", 1, "192.0.2.11:80", 0.01, 1},
	} {
		if got := ask(c.title, c.query, c.instance); len(got) != 1 || got[0].last() < c.min || got[0].last() > c.max {
			wrong = append(wrong, fmt.Sprintf("%s, query %d of %s: %v, want %v to %v", c.title, c.query, c.instance, got, c.min, c.max))
		}
	}
	return wrong
}

// What dashboards say of what comes and goes, and of targets that several probers look at: a short
// failure shows, open where it is not wanted included, and targets are counted, not probers.
func TestDashboardExpressions(t *testing.T) {
	// A port is open for two scrapes, another one is closed for two. At 33 s that is so, at 42 s it
	// was so a moment ago, and a minute later it is forgotten.
	course := map[string]string{
		`probe_success{job="shaker", instance="audited:22"}`:                                             "1x9 0 0 1x20",
		`probe_result_info{job="shaker", instance="audited:22", result="refused", errno="ECONNREFUSED"}`: "1x9 stale _ 1x20",
		`probe_result_info{job="shaker", instance="audited:22", result="open"}`:                          "_x10 1 1 stale",
		`probe_success{job="shaker", instance="web:443"}`:                                                "1x9 0 0 1x20",
		`probe_result_info{job="shaker", instance="web:443", result="refused", errno="ECONNREFUSED"}`:    "_x10 1 1 stale",
		`probe_result_info{job="shaker", instance="web:443", result="open"}`:                             "1x9 stale _ 1x20",
		`probe_address_result_info{job="shaker", instance="audited:22", ip="192.0.2.1", result="open"}`:  "_x10 1 1 stale",
		`probe_address_result_info{job="shaker", instance="audited:22", ip="192.0.2.1", result="reset"}`: "1x9 stale _ 1x20",
		`probe_address_result_info{job="shaker", instance="audited:22", ip="192.0.2.2", result="reset"}`: "1x31",
		`probe_address_result_info{job="shaker", instance="web:443", ip="192.0.2.3", result="open"}`:     "1x31",
		`probe_address_result_info{job="shaker", instance="web:443", ip="192.0.2.4", result="open"}`:     "1x9 stale _ 1x20",
		`probe_address_result_info{job="shaker", instance="web:443", ip="192.0.2.4", result="timeout"}`:  "_x10 1 1 stale",
	}
	both := map[string]string{
		`up{job="shaker", instance="seen:1", prober="near"}`:                                                      "1",
		`up{job="shaker", instance="seen:1", prober="far"}`:                                                       "0",
		`up{job="shaker", instance="unknown:1", prober="near"}`:                                                   "0",
		`up{job="shaker", instance="unknown:1", prober="far"}`:                                                    "0",
		`probe_success{job="shaker", instance="down:1", prober="near"}`:                                           "0",
		`probe_success{job="shaker", instance="down:1", prober="far"}`:                                            "0",
		`probe_icmp_info{job="shaker", instance="down:1", prober="near", from="198.51.100.9", icmp="prohibited"}`: "1",
		`probe_icmp_info{job="shaker", instance="down:1", prober="far", from="198.51.100.9", icmp="prohibited"}`:  "1",
		`probe_path_last_hop{job="shaker", instance="down:1", prober="near", address="198.51.100.9"}`:             "3",
		`probe_path_last_hop{job="shaker", instance="down:1", prober="far", address="198.51.100.9"}`:              "5",
	}
	const resent, verdict = `probe_tcp_syn_retransmits{job="shaker", instance="%s"}`, `probe_result_info{job="shaker", instance="%[1]s", result="%[1]s"}`
	losing := map[string]string{`probe_success{job="shaker", instance="open"}`: "1"}
	for _, result := range []string{"open", "refused", "timeout", "unreachable", "prohibited"} {
		losing[fmt.Sprintf(resent, result)], losing[fmt.Sprintf(verdict, result)] = "2", "1"
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
		at                    string
		want                  []sample
	}{
		{targetFile, "Current result", "audited:22", course, "33s", []sample{{audited, 11}}},
		{targetFile, "Current result", "audited:22", course, "42s", []sample{{audited, 2}}},
		{targetFile, "Current result", "web:443", course, "33s", []sample{{web, 2}}},
		{targetFile, "Current result", "web:443", course, "42s", []sample{{web, 1}}},
		{targetFile, "Results", "audited:22", course, "33s", []sample{{audited, 11}}},
		{targetFile, "Results", "audited:22", course, "42s", []sample{{audited, 11}}},
		{targetFile, "Results", "audited:22", course, "60s", []sample{{audited, 2}}},
		{targetFile, "Results", "web:443", course, "42s", []sample{{web, 2}}},
		{targetFile, "Results", "web:443", course, "60s", []sample{{web, 1}}},
		{targetFile, "Results per address", "audited:22", course, "42s", []sample{{address("audited:22", "192.0.2.1"), 11}, {address("audited:22", "192.0.2.2"), 3}}},
		{targetFile, "Results per address", "audited:22", course, "60s", []sample{{address("audited:22", "192.0.2.1"), 3}, {address("audited:22", "192.0.2.2"), 3}}},
		{targetFile, "Results per address", "web:443", course, "42s", []sample{{address("web:443", "192.0.2.3"), 1}, {address("web:443", "192.0.2.4"), 4}}},
		{fleetFile, "Results of failed targets", "", course, "42s", []sample{{audited, 11}, {web, 2}}},
		{fleetFile, "Results of failed targets", "", course, "60s", []sample{{audited, 2}, {web, 1}}},
		{fleetFile, "Losing SYNs", "", losing, "0s", []sample{{"{}", 2}}},
		{fleetFile, "Not measured", "", both, "0s", []sample{{"{}", 1}}},
		{fleetFile, "ICMP errors", "", both, "0s", []sample{{`{from="198.51.100.9", icmp="prohibited"}`, 1}}},
		{fleetFile, "Last hops to targets that are down", "", both, "0s", []sample{{`{address="198.51.100.9"}`, 1}}},
	} {
		var series []map[string]string
		for name, values := range c.series {
			series = append(series, map[string]string{"series": name, "values": values})
		}
		expr := g.interpolate(queriesOf(panelNamed(t, boards[c.file], c.panel))[0].Expr, c.instance)
		text, err := yaml.Marshal(map[string]any{"evaluation_interval": scrapeInterval.String(), "tests": []any{map[string]any{
			"interval":         scrapeInterval.String(),
			"input_series":     series,
			"promql_expr_test": []moment{{expr, c.at, c.want}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if out, err := process.Promtool(t, "test", "rules", lab.Write(t, t.TempDir(), "test.yml", string(text))); err != nil {
			t.Errorf("%s %s at %s: %v\n%s", c.panel, c.instance, c.at, err, out)
		}
	}
}
