package pages

import (
	"fmt"
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

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// noon is when the tests look at the pages.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newPages returns the pages of a history, at noon.
func newPages(tracks ...collector.Track) *Pages {
	p := New(Options{
		Tracks: func(target, module string) []collector.Track {
			return slices.DeleteFunc(slices.Clone(tracks), func(t collector.Track) bool {
				return target != "" && t.Target != target || module != "" && t.Module != module
			})
		},
		Modules: func() []string { return []string{"a", "tcp_connect", hostileModule} },
		Version: "1.2.3",
		Logger:  slog.New(slog.DiscardHandler),
	})
	p.now = func() time.Time { return noon }
	return p
}

// track returns the history of a target whose results, a second apart, ended a while before
// noon. Those are given by their first letter, and only an o, for open, is a success.
func track(target, results string, before time.Duration) collector.Track {
	t := collector.Track{Target: target, Module: "tcp_connect"}
	first := noon.Add(-before - time.Duration(len(results)-1)*time.Second)
	for i, c := range results {
		r := collector.Record{Time: first.Add(time.Duration(i) * time.Second)}
		r.Result = map[rune]string{'o': "open", 'r': "refused", 't': "timeout"}[c]
		r.Success = c == 'o'
		if i > 0 && r.Result != t.Last().Result {
			t.Changed = r.Time
		}
		t.Records = append(t.Records, r)
	}
	t.First = first
	return t
}

// get asks a handler for its answer to a query.
func get(handler http.HandlerFunc, query string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	handler(w, httptest.NewRequest("GET", "/?"+query, nil))
	return w
}

// home returns the page of targets.
func home(t *testing.T, p *Pages) string {
	t.Helper()
	w := get(p.Home, "")
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %s", w.Code, w.Header())
	}
	return w.Body.String()
}

// What a target may be called by collector's parseTarget, and a module by YAML.
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
			t.Errorf("the page has %s", wrong)
		}
	}
	const query = `target=%5bfe80%3a%3a1%25%22%3e%3cscript%3ealert%281%29%3c%2fscript%3e%26%23x27%3b%5d%3a80&amp;` +
		`module=%3cimg%20src%3dx%20onerror%3dalert%281%29%3e%20%22%26%0a%e2%80%ae`
	for _, want := range []string{
		`>[fe80::1%&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;#x27;]:80</a>`,
		"<option value=\"&lt;img src=x onerror=alert(1)&gt; &#34;&amp;\n\u202e\">&lt;img src=x onerror=alert(1)&gt; &#34;&amp;",
		`href="probe?` + query + `&amp;debug=true"`,
		`href="logs?` + query + `"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

// All that the page needs is in it, and all it links to is beside it.
func TestHomeIsWholeAndRelative(t *testing.T) {
	body := home(t, newPages(track("a:1", "or", 0), track("b:1", "o", 0)))
	for _, link := range regexp.MustCompile(`(?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if !regexp.MustCompile(`^((probe|logs|metrics|config|-/healthy|-/ready)(\?|$)|data:image/svg)`).MatchString(link[1]) {
			t.Errorf("the page has the URL %s", link[1])
		}
	}
	for _, wrong := range []string{"style=", "ZgotmplZ", " onclick", "@import"} {
		if strings.Contains(body, wrong) {
			t.Errorf("the page has %s", wrong)
		}
	}
	for _, part := range []struct{ tag, policy string }{{"style", "style-src"}, {"script", "script-src"}} {
		text := regexp.MustCompile(`(?s)<`+part.tag+`>(.*?)</`+part.tag+`>`).FindAllStringSubmatch(body, -1)
		if len(text) != 1 || !strings.Contains(contentSecurityPolicy, "; "+part.policy+" "+hash(text[0][1])+";") {
			t.Errorf("the policy has not the hash of the page's %s", part.tag)
		}
	}
}

func TestHeaders(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	for name, handler := range map[string]http.HandlerFunc{"home": p.Home, "logs": p.Logs} {
		header := get(handler, "").Header()
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		} {
			if got := header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if name == "home" && !strings.HasPrefix(header.Get("Content-Security-Policy"), "default-src 'none'; ") ||
			name == "home" && !strings.HasSuffix(header.Get("Content-Security-Policy"), "; frame-ancestors 'none'") {
			t.Errorf("%s", header)
		}
	}
}

// targets returns those that the page has a row of, in their order.
func targets(body string) (names []string) {
	for _, link := range regexp.MustCompile(`each step">(.*?)</a>`).FindAllStringSubmatch(body, -1) {
		names = append(names, link[1])
	}
	return names
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
		t.Errorf("the targets are %v, want %v", got, want)
	}
	for _, want := range []string{
		`<b>4</b> failing <span>2 refused, 1 open, 1 timeout</span>`,
		`<b>4</b> succeeding <span>3 open, 1 refused</span>`,
		`<b>1</b> not probed lately <span>refused</span>`,
		`<title>4 failing, 4 succeeding · shaker_exporter</title>`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

// A page has 200 rows at most, and says what it leaves out.
func TestMostRows(t *testing.T) {
	var tracks []collector.Track
	for i := range 250 {
		tracks = append(tracks, track(fmt.Sprintf("open-%03d:1", i), "o", 0))
	}
	for i := range 3 {
		tracks = append(tracks, track(fmt.Sprintf("refused-%d:1", i), "r", 0))
	}
	body := home(t, newPages(tracks...))
	rows := targets(body)
	if len(rows) != 200 || rows[0] != "refused-0:1" || rows[199] != "open-196:1" {
		t.Errorf("%d rows, %v", len(rows), rows)
	}
	if !strings.Contains(body, "53 more are not shown.") || !strings.Contains(body, "<b>250</b> succeeding") {
		t.Error("the page does not say how many are not shown, or not how many there are")
	}
	if body := home(t, newPages(tracks[:200]...)); strings.Contains(body, "not shown") {
		t.Error("something is not shown of 200 targets")
	}
}

// The filter looks at all targets before any is left out, and not at the summary.
func TestFilter(t *testing.T) {
	var tracks []collector.Track
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
	const all = `<b>2</b> failing <span>1 prohibited, 1 refused</span>`
	const found = "The filter matches 1 of 303 targets."
	for _, test := range []struct {
		filter string
		rows   []string // nil: too many to name
		says   string
	}{
		{"REFUSED.EXAMPLE", []string{"Refused.example:1"}, found},
		{"other", []string{"Refused.example:1"}, found},
		{"module  refused", []string{"Refused.example:1"}, found},
		{"econnrefused", []string{"Refused.example:1"}, found},
		{"nobody listens", []string{"Refused.example:1"}, found},
		{"2001:db8::1", []string{"forbidden.example:1"}, found},
		{"admin prohibited", []string{"forbidden.example:1"}, found},
		{"admin_prohibited", []string{"forbidden.example:1"}, found},
		{"192.0.2.254", []string{"forbidden.example:1"}, found},
		{"dns_not_found", []string{"unnamed.example:1"}, found},
		{"DNS not found", []string{"unnamed.example:1"}, found},
		{"open-299", []string{"open-299:1"}, found},
		{".example -", nil, "No target matches the filter."},
		{"refused forbidden", nil, "No target matches the filter."},
		{"invalid", nil, "No target matches the filter."}, // as netip.Addr says of none
		{"other:", nil, "No target matches the filter."},  // as shaker.ICMP says of none
		{" open- ", nil, "The filter matches 300 of 303 targets; 100 of these are not shown."},
	} {
		body := get(p.Home, url.Values{"filter": {test.filter}}.Encode()).Body.String()
		if got := targets(body); test.rows != nil && !slices.Equal(got, test.rows) {
			t.Errorf("%q finds %v, want %v", test.filter, got, test.rows)
		}
		for _, want := range []string{test.says, all, "<title>2 failing, 300 succeeding", ` value="` + strings.TrimSpace(test.filter) + `"`} {
			if !strings.Contains(body, want) {
				t.Errorf("%q: the page lacks %s", test.filter, want)
			}
		}
		if len(targets(body)) == 0 != strings.HasPrefix(test.says, "No ") {
			t.Errorf("%q: there are %d rows", test.filter, len(targets(body)))
		}
	}
	for _, none := range []string{"", "filter=", "filter=+"} {
		body := get(p.Home, none).Body.String()
		if got := len(targets(body)); got != 200 || strings.Contains(body, "match") || !strings.Contains(body, "103 more are not shown.") {
			t.Errorf("%q: there are %d rows, and the page speaks of a filter", none, got)
		}
	}
}

// Whether nothing was probed yet, or nothing is kept, the page says what is true.
func TestEmptyHistory(t *testing.T) {
	body := home(t, newPages())
	for _, want := range []string{"<h2>The history is empty</h2>", "<code>--history.limit=0</code>", "__param_target", "<title>shaker_exporter</title>",
		`<option value="a">a</option>
      <option value="tcp_connect" selected>tcp_connect</option>`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

// A page that cannot be made to its end is not sent.
func TestHomeFailsAsAWhole(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	p.page = parse(strings.Replace(pageHTML, "{{.Spark}}", "{{.Missing}}", 1))
	if w := get(p.Home, ""); w.Code != 500 || w.Body.String() != "the page cannot be shown, the exporter's log says why\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestRow(t *testing.T) {
	icmp := shaker.ICMP{From: netip.MustParseAddr("192.0.2.254"), Type: 3, Code: 13}
	for _, test := range []struct {
		name   string
		record collector.Record
		want   string // verdict, target and address, why, ICMP, latency, retransmits
	}{
		{"open", collector.Record{Result: "open", Success: true, RTT: 12345 * time.Nanosecond, Handshake: time.Hour, Address: netip.MustParseAddr("192.0.2.1")},
			"open|192.0.2.1|||0.012 RTT on the kernel's clock|0"},
		{"open, no sample", collector.Record{Result: "open", Success: true, Handshake: 1034 * time.Millisecond, SYNRetransmits: 1, Address: netip.MustParseAddr("2001:db8::1")},
			"open|2001:db8::1|||1034 handshake on the exporter's clock|1"},
		{"not counted", collector.Record{Result: "open", Success: true, Handshake: 23456 * time.Microsecond, SYNRetransmits: -1, Address: netip.MustParseAddr("192.0.2.1")},
			"open|192.0.2.1|||23.5 handshake on the exporter's clock|"},
		{"address is the target", collector.Record{Result: "timeout", Errno: "ETIMEDOUT", SYNRetransmits: 4, Address: netip.MustParseAddr("198.51.100.1")},
			"timeout||no answer in time (ETIMEDOUT)|| |4"},
		{"wanted", collector.Record{Result: "refused", Errno: "ECONNREFUSED", Success: true},
			"refused||as wanted: nobody listens there (ECONNREFUSED)|| |"},
		{"unwanted", collector.Record{Result: "open"},
			"open||somebody listens there, which the module does not want|| |"},
		{"turned away", collector.Record{Result: "refused", Errno: "ECONNREFUSED", ICMP: icmp},
			"refused||turned away on the way (ECONNREFUSED)|ICMP admin prohibited from 192.0.2.254| |"},
		{"name", collector.Record{Result: "dns_not_found"},
			"DNS not found||the name has no address|| |"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.record.Time = noon
			r := newRow(collector.Track{Target: "198.51.100.1:1", First: noon, Records: []collector.Record{test.record}}, noon)
			got := strings.Join([]string{words(r.Last().Result), r.Address(), r.Why(), r.ICMP(), r.Latency + " " + r.Clock, r.Retransmits()}, "|")
			if got != test.want {
				t.Errorf("\n%s, want\n%s", got, test.want)
			}
		})
	}
}

// Every result has its words, and each ICMP error on the way tells apart what does.
func TestReasons(t *testing.T) {
	router := shaker.ICMP{From: netip.MustParseAddr("192.0.2.254"), Type: 3, Code: 1}
	for _, test := range []struct {
		result, errno string
		icmp          shaker.ICMP
		want          string
	}{
		{"reset", "ECONNRESET", shaker.ICMP{}, "answered, then hung up"},
		{"unreachable", "EHOSTUNREACH", router, "there is no way to it"},
		{"unreachable", "EHOSTUNREACH", shaker.ICMP{}, "there is no way to it"},
		{"unreachable", "ENETUNREACH", router, "there is no way to it"},
		{"unreachable", "ENETUNREACH", shaker.ICMP{}, "this host has no route to it"},
		{"unreachable", "ENETDOWN", shaker.ICMP{}, "this host cannot send to it"},
		{"prohibited", "EACCES", shaker.ICMP{}, "forbidden on this host"},
		{"prohibited", "EHOSTUNREACH", router, "forbidden on the way"},
		{"dns_timeout", "", shaker.ICMP{}, "no DNS server answered in time"},
		{"dns_error", "", shaker.ICMP{}, "the DNS server has no usable answer"},
		{"error", "EPROTO", shaker.ICMP{}, "the kernel could not connect"},
	} {
		want := test.want
		if test.errno != "" {
			want += " (" + test.errno + ")"
		}
		if got := why(&collector.Record{Result: test.result, Errno: test.errno, ICMP: test.icmp}); got != want {
			t.Errorf("%s %s %v: %s, want %s", test.result, test.errno, test.icmp, got, want)
		}
	}
}

func TestSince(t *testing.T) {
	for _, test := range []struct {
		track       collector.Track
		long, story string
	}{
		{track("a:1", "orr", 20*time.Second), "21 s", "refused since 2026-03-01T11:59:39.000Z"},
		{track("a:1", "rr", 20*time.Second), "over 21 s", "refused ever since it was first probed at 2026-03-01T11:59:39.000Z"},
	} {
		if r := newRow(test.track, noon); r.For != test.long || r.Story != test.story {
			t.Errorf("%s, %s; want %s, %s", r.For, r.Story, test.long, test.story)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 119 * time.Minute: "119 min",
		2 * time.Hour: "2 h", 47 * time.Hour: "47 h", 48 * time.Hour: "2 d", 100 * 24 * time.Hour: "100 d",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// Failures that are kept longer than successes do not count against a target.
func TestRecent(t *testing.T) {
	for _, test := range []struct {
		results string
		whole   int // how many of the first ones are of a time in which others were forgotten
		want    string
	}{
		{"rrro", 0, "25 %"},
		{"rrroor", 3, "66 %"},
		{"rrr", 0, "0 %"},
		{"oo", 1, "100 %"},
		{"ro" + strings.Repeat("r", 150), 1, "1 %"},
		{strings.Repeat("o", 60) + strings.Repeat("r", 60), 60, "0 %"},
		{"r" + strings.Repeat("o", 150), 0, "99 %"},
	} {
		track := track("a:1", test.results, 0)
		if test.whole > 0 {
			track.Whole = track.Records[test.whole-1].Time
		}
		if got := newRow(track, noon).Recent.String(); got != test.want {
			t.Errorf("%s: %s, want %s", test.results, got, test.want)
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
		t.Errorf("\n%s, want\n%s", got, want)
	}
	if got := string(sparkline(track("a:1", strings.Repeat("o", 120), 0).Records)); !strings.Contains(got, `viewBox="0 0 120 24"`) {
		t.Error(got)
	}
}

// The page says that targets are missing for as long as they may be.
func TestMissingTargets(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	for lost, want := range map[time.Time]bool{
		{}:                         false,
		noon.Add(-5 * time.Minute): true,
		noon.Add(-time.Hour):       false,
	} {
		p.options.Lost = func() time.Time { return lost }
		if got := strings.Contains(get(p.Home, "").Body.String(), "Some targets are missing"); got != want {
			t.Errorf("lost at %v: %t, want %t", lost, got, want)
		}
	}
}
