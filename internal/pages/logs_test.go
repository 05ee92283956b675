package pages

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestLogs(t *testing.T) {
	a := track("a.example:443", "ot", time.Second)
	a.Records[0] = collector.Record{Time: noon.Add(-2*time.Second + 1234567*time.Nanosecond), Success: true, Result: "open",
		Duration: 1300 * time.Microsecond, Handshake: 1234567, RTT: 1100 * time.Microsecond, Address: netip.MustParseAddr("2001:db8::1")}
	a.Records[1].Errno, a.Records[1].Duration, a.Records[1].SYNRetransmits = "ETIMEDOUT", 5*time.Second, 4
	a.Records[1].Address = netip.MustParseAddr("2001:db8::1")
	b := track("b.example:22", "r", 1500*time.Millisecond)
	b.Module = "two words"
	b.Records[0].Errno = "ECONNREFUSED"
	b.Records[0].ICMP = shaker.ICMP{From: netip.MustParseAddr("192.0.2.254"), Type: 3, Code: 3}
	b.Records[0].Address, b.Records[0].SYNRetransmits = netip.MustParseAddr("192.0.2.1"), -1
	p := newPages(a, b)
	for query, want := range map[string]string{
		"": `
TIME                      TARGET         MODULE       SUCCESS  RESULT   ERRNO         DURATION  HANDSHAKE  RTT    RETRANSMITS  ADDRESS      ICMP
2026-03-01T11:59:59.000Z  a.example:443  tcp_connect  false    timeout  ETIMEDOUT     5s        -          -      4            2001:db8::1  -
2026-03-01T11:59:58.500Z  b.example:22   "two words"  false    refused  ECONNREFUSED  -         -          -      -            192.0.2.1    port_unreachable from 192.0.2.254
2026-03-01T11:59:58.001Z  a.example:443  tcp_connect  true     open     -             1.3ms     1.235ms    1.1ms  0            2001:db8::1  -
`,
		"target=b.example:22": `
TIME                      MODULE       SUCCESS  RESULT   ERRNO         DURATION  HANDSHAKE  RTT  RETRANSMITS  ADDRESS    ICMP
2026-03-01T11:59:58.500Z  "two words"  false    refused  ECONNREFUSED  -         -          -    -            192.0.2.1  port_unreachable from 192.0.2.254
`,
		"module=two+words": `
TIME                      TARGET        SUCCESS  RESULT   ERRNO         DURATION  HANDSHAKE  RTT  RETRANSMITS  ADDRESS    ICMP
2026-03-01T11:59:58.500Z  b.example:22  false    refused  ECONNREFUSED  -         -          -    -            192.0.2.1  port_unreachable from 192.0.2.254
`,
		"target=b.example:22&module=two+words": `
TIME                      SUCCESS  RESULT   ERRNO         DURATION  HANDSHAKE  RTT  RETRANSMITS  ADDRESS    ICMP
2026-03-01T11:59:58.500Z  false    refused  ECONNREFUSED  -         -          -    -            192.0.2.1  port_unreachable from 192.0.2.254
`,
	} {
		w := get(p.Logs, query)
		if w.Code != 200 || w.Body.String() != want[1:] || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%q: %d %s\n%s, want%s", query, w.Code, w.Header(), w.Body, want)
		}
	}
}

// Of probes at the same time, the one that ended last comes first.
func TestLogsOfOneTime(t *testing.T) {
	tr := track("a:1", "ort", 0)
	for i := range tr.Records {
		tr.Records[i].Time = noon
	}
	lines := strings.Split(get(newPages(tr).Logs, "target=a:1&module=tcp_connect").Body.String(), "\n")
	for i, want := range []string{"RESULT", "timeout", "refused", "open"} {
		if got := strings.Fields(lines[i])[2]; got != want {
			t.Errorf("line %d has %s, want %s", i, got, want)
		}
	}
}

func TestLogsOfNothing(t *testing.T) {
	p := newPages(track("a:1", "o", 0))
	for _, test := range []struct {
		pages  *Pages
		query  string
		status int
		want   string
	}{
		{newPages(), "", 200, "nothing is in the history\n"},
		{p, "target=b:1", 404, `nothing is in the history, target "b:1"` + "\n"},
		{p, "target=a:1&module=x%0A", 404, `nothing is in the history, target "a:1", module "x\n"` + "\n"},
		{p, "target=a:1&target=a:1", 400, "target is given 2 times, want it once\n"},
		{p, "module=&module=&module=", 400, "module is given 3 times, want it once\n"},
		{p, "target=%zz", 400, `query: invalid URL escape "%zz"` + "\n"},
	} {
		w := get(test.pages.Logs, test.query)
		if w.Code != test.status || w.Body.String() != test.want || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%q: %d %q, want %d %q", test.query, w.Code, w.Body, test.status, test.want)
		}
	}
}

// No name, whatever is in it, looks like another line or column.
func TestLogsQuoteNames(t *testing.T) {
	for name, want := range map[string]string{
		"fe80::1%eth0": "fe80::1%eth0", "": `""`, "a b": `"a b"`, "a\tb": `"a\tb"`, "a\nb": `"a\nb"`,
		"\x1b[2J": `"\x1b[2J"`, "\u202e": `"\u202e"`, `"a"`: `"\"a\""`, "\xff": `"\xff"`, "ü": "ü",
	} {
		tr := track("a:1", "o", 0)
		tr.Module = name
		line := strings.Split(get(newPages(tr).Logs, "target=a:1").Body.String(), "\n")[1]
		if !strings.HasPrefix(line, "2026-03-01T12:00:00.000Z  "+want+"  ") {
			t.Errorf("%q: %s, want %s", name, line, want)
		}
	}
}
