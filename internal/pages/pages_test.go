package pages

import (
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// noon is the current time in the tests.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newPages returns Pages that show the given tracks at noon.
func newPages(tracks ...history.Track) *Pages {
	p := New(Options{
		Tracks: func(target, module string) []history.Track {
			return slices.DeleteFunc(slices.Clone(tracks), func(t history.Track) bool {
				return target != "" && t.Target != target || module != "" && t.Module != module
			})
		},
		Modules: func() []string { return []string{"a", "tcp_connect", hostileModule} },
		Version: "1.2.3",
		Engine:  "raw",
		Logger:  slog.New(slog.DiscardHandler),
	})
	p.now = func() time.Time { return noon }
	return p
}

// track returns the history of a target. The letters of results are the probes' results, a second
// apart: o is open, a success; r and t are refused and timeout, failures. The latest probe began
// age before noon.
func track(target, results string, age time.Duration) history.Track {
	first := noon.Add(-age - time.Duration(len(results)-1)*time.Second)
	t := history.Track{Target: target, Module: "tcp_connect", Since: first}
	for i, c := range results {
		r := history.Record{Time: first.Add(time.Duration(i) * time.Second)}
		r.Result = map[rune]string{'o': "open", 'r': "refused", 't': "timeout"}[c]
		r.Success = c == 'o'
		if i > 0 && r.Result != t.Last().Result {
			t.Since, t.Changed = r.Time, true
		}
		t.Records = append(t.Records, r)
	}
	return t
}

// get returns a handler's response to a query.
func get(handler http.HandlerFunc, query string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	handler(w, httptest.NewRequest("GET", "/?"+query, nil))
	return w
}

// home returns the status page.
func home(t *testing.T, p *Pages) string {
	t.Helper()
	w := get(p.Home, "")
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("the status page has status %d and the headers %v, want 200 and text/html", w.Code, w.Header())
	}
	return w.Body.String()
}

// Names that the exporter accepts, and that the page must not take for HTML.
const (
	hostileTarget = `[fe80::1%"><script>alert(1)</script>&#x27;]:80`
	hostileModule = "<img src=x onerror=alert(1)> \"&\n\u202e"
)

func TestHostileNamesStayText(t *testing.T) {
	hostile := track(hostileTarget, "or", time.Second)
	hostile.Module = hostileModule
	body := home(t, newPages(hostile))
	for _, wrong := range []string{"<script>alert", "<img", "\"&\n"} {
		if strings.Contains(body, wrong) {
			t.Errorf("the page contains %q unescaped", wrong)
		}
	}
	const query = `target=%5bfe80%3a%3a1%25%22%3e%3cscript%3ealert%281%29%3c%2fscript%3e%26%23x27%3b%5d%3a80&amp;` +
		`module=%3cimg%20src%3dx%20onerror%3dalert%281%29%3e%20%22%26%0a%e2%80%ae`
	for _, want := range []string{
		`>[fe80::1%&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;#x27;]:80</a>`,
		"<option value=\"&lt;img src=x onerror=alert(1)&gt; &#34;&amp;\n\u202e\">" +
			"&lt;img src=x onerror=alert(1)&gt; &#34;&amp;",
		`href="probe?` + query + `&amp;debug=true"`,
		`href="logs?` + query + `"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not contain %s", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

// The page loads nothing, and all its links are relative.
func TestHomeIsSelfContained(t *testing.T) {
	body := home(t, newPages(track("a:1", "or", 0), track("b:1", "o", 0)))
	allowed := regexp.MustCompile(`^((probe|logs|metrics|config|-/healthy|-/ready|\./)?(\?|$)|data:image/svg)`)
	for _, link := range regexp.MustCompile(`(?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if !allowed.MatchString(link[1]) {
			t.Errorf("the page has the URL %s, want only %v", link[1], allowed)
		}
	}
	for _, wrong := range []string{"style=", "ZgotmplZ", " onclick", "@import"} {
		if strings.Contains(body, wrong) {
			t.Errorf("the page contains %q", wrong)
		}
	}
	for _, part := range []struct{ tag, policy string }{
		{tag: "style", policy: "style-src"},
		{tag: "script", policy: "script-src"},
	} {
		text := regexp.MustCompile(`(?s)<`+part.tag+`>(.*?)</`+part.tag+`>`).FindAllStringSubmatch(body, -1)
		if len(text) != 1 {
			t.Fatalf("the page has %d elements %s, want 1", len(text), part.tag)
		}
		if want := "; " + part.policy + " " + hash(text[0][1]) + ";"; !strings.Contains(contentSecurityPolicy, want) {
			t.Errorf("the policy is %s, want it to contain %s, the hash of the page's %s",
				contentSecurityPolicy, want, part.tag)
		}
	}
}

func TestHeaders(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	for path, handler := range map[string]http.HandlerFunc{"/": p.Home, "/logs": p.Logs} {
		header := get(handler, "").Header()
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		} {
			if got := header.Get(name); got != want {
				t.Errorf("the header %s of %s is %q, want %q", name, path, got, want)
			}
		}
	}
	policy := get(p.Home, "").Header().Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; ") || !strings.HasSuffix(policy, "; frame-ancestors 'none'") {
		t.Errorf("the Content-Security-Policy of / is %q, want default-src 'none' first, frame-ancestors 'none' last",
			policy)
	}
}

// targets returns the targets of the page's rows, in order.
func targets(body string) (names []string) {
	for _, link := range regexp.MustCompile(`show each step">(.*?)</a>`).FindAllStringSubmatch(body, -1) {
		names = append(names, link[1])
	}
	return names
}

// link returns the link of a summary to the targets with a status and a result.
func link(status, result, text string) string {
	return `<a href="?filter=status%3D` + status + `&#43;result%3D` + result + `">` + text + `</a>`
}

func TestOrder(t *testing.T) {
	const hour = time.Hour
	gone := track("gone:1", "or", 11*time.Minute)
	rare := track("rare:1", "oo", 2*hour)
	rare.Records[0].Time = rare.Records[0].Time.Add(-hour)
	wanted := track("wanted:1", "rr", 0)
	for i := range wanted.Records {
		wanted.Records[i].Success = true
	}
	unwanted := track("unwanted:1", "ooooooooooooo", 0)
	unwanted.Records[12].Success = false
	body := home(t, newPages(track("z:1", "ooo", 0), gone, rare, wanted, unwanted, track("a:1", "ooo", 0),
		track("old:1", "oort", 0), track("older:1", "oorrr", 0), track("oldest:1", "rrrrrrrr", 0)))
	want := []string{"old:1", "older:1", "oldest:1", "unwanted:1", "a:1", "rare:1", "wanted:1", "z:1", "gone:1"}
	if got := targets(body); !slices.Equal(got, want) {
		t.Errorf("the page has rows for %v, want %v", got, want)
	}
	for _, want := range []string{
		`<b>4</b> failing</a> ` + link("failing", "refused", "2 refused") + ", " +
			link("failing", "open", "1 open") + ", " + link("failing", "timeout", "1 timeout") + "</li>",
		`<b>4</b> succeeding</a> ` + link("succeeding", "open", "3 open") + ", " +
			link("succeeding", "refused", "1 refused") + "</li>",
		`<b>1</b> not probed recently</a> ` + link("unprobed", "refused", "refused") + "</li>",
		`<title>4 failing, 4 succeeding · shaker_exporter</title>`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not contain %s", want)
		}
	}
}

// Addresses and ports are in numerical order, addresses before names.
func TestOrderOfNames(t *testing.T) {
	want := []string{
		"9.0.0.1:80", "10.0.0.2:80", "10.0.0.2:443", "10.0.0.10:80", "[::1]:80", "[2001:db8::2]:80",
		"[2001:db8::10]:80", "[fe80::1%a]:80", "[fe80::1%b]:80",
		"10.example:1", "a.example:80", "a.example:443", "b.example:1",
	}
	var tracks []history.Track
	for _, name := range slices.Backward(want) {
		tracks = append(tracks, track(name, "o", 0))
	}
	if got := targets(home(t, newPages(tracks...))); !slices.Equal(got, want) {
		t.Errorf("the page has the targets %q, want %q", got, want)
	}
}

// With sort=latency, the slowest target comes first. Targets without a latency, or without a recent one, follow in
// the usual order.
func TestOrderByLatency(t *testing.T) {
	withLatency := func(name, results string, age, rtt, handshake time.Duration) history.Track {
		tr := track(name, results, age)
		tr.Last().RTT, tr.Last().Handshake = rtt, handshake
		return tr
	}
	const ms = time.Millisecond
	unwanted := withLatency("unwanted:1", "o", 0, 3*ms, 0)
	unwanted.Records[0].Success = false
	p := newPages(withLatency("fast:1", "o", 0, ms, 9*ms), withLatency("slow:1", "o", 0, 4*ms, 0),
		withLatency("retransmitted:1", "o", 0, 0, 1000*ms), unwanted, track("down:1", "or", 0),
		track("audited:1", "o", 0), withLatency("gone:1", "o", time.Hour, 500*ms, 0))
	body := get(p.Home, "sort=latency").Body.String()
	want := []string{"retransmitted:1", "slow:1", "unwanted:1", "fast:1", "down:1", "audited:1", "gone:1"}
	if got := targets(body); !slices.Equal(got, want) {
		t.Errorf("the page with sort=latency has the targets %q, want %q", got, want)
	}
	for _, want := range []string{
		`<a href="./">failing first</a> · <b aria-current="true">slowest first</b>`,
		`<input type="hidden" name="sort" value="latency">`,
		`<a href="?filter=status%3Dfailing&amp;sort=latency">`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page with sort=latency does not contain %s", want)
		}
	}
	body = get(p.Home, "filter=slow").Body.String()
	const other = `<b aria-current="true">failing first</b> · <a href="?filter=slow&amp;sort=latency">slowest first</a>`
	if !strings.Contains(body, other) {
		t.Errorf("the page with filter=slow does not contain %s", other)
	}
}

// Each count of the summary links to exactly the targets that it counts.
func TestSummaryLinks(t *testing.T) {
	var tracks []history.Track
	for i := range 21 {
		tracks = append(tracks, track(fmt.Sprintf("a%d:1", i), "or", 0))
	}
	wanted := track("refused.example:1", "r", 0)
	wanted.Last().Success = true
	lookup := track("lookup.example:1", "ot", 0)
	lookup.Last().Result = "dns_timeout"
	tracks = append(tracks, track("t:1", "ot", 0), lookup, wanted, track("refusing.example:1", "o", 0),
		track("gone:1", "r", time.Hour), track("failing.example:1", "o", 0))
	p := newPages(tracks...)
	body := home(t, p)
	links := regexp.MustCompile(`<a href="(\?filter=status[^"]*)">(?:<b>)?(\d+)(?:</b>)? ([^<]*)</a>`)
	var found []string
	for _, link := range links.FindAllStringSubmatch(body, -1) {
		found = append(found, link[2]+" "+link[3])
		filtered := get(p.Home, strings.TrimPrefix(html.UnescapeString(link[1]), "?")).Body.String()
		if got := fmt.Sprint(len(targets(filtered))); got != link[2] {
			t.Errorf("the link %s of %q shows %s targets, want %s", link[1], link[2]+" "+link[3], got, link[2])
		}
	}
	want := []string{"23 failing", "21 refused", "1 DNS timeout", "1 timeout", "3 succeeding", "2 open", "1 refused",
		"1 not probed recently"}
	if !slices.Equal(found, want) {
		t.Errorf("the summary has the links %q, want %q", found, want)
	}
	// The words of these links are not part of what the other words find.
	for _, word := range []string{"status", "result", "="} {
		if body := get(p.Home, url.Values{"filter": {word}}.Encode()).Body.String(); len(targets(body)) > 0 {
			t.Errorf("the filter %q shows %q, want none", word, targets(body))
		}
	}
}

// A query that the page cannot answer gets status 400 and the reason, without any work on the history.
func TestHomeRejectsQueries(t *testing.T) {
	p := newPages()
	reads := 0
	p.options.Tracks = func(target, module string) []history.Track {
		reads++
		return []history.Track{track("a:1", "o", 0)}
	}
	for _, test := range []struct{ query, want string }{
		{query: "filter=" + strings.Repeat("a+", 16), want: ""},
		{query: "filter=" + strings.Repeat("a+", 17), want: "filter has 17 words, want at most 16"},
		{query: "filter=" + strings.Repeat("a+", 32000), want: "filter has 63999 characters, want at most 500"},
		{query: "filter=" + strings.Repeat("%c3%bc", 500), want: ""},
		{query: "filter=" + strings.Repeat("%c3%bc", 501), want: "filter has 501 characters, want at most 500"},
		{query: "filter=a&filter=b", want: `parameter "filter" given 2 times, want once`},
		{query: "sort=latency&sort=latency", want: `parameter "sort" given 2 times, want once`},
		{query: "sort=", want: ""},
		{query: "sort=name", want: `sort is "name", want "latency" or none`},
		{
			query: "sort=" + strings.Repeat("x", 10000),
			want:  `sort is "` + strings.Repeat("x", 80) + `...", want "latency" or none`,
		},
		{query: "filter=%zz", want: `query: invalid URL escape "%zz"`},
	} {
		status, body := http.StatusBadRequest, test.want+"\n"
		reads = 0
		w := get(p.Home, test.query)
		wantReads := 0
		if test.want == "" {
			status, body, wantReads = http.StatusOK, w.Body.String(), 1
		}
		if w.Code != status || w.Body.String() != body || reads != wantReads {
			t.Errorf("/?%.60s answered %d %q and read the history %d times, want %d %q, %d times",
				test.query, w.Code, w.Body, reads, status, body, wantReads)
		}
	}
}

// A target that is probed rarely is unprobed later than others, unless its interval is unknown.
func TestStatus(t *testing.T) {
	for _, test := range []struct {
		name     string
		results  string
		interval time.Duration // between the last two probes
		complete int           // as in Track
		age      time.Duration // of the last probe
		want     status
	}{
		{name: "first probe", results: "r", age: 9 * time.Minute, want: failing},
		{name: "first probe, long ago", results: "r", age: 11 * time.Minute, want: unprobed},
		{name: "frequent", results: "oo", interval: time.Second, age: 9 * time.Minute, want: succeeding},
		{name: "frequent, long ago", results: "oo", interval: time.Second, age: 11 * time.Minute, want: unprobed},
		{name: "hourly", results: "or", interval: time.Hour, age: 179 * time.Minute, want: failing},
		{name: "hourly, long ago", results: "or", interval: time.Hour, age: 181 * time.Minute, want: unprobed},
		{
			name: "unknown interval", results: "ro", interval: time.Hour, complete: 1,
			age: 9 * time.Minute, want: succeeding,
		},
		{
			name: "unknown interval, long ago", results: "ro", interval: time.Hour, complete: 1,
			age: 11 * time.Minute, want: unprobed,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			track := track("a:1", test.results, test.age)
			track.Records[0].Time = track.Last().Time.Add(-test.interval)
			track.Complete = test.complete
			if got := statusOf(&track, noon); got != test.want {
				t.Errorf("statusOf(%+v) = %v, want %v", track, got, test.want)
			}
		})
	}
}

// The page has at most 200 rows, and says how many targets it omits.
func TestMaxRows(t *testing.T) {
	var tracks []history.Track
	for i := range 250 {
		tracks = append(tracks, track(fmt.Sprintf("open-%03d:1", i), "o", 0))
	}
	for i := range 3 {
		tracks = append(tracks, track(fmt.Sprintf("refused-%d:1", i), "r", 0))
	}
	body := home(t, newPages(tracks...))
	rows := targets(body)
	if len(rows) != 200 || rows[0] != "refused-0:1" || rows[199] != "open-196:1" {
		t.Errorf("the page has %d rows for %v, want 200 from refused-0:1 to open-196:1", len(rows), rows)
	}
	for _, want := range []string{"53 more targets are not shown here.", "<b>250</b> succeeding"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page of 253 targets does not contain %q", want)
		}
	}
	if body := home(t, newPages(tracks[:201]...)); !strings.Contains(body, "1 more target is not shown here.") {
		t.Error(`the page of 201 targets does not contain "1 more target is not shown here."`)
	}
	if body := home(t, newPages(tracks[:200]...)); strings.Contains(body, "not shown") {
		t.Error(`the page of 200 targets says that some are "not shown"`)
	}
}

// The filter applies to all targets before some are omitted, and does not change the summary.
func TestFilter(t *testing.T) {
	var tracks []history.Track
	for i := range 300 {
		tracks = append(tracks, track(fmt.Sprintf("open-%03d:1", i), "o", 0))
	}
	refused := track("Refused.example:1", "or", 0)
	refused.Module = "Other module"
	refused.Last().Errno = "ECONNREFUSED"
	forbidden := track("forbidden.example:1", "ot", 0)
	last := forbidden.Last()
	last.Result, last.Address = "prohibited", netip.MustParseAddr("2001:DB8::1")
	last.ICMP = shaker.ICMP{From: netip.MustParseAddr("192.0.2.254"), Type: 3, Code: 13}
	unnamed := track("unnamed.example:1", "ot", time.Hour)
	unnamed.Last().Result = "dns_not_found"
	tracks = append(tracks, refused, forbidden, unnamed)
	p := newPages(tracks...)
	const summary = `<b>2</b> failing</a>`
	const found = "The filter matches 1 of 303 targets."
	const notFound = "No target matches the filter."
	for _, test := range []struct {
		filter string
		rows   []string // nil if there are none, or too many to list
		says   string
	}{
		{filter: "REFUSED.EXAMPLE", rows: []string{"Refused.example:1"}, says: found},
		{filter: "other", rows: []string{"Refused.example:1"}, says: found},
		{filter: "module  refused", rows: []string{"Refused.example:1"}, says: found},
		{filter: "econnrefused", rows: []string{"Refused.example:1"}, says: found},
		{filter: "nothing listens", rows: []string{"Refused.example:1"}, says: found},
		{filter: "2001:db8::1", rows: []string{"forbidden.example:1"}, says: found},
		{filter: "admin prohibited", rows: []string{"forbidden.example:1"}, says: found},
		{filter: "admin_prohibited", rows: []string{"forbidden.example:1"}, says: found},
		{filter: "192.0.2.254", rows: []string{"forbidden.example:1"}, says: found},
		{filter: "dns_not_found", rows: []string{"unnamed.example:1"}, says: found},
		{filter: "DNS not found", rows: []string{"unnamed.example:1"}, says: found},
		{filter: "open-299", rows: []string{"open-299:1"}, says: found},
		{filter: ".example -", says: notFound},
		{filter: "refused forbidden", says: notFound},
		{filter: "invalid", says: notFound}, // String of an invalid netip.Addr
		{filter: "other:", says: notFound},
		{filter: " open- ", says: "The filter matches 300 of 303 targets; 100 of them are not shown."},
	} {
		body := get(p.Home, url.Values{"filter": {test.filter}}.Encode()).Body.String()
		if got := targets(body); test.rows != nil && !slices.Equal(got, test.rows) {
			t.Errorf("filter %q shows %v, want %v", test.filter, got, test.rows)
		}
		value := ` value="` + strings.TrimSpace(test.filter) + `"`
		for _, want := range []string{test.says, summary, "<title>2 failing, 300 succeeding", value} {
			if !strings.Contains(body, want) {
				t.Errorf("with filter %q, the page does not contain %s", test.filter, want)
			}
		}
		if n := len(targets(body)); n == 0 != (test.says == notFound) {
			t.Errorf("filter %q shows %d rows although the page is to say %q", test.filter, n, test.says)
		}
	}
	for _, none := range []string{"", "filter=", "filter=+"} {
		body := get(p.Home, none).Body.String()
		if got := len(targets(body)); got != 200 || !strings.Contains(body, "103 more targets are not shown here.") {
			t.Errorf("with query %q, the page has %d rows, want 200 and a note of 103 more", none, got)
		}
		if strings.Contains(body, "match") {
			t.Errorf("with query %q, the page mentions the matches of a filter", none)
		}
	}
}

// The text is true for both causes: no target has been probed yet, or the history is disabled.
func TestEmptyHistory(t *testing.T) {
	body := home(t, newPages())
	for _, want := range []string{
		"<h2>The history is empty</h2>", "<code>--history.limit=0</code>", "__param_target",
		"<title>shaker_exporter</title>", `<option value="a">a</option>
      <option value="tcp_connect" selected>tcp_connect</option>`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page of an empty history does not contain %s", want)
		}
	}
}

// A page whose template fails halfway is not sent at all.
func TestHomeFailsAsAWhole(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	p.page = parse(strings.Replace(pageHTML, "{{.Spark}}", "{{.Missing}}", 1))
	const want = "cannot render the page, see the exporter's log\n"
	if w := get(p.Home, ""); w.Code != 500 || w.Body.String() != want {
		t.Errorf("a page that fails was answered with %d %q, want 500 %q", w.Code, w.Body, want)
	}
}

// rowOf returns the row of a track at noon.
func rowOf(t history.Track) row { return newRow(newEntry(&t, noon), noon) }

func TestRow(t *testing.T) {
	icmp := shaker.ICMP{From: netip.MustParseAddr("192.0.2.254"), Type: 3, Code: 13}
	for _, test := range []struct {
		name   string
		record history.Record
		want   string // verdict, address, why, ICMP, latency and clock, retransmits
	}{
		{
			name: "open",
			record: history.Record{
				Result: "open", Success: true, RTT: 12345 * time.Nanosecond, Handshake: time.Hour,
				Address: netip.MustParseAddr("192.0.2.1"),
			},
			want: "open|192.0.2.1|||0.012 RTT on the kernel's clock|0",
		},
		{
			name: "open without an RTT sample",
			record: history.Record{
				Result: "open", Success: true, Handshake: 1034 * time.Millisecond, SYNRetransmits: 1,
				Address: netip.MustParseAddr("2001:db8::1"),
			},
			want: "open|2001:db8::1|||1034 handshake on the exporter's clock|1",
		},
		{
			name: "unknown retransmissions",
			record: history.Record{
				Result: "open", Success: true, Handshake: 23456 * time.Microsecond, SYNRetransmits: -1,
				Address: netip.MustParseAddr("192.0.2.1"),
			},
			want: "open|192.0.2.1|||23.5 handshake on the exporter's clock|",
		},
		{
			name: "the address is part of the target",
			record: history.Record{
				Result: "timeout", Errno: "ETIMEDOUT", SYNRetransmits: 4,
				Address: netip.MustParseAddr("198.51.100.1"),
			},
			want: "timeout||no reply within the timeout (ETIMEDOUT)|| |4",
		},
		{
			name:   "expected to be refused",
			record: history.Record{Result: "refused", Errno: "ECONNREFUSED", Success: true},
			want:   "refused||as expected: nothing listens on this port (ECONNREFUSED)|| |",
		},
		{
			name:   "not expected to be open",
			record: history.Record{Result: "open"},
			want:   "open||open, but expected to be closed|| |",
		},
		{
			name:   "refused by a router",
			record: history.Record{Result: "refused", Errno: "ECONNREFUSED", ICMP: icmp},
			want: "refused||rejected by a router or firewall (ECONNREFUSED)|" +
				"ICMP admin prohibited from 192.0.2.254| |",
		},
		{
			name:   "a name without an address",
			record: history.Record{Result: "dns_not_found"},
			want:   "DNS not found||the name has no address|| |",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.record.Time = noon
			r := rowOf(history.Track{
				Target: "198.51.100.1:1", Since: noon, Records: []history.Record{test.record},
			})
			got := strings.Join([]string{
				words(r.Last().Result), r.Address(), r.Why(), r.ICMP(), r.Latency.Text + " " + r.Latency.Clock,
				r.Retransmits(),
			}, "|")
			if got != test.want {
				t.Errorf("the row of %+v is\n%s\nwant\n%s", test.record, got, test.want)
			}
		})
	}
}

// Every result has its own explanation, and an ICMP error changes the explanation where it matters.
func TestReasons(t *testing.T) {
	router := shaker.ICMP{From: netip.MustParseAddr("192.0.2.254"), Type: 3, Code: 1}
	for _, test := range []struct {
		result, errno string
		reason        string // what has failed, of a held connection, or the resolver's error
		icmp          shaker.ICMP
		want          string
	}{
		{result: "reset", errno: "ECONNRESET", want: "reset after the SYN-ACK"},
		{
			result: "unreachable", errno: "EHOSTUNREACH", icmp: router,
			want: "the network cannot deliver packets to the target",
		},
		{
			result: "unreachable", errno: "EHOSTUNREACH",
			want: "the network cannot deliver packets to the target",
		},
		{
			result: "unreachable", errno: "ENETUNREACH", icmp: router,
			want: "the network cannot deliver packets to the target",
		},
		{
			result: "unreachable", errno: "ENETUNREACH",
			want: "the exporter's host has no route to the target",
		},
		{result: "unreachable", errno: "ENETDOWN", want: "the exporter's host cannot send to the target"},
		{result: "prohibited", errno: "EACCES", want: "prohibited on the exporter's host"},
		{result: "prohibited", errno: "EHOSTUNREACH", icmp: router, want: "prohibited by a router or firewall"},
		{
			result: "refused", errno: "ECONNREFUSED", reason: "connect failed",
			want: "connect failed: nothing listens on this port",
		},
		{
			result: "reset", errno: "ECONNRESET", reason: "connection ended after 5s",
			want: "connection ended after 5s: an RST arrived",
		},
		{
			result: "timeout", errno: "ETIMEDOUT", reason: "connection ended after 5s",
			want: "connection ended after 5s: keepalives or data were not acknowledged",
		},
		{
			result: "timeout", errno: "ETIMEDOUT", reason: "no answer to a heartbeat",
			want: "no answer to a heartbeat: the heartbeat was not acknowledged",
		},
		{
			result: "timeout", errno: "ETIMEDOUT", reason: "connect failed",
			want: "connect failed: no reply within the timeout",
		},
		{result: "closed", reason: "connection ended after 5s", want: "connection ended after 5s: a FIN arrived"},
		{
			result: "silent", reason: "no answer to a heartbeat",
			want: "no answer to a heartbeat: the target's kernel acknowledges, but its application does not answer",
		},
		{
			result: "mismatch", reason: "unexpected answer to a heartbeat",
			want: "unexpected answer to a heartbeat: the data is not what the module expects",
		},
		{
			result: "error", errno: "EPROTO", reason: "connection ended after 5s",
			want: "connection ended after 5s: a system call failed",
		},
		{result: "dns_error", reason: "server misbehaving", want: "server misbehaving"},
		{result: "dns_timeout", want: "no DNS server replied within the timeout"},
		{result: "dns_error", want: "the DNS lookup failed"},
		{result: "error", errno: "EPROTO", want: "the connection attempt failed"},
	} {
		want := test.want
		if test.errno != "" {
			want += " (" + test.errno + ")"
		}
		record := history.Record{Result: test.result, Errno: test.errno, Reason: test.reason, ICMP: test.icmp}
		if got := why(&record); got != want {
			t.Errorf("why(%s, %q, reason %q, ICMP %v) = %q, want %q",
				test.result, test.errno, test.reason, test.icmp, got, want)
		}
	}
}

func TestSince(t *testing.T) {
	for _, test := range []struct {
		track         history.Track
		duration, why string
	}{
		{
			track:    track("a:1", "orr", 20*time.Second),
			duration: "21 s",
			why:      "refused since 2026-03-01T11:59:39.000Z",
		},
		{
			track:    track("a:1", "rr", 20*time.Second),
			duration: "over 21 s",
			why:      "refused since the first probe at 2026-03-01T11:59:39.000Z",
		},
		{
			track:    track("a:1", "r", 0),
			duration: "0 s",
			why:      "refused since the first probe at 2026-03-01T12:00:00.000Z",
		},
	} {
		if r := rowOf(test.track); r.For != test.duration || r.SinceText != test.why {
			t.Errorf("the row of %+v has For = %q, SinceText = %q; want %q, %q",
				test.track, r.For, r.SinceText, test.duration, test.why)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 119 * time.Minute: "119 min",
		2 * time.Hour: "2 h", 47 * time.Hour: "47 h", 48 * time.Hour: "2 d", 100 * 24 * time.Hour: "100 d",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %s, want %s", d, got, want)
		}
	}
}

// Failures that are kept longer than successes do not lower the success percentage.
func TestRecent(t *testing.T) {
	for _, test := range []struct {
		results  string
		complete int // as in Track
		want     string
	}{
		{results: "rrro", complete: 0, want: "25 %"},
		{results: "rrroor", complete: 3, want: "66 %"},
		{results: "rrr", complete: 0, want: "0 %"},
		{results: "oo", complete: 1, want: "100 %"},
		{results: "ro" + strings.Repeat("r", 150), complete: 1, want: "1 %"},
		{results: strings.Repeat("o", 60) + strings.Repeat("r", 60), complete: 60, want: "0 %"},
		{results: "r" + strings.Repeat("o", 150), complete: 0, want: "99 %"},
	} {
		track := track("a:1", test.results, 0)
		track.Complete = test.complete
		if got := rowOf(track).Recent.String(); got != test.want {
			t.Errorf("the row of %s with Complete = %d shows %s successes, want %s",
				test.results, test.complete, got, test.want)
		}
	}
}

func TestSparkline(t *testing.T) {
	tr := track("a:1", "ooroooo", 0)
	for i, latency := range []time.Duration{1, 4, 0, 2, 0, 3, 4} {
		tr.Records[i].Handshake = latency * time.Millisecond
	}
	tr.Records[3].RTT = time.Millisecond
	const want = `<svg class="spark" role="img" viewBox="0 0 30 24" preserveAspectRatio="none">` +
		`<title>6 of 7 probes in 6 s succeeded, with latencies from 1.00 to 4.00 ms</title>` +
		`<path class="failures" d="M25.5 2V22"/>` +
		`<path class="dots" d="M27.5 21h0"/>` +
		`<path class="line" d="M23.5 16.5h0L24.5 3.0M26.5 16.5h0M28.5 7.5h0L29.5 3.0"/></svg>`
	if got := string(sparkline(tr.Records)); got != want {
		t.Errorf("the sparkline of %+v is\n%s\nwant\n%s", tr.Records, got, want)
	}
	got := string(sparkline(track("a:1", strings.Repeat("o", 120), 0).Records))
	if want := `viewBox="0 0 120 24"`; !strings.Contains(got, want) {
		t.Errorf("the sparkline of 120 probes is %s, want it to contain %s", got, want)
	}
}

// The page shows how SYNs are sent, and whether the RSTs of this host do not arrive.
func TestEngine(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	if got, want := home(t, p), "<small>1.2.3 · engine raw</small>"; !strings.Contains(got, want) {
		t.Errorf("the page is\n%s\nwant it to contain %s", got, want)
	}
	for _, missing := range []bool{false, true} {
		p.options.ResetsMissing = func() bool { return missing }
		if got := strings.Contains(home(t, p), "The RSTs of this host do not arrive"); got != missing {
			t.Errorf("with RSTs missing: %t, the page says that they are: %t", missing, got)
		}
	}
}

// The page says that targets are missing for ten minutes after the history lost one.
func TestMissingTargets(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	for lost, want := range map[time.Time]bool{
		{}:                         false,
		noon.Add(-5 * time.Minute): true,
		noon.Add(-time.Hour):       false,
	} {
		p.options.Lost = func() time.Time { return lost }
		if got := strings.Contains(get(p.Home, "").Body.String(), "Some targets are missing"); got != want {
			t.Errorf("with a target lost at %v, the page says that targets are missing: %t, want %t", lost, got, want)
		}
	}
}
