package collector

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// Whatever the request is, the response is metrics, or one line of text about a mistake or a fault. The test
// itself sends no packet to another host, not even to a DNS server.
func FuzzProbeRequest(f *testing.F) {
	for _, seed := range []struct{ query, timeout string }{
		{query: "target=127.0.0.1:1"},
		{query: "target=[::1]:1&module=tcp_connect_ip6&debug=true", timeout: "10"},
		{query: "target=localhost:1&module=tcp_connect_ip4", timeout: "0.3"},
		{query: "target=name.example:1&debug=1", timeout: "1e-300"},
		{query: "target=127.0.0.1:1&module=none", timeout: "-1"},
		{query: "target=127.0.0.1:1&debug=perhaps", timeout: "NaN"},
		{query: "target=127.0.0.1:1&debug=true", timeout: "\xff\n"},
		{query: "target=%5b::1%25%22%0a%5d:1"},
		{query: "target=a%22%7d%0aprobe_success%201:1"},
		{query: "target=\xff\xfe:1&target=;%zz"},
		{query: ""},
	} {
		f.Add(seed.query, seed.timeout)
	}
	h := newHandler(f, settings{dialDNS: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no DNS server")
	}})
	f.Fuzz(func(t *testing.T, query, timeout string) {
		params, _ := url.ParseQuery(query)
		req, err := probe.NewRequest(config.Default(), params.Get("target"), config.DefaultModule)
		if err == nil && req.Addr.IsValid() && !req.Addr.IsLoopback() {
			return // the target is another host
		}
		r := httptest.NewRequest("GET", "/probe", nil)
		r.URL.RawQuery = query
		r.Header[timeoutHeader] = []string{timeout}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		body := w.Body.String()
		switch w.Code {
		case http.StatusOK:
			log, metrics, debug := strings.Cut(body, "\n# Metrics\n\n")
			if !debug {
				log, metrics = "", body
			}
			if strings.ContainsFunc(log, func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }) {
				t.Errorf("GET /probe?%s has the log %q, want printable characters", query, log)
			}
			parser := expfmt.NewTextParser(model.LegacyValidation)
			families, err := parser.TextToMetricFamilies(strings.NewReader(metrics))
			if err != nil || families["probe_success"] == nil {
				t.Errorf("GET /probe?%s = %s, want metrics with probe_success: %v", query, body, err)
			}
		case http.StatusBadRequest, http.StatusServiceUnavailable:
			line, rest, _ := strings.Cut(body, "\n")
			unprintable := strings.ContainsFunc(line, func(c rune) bool { return !unicode.IsPrint(c) })
			if line == "" || rest != "" || unprintable {
				t.Errorf("GET /probe?%s = %d %q, want one line of printable characters", query, w.Code, body)
			}
		default:
			t.Errorf("GET /probe?%s = %d %s, want 200, 400 or 503", query, w.Code, body)
		}
	})
}
