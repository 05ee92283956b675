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

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A grafana asks Prometheus for what is on a dashboard.
type grafana struct {
	t    testing.TB
	url  string // of Prometheus
	jobs []string
}

// newGrafana finds the values of the variable job.
func newGrafana(t testing.TB, port int, d *board) *grafana {
	g := &grafana{t: t, url: fmt.Sprintf("http://localhost:%d", port)}
	g.jobs = g.values(d, "job")
	return g
}

var labelValues = regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)

// values returns what there is to choose from for a variable.
func (g *grafana) values(d *board, name string) []string {
	g.t.Helper()
	i := slices.IndexFunc(d.Templating.List, func(v dashboard.VariableModel) bool { return v.Name == name })
	query, _ := d.Templating.List[i].Query.Map["query"].(string)
	m := labelValues.FindStringSubmatch(query)
	if m == nil || orEmpty(d.Templating.List[i].Definition) != query {
		g.t.Fatalf("variable %s: %q", name, query)
	}
	var answer struct{ Data []string }
	decodeJSON(g.t, lab.Get(g.t, g.url+"/api/v1/label/"+m[2]+"/values?match[]="+url.QueryEscape(g.interpolate(m[1], ""))), &answer)
	return answer.Data
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
	var jobs []string
	for _, job := range g.jobs {
		jobs = append(jobs, strings.ReplaceAll(regexp.QuoteMeta(job), `\`, `\\`))
	}
	return strings.NewReplacer(
		"$__rate_interval", (4 * scrapeInterval).String(),
		"$__range", timeRange.String(),
		"$job", "("+strings.Join(jobs, "|")+")",
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
func newGrafanaNetwork(t *testing.T) {
	network := lab.NewNetwork(t)
	network.At("192.0.2.1", lab.SYNACK().After(20*time.Millisecond))
	network.At("192.0.2.2", lab.RST())
	network.At("192.0.2.3")
	network.At("192.0.2.4", lab.SYNACK()).LosingSYNs(1)
	network.At("192.0.2.5", lab.ICMP("198.51.100.9", 3, 13))
	network.At("192.0.2.11", lab.SYNACK().After(10*time.Millisecond)).Behind("198.51.100.1", "198.51.100.2")
	network.At("192.0.2.12").Behind("198.51.100.1", "198.51.100.3")
	network.At("192.0.2.21", lab.SYNACK())
	network.At("192.0.2.22", lab.RST())
	dir := t.TempDir()
	config := lab.Write(t, dir, "shaker.yml", grafanaExporter)
	cmd := lab.Exporter(t, "--web.listen-address=127.0.0.1:10115", "--config.file="+config)
	lab.Start(t, lab.WithFiles(t, cmd, map[string]string{
		"/etc/hosts":       lab.Write(t, dir, "hosts", "127.0.0.1 localhost\n192.0.2.21 pair.test\n192.0.2.22 pair.test\n"),
		"/etc/resolv.conf": lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n"), // where there is none
	})).Listening(10115)
}

// Every query of every panel finds what its title says, be the exporter's histograms classic
// or native in Prometheus.
func TestDashboardQueries(t *testing.T) {
	newGrafanaNetwork(t)
	config := lab.Write(t, t.TempDir(), "prometheus.yml", grafanaPrometheus)
	classic := lab.StartPrometheus(t, 9090, config)
	native := lab.StartPrometheus(t, 9091, config, "--enable-feature=native-histograms")
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
}

func testDashboardQueries(t *testing.T, server *lab.Prometheus, port int) {
	lab.Eventually(t, "all is scraped three times", func() bool {
		return len(server.Query(`count_over_time(up[5m]) >= 3`)) == 17 && len(server.Query(`count_over_time(shaker_probe_failures_total[5m]) >= 3`)) > 0
	})
	sources := map[string]string{fleetFile: lab.Read(t, fleetFile), targetFile: lab.Read(t, targetFile)}
	boards := make(map[string]*board)
	for file, source := range sources {
		var err error
		if boards[file], err = readDashboard(source); err != nil {
			t.Fatal(err)
		}
	}
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
		{fleetFile, "Down now", `renameByName names a column "errors"`, "Errno", []any{"transformations", 1, "options", "renameByName", "errors"}},
		{fleetFile, "Down now", `column "errno" has no name`, nil, []any{"transformations", 1, "options", "renameByName", "errno"}},
		{fleetFile, "Down now", `an override names a column "Goal"`, "Goal", []any{"fieldConfig", "overrides", 0, "matcher", "options"}},
		{fleetFile, "Down now", `sortBy names a column "Goal"`, "Goal", []any{"options", "sortBy", 0, "displayName"}},
		{fleetFile, "Down now", `a link names a column "Work"`, "/d/shaker-target?var-job=${__data.fields.Work}&${__url_time_range}",
			[]any{"fieldConfig", "overrides", 0, "properties", 1, "value", 0, "url"}},
		{targetFile, "Path now", "finds nothing", `probe_path_hop_info{instance="$instance", nothing="is"}`, []any{"targets", 0, "expr"}},
	} {
		source := sources[c.file]
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
		{"Down now", 1, "instance from icmp", "192.0.2.5:80 198.51.100.9 admin_prohibited"},
		{"Down now", 2, "instance address", "192.0.2.12:80 198.51.100.3"},
		{"Failures by reason", 0, "result errno", "dns_error, open, prohibited EHOSTUNREACH, refused ECONNREFUSED, timeout ETIMEDOUT"},
		{"Slowest targets", 0, "instance job prober", "192.0.2.11:80 paths near, 192.0.2.1:80 shaker, 192.0.2.1:80 steady, 192.0.2.1:80 views far, 192.0.2.1:80 views near"},
		{"Lossiest targets", 0, "instance", "192.0.2.4:80"},
		{"ICMP errors", 0, "from icmp", "198.51.100.9 admin_prohibited"},
		{"Last hops of targets that are down", 0, "address", "198.51.100.3"},
		{"Availability and error budget", 1, "job", "names, paths, shaker, steady, views"},
	} {
		if got := tellLabels(ask(c.title, c.query), strings.Fields(c.labels)...); got != c.want {
			wrong = append(wrong, fmt.Sprintf("%s, query %d: %s, want %s", c.title, c.query, got, c.want))
		}
	}
	wrong = append(wrong, namedWrongly(ask("Verdicts on targets that failed", 0), panelNamed(g.t, d, "Verdicts on targets that failed"), map[string]string{
		"192.0.2.12:80 paths near": "timeout", "192.0.2.2:80 shaker": "refused", "192.0.2.1:80 views far": "open", "192.0.2.2:80 views near": "refused",
		"192.0.2.3:80 shaker": "timeout", "192.0.2.5:80 shaker near": "prohibited", "absent.test:80 shaker": "dns_error", "pair.test:80 names near": "refused",
	}, "instance", "job", "prober")...)
	// Of many targets some are shown, and those from the beginning to the end.
	few := *queriesOf(panelNamed(g.t, d, "Verdicts on targets that failed"))[0]
	few.Expr = strings.Replace(few.Expr, "topk(20, ", "topk(3, ", 1)
	if got := g.ask(&few, ""); len(got) != 3 {
		wrong = append(wrong, fmt.Sprintf("of the verdicts %d are shown where 3 were to be", len(got)))
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
		{"RTT of each hop", 0, "192.0.2.11:80", "hop address", "1 198.51.100.1, 2 198.51.100.2, 3 192.0.2.11"},
		{"Addresses now", 0, "pair.test:80", "ip result errno", "192.0.2.21 open, 192.0.2.22 refused ECONNREFUSED"},
		{"Addresses now", 1, "pair.test:80", "ip", "192.0.2.21"},
		{"RTT of each address", 0, "pair.test:80", "ip", "192.0.2.21"},
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
		"192.0.2.1:80": {"shaker": "open", "steady": "open", "views far": "open", "views near": "open"},
		"192.0.2.3:80": {"shaker": "timeout"},
		"pair.test:80": {"names near": "refused"},
		"nonsense":     {"shaker": "not measured"},
	} {
		for _, title := range []string{"Verdict now", "Verdicts"} {
			wrong = append(wrong, namedWrongly(ask(title, 0, instance), panelNamed(g.t, d, title), want, "job", "prober")...)
		}
	}
	wrong = append(wrong, namedWrongly(ask("Verdicts on each address", 0, "pair.test:80"), panelNamed(g.t, d, "Verdicts on each address"),
		map[string]string{"192.0.2.21": "open", "192.0.2.22": "refused"}, "ip")...)
	for _, c := range []struct {
		title    string
		query    int
		instance string
		min, max float64
	}{
		{"Availability", 0, "192.0.2.11:80", 1, 1},
		{"RTT", 0, "192.0.2.11:80", 0.01, 1},
		{"SYNs sent again by one probe", 0, "192.0.2.4:80", 1, 1},
		{"MSS", 0, "192.0.2.11:80", 1300, 1400},
		{"ACKs sent", 0, "192.0.2.11:80", 0, 0},
		{"Where the path ends", 0, "192.0.2.11:80", 3, 3},
		{"Where the path ends", 1, "192.0.2.12:80", 2, 2},
		{"Duration of the probe", 1, "192.0.2.11:80", 0.01, 1},
	} {
		if got := ask(c.title, c.query, c.instance); len(got) != 1 || got[0].last() < c.min || got[0].last() > c.max {
			wrong = append(wrong, fmt.Sprintf("%s, query %d of %s: %v, want %v to %v", c.title, c.query, c.instance, got, c.min, c.max))
		}
	}
	return wrong
}
