package pages

import (
	"net/netip"
	"os"
	"path/filepath"
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
	b.Records[0].Errno = "ECONNREFUSED"
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
