package server

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// Requests that a page of another site makes get status 403. All others are served: those of programs, of the
// exporter's own page, and of users who follow a link.
func TestCrossSiteRequests(t *testing.T) {
	const (
		external = "https://example.com/shaker"
		probe    = "/probe?target=127.0.0.1:22"
		wanted   = "want example.com (the host of --web.external-url), or an address"
	)
	from := func(site, mode, dest string) map[string]string {
		return map[string]string{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
	}
	for _, c := range []struct {
		name         string
		method, path string
		external     string
		host         string // "localhost:10115" if it is ""
		header       map[string]string
		refused      string // "" if the request is served
	}{
		{name: "a scrape", path: probe},
		{name: "curl reloads", method: "POST", path: "/-/reload"},
		{name: "a browser's address bar", path: probe, header: from("none", "navigate", "document")},
		{name: "the page's own refresh", path: "/", header: from("same-origin", "cors", "empty")},
		{name: "the page's own form", path: probe, header: from("same-origin", "navigate", "document")},
		{name: "a link of Grafana", path: probe, header: from("cross-site", "navigate", "document")},
		{name: "a program of the same site", path: probe, header: from("same-site", "cors", "empty")},
		{name: "an image of another site", path: probe, header: from("cross-site", "no-cors", "image"),
			refused: "another site may link to the exporter, but not load it"},
		{name: "a script of another site", path: probe, header: from("cross-site", "cors", "empty"),
			refused: "another site may link to the exporter, but not load it"},
		{name: "a frame of another site", path: probe, header: from("cross-site", "navigate", "iframe"),
			refused: "another site may link to the exporter, but not load it"},
		{name: "HEAD by another site", method: "HEAD", path: probe, header: from("cross-site", "cors", "empty"),
			refused: "another site may link to the exporter, but not load it"},
		{name: "a form of another site", method: "POST", path: "/-/reload",
			header:  from("cross-site", "navigate", "document"),
			refused: ownPages},
		{name: "a form of the same site, but another origin", method: "POST", path: "/-/reload",
			header:  from("same-site", "navigate", "document"),
			refused: ownPages},
		{name: "a script of another site reloads", method: "PUT", path: "/-/reload",
			header:  from("cross-site", "cors", "empty"),
			refused: ownPages},
		{name: "the own origin in an old browser", method: "POST", path: "/-/reload",
			header: map[string]string{"Origin": "http://localhost:10115"}},
		{name: "the external origin behind a proxy, in an old browser", method: "POST", path: "/-/reload",
			external: external, header: map[string]string{"Origin": "https://example.com"}},
		{name: "another origin in an old browser", method: "POST", path: "/-/reload",
			header:  map[string]string{"Origin": "http://evil.example"},
			refused: ownPages},

		{name: "any host without an external URL", path: probe, host: "evil.example:10115"},
		{name: "any host with an external URL that is a path", path: probe, host: "evil.example", external: "/shaker/"},
		{name: "the external host", path: probe, host: "example.com", external: external},
		{name: "the external host, with a port, in upper case, with a final dot", path: probe,
			host: "EXAMPLE.com.:443", external: external},
		{name: "IPv4", path: probe, host: "192.0.2.1:10115", external: external},
		{name: "IPv6", path: probe, host: "[2001:db8::1]:10115", external: external},
		{name: "IPv6 without a port", path: probe, host: "[2001:db8::1]", external: external},
		{name: "localhost", path: probe, host: "localhost:10115", external: external},
		{name: "a container", path: probe, host: "shaker_exporter:10115", external: external},
		{name: "a Service", path: probe, host: "shaker-exporter.monitoring.svc:10115", external: external},
		{name: "a Service, in full", path: probe, host: "shaker.monitoring.svc.cluster.local:1", external: external},
		{name: "a foreign host", path: probe, host: "evil.example:10115", external: external,
			refused: `the host is "evil.example:10115", ` + wanted},
		{name: "a foreign host that contains the external one", path: "/metrics", host: "example.com.evil.example",
			external: external, refused: `the host is "example.com.evil.example", ` + wanted},
		{name: "a subdomain of the external host", path: "/", host: "a.example.com", external: external,
			refused: `the host is "a.example.com", ` + wanted},
		{name: "a long foreign host", path: probe, host: strings.Repeat("a.", 5000) + "com", external: external,
			refused: `the host is "` + strings.Repeat("a.", 40) + `...", ` + wanted},
	} {
		t.Run(c.name, func(t *testing.T) {
			external, err := url.Parse(c.external)
			if err != nil {
				t.Fatal(err)
			}
			handler := sameSite(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, "served")
			}), external)
			r := httptest.NewRequest(c.method, c.path, nil)
			if r.Host = c.host; c.host == "" {
				r.Host = "localhost:10115"
			}
			for name, value := range c.header {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			status, body := 200, "served"
			if c.refused != "" {
				status, body = 403, "cross-site request refused: "+c.refused+"\n"
			}
			if c.refused == ownPages {
				body = fmt.Sprintf("cross-site request refused: %s %s request\n", ownPages, r.Method)
			}
			if w.Code != status || w.Body.String() != body {
				t.Errorf("%s %s of host %.100s with %v = %d %q, want %d %q",
					r.Method, c.path, r.Host, c.header, w.Code, w.Body, status, body)
			}
		})
	}
}

// An HTTP/1.0 request without a Host is not a browser's.
func TestNoHost(t *testing.T) {
	if !isOwnHost("", "example.com") {
		t.Error(`isOwnHost("", "example.com") = false, want true`)
	}
}

// ownPages is the begin of a reason, which the method follows.
const ownPages = "only the exporter's own pages may send a"
