package collector

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// A request that is rejected counts with a reason that tells where the mistake is, and leaves one short line in the log
// at level debug.
func TestRejections(t *testing.T) {
	var log bytes.Buffer
	conf, _, err := config.Parse("test.yml", []byte(`
targets: {deny: ["192.0.2.1:*"]}
modules:
  tcp_connect: {prober: tcp}
  only6: {prober: tcp, tcp: {ip_protocol_fallback: false}}
  http_2xx: {prober: http}
`))
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, settings{config: conf, Options: Options{
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}})
	const wantTarget = "want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443"
	long := strings.Repeat("x", 1000)
	for _, c := range []struct {
		query, timeout string
		status         int
		reason, text   string
	}{
		{query: "", status: 400, reason: "bad_target", text: "missing target, " + wantTarget},
		{query: "target=foo", status: 400, reason: "bad_target", text: `target "foo": ` + wantTarget},
		{query: "target=" + long, status: 400, reason: "bad_target",
			text: `target "` + long[:80] + `...": 1000 characters, want at most 260`},
		{query: "target=127.0.0.1:1&module=only6", status: 400, reason: "bad_target",
			text: `target "127.0.0.1:1" is ip4, module only6 probes only ip6`},
		{query: "target=127.0.0.1:1&module=tcp", status: 400, reason: "unknown_module",
			text: `unknown module "tcp", the modules are only6, tcp_connect`},
		{query: "target=127.0.0.1:1&module=http_2xx", status: 400, reason: "unknown_module",
			text: `module "http_2xx" is left to blackbox_exporter, because its prober is http: ` +
				"this exporter performs only TCP handshakes"},
		{query: "target=127.0.0.1:1", timeout: "NaN", status: 400, reason: "bad_request",
			text: timeoutHeader + ` is "NaN", want a positive number of seconds`},
		{query: "target=127.0.0.1:1&debug=x", status: 400, reason: "bad_request",
			text: `debug is "x", want true or false`},
		{query: "target=a:1&target=b:1", status: 400, reason: "bad_request",
			text: `parameter "target" given 2 times, want once`},
		{query: "target=192.0.2.1:1", status: 403, reason: "denied",
			text: "target 192.0.2.1:1 may not be probed: targets.deny 192.0.2.1/32:* forbids it"},
	} {
		log.Reset()
		counter := h.metrics.rejected.WithLabelValues(c.reason)
		before := testutil.ToFloat64(counter)
		checkResponse(t, "/probe?"+c.query, get(h, "/probe?"+c.query, timeoutHeader, c.timeout), c.status, c.text+"\n")
		checkValue(t, "rejected by "+c.reason+" after /probe?"+c.query, counter, before+1)
		want := fmt.Sprintf("level=DEBUG msg=\"Probe rejected\" reason=%s status=%d client=192.0.2.1:1234 query=",
			c.reason, c.status)
		if line := log.String(); !strings.Contains(line, want) || strings.Count(line, "\n") != 1 || len(line) > 600 ||
			!strings.Contains(line, strings.ReplaceAll(c.text, `"`, `\"`)) {
			t.Errorf("the log of GET /probe?%s is %q, want one line with %q and the error", c.query, line, want)
		}
	}
}
