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

// Whatever is asked, the answer is one of three: metrics, or a line of text about a mistake
// or a fault. No input makes this send a packet to another host, not even to a DNS server.
func FuzzProbeRequest(f *testing.F) {
	for _, seed := range []struct{ query, timeout string }{
		{"target=127.0.0.1:1", ""},
		{"target=[::1]:1&module=tcp_connect_ip6&debug=true", "10"},
		{"target=localhost:1&module=tcp_connect_ip4", "0.3"},
		{"target=name.example:1&debug=1", "1e-300"},
		{"target=127.0.0.1:1&module=none", "-1"},
		{"target=127.0.0.1:1&debug=perhaps", "NaN"},
		{"target=127.0.0.1:1&debug=true", "\xff\n"},
		{"target=%5b::1%25%22%0a%5d:1", ""},
		{"target=a%22%7d%0aprobe_success%201:1", ""},
		{"target=\xff\xfe:1&target=;%zz", ""},
		{"", ""},
	} {
		f.Add(seed.query, seed.timeout)
	}
	p := newHandler(f, settings{dialDNS: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("there is no DNS here")
	}})
	f.Fuzz(func(t *testing.T, query, timeout string) {
		params, _ := url.ParseQuery(query)
		if req, err := probe.NewRequest(config.Default(), params.Get("target"), config.DefaultModule); err == nil &&
			req.Addr.IsValid() && !req.Addr.IsLoopback() {
			return // another host
		}
		r := httptest.NewRequest("GET", "/probe", nil)
		r.URL.RawQuery = query
		r.Header[timeoutHeader] = []string{timeout}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		body := w.Body.String()
		switch w.Code {
		case http.StatusOK:
			story, metrics, debug := strings.Cut(body, "\n# Metrics\n\n")
			if !debug {
				story, metrics = "", body
			}
			if strings.ContainsFunc(story, func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }) {
				t.Errorf("story %q", story)
			}
			parser := expfmt.NewTextParser(model.LegacyValidation)
			if families, err := parser.TextToMetricFamilies(strings.NewReader(metrics)); err != nil || families["probe_success"] == nil {
				t.Errorf("%v in %s", err, body)
			}
		case http.StatusBadRequest, http.StatusServiceUnavailable:
			line, rest, _ := strings.Cut(body, "\n")
			if line == "" || rest != "" || strings.ContainsFunc(line, func(c rune) bool { return !unicode.IsPrint(c) }) {
				t.Errorf("%d %q", w.Code, body)
			}
		default:
			t.Errorf("%d %s", w.Code, body)
		}
	})
}
