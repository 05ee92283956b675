package examples

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The relabelling of blackbox.yml makes host:port of every target of a job for blackbox_exporter that has one, and the
// query in the file finds the URLs whose port is open although blackbox_exporter reports a failure. Each target that
// blackbox_exporter probes has a result of this exporter, except for those without a port.
func TestBlackboxJob(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	network := simnet.NewNetwork(t)
	network.At("192.0.2.0/24", simnet.SYNACK())
	network.At("2001:db8::/32", simnet.SYNACK())
	web, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			http.Error(w, "broken", http.StatusInternalServerError)
		}
	})}
	go server.Serve(web)
	t.Cleanup(func() { server.Close() })
	process.StartBlackbox(t, lab.Write(t, t.TempDir(), "blackbox.yml", `modules:
  http_2xx: {prober: http, timeout: 1s}
  http_post_2xx: {prober: http, timeout: 1s}
  tcp_connect: {prober: tcp, timeout: 1s}
  icmp: {prober: icmp, timeout: 1s}
  dns: {prober: dns, timeout: 1s, dns: {query_name: example.com}}
`))
	exporter.Start(t)

	// The targets of the job, by module, and what this exporter probes instead; "" is nothing.
	probed := map[string]map[string]string{
		"http_2xx": {
			"http://127.0.0.1:8080/health":           "127.0.0.1:8080",
			"http://user:p@ss@127.0.0.1:8080/":       "127.0.0.1:8080",
			"127.0.0.1:8080/health":                  "127.0.0.1:8080",
			"http://127.0.0.1:1":                     "127.0.0.1:1",
			"https://192.0.2.1":                      "192.0.2.1:443",
			"https://192.0.2.1/a:1/b@c":              "192.0.2.1:443",
			"https://192.0.2.2:8443?a=b:1":           "192.0.2.2:8443",
			"HTTPS://192.0.2.3#x":                    "192.0.2.3:443",
			"http://192.0.2.4/https://example.com:1": "192.0.2.4:80",
			"192.0.2.5/path":                         "192.0.2.5:80",
			"192.0.2.6":                              "192.0.2.6:80",
			"http://[2001:db8::1]/":                  "[2001:db8::1]:80",
			"https://[2001:db8::2]:8443/":            "[2001:db8::2]:8443",
		},
		"http_post_2xx": {"https://user@192.0.2.7/": "192.0.2.7:443"},
		"tcp_connect":   {"192.0.2.8:22": "192.0.2.8:22", "[2001:db8::3]:22": "[2001:db8::3]:22"},
		"icmp":          {"192.0.2.9": "", "2001:db8::4": ""},
		"dns":           {"192.0.2.10": "", "192.0.2.11:53": "192.0.2.11:53"},
	}
	var files, want []string
	var covered, uncovered, all []string
	for module, targets := range probed {
		for target, to := range targets {
			files = append(files, "- {targets: ['"+target+"'], labels: {__param_module: "+module+"}}\n")
			all = append(all, target)
			if to == "" {
				uncovered = append(uncovered, target)
				continue
			}
			covered = append(covered, target)
			want = append(want, target+" = tcp_connect "+to)
		}
	}
	for _, list := range [][]string{want, covered, uncovered, all} {
		slices.Sort(list)
	}
	dir := t.TempDir()
	lab.Write(t, dir, "targets/all.yml", strings.Join(files, ""))
	s := startDiscovery(t, 9090, dir, "blackbox.yml", nil)
	lab.Eventually(t, "each target has a result of blackbox_exporter, and of this one if it has a port", func() bool {
		return slices.Equal(s.instances(`probe_success{job="blackbox"}`), all) &&
			slices.Equal(s.instances(`probe_success{job="shaker_blackbox"}`), covered)
	})
	var data struct {
		ActiveTargets []struct {
			Labels    map[string]string
			ScrapeURL string
		}
	}
	s.API("targets?state=active", &data)
	var got []string
	for _, target := range data.ActiveTargets {
		if target.Labels["job"] != "shaker_blackbox" {
			continue
		}
		scraped, err := url.Parse(target.ScrapeURL)
		if err != nil {
			t.Fatal(err)
		}
		query := scraped.Query()
		got = append(got, target.Labels["instance"]+" = "+query.Get("module")+" "+query.Get("target"))
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the targets of the job shaker_blackbox are\n%s\nwant\n%s",
			strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	missing := s.instances(`probe_success{job="blackbox"} unless on (instance) probe_success{job="shaker_blackbox"}`)
	if !slices.Equal(missing, uncovered) {
		t.Errorf("without a result of this exporter are %q, want %q", missing, uncovered)
	}

	// The query of the file: the server answers with 500, or with no TLS. The target that is refused is not among them.
	const query = `probe_success{job="blackbox"} == 0 and on (instance) probe_success{job="shaker_blackbox"} == 1`
	if !strings.Contains(lab.Read(t, "discovery/blackbox.yml"), query) {
		t.Errorf("blackbox.yml lacks the query %s", query)
	}
	broken := s.instances(query)
	for target, want := range map[string]bool{
		"https://192.0.2.1": true, "http://user:p@ss@127.0.0.1:8080/": true,
		"http://127.0.0.1:8080/health": false, "http://127.0.0.1:1": false, "192.0.2.9": false,
	} {
		if got := slices.Contains(broken, target); got != want {
			t.Errorf("Query(%s) contains %s: %t, want %t", query, target, got, want)
		}
	}

	// The queries of the page are this one, that for the targets that are refused, and that for those without a port.
	results := [][]string{broken, {"http://127.0.0.1:1"}, uncovered}
	for line := range strings.Lines(lab.Read(t, discoveryPage)) {
		if !strings.Contains(line, `{job="shaker_blackbox"`) {
			continue
		}
		if len(results) == 0 {
			t.Fatalf("%s has another query, which has no wanted result: %s", discoveryPage, line)
		}
		if got := s.instances(strings.TrimSpace(line)); !slices.Equal(got, results[0]) {
			t.Errorf("Query(%s) has the instances %q, want %q", line, got, results[0])
		}
		results = results[1:]
	}
	if len(results) > 0 {
		t.Errorf("%s lacks %d queries about a job for blackbox_exporter", discoveryPage, len(results))
	}
}
