package pages

import (
	"fmt"
	"html"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestLogs(t *testing.T) {
	a := track("a.example:443", "ot", time.Second)
	a.Records[0] = history.Record{
		Time:      noon.Add(-2*time.Second + 1234567*time.Nanosecond),
		Success:   true,
		Result:    "open",
		Duration:  1300 * time.Microsecond,
		Handshake: 1234567 * time.Nanosecond,
		RTT:       1100 * time.Microsecond,
		Address:   netip.MustParseAddr("2001:db8::1"),
	}
	a.Records[1].Errno, a.Records[1].Duration, a.Records[1].SYNRetransmits = "ETIMEDOUT", 5*time.Second, 4
	a.Records[1].Address = netip.MustParseAddr("2001:db8::1")
	b := track("b.example:22", "r", 1500*time.Millisecond)
	b.Module = "two words"
	b.Records[0].Errno, b.Records[0].Reason = "ECONNREFUSED", "connect failed"
	b.Records[0].ICMP = shaker.ICMP{From: netip.MustParseAddr("192.0.2.254"), Type: 3, Code: 3}
	b.Records[0].Address, b.Records[0].SYNRetransmits = netip.MustParseAddr("192.0.2.1"), -1
	p := newPages(a, b)
	for _, test := range []struct{ query, file string }{
		{query: "", file: "logs.txt"},
		{query: "target=b.example:22", file: "logs_of_target.txt"},
		{query: "module=two+words", file: "logs_of_module.txt"},
		{query: "target=b.example:22&module=two+words", file: "logs_of_target_and_module.txt"},
	} {
		want, err := os.ReadFile(filepath.Join("testdata", test.file))
		if err != nil {
			t.Fatal(err)
		}
		w := get(p.Logs, test.query)
		contentType := w.Header().Get("Content-Type")
		if w.Code != 200 || w.Body.String() != string(want) || contentType != "text/plain; charset=utf-8" {
			t.Errorf("/logs?%s answered %d %s\n%s\nwant 200 text/plain; charset=utf-8\n%s",
				test.query, w.Code, contentType, w.Body, want)
		}
	}
}

// Events of held connections have a reason, and no duration.
func TestLogsOfHeld(t *testing.T) {
	held := track("held.example:6379", "t", time.Second)
	held.Records[0].Duration, held.Records[0].Reason = 0, "connection ended after 5s"
	probed := track("probed.example:443", "o", time.Second)
	probed.Records[0].Duration = 2 * time.Millisecond
	p := newPages(held, probed)
	for _, test := range []struct{ accept, want string }{
		{accept: "text/plain", want: " connection ended after 5s\n"},
		{accept: "text/html", want: `<td role="cell" class="number duration">–</td>`},
		{accept: "text/html", want: `<td role="cell" class="number duration">2.00&nbsp;ms</td>`},
	} {
		r := httptest.NewRequest("GET", "/logs", nil)
		r.Header.Set("Accept", test.accept)
		w := httptest.NewRecorder()
		p.Logs(w, r)
		if !strings.Contains(w.Body.String(), test.want) {
			t.Errorf("/logs as %s lacks %q in\n%s", test.accept, test.want, w.Body)
		}
	}
}

// Of probes that began at the same time, the one that ended last comes first.
func TestLogsOrderProbesOfSameTime(t *testing.T) {
	tr := track("a:1", "ort", 0)
	for i := range tr.Records {
		tr.Records[i].Time = noon
	}
	lines := strings.Split(get(newPages(tr).Logs, "target=a:1&module=tcp_connect").Body.String(), "\n")
	for i, want := range []string{"RESULT", "timeout", "refused", "open"} {
		if got := strings.Fields(lines[i])[2]; got != want {
			t.Errorf("line %d of /logs has the result %s, want %s:\n%s", i, got, want, lines[i])
		}
	}
}

func TestLogsWithoutResults(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	for _, test := range []struct {
		pages  *Pages
		query  string
		status int
		want   string
	}{
		{pages: newPages(), query: "", status: 200, want: "the history is empty"},
		{pages: p, query: "target=b:1", status: 404, want: `no results in the history for target "b:1"`},
		{pages: p, query: "module=b", status: 404, want: `no results in the history for module "b"`},
		{
			pages: p, query: "target=a:1&module=x%0A", status: 404,
			want: `no results in the history for target "a:1" and module "x\n"`,
		},
		{
			pages: p, query: "target=a:1&target=a:1", status: 400,
			want: `parameter "target" given 2 times, want once`,
		},
		{
			pages: p, query: "module=&module=&module=", status: 400,
			want: `parameter "module" given 3 times, want once`,
		},
		{
			pages: p, query: "before=2026-03-01T12:00:00Z&target=a:1", status: 404,
			want: `no results in the history for target "a:1" before 2026-03-01T12:00:00.000Z`,
		},
		{
			pages: p, query: "before=yesterday", status: 400,
			want: `before is "yesterday", want a time such as 2006-01-02T15:04:05Z`,
		},
		{
			pages: p, query: "before=" + strings.Repeat("x", 10000), status: 400,
			want: `before is "` + strings.Repeat("x", 80) + `...", want a time such as 2006-01-02T15:04:05Z`,
		},
		{
			pages: p, query: "before=&before=", status: 400,
			want: `parameter "before" given 2 times, want once`,
		},
		{pages: p, query: "target=%zz", status: 400, want: `query: invalid URL escape "%zz"`},
	} {
		w := get(test.pages.Logs, test.query)
		contentType := w.Header().Get("Content-Type")
		if w.Code != test.status || w.Body.String() != test.want+"\n" || contentType != "text/plain; charset=utf-8" {
			t.Errorf("/logs?%s answered %d %s %q, want %d text/plain; charset=utf-8 %q",
				test.query, w.Code, contentType, w.Body, test.status, test.want+"\n")
		}
	}
}

// A name cannot look like another line or column, whatever it contains.
func TestLogsQuoteNames(t *testing.T) {
	for name, want := range map[string]string{
		"fe80::1%eth0": "fe80::1%eth0", "": `""`, "a b": `"a b"`, "a\tb": `"a\tb"`, "a\nb": `"a\nb"`,
		"\x1b[2J": `"\x1b[2J"`, "\u202e": `"\u202e"`, `"a"`: `"\"a\""`, "\xff": `"\xff"`, "ü": "ü",
	} {
		tr := track("a:1", "o", 0)
		tr.Module = name
		line := strings.Split(get(newPages(tr).Logs, "target=a:1").Body.String(), "\n")[1]
		if !strings.HasPrefix(line, "2026-03-01T12:00:00.000Z  "+want+"  ") {
			t.Errorf("the line of module %q is\n%s\nwant the column %s", name, line, want)
		}
	}
}

// browse returns the response of /logs to a browser.
func browse(p *Pages, query string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/logs?"+query, nil)
	r.Header.Set("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
	w := httptest.NewRecorder()
	p.Logs(w, r)
	return w
}

// Page by page, the history shows each selected result once, latest first, as text and as HTML. A page is short
// however long the history is.
func TestLogsPages(t *testing.T) {
	var tracks []history.Track
	for i := range 25 {
		tracks = append(tracks, track(fmt.Sprintf("10.0.0.%d:1", i), strings.Repeat("o", 30), 0)) // 25 at a time
	}
	tracks = append(tracks, track("other.example:1", strings.Repeat("r", 120), time.Hour))
	p := newPages(tracks...)
	for _, test := range []struct {
		name, query string
		get         func(query string) *httptest.ResponseRecorder
		result      string // a pattern for a result; its group is the time
		next        string // a pattern for the link to the next page; its group is the query
		pages       []int  // the number of results on each page
	}{
		{
			name: "text", get: func(query string) *httptest.ResponseRecorder { return get(p.Logs, query) },
			result: `(?m)^(2\S+)`, next: `(?m)^# older results: \d+, at /\?(.*)$`, pages: []int{200, 200, 200, 200, 70},
		},
		{
			name: "HTML", get: func(query string) *httptest.ResponseRecorder { return browse(p, query) },
			result: `<time datetime="(.*?)"`, next: `<a href="logs\?([^"]*)" rel="next">\d+ older results</a>`,
			pages: []int{200, 200, 200, 200, 70},
		},
		{
			name: "the header Link", get: func(query string) *httptest.ResponseRecorder {
				w := get(p.Logs, query)
				w.Body.WriteString(w.Header().Get("Link"))
				return w
			},
			result: `(?m)^(2\S+)`, next: `<logs\?(.*)>; rel="next"$`, pages: []int{200, 200, 200, 200, 70},
		},
		{
			name: "one target", query: "target=other.example:1&module=tcp_connect",
			get:    func(query string) *httptest.ResponseRecorder { return browse(p, query) },
			result: `<time datetime="(.*?)"`, next: `rel="next"`, pages: []int{120},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var pages []int
			last := "3"
			for query, more := test.query, true; more && len(pages) < 10; {
				w := test.get(query)
				if w.Code != 200 {
					t.Fatalf("/logs?%s answered %d %s, want 200", query, w.Code, w.Body)
				}
				results := regexp.MustCompile(test.result).FindAllStringSubmatch(w.Body.String(), -1)
				for _, r := range results {
					if r[1] > last {
						t.Errorf("/logs?%s has a result of %s after one of %s, want the latest first",
							query, r[1], last)
					}
					last = r[1]
				}
				pages = append(pages, len(results))
				next := regexp.MustCompile(test.next).FindStringSubmatch(w.Body.String())
				if more = next != nil; more {
					query = html.UnescapeString(next[1])
				}
			}
			if !slices.Equal(pages, test.pages) {
				t.Errorf("the pages have %d results, want %d", pages, test.pages)
			}
		})
	}
}

// Probes that began at the same time are on the same page, because the next page begins before that time.
func TestLogsPagesAtSameTime(t *testing.T) {
	var tracks []history.Track
	for i := range 250 {
		tracks = append(tracks, track(fmt.Sprintf("10.0.0.%d:1", i), "o", 0))
	}
	tracks = append(tracks, track("last.example:1", "o", time.Minute))
	body := get(newPages(tracks...).Logs, "").Body.String()
	const want = "# older results: 1, at /?before=2026-03-01T12%3A00%3A00Z\n"
	if n := strings.Count(body, " open "); n != 250 || !strings.HasSuffix(body, want) {
		t.Errorf("the first page has %d results, want the 250 of the same time and then %s\nIt is:\n%s", n, want, body)
	}
	if two, ten := strings.Index(body, "10.0.0.2:1 "), strings.Index(body, "10.0.0.10:1 "); two < 0 || two > ten {
		t.Errorf("10.0.0.2 is not before 10.0.0.10 in\n%s", body)
	}
}

// The history is HTML for browsers only, has no script and loads nothing, and shows hostile names as text.
func TestLogsInHTML(t *testing.T) {
	hostile := track(hostileTarget, "or", time.Second)
	hostile.Module = hostileModule
	p := newPages(hostile)
	w := browse(p, "")
	body := w.Body.String()
	header := w.Header()
	if header.Get("Content-Type") != "text/html; charset=utf-8" || header.Get("Vary") != "Accept" ||
		header.Get("Content-Security-Policy") != contentSecurityPolicy {
		t.Errorf("/logs answers a browser with the headers %v, want text/html, Vary: Accept and the policy", header)
	}
	for _, wrong := range []string{"<script", "<img", "\"&\n", "style=", "ZgotmplZ", " onclick", "@import"} {
		if strings.Contains(body, wrong) {
			t.Errorf("the page contains %q:\n%s", wrong, body)
		}
	}
	allowed := regexp.MustCompile(`^((logs|metrics|config|-/healthy|-/ready|\./)(\?|$)|data:image/svg)`)
	for _, link := range regexp.MustCompile(`(?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if !allowed.MatchString(link[1]) {
			t.Errorf("the page has the URL %s, want only %v", link[1], allowed)
		}
	}
	for accept, want := range map[string]string{
		"": "text/plain; charset=utf-8", "*/*": "text/plain; charset=utf-8", "text/plain": "text/plain; charset=utf-8",
		"text/html": "text/html; charset=utf-8",
	} {
		r := httptest.NewRequest("GET", "/logs", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		p.Logs(w, r)
		if got := w.Header().Get("Content-Type"); got != want {
			t.Errorf("with Accept: %s, /logs answers with %s, want %s", accept, got, want)
		}
	}
}
