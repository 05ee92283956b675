package examples

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
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
)

// dashboardUIDs are those of the dashboards that links can lead to.
var dashboardUIDs = []string{"shaker-fleet", "shaker-target"}

// A board is a dashboard in the classic model, which every Grafana in use can read.
//
//lint:ignore SA1019 what comes after it is for Grafana 12 and newer
type board = dashboard.Dashboard

// readDashboard reads a dashboard as strictly as Grafana's own schema has it, what is private
// to the kinds of panels included.
func readDashboard(text string) (*board, error) {
	runtime := cog.NewRuntime()
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(statetimeline.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())

	if err := saying(new(board).UnmarshalJSONStrict([]byte(text))); err != nil {
		return nil, err
	}
	var d board // what is read strictly has no queries and options
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return nil, err
	}
	if err := d.Validate(); err != nil {
		return nil, err
	}
	// A panel reads its fieldConfig less strictly than it could.
	var raw struct {
		Panels []struct {
			Type        string
			FieldConfig json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, err
	}
	for _, p := range raw.Panels {
		var fields dashboard.FieldConfigSource
		if err := saying(fields.UnmarshalJSONStrict(p.FieldConfig)); err != nil {
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

// readProperty reads what an override changes of the defaults.
func readProperty(panelType string, defaults *dashboard.FieldConfig, property dashboard.DynamicConfigValue) error {
	if property.Id == "links" { // have less than those of a dashboard
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
		return saying(err)
	}
	return saying(new(dashboard.FieldConfig).UnmarshalJSONStrict(text))
}

// saying returns an error if it says something. The strict decoders return one in any case.
func saying(err error) error {
	if err == nil || err.Error() == "" {
		return nil
	}
	return err
}

// A dataLink leads from a value to something else about it.
type dataLink struct {
	Title, URL  string
	TargetBlank bool
}

func dataLinks(property dashboard.DynamicConfigValue) (links []dataLink, err error) {
	text, err := json.Marshal(property.Value)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	return links, decoder.Decode(&links)
}

// orEmpty returns the text that a field of a dashboard has, "" if it has none.
func orEmpty(field *string) string {
	if field == nil {
		return ""
	}
	return *field
}

// panelsOf returns the panels of a dashboard, those that are only the titles of rows aside.
func panelsOf(d *board) (panels []*dashboard.Panel) {
	for _, p := range d.Panels {
		if p.Panel != nil {
			panels = append(panels, p.Panel)
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

// valueColumns returns the columns that the values of a table's queries become, as it names
// them, by what they are called before.
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

// organize is what a table does to the columns that queries return.
type organize struct {
	ExcludeByName map[string]bool
	IndexByName   map[string]int
	RenameByName  map[string]string
}

func (o *organize) rename(column string) string {
	if name := o.RenameByName[column]; name != "" {
		return name
	}
	return column
}

func organizeOf(p *dashboard.Panel) (o organize) {
	for _, transformation := range p.Transformations {
		if transformation.Id == "organize" {
			text, _ := json.Marshal(transformation.Options)
			json.Unmarshal(text, &o)
		}
	}
	return o
}

// everyScrape is a window of all scrapes, of which each is looked at by itself, so that two series
// can be joined in it. Its step is the interval at which the example's Prometheus scrapes, for
// which Grafana has no variable.
const everyScrape = "$__rate_interval:15s"

// manyPoints are too many for a query that reads thousands of targets at each of them.
const manyPoints = 240

// grafanaVariables are the variables that Grafana knows by itself and that are in use here.
var grafanaVariables = []string{"__range", "__rate_interval", "__url_time_range", "__data", "__value"}

var (
	usedVariable = regexp.MustCompile(`\$\{?(\w+)`)
	selector     = regexp.MustCompile(`\b(?:up|probe_\w+)\b(?:\{[^}]*\})?`)
	lookback     = regexp.MustCompile(`\[([^]]*)\]`)
	dashboardURL = regexp.MustCompile(`^/d/([\w-]+)(\?|$)`)
	legendLabel  = regexp.MustCompile(`\{\{(\w+)\}\}`)
	fieldOfData  = regexp.MustCompile(`__data\.fields\.(\w+)`)
)

// dashboardComplaints says what is wrong with a dashboard, as far as that can be known without data.
func dashboardComplaints(source string) (wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	d, err := readDashboard(source)
	if err != nil {
		return []string{err.Error()}
	}
	if !slices.Contains(dashboardUIDs, orEmpty(d.Uid)) {
		complain("uid %q", orEmpty(d.Uid))
	}
	if d.Id != nil {
		complain("has an id, which is each Grafana's own")
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
		if name := used[1]; name != "__all" && !slices.Contains(names, name) { // the value All
			complain("variable %s is not defined", name)
		}
	}
	var tree any
	if err := json.Unmarshal([]byte(source), &tree); err != nil {
		complain("%v", err)
	}
	walkJSON(tree, func(key string, value any) {
		if key == "datasource" && fmt.Sprint(value) != "map[type:prometheus uid:${datasource}]" {
			complain("data source %v", value)
		}
		if key == "thresholdsStyle" && strings.Contains(fmt.Sprint(value), "area") { // whatever the data
			complain("paints what is beyond a threshold, whether something is there or not")
		}
	})

	for _, link := range d.Links {
		if toDashboard(orEmpty(link.Url)) {
			wrong = append(wrong, linkComplaints(link.Title, orEmpty(link.Url))...)
			if !link.KeepTime || !link.IncludeVars {
				complain("link %q keeps neither time nor variables", link.Title)
			}
		}
	}

	ids := make(map[uint32]bool)
	var taken []dashboard.GridPos
	for _, p := range d.Panels {
		var id uint32
		var title string
		var at *dashboard.GridPos
		if p.RowPanel != nil {
			id, title, at = p.RowPanel.Id, orEmpty(p.RowPanel.Title), p.RowPanel.GridPos
		} else {
			if p.Panel.Id != nil {
				id = *p.Panel.Id
			}
			title, at = orEmpty(p.Panel.Title), p.Panel.GridPos
			for _, w := range panelComplaints(p.Panel) {
				complain("panel %q %s", title, w)
			}
			for _, query := range queriesOf(p.Panel) {
				fleet := false // reads every target
				for _, series := range selector.FindAllString(query.Expr, -1) {
					fleet = fleet || !strings.Contains(series, "instance=")
					if !strings.Contains(series, `job=~"$job"`) || orEmpty(d.Uid) == "shaker-target" && !strings.Contains(series, `instance="$instance"`) {
						complain("panel %q is about %s, whatever is chosen", title, series)
					}
				}
				points := p.Panel.MaxDataPoints
				if fleet && query.Range != nil && *query.Range && (points == nil || *points > manyPoints) {
					complain("panel %q reads every target at more than %d points", title, manyPoints)
				}
				if fleet && p.Panel.Type == "state-timeline" {
					complain("panel %q has a line for every target", title)
				}
			}
		}
		if title == "" || id == 0 || ids[id] {
			complain("panel %q has no title, or an id that is not its own: %d", title, id)
		}
		ids[id] = true
		if at == nil || at.W == 0 || at.H == 0 || at.X+at.W > 24 {
			complain("panel %q is not on the grid", title)
			continue
		}
		for _, other := range taken {
			if at.X < other.X+other.W && other.X < at.X+at.W && at.Y < other.Y+other.H && other.Y < at.Y+at.H {
				complain("panel %q overlaps another", title)
			}
		}
		taken = append(taken, *at)
	}
	return wrong
}

// walkJSON calls f for each key and value that there is in a JSON text.
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

// panelComplaints says what is wrong with a panel.
func panelComplaints(p *dashboard.Panel) (wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if orEmpty(p.Description) == "" {
		complain("has no description")
	}
	if p.Datasource == nil {
		complain("has no data source")
	}
	if _, known := cog.ConfigForPanelcfgVariant(p.Type); !known {
		complain("is a %s", p.Type)
	}
	queries := queriesOf(p)
	if len(queries) == 0 || len(queries) != len(p.Targets) {
		complain("has %d queries, %d of them of Prometheus", len(p.Targets), len(queries))
	}
	var refs []string
	for _, query := range queries {
		if slices.Contains(refs, orEmpty(query.RefId)) {
			complain("has two queries %s", orEmpty(query.RefId))
		}
		refs = append(refs, orEmpty(query.RefId))
		isTable := query.Format != nil && *query.Format == prometheus.PromQueryFormatTable
		if query.Instant == nil || query.Range == nil || *query.Instant == *query.Range || isTable != (p.Type == "table") {
			complain("has a query %s that is neither about now nor about the time range, or no table", orEmpty(query.RefId))
		}
		for _, w := range lookback.FindAllStringSubmatch(query.Expr, -1) {
			if !slices.Contains([]string{"$__range", "$__rate_interval", everyScrape}, w[1]) {
				complain("looks back over %s", w[1])
			}
		}
	}

	fields := p.FieldConfig
	if fields == nil {
		return append(wrong, "has no fieldConfig")
	}
	units := make(map[string]bool) // that an override gives to a column
	for _, o := range fields.Overrides {
		if o.Matcher.Id == "byFrameRefID" && !slices.Contains(refs, fmt.Sprint(o.Matcher.Options)) {
			complain("overrides query %v, which it does not have", o.Matcher.Options)
		}
		for _, property := range o.Properties {
			switch property.Id {
			case "unit":
				units[fmt.Sprint(o.Matcher.Options)] = true
			case "links":
				links, _ := dataLinks(property)
				for _, link := range links {
					wrong = append(wrong, linkComplaints(link.Title, link.URL)...)
					if toDashboard(link.URL) && !strings.Contains(link.URL, "${__url_time_range}") {
						complain("has a link %q that does not keep the time", link.Title)
					}
				}
			}
		}
	}
	if p.Type == "table" {
		for _, column := range valueColumns(p) {
			if !units[column] {
				complain("has no unit for %s", column)
			}
		}
	} else if orEmpty(fields.Defaults.Unit) == "" {
		complain("has no unit")
	}
	if p.Type == "stat" && fields.Defaults.Thresholds == nil { // or else 80 is red
		complain("has no thresholds")
	} else if p.Type == "stat" && fields.Defaults.Thresholds.Steps[0].Color == "green" { // that of no value, too
		complain("is green where it knows nothing")
	}
	if p.Type == "state-timeline" && len(fields.Defaults.Mappings) == 0 {
		complain("has no names for its numbers")
	}
	return wrong
}

// toDashboard tells whether a link leads to a dashboard.
func toDashboard(url string) bool { return !strings.HasPrefix(url, "${exporter:raw}/") }

// linkComplaints says what is wrong with a link.
func linkComplaints(title, url string) (wrong []string) {
	if to := dashboardURL.FindStringSubmatch(url); toDashboard(url) && (to == nil || !slices.Contains(dashboardUIDs, to[1])) {
		wrong = append(wrong, fmt.Sprintf("link %q leads to %s, which is not there", title, url))
	}
	return wrong
}

// Grafana can read the dashboards, and a person finds what there is to know about each panel.
func TestDashboards(t *testing.T) {
	for i, file := range []string{fleetFile, targetFile} {
		source := lab.Read(t, file)
		for _, complaint := range dashboardComplaints(source) {
			t.Errorf("%s: %s", file, complaint)
		}
		if want := `"uid": "` + dashboardUIDs[i] + `"`; !strings.Contains(source, want) {
			t.Errorf("%s: no %s", file, want)
		}
	}
}

// mutateJSON returns a JSON text in which one thing is changed, that which the path of keys and
// indices leads to. A nil value takes it away.
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
		if _, there := object[key]; !there {
			t.Fatalf("there is no %v", path)
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

// panelIndex returns where in a dashboard the panel with a title is.
func panelIndex(t *testing.T, source, title string) int {
	t.Helper()
	d, err := readDashboard(source)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(d.Panels, func(p dashboard.PanelOrRowPanel) bool { return p.Panel != nil && orEmpty(p.Panel.Title) == title })
	if i < 0 {
		t.Fatalf("there is no panel %q", title)
	}
	return i
}

// The control: of each thing that can be wrong with a dashboard something is said.
func TestDashboardComplaints(t *testing.T) {
	source := lab.Read(t, fleetFile)
	down := panelIndex(t, source, "Down now")
	reasons := panelIndex(t, source, "Failures by reason")
	verdicts := panelIndex(t, source, "Results of failed targets")
	for _, c := range []struct {
		want  string
		value any
		path  []any
	}{
		{"has an id", 7, []any{"id"}},
		{`uid "other"`, "other", []any{"uid"}},
		{"unexpected field 'tittle'", "x", []any{"tittle"}},
		{"required field is missing", nil, []any{"schemaVersion"}},
		{"no title or no description", nil, []any{"description"}},
		{"variable job is not defined", "work", []any{"templating", "list", 1, "name"}},
		{"variable job is defined twice", "job", []any{"templating", "list", 0, "name"}},
		{"data source map[type:prometheus uid:abc]", "abc", []any{"panels", 0, "datasource", "uid"}},
		{"data source map[type:prometheus uid:abc]", "abc", []any{"panels", 0, "targets", 0, "datasource", "uid"}},
		{"which is not there", "/d/shaker-one", []any{"links", 0, "url"}},
		{"keeps neither", false, []any{"links", 0, "keepTime"}},
		{"an id that is not its own", 1, []any{"panels", 1, "id"}},
		{"has no title", nil, []any{"panels", 0, "title"}},
		{"overlaps another", 1, []any{"panels", 1, "gridPos", "x"}},
		{"is not on the grid", 23, []any{"panels", 0, "gridPos", "x"}},
		{"has no description", nil, []any{"panels", 0, "description"}},
		{"has no unit", nil, []any{"panels", 0, "fieldConfig", "defaults", "unit"}},
		{"has no thresholds", nil, []any{"panels", 0, "fieldConfig", "defaults", "thresholds"}},
		{"unexpected field 'unitt'", "s", []any{"panels", 0, "fieldConfig", "defaults", "unitt"}},
		{"unexpected field 'graphmode'", "none", []any{"panels", 0, "options", "graphmode"}},
		{"fillOpacity", "much", []any{"panels", reasons, "fieldConfig", "defaults", "custom", "fillOpacity"}},
		{"has no unit for Hop", "description", []any{"panels", down, "fieldConfig", "overrides", 2, "properties", 0, "id"}},
		{"unexpected field 'widht'", "custom.widht", []any{"panels", down, "fieldConfig", "overrides", 2, "properties", 1, "id"}},
		{"that does not keep the time", "/d/shaker-target", []any{"panels", down, "fieldConfig", "overrides", 0, "properties", 1, "value", 0, "url"}},
		{"unexpected field 'expression'", "up", []any{"panels", 0, "targets", 0, "expression"}},
		{"unknown field", "x", []any{"panels", down, "fieldConfig", "overrides", 0, "properties", 1, "value", 0, "uri"}},
		{"whether something is there or not", map[string]any{"mode": "area"}, []any{"panels", reasons, "fieldConfig", "defaults", "custom", "thresholdsStyle"}},
		{"is green where it knows nothing", "green", []any{"panels", panelIndex(t, source, "Down"), "fieldConfig", "defaults", "thresholds", "steps", 0, "color"}},
		{"reads every target at more than", nil, []any{"panels", reasons, "maxDataPoints"}},
		{"reads every target at more than", 1000, []any{"panels", reasons, "maxDataPoints"}},
		{"has a line for every target", `probe_result_info{job=~"$job"}`, []any{"panels", verdicts, "targets", 0, "expr"}},
		{"looks back over 1m:15s", `max_over_time((x == 1)[1m:15s])`, []any{"panels", 0, "targets", 0, "expr"}},
		{"looks back over 5m", "rate(x[5m])", []any{"panels", 0, "targets", 0, "expr"}},
		{"is about up, whatever is chosen", "count(up)", []any{"panels", 0, "targets", 0, "expr"}},
		{"neither about now", true, []any{"panels", 0, "targets", 0, "range"}},
		{"has two queries A", "A", []any{"panels", down, "targets", 1, "refId"}},
		{"is a graph", "graph", []any{"panels", 0, "type"}},
	} {
		wrong := dashboardComplaints(mutateJSON(t, source, c.value, c.path...))
		if !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, c.want) }) {
			t.Errorf("%v = %v: want %q, got %q", c.path, c.value, c.want, wrong)
		}
	}
}

// The numbers of a timeline stand for the results that they are named by, and every result
// that there is has one.
func TestVerdictsHaveNames(t *testing.T) {
	results := []string{"open, unwanted", "open", "refused", "reset", "timeout", "unreachable", "prohibited",
		"dns_not_found", "dns_timeout", "dns_error", "error"}
	numbered := regexp.MustCompile(`(?:(\d+) \* )?(?:max_over_time\()?\(?probe_(?:address_)?result_info\{[^}]*result="(\w+)"\}`)
	found := 0
	for _, file := range []string{fleetFile, targetFile} {
		d, err := readDashboard(lab.Read(t, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range panelsOf(d) {
			if len(p.FieldConfig.Defaults.Mappings) == 0 {
				continue
			}
			found++
			names := p.FieldConfig.Defaults.Mappings[0].ValueMap.Options
			var named []string
			for _, m := range numbered.FindAllStringSubmatch(queriesOf(p)[0].Expr, -1) {
				number := m[1]
				if number == "" {
					number = "1"
				}
				if number == "11" && m[2] == "open" { // which is one of the two
					m[2] = "open, unwanted"
				}
				if name := orEmpty(names[number].Text); name != m[2] {
					t.Errorf("%s: %s: %s is named %q", file, *p.Title, m[2], name)
				}
				named = append(named, m[2])
			}
			if !slices.Equal(named, results) || orEmpty(names["0"].Text) != "not measured" || len(names) != len(results)+1 {
				t.Errorf("%s: %s: %q, %d names", file, *p.Title, named, len(names))
			}
		}
	}
	if found != 4 {
		t.Errorf("%d panels have verdicts", found)
	}
}

// What a place sends to a center is all that the dashboards show of targets and exporters there. What
// stays behind are the routers on the way, which are too many, and what no rule and no verdict needs.
func TestPlacesSendWhatDashboardsShow(t *testing.T) {
	behind := regexp.MustCompile(`^probe_(path_hop_(info|rtt_seconds)|duration_seconds|dns_lookup_time_seconds)$`)
	shown := make(map[string]bool)
	for _, file := range []string{fleetFile, targetFile} {
		d, err := readDashboard(lab.Read(t, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range panelsOf(d) {
			for _, query := range queriesOf(p) {
				for _, name := range regexp.MustCompile(`\b(?:up|(?:probe|shaker)_\w+)\b`).FindAllString(query.Expr, -1) {
					shown[name] = !behind.MatchString(name)
				}
			}
		}
	}
	if len(shown) < 20 {
		t.Fatalf("the dashboards show only %v", slices.Collect(maps.Keys(shown)))
	}
	for file, pattern := range map[string]string{"place.yml": `(?m)^ +regex: (up\|.*)$`, "central.yml": `__name__=~"(.*)"`} {
		match := regexp.MustCompile(pattern).FindStringSubmatch(lab.Read(t, "scale/"+file))
		if match == nil {
			t.Fatalf("%s does not say what is kept", file)
		}
		kept := regexp.MustCompile("^(?:" + match[1] + ")$")
		for name, want := range shown {
			if kept.MatchString(name) != want {
				t.Errorf("%s: %s is kept: %t, want %t", file, name, !want, want)
			}
		}
	}
}

// What Grafana is provisioned with has no other keys than those that are meant, and the data
// source's interval is that at which the example's Prometheus scrapes.
func TestGrafanaProvisioning(t *testing.T) {
	strictly := func(file string, to any) {
		t.Helper()
		decoder := yaml.NewDecoder(strings.NewReader(lab.Read(t, file)))
		decoder.KnownFields(true)
		if err := decoder.Decode(to); err != nil {
			t.Fatalf("%s: %v", file, err)
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
	strictly("grafana/provisioning/datasources/prometheus.yml", &sources)
	if len(sources.Datasources) != 1 || sources.APIVersion != 1 {
		t.Fatalf("%+v", sources)
	}
	source := sources.Datasources[0]
	if source.Type != "prometheus" || source.Access != "proxy" || source.URL != "http://prometheus:9090" {
		t.Errorf("%+v", source)
	}
	if want := "$__rate_interval:" + source.JSONData.TimeInterval; want != everyScrape {
		t.Errorf("the dashboards look at %s, which should be %s", everyScrape, want)
	}
	if want := "scrape_interval: " + source.JSONData.TimeInterval + "\n"; !strings.Contains(lab.Read(t, "prometheus.yml"), want) {
		t.Errorf("prometheus.yml has no %q", want)
	}
	var providers struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Folder, Type string
			Options            struct{ Path string }
		}
	}
	strictly("grafana/provisioning/dashboards/shaker.yml", &providers)
	if len(providers.Providers) != 1 || providers.APIVersion != 1 ||
		providers.Providers[0].Type != "file" || providers.Providers[0].Options.Path != "/var/lib/grafana/dashboards" {
		t.Errorf("%+v", providers)
	}
}
