package examples

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

const (
	fleetFile  = "grafana/fleet.json"
	targetFile = "grafana/target.json"
	meshFile   = "grafana/mesh.json"
)

// dashboardUIDs are the UIDs of the dashboards, to which links can lead.
var dashboardUIDs = []string{"shaker-fleet", "shaker-target", "shaker-mesh"}

// A board is a dashboard in the classic JSON model, which all current versions of Grafana can read.
//
//lint:ignore SA1019 the newer model needs Grafana 12
type board = dashboard.Dashboard

// readDashboard reads a dashboard, and validates it with Grafana's schema, including the schemas of the panel types.
func readDashboard(text string) (*board, error) {
	runtime := cog.NewRuntime()
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	runtime.RegisterPanelcfgVariant(heatmap.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(statetimeline.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())

	if err := nonEmpty(new(board).UnmarshalJSONStrict([]byte(text))); err != nil {
		return nil, err
	}
	var d board // the strict decoder leaves queries and options out
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return nil, err
	}
	if err := d.Validate(); err != nil {
		return nil, err
	}
	// The decoder of panels does not decode fieldConfig strictly.
	type panel struct {
		Type        string
		FieldConfig json.RawMessage
		Panels      []panel // of a collapsed row
	}
	var raw panel
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, err
	}
	panels := raw.Panels
	for _, p := range raw.Panels {
		panels = append(panels, p.Panels...)
	}
	for _, p := range panels {
		if p.Type == "row" {
			continue
		}
		var fields dashboard.FieldConfigSource
		if err := nonEmpty(fields.UnmarshalJSONStrict(p.FieldConfig)); err != nil {
			return nil, err
		}
		for _, o := range fields.Overrides {
			for _, property := range o.Properties {
				if err := readProperty(p.Type, &fields.Defaults, property); err != nil {
					return nil, fmt.Errorf("override of %v: %s: %w", o.Matcher.Options, property.Id, err)
				}
			}
		}
	}
	return &d, nil
}

// readProperty validates a property that an override changes.
func readProperty(panelType string, defaults *dashboard.FieldConfig, property dashboard.DynamicConfigValue) error {
	if property.Id == "links" { // these have fewer fields than the links of a dashboard
		_, err := dataLinks(property)
		return err
	}
	name, custom := strings.CutPrefix(property.Id, "custom.")
	changed := make(map[string]any)
	if custom {
		maps.Copy(changed, defaults.Custom.(map[string]any))
	}
	changed[name] = property.Value
	text, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	if custom {
		kind, _ := cog.ConfigForPanelcfgVariant(panelType)
		_, err = kind.StrictFieldConfigUnmarshaler(text)
		return nonEmpty(err)
	}
	return nonEmpty(new(dashboard.FieldConfig).UnmarshalJSONStrict(text))
}

// nonEmpty returns err, or nil if the text of err is empty. The strict decoders return such an error for valid input.
func nonEmpty(err error) error {
	if err == nil || err.Error() == "" {
		return nil
	}
	return err
}

// A dataLink is a link of a value in a panel.
type dataLink struct {
	Title, URL  string
	TargetBlank bool
}

// dataLinks returns the links of a property "links".
func dataLinks(property dashboard.DynamicConfigValue) (links []dataLink, err error) {
	text, err := json.Marshal(property.Value)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	return links, decoder.Decode(&links)
}

// orEmpty returns the value of an optional field, or "".
func orEmpty(field *string) string {
	if field == nil {
		return ""
	}
	return *field
}

// panelsOf returns the panels of a dashboard, including those of collapsed rows, without the row panels, which are only
// titles.
func panelsOf(d *board) (panels []*dashboard.Panel) {
	for _, p := range d.Panels {
		if p.Panel != nil {
			panels = append(panels, p.Panel)
			continue
		}
		for i := range p.RowPanel.Panels {
			panels = append(panels, &p.RowPanel.Panels[i])
		}
	}
	return panels
}

// queriesOf returns the queries of a panel.
func queriesOf(p *dashboard.Panel) (queries []*prometheus.Dataquery) {
	for _, target := range p.Targets {
		if query, ok := target.(*prometheus.Dataquery); ok {
			queries = append(queries, query)
		}
	}
	return queries
}

// valueColumns returns the displayed names of the columns with the values of a table's queries. The keys are the
// original names.
func valueColumns(p *dashboard.Panel) map[string]string {
	shown := make(map[string]string)
	o := organizeOf(p)
	for _, query := range queriesOf(p) {
		name := "Value"
		if len(p.Targets) > 1 {
			name += " #" + orEmpty(query.RefId)
		}
		if !o.ExcludeByName[name] {
			shown[name] = o.rename(name)
		}
	}
	return shown
}

// organize is the transformation of a table that hides, sorts and renames columns.
type organize struct {
	ExcludeByName map[string]bool
	IndexByName   map[string]int
	RenameByName  map[string]string
}

// rename returns the displayed name of a column.
func (o *organize) rename(column string) string {
	if name := o.RenameByName[column]; name != "" {
		return name
	}
	return column
}

// organizeOf returns the organize transformation of a panel, or its zero value.
func organizeOf(p *dashboard.Panel) (o organize) {
	for _, transformation := range p.Transformations {
		if transformation.Id == "organize" {
			text, _ := json.Marshal(transformation.Options)
			json.Unmarshal(text, &o)
		}
	}
	return o
}

// everyScrape is the range of a subquery that evaluates an expression at each scrape. The step is the scrape interval
// of the example's Prometheus, because Grafana has no variable for it.
const everyScrape = "$__rate_interval:15s"

// everyEvaluation is the range of a subquery with the step of Prometheus' evaluation_interval.
const everyEvaluation = "$__range:"

// screenWidth is the width of a dashboard, in pixels, on which all columns of a table are visible.
const screenWidth = 1360

// manyPoints is the maximum number of points of a query that reads all targets at each point.
const manyPoints = 240

// grafanaVariables are the built-in variables of Grafana that the dashboards use.
var grafanaVariables = []string{"__range", "__rate_interval", "__url_time_range", "__data", "__value"}

var (
	usedVariable = regexp.MustCompile(`\$\{?([A-Za-z_]\w*)`) // $1 is a group of a regular expression
	selector     = regexp.MustCompile(`\b(?:up|probe_\w+)\b(?:\{[^}]*\})?`)
	lookback     = regexp.MustCompile(`\[([^]]*)\]`)
	dashboardURL = regexp.MustCompile(`^/d/([\w-]+)(\?|$)`)
	legendLabel  = regexp.MustCompile(`\{\{(\w+)\}\}`)
	fieldOfData  = regexp.MustCompile(`__data\.fields\.(\w+)`)
)

// dashboardProblems returns what is wrong with a dashboard and can be found without data.
func dashboardProblems(source string) (problems []string) {
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	d, err := readDashboard(source)
	if err != nil {
		return []string{err.Error()}
	}
	if !slices.Contains(dashboardUIDs, orEmpty(d.Uid)) {
		complain("uid is %q, want one of %q", orEmpty(d.Uid), dashboardUIDs)
	}
	if d.Id != nil {
		complain("has an id, which each Grafana has to choose itself")
	}
	if orEmpty(d.Title) == "" || orEmpty(d.Description) == "" {
		complain("has no title or no description")
	}

	names := slices.Clone(grafanaVariables)
	for _, v := range d.Templating.List {
		if slices.Contains(names, v.Name) {
			complain("variable %s is defined twice", v.Name)
		}
		names = append(names, v.Name)
		if orEmpty(v.Label) == "" || orEmpty(v.Description) == "" {
			complain("variable %s has no label or no description", v.Name)
		}
	}
	for _, used := range usedVariable.FindAllStringSubmatch(source, -1) {
		if name := used[1]; name != "__all" && !slices.Contains(names, name) { // __all is the value All
			complain("variable %s is not defined", name)
		}
	}
	var tree any
	if err := json.Unmarshal([]byte(source), &tree); err != nil {
		complain("invalid JSON: %v", err)
	}
	walkJSON(tree, func(key string, value any) {
		if key == "datasource" && fmt.Sprint(value) != "map[type:prometheus uid:${datasource}]" {
			complain("data source is %v, want the variable datasource", value)
		}
		if key == "thresholdsStyle" && strings.Contains(fmt.Sprint(value), "area") {
			complain("paints the area beyond a threshold, even without data")
		}
	})

	for _, link := range d.Links {
		if toDashboard(orEmpty(link.Url)) {
			problems = append(problems, linkProblems(link.Title, orEmpty(link.Url))...)
			if !link.KeepTime || !link.IncludeVars {
				complain("link %q does not keep the time range and the variables", link.Title)
			}
		}
	}

	ids := make(map[uint32]bool)
	identify := func(title string, id uint32) {
		if title == "" || id == 0 || ids[id] {
			complain("panel %q has no title, or its id, %d, is not unique", title, id)
		}
		ids[id] = true
	}
	var taken []place
	for _, p := range d.Panels {
		if p.RowPanel == nil {
			taken = append(taken, placeOf(p.Panel))
			continue
		}
		identify(orEmpty(p.RowPanel.Title), p.RowPanel.Id)
		taken = append(taken, place{title: orEmpty(p.RowPanel.Title), at: p.RowPanel.GridPos})
		var inRow []place
		for _, panel := range p.RowPanel.Panels {
			inRow = append(inRow, placeOf(&panel))
		}
		problems = append(problems, gridProblems(inRow)...)
		if collapsed := len(p.RowPanel.Panels) > 0; p.RowPanel.Collapsed != collapsed {
			complain("row %q has %d panels and is collapsed: %t, want panels in collapsed rows only",
				orEmpty(p.RowPanel.Title), len(p.RowPanel.Panels), p.RowPanel.Collapsed)
		}
	}
	problems = append(problems, gridProblems(taken)...)
	for _, p := range panelsOf(d) {
		title, id := orEmpty(p.Title), uint32(0)
		if p.Id != nil {
			id = *p.Id
		}
		identify(title, id)
		for _, problem := range panelProblems(p) {
			complain("panel %q %s", title, problem)
		}
		for _, query := range queriesOf(p) {
			fleet := false // whether the query reads every target
			for _, series := range selector.FindAllString(query.Expr, -1) {
				fleet = fleet || !strings.Contains(series, "instance=")
				if !strings.Contains(series, `job=~"$job"`) ||
					orEmpty(d.Uid) == "shaker-target" && !strings.Contains(series, `instance="$instance"`) {
					complain("panel %q reads %s, which ignores the variables", title, series)
				}
			}
			points := p.MaxDataPoints
			if fleet && query.Range != nil && *query.Range && (points == nil || *points > manyPoints) {
				complain("panel %q reads every target at more than %d points", title, manyPoints)
			}
			if fleet && p.Type == "state-timeline" {
				complain("panel %q has a line for every target", title)
			}
		}
	}
	return problems
}

// A place is where a panel is in the grid.
type place struct {
	title string
	at    *dashboard.GridPos
}

func placeOf(p *dashboard.Panel) place { return place{title: orEmpty(p.Title), at: p.GridPos} }

// gridProblems returns which panels, of a dashboard or of a collapsed row, are outside the grid or overlap.
func gridProblems(places []place) (problems []string) {
	for i, p := range places {
		if p.at == nil || p.at.W == 0 || p.at.H == 0 || p.at.X+p.at.W > 24 {
			problems = append(problems, fmt.Sprintf("panel %q is outside the grid", p.title))
			continue
		}
		for _, other := range places[:i] {
			if other.at != nil && p.at.X < other.at.X+other.at.W && other.at.X < p.at.X+p.at.W &&
				p.at.Y < other.at.Y+other.at.H && other.at.Y < p.at.Y+p.at.H {
				problems = append(problems, fmt.Sprintf("panel %q overlaps another", p.title))
			}
		}
	}
	return problems
}

// walkJSON calls f for each key and value of all objects in a decoded JSON text.
func walkJSON(tree any, f func(key string, value any)) {
	switch tree := tree.(type) {
	case map[string]any:
		for key, value := range tree {
			f(key, value)
			walkJSON(value, f)
		}
	case []any:
		for _, value := range tree {
			walkJSON(value, f)
		}
	}
}

// panelProblems returns what is wrong with a panel and can be found without data.
func panelProblems(p *dashboard.Panel) (problems []string) {
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if orEmpty(p.Description) == "" {
		complain("has no description")
	}
	if p.Datasource == nil {
		complain("has no data source")
	}
	if _, known := cog.ConfigForPanelcfgVariant(p.Type); !known {
		complain("has the unknown type %s", p.Type)
	}
	queries := queriesOf(p)
	if len(queries) == 0 || len(queries) != len(p.Targets) {
		complain("has %d queries, and %d of them are for Prometheus, want all of them", len(p.Targets), len(queries))
	}
	var refs []string
	for _, query := range queries {
		if slices.Contains(refs, orEmpty(query.RefId)) {
			complain("has two queries with the refId %s", orEmpty(query.RefId))
		}
		refs = append(refs, orEmpty(query.RefId))
		format := prometheus.PromQueryFormatTimeSeries
		if query.Format != nil {
			format = *query.Format
		}
		if query.Instant == nil || query.Range == nil || *query.Instant == *query.Range {
			complain("has a query %s that is not either an instant query or a range query", orEmpty(query.RefId))
		}
		if (format == prometheus.PromQueryFormatTable) != (p.Type == "table") ||
			(format == prometheus.PromQueryFormatHeatmap) != (p.Type == "heatmap") {
			complain("has a query %s with the format of another panel type", orEmpty(query.RefId))
		}
		for _, w := range lookback.FindAllStringSubmatch(query.Expr, -1) {
			if !slices.Contains([]string{"$__range", everyEvaluation, "$__rate_interval", everyScrape}, w[1]) {
				complain("looks back over %s", w[1])
			}
		}
	}

	fields := p.FieldConfig
	if fields == nil {
		return append(problems, "has no fieldConfig")
	}
	units := make(map[string]bool)     // the columns to which an override gives a unit
	widths := make(map[string]float64) // the widths, or minimum widths, of columns in pixels
	for _, o := range fields.Overrides {
		if o.Matcher.Id == "byFrameRefID" && !slices.Contains(refs, fmt.Sprint(o.Matcher.Options)) {
			complain("overrides the query %v, which does not exist", o.Matcher.Options)
		}
		for _, property := range o.Properties {
			switch property.Id {
			case "custom.width", "custom.minWidth":
				widths[fmt.Sprint(o.Matcher.Options)], _ = property.Value.(float64)
			case "unit":
				units[fmt.Sprint(o.Matcher.Options)] = true
			case "links":
				links, _ := dataLinks(property)
				for _, link := range links {
					problems = append(problems, linkProblems(link.Title, link.URL)...)
					if toDashboard(link.URL) && !strings.Contains(link.URL, "${__url_time_range}") {
						complain("has a link %q that does not keep the time range", link.Title)
					}
				}
			}
		}
	}
	if p.Type == "table" {
		for _, column := range valueColumns(p) {
			if !units[column] && !(isMatrix(p) && orEmpty(fields.Defaults.Unit) != "") {
				complain("has no unit for %s", column)
			}
		}
		width := 0.
		for _, column := range organizeOf(p).RenameByName {
			if widths[column] == 0 {
				complain("has no width for %s, so that another column may leave it no room", column)
			}
			width += widths[column]
		}
		if available := float64(p.GridPos.W) / 24 * screenWidth; width > available {
			complain("has columns of %.0f pixels together, want at most %.0f", width, available)
		}
	} else if unit := unitOf(p); unit == "" {
		complain("has no unit")
	} else if slices.Contains([]string{"reqps", "pps", "cps", "ops"}, unit) { // 0.02 pps would be 20 mp/s
		complain("has the unit %s, and does not count requests, packets, counts or operations", unit)
	}
	if orEmpty(fields.Defaults.NoValue) == "" && p.Type != "heatmap" { // which has no such text
		complain("has no text for no data")
	}
	if p.Type == "stat" && fields.Defaults.Thresholds == nil { // Grafana's default makes 80 red
		complain("has no thresholds")
	} else if p.Type == "stat" && fields.Defaults.Thresholds.Steps[0].Color == "green" {
		complain("is green without data")
	}
	if p.Type == "state-timeline" && len(fields.Defaults.Mappings) == 0 {
		complain("has no names for its numbers")
	}
	return problems
}

// isMatrix reports whether a table has a row for each value of one label and a column for each value of another.
func isMatrix(p *dashboard.Panel) bool {
	return slices.ContainsFunc(p.Transformations, func(t dashboard.DataTransformerConfig) bool {
		return t.Id == "groupingToMatrix"
	})
}

// unitOf returns the unit of a panel that is not a table.
func unitOf(p *dashboard.Panel) string {
	if options, ok := p.Options.(*heatmap.Options); ok {
		return orEmpty(options.YAxis.Unit)
	}
	return orEmpty(p.FieldConfig.Defaults.Unit)
}

// toDashboard reports whether a URL leads to a dashboard.
func toDashboard(url string) bool { return !strings.HasPrefix(url, "${exporter:raw}/") }

// linkProblems returns what is wrong with a link.
func linkProblems(title, url string) (problems []string) {
	to := dashboardURL.FindStringSubmatch(url)
	if toDashboard(url) && (to == nil || !slices.Contains(dashboardUIDs, to[1])) {
		problems = append(problems, fmt.Sprintf("link %q leads to %s, which does not exist", title, url))
	}
	return problems
}

// Grafana can read the dashboards. Each panel has a description and a unit, and all links lead to something.
func TestDashboards(t *testing.T) {
	for i, file := range []string{fleetFile, targetFile, meshFile} {
		source := lab.Read(t, file)
		for _, problem := range dashboardProblems(source) {
			t.Errorf("%s has a problem: %s", file, problem)
		}
		if want := `"uid": "` + dashboardUIDs[i] + `"`; !strings.Contains(source, want) {
			t.Errorf("%s does not contain %s", file, want)
		}
	}
}

// mutateJSON returns a JSON text with another value at a path of keys and indices. A nil value removes the last key.
func mutateJSON(t *testing.T, source string, value any, path ...any) string {
	t.Helper()
	var tree any
	if err := json.Unmarshal([]byte(source), &tree); err != nil {
		t.Fatal(err)
	}
	at := tree
	for _, step := range path[:len(path)-1] {
		switch step := step.(type) {
		case string:
			at = at.(map[string]any)[step]
		case int:
			at = at.([]any)[step]
		}
	}
	object, key := at.(map[string]any), path[len(path)-1].(string)
	if value == nil {
		if _, ok := object[key]; !ok {
			t.Fatalf("the JSON text has no %v, which the test wants to remove", path)
		}
		delete(object, key)
	} else {
		object[key] = value
	}
	changed, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return string(changed)
}

// panelPath returns the path of the panel with a title in the JSON text of a dashboard.
func panelPath(t *testing.T, source, title string) []any {
	t.Helper()
	d, err := readDashboard(source)
	if err != nil {
		t.Fatalf("read the dashboard with panel %q: %v", title, err)
	}
	for i, p := range d.Panels {
		if p.Panel != nil {
			if orEmpty(p.Panel.Title) == title {
				return []any{"panels", i}
			}
			continue
		}
		for j, p := range p.RowPanel.Panels {
			if orEmpty(p.Title) == title {
				return []any{"panels", i, "panels", j}
			}
		}
	}
	t.Fatalf("the dashboard has no panel %q", title)
	return nil
}

// panelIndex returns the index of the panel with a title, which is not in a collapsed row.
func panelIndex(t *testing.T, source, title string) int {
	t.Helper()
	path := panelPath(t, source, title)
	if len(path) != 2 {
		t.Fatalf("panel %q is in a collapsed row", title)
	}
	return path[1].(int)
}

// panelRow returns the index of the row with a title.
func panelRow(t *testing.T, source, title string) int {
	t.Helper()
	d, err := readDashboard(source)
	if err != nil {
		t.Fatalf("read the dashboard with row %q: %v", title, err)
	}
	i := slices.IndexFunc(d.Panels, func(p dashboard.PanelOrRowPanel) bool {
		return p.RowPanel != nil && orEmpty(p.RowPanel.Title) == title
	})
	if i < 0 {
		t.Fatalf("the dashboard has no row %q", title)
	}
	return i
}

// The control of TestDashboards: each mistake in a dashboard is found.
func TestDashboardProblems(t *testing.T) {
	source := lab.Read(t, fleetFile)
	down := panelIndex(t, source, "Down now")
	reasons := panelIndex(t, source, "Failures by reason")
	results := panelIndex(t, source, "Results of failed targets")
	targetsDown := panelIndex(t, source, "Down")
	for _, c := range []struct {
		want  string
		value any
		path  []any
	}{
		{want: "has an id", value: 7, path: []any{"id"}},
		{want: `uid is "other"`, value: "other", path: []any{"uid"}},
		{want: "unexpected field 'tittle'", value: "x", path: []any{"tittle"}},
		{want: "required field is missing", value: nil, path: []any{"schemaVersion"}},
		{want: "no title or no description", value: nil, path: []any{"description"}},
		{want: "variable job is not defined", value: "work", path: []any{"templating", "list", 1, "name"}},
		{want: "variable job is defined twice", value: "job", path: []any{"templating", "list", 0, "name"}},
		{
			want: "data source is map[type:prometheus uid:abc]", value: "abc",
			path: []any{"panels", 0, "datasource", "uid"},
		},
		{
			want: "data source is map[type:prometheus uid:abc]", value: "abc",
			path: []any{"panels", 0, "targets", 0, "datasource", "uid"},
		},
		{want: "which does not exist", value: "/d/shaker-one", path: []any{"links", 0, "url"}},
		{want: "does not keep the time range and", value: false, path: []any{"links", 0, "keepTime"}},
		{want: "is not unique", value: 1, path: []any{"panels", 1, "id"}},
		{want: "has no title", value: nil, path: []any{"panels", 0, "title"}},
		{want: "overlaps another", value: 1, path: []any{"panels", 1, "gridPos", "x"}},
		{want: "is outside the grid", value: 23, path: []any{"panels", 0, "gridPos", "x"}},
		{want: "has no description", value: nil, path: []any{"panels", 0, "description"}},
		{want: "has no unit", value: nil, path: []any{"panels", 0, "fieldConfig", "defaults", "unit"}},
		{want: "has no text for no data", value: nil, path: []any{"panels", 0, "fieldConfig", "defaults", "noValue"}},
		{
			want: "has the unit reqps", value: "reqps",
			path: []any{"panels", panelIndex(t, source, "Probes"), "fieldConfig", "defaults", "unit"},
		},
		{
			want: "has columns of 2", value: 1000,
			path: []any{"panels", down, "fieldConfig", "overrides", 0, "properties", 0, "value"},
		},
		{
			want: "has no width for Target", value: "min",
			path: []any{"panels", down, "fieldConfig", "overrides", 0, "properties", 0, "id"},
		},
		{
			want: "and is collapsed: true", value: true,
			path: []any{"panels", panelRow(t, source, "Where SYNs end"), "collapsed"},
		},
		{want: "has no thresholds", value: nil, path: []any{"panels", 0, "fieldConfig", "defaults", "thresholds"}},
		{want: "unexpected field 'unitt'", value: "s", path: []any{"panels", 0, "fieldConfig", "defaults", "unitt"}},
		{want: "unexpected field 'graphmode'", value: "none", path: []any{"panels", 0, "options", "graphmode"}},
		{
			want: "fillOpacity", value: "much",
			path: []any{"panels", reasons, "fieldConfig", "defaults", "custom", "fillOpacity"},
		},
		{
			want: "has no unit for Hop", value: "description",
			path: []any{"panels", down, "fieldConfig", "overrides", 2, "properties", 0, "id"},
		},
		{
			want: "unexpected field 'widht'", value: "custom.widht",
			path: []any{"panels", down, "fieldConfig", "overrides", 2, "properties", 1, "id"},
		},
		{
			want: "that does not keep the time range", value: "/d/shaker-target",
			path: []any{"panels", down, "fieldConfig", "overrides", 0, "properties", 1, "value", 0, "url"},
		},
		{want: "unexpected field 'expression'", value: "up", path: []any{"panels", 0, "targets", 0, "expression"}},
		{
			want: "unknown field", value: "x",
			path: []any{"panels", down, "fieldConfig", "overrides", 0, "properties", 1, "value", 0, "uri"},
		},
		{
			want: "even without data", value: map[string]any{"mode": "area"},
			path: []any{"panels", reasons, "fieldConfig", "defaults", "custom", "thresholdsStyle"},
		},
		{
			want: "is green without data", value: "green",
			path: []any{"panels", targetsDown, "fieldConfig", "defaults", "thresholds", "steps", 0, "color"},
		},
		{want: "reads every target at more than", value: nil, path: []any{"panels", reasons, "maxDataPoints"}},
		{want: "reads every target at more than", value: 1000, path: []any{"panels", reasons, "maxDataPoints"}},
		{
			want: "has a line for every target", value: `probe_result_info{job=~"$job"}`,
			path: []any{"panels", results, "targets", 0, "expr"},
		},
		{
			want: "looks back over 1m:15s", value: `max_over_time((x == 1)[1m:15s])`,
			path: []any{"panels", 0, "targets", 0, "expr"},
		},
		{want: "looks back over 5m", value: "rate(x[5m])", path: []any{"panels", 0, "targets", 0, "expr"}},
		{
			want: "reads up, which ignores the variables", value: "count(up)",
			path: []any{"panels", 0, "targets", 0, "expr"},
		},
		{want: "not either an instant query", value: true, path: []any{"panels", 0, "targets", 0, "range"}},
		{want: "has two queries with the refId A", value: "A", path: []any{"panels", down, "targets", 1, "refId"}},
		{want: "has the unknown type graph", value: "graph", path: []any{"panels", 0, "type"}},
	} {
		got := dashboardProblems(mutateJSON(t, source, c.value, c.path...))
		if !slices.ContainsFunc(got, func(problem string) bool { return strings.Contains(problem, c.want) }) {
			t.Errorf("%s with %v = %v: the problems are %q, want one with %q", fleetFile, c.path, c.value, got, c.want)
		}
	}
}

// resultsOfConnections are the results that held connections can have, and handshakes cannot.
var resultsOfConnections = []string{"silent", "closed", "mismatch"}

// In the panels about results, each result has a number, and the name of that number is the result.
func TestResultsHaveNames(t *testing.T) {
	ofHandshakes := []string{"open, unwanted", "open", "refused", "reset", "timeout", "unreachable", "prohibited",
		"dns_not_found", "dns_timeout", "dns_error", "error"}
	all := append(slices.Clone(ofHandshakes), resultsOfConnections...)
	numbered := regexp.MustCompile(`(?:(\d+) \* )?(?:max_over_time\()?\(?` +
		`probe_(?:address_|flow_)?result_info\{[^}]*result="(\w+)"\}`)
	boards := readBoards(t)
	found := 0
	for _, file := range []string{fleetFile, targetFile} {
		for _, p := range panelsOf(boards[file]) {
			if len(p.FieldConfig.Defaults.Mappings) == 0 {
				continue
			}
			found++
			results := all
			if strings.HasPrefix(*p.Title, "Results per ") { // of addresses or flows, not of held connections
				results = ofHandshakes
			}
			names := p.FieldConfig.Defaults.Mappings[0].ValueMap.Options
			var named []string
			for _, m := range numbered.FindAllStringSubmatch(queriesOf(p)[0].Expr, -1) {
				number, result := cmp.Or(m[1], "1"), m[2]
				if number == "11" && result == "open" { // open has two numbers
					result = "open, unwanted"
				}
				if name := orEmpty(names[number].Text); name != result {
					t.Errorf("%s: panel %q: the name of %s, the number of %s, is %q",
						file, *p.Title, number, result, name)
				}
				named = append(named, result)
			}
			if !slices.Equal(named, results) {
				t.Errorf("%s: panel %q has numbers for %q, want %q", file, *p.Title, named, results)
			}
			if got := orEmpty(names["0"].Text); got != "not measured" || len(names) != len(results)+1 {
				t.Errorf("%s: panel %q has %d names, and 0 is %q, want %d names, and 0 is not measured",
					file, *p.Title, len(names), got, len(results)+1)
			}
		}
	}
	if found != 5 {
		t.Errorf("%d panels are about results, want 5", found)
	}
}

// A result has the same color in all panels. The exception is open, which is red in the panels about failures.
func TestResultsHaveColors(t *testing.T) {
	boards := readBoards(t)
	timeline := panelNamed(t, boards[fleetFile], "Results of failed targets").FieldConfig.Defaults.Mappings[0].ValueMap
	want := make(map[string]string) // the colors by result
	for _, m := range timeline.Options {
		want[orEmpty(m.Text)] = orEmpty(m.Color)
	}
	delete(want, "not measured")
	delete(want, "open, unwanted")
	check := func(panel string, got map[string]string) {
		t.Helper()
		if !failureColor(got["open"]) {
			t.Errorf("panel %q shows open in %s, want a color of a failure", panel, got["open"])
		}
		got["open"] = want["open"]
		if !maps.Equal(got, want) {
			t.Errorf("panel %q has the colors %v, want %v", panel, got, want)
		}
	}
	overridden := func(file, panel string) map[string]string {
		t.Helper()
		got := make(map[string]string)
		for _, o := range panelNamed(t, boards[file], panel).FieldConfig.Overrides {
			pattern := regexp.MustCompile(strings.Trim(fmt.Sprint(o.Matcher.Options), "/"))
			for result := range want {
				if pattern.MatchString(result) && pattern.MatchString(result+" ECONNREFUSED") {
					got[result] += o.Properties[0].Value.(map[string]any)["fixedColor"].(string)
				}
			}
		}
		return got
	}
	for _, panel := range []string{"Failures by reason", "Failures by result"} {
		check(panel, overridden(fleetFile, panel))
	}
	got := make(map[string]string)
	for _, o := range panelNamed(t, boards[fleetFile], "Down now").FieldConfig.Overrides {
		if o.Matcher.Options != "Result" {
			continue
		}
		for _, property := range o.Properties {
			if property.Id == "mappings" {
				for result, m := range property.Value.([]any)[0].(map[string]any)["options"].(map[string]any) {
					got[result] = m.(map[string]any)["color"].(string)
				}
			}
		}
	}
	check("Down now", got)
	for _, panel := range []string{"Heartbeats not answered", "Ends of connections"} {
		for _, file := range []string{fleetFile, targetFile} {
			for result, color := range overridden(file, panel) {
				if color != want[result] {
					t.Errorf("%s: panel %q shows %s in %s, want %s", file, panel, result, color, want[result])
				}
			}
		}
	}
	for _, result := range resultsOfConnections {
		delete(want, result)
	}
	if got := overridden(targetFile, "Handshakes"); !maps.Equal(got, want) { // where open is no failure
		t.Errorf("panel %q has the colors %v, want %v", "Handshakes", got, want)
	}
}

// failureColor reports whether a color is a red.
func failureColor(name string) bool { return strings.HasSuffix(name, "red") }

// An error budget that is used up is not a large negative percentage.
func TestErrorBudget(t *testing.T) {
	for _, o := range panelNamed(t, readBoards(t)[fleetFile], "Availability and error budget").FieldConfig.Overrides {
		for _, property := range o.Properties {
			if o.Matcher.Options == "Budget left" && property.Id == "mappings" {
				got, _ := json.Marshal(property.Value)
				const want = `[{"options":{"from":null,"result":{"color":"red","index":0,"text":"used up"},"to":0},` +
					`"type":"range"}]`
				if string(got) != want {
					t.Errorf("the column Budget left has the names %s, want %s", got, want)
				}
				return
			}
		}
	}
	t.Error("the column Budget left has no name for numbers below 0")
}

// With several Prometheus servers, the central server gets every metric that the dashboards show, except for the
// routers on the path, which would be too many series, and the durations, which no rule needs.
func TestCentralServerGetsWhatDashboardsShow(t *testing.T) {
	omitted := regexp.MustCompile(`^probe_(path_hop_(info|rtt_seconds)|duration_seconds|dns_lookup_time_seconds)$`)
	metric := regexp.MustCompile(`\b(?:up|(?:probe|shaker)_\w+)\b`)
	boards := readBoards(t)
	shown := make(map[string]bool)
	for _, file := range []string{fleetFile, targetFile} {
		for _, p := range panelsOf(boards[file]) {
			for _, query := range queriesOf(p) {
				for _, name := range metric.FindAllString(query.Expr, -1) {
					shown[name] = !omitted.MatchString(name)
				}
			}
		}
	}
	if len(shown) < 20 {
		t.Fatalf("the dashboards show %d metrics, %v, want at least 20", len(shown), slices.Sorted(maps.Keys(shown)))
	}
	for file, pattern := range map[string]string{
		"place.yml": `(?m)^ +regex: (up\|.*)$`, "central.yml": `__name__=~"(.*)"`,
	} {
		match := regexp.MustCompile(pattern).FindStringSubmatch(lab.Read(t, "scale/"+file))
		if match == nil {
			t.Fatalf("%s has no list of metrics to keep: no match of %s", file, pattern)
		}
		kept := regexp.MustCompile("^(?:" + match[1] + ")$")
		for name, want := range shown {
			if kept.MatchString(name) != want {
				t.Errorf("%s keeps %s: %t, want %t", file, name, !want, want)
			}
		}
	}
}

// The files for Grafana's provisioning have no unknown keys. The interval of the data source is the scrape interval of
// the example's Prometheus.
func TestGrafanaProvisioning(t *testing.T) {
	decode := func(file string, to any) {
		t.Helper()
		decoder := yaml.NewDecoder(strings.NewReader(lab.Read(t, file)))
		decoder.KnownFields(true)
		if err := decoder.Decode(to); err != nil {
			t.Fatalf("decode %s: %v", file, err)
		}
	}
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, Type, Access, URL string
			IsDefault               bool `yaml:"isDefault"`
			JSONData                struct {
				TimeInterval string `yaml:"timeInterval"`
				HTTPMethod   string `yaml:"httpMethod"`
			} `yaml:"jsonData"`
		}
	}
	decode("grafana/provisioning/datasources/prometheus.yml", &sources)
	if len(sources.Datasources) != 1 || sources.APIVersion != 1 {
		t.Fatalf("the data sources are %+v, want one of version 1", sources)
	}
	source := sources.Datasources[0]
	if source.Type != "prometheus" || source.Access != "proxy" || source.URL != "http://prometheus:9090" {
		t.Errorf("the data source is %+v, want Prometheus at http://prometheus:9090 through Grafana's proxy", source)
	}
	if want := "$__rate_interval:" + source.JSONData.TimeInterval; want != everyScrape {
		t.Errorf("the subqueries of the dashboards have the range %s, want %s", everyScrape, want)
	}
	want := "scrape_interval: " + source.JSONData.TimeInterval + "\n"
	if !strings.Contains(lab.Read(t, "prometheus.yml"), want) {
		t.Errorf("prometheus.yml does not contain %q", want)
	}
	var providers struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Folder, Type string
			Options            struct{ Path string }
		}
	}
	decode("grafana/provisioning/dashboards/shaker.yml", &providers)
	if len(providers.Providers) != 1 || providers.APIVersion != 1 ||
		providers.Providers[0].Type != "file" || providers.Providers[0].Options.Path != "/var/lib/grafana/dashboards" {
		t.Errorf("the providers of dashboards are %+v, want one of version 1 with /var/lib/grafana/dashboards",
			providers)
	}
}
