package collector

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// newWatchHandler returns a handler with a Watcher. Its modules "watched" and "watched_flows" are watched.
func newWatchHandler(t testing.TB, options watch.Options) *handler {
	t.Helper()
	conf, _, err := config.Parse("watch.yml", []byte("modules: {"+
		"watched: {prober: tcp, watch: {interval: 100ms}}, "+
		"watched_flows: {prober: tcp, timeout: 200ms, watch: {interval: 100ms}, tcp: {flows: 3}}}"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, settings{config: conf})
	options.Shaker, options.Prober, options.Observe = h.shaker, h.prober, h.Observe
	w := watch.New(options)
	t.Cleanup(w.Close)
	h.Watch(w)
	return h
}

// scrapeProtobuf requests a path in the format that Prometheus prefers with native histograms.
func scrapeProtobuf(t *testing.T, h *handler, path string) map[string]*dto.MetricFamily {
	t.Helper()
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	w := get(h, path, "Accept", string(format))
	if w.Code != 200 {
		t.Fatalf("GET %s = %d %s, want 200", path, w.Code, w.Body)
	}
	families := make(map[string]*dto.MetricFamily)
	decoder := expfmt.NewDecoder(w.Body, format)
	for {
		var family dto.MetricFamily
		if decoder.Decode(&family) != nil {
			return families
		}
		families[family.GetName()] = &family
	}
}

// The first scrape of a watched target is a probe, the others are answered from memory. All have the metrics of
// watching, with the time of their creation, and a native histogram.
func TestWatchedTarget(t *testing.T) {
	h := newWatchHandler(t, watch.Options{})
	listen(t, "127.0.0.1:7100")
	const path = "/probe?module=watched&target=127.0.0.1:7100"
	before := time.Now()
	var families map[string]*dto.MetricFamily
	lab.Eventually(t, "there are five handshakes", func() bool {
		families = scrapeProtobuf(t, h, path)
		return families["probe_watch_handshakes_total"].Metric[0].Counter.GetValue() >= 5
	})
	checkValue(t, "probes of the module", h.metrics.probes.WithLabelValues("watched"), 1)
	checkSeries(t, families, before, map[string]string{
		"probe_watch_handshakes_total": `open,|timeout,ETIMEDOUT|` +
			`refused,ECONNREFUSED|unreachable,EHOSTUNREACH`,
		"probe_watch_rtt_seconds":                      ``,
		"probe_watch_syn_retransmits_total":            ``,
		"probe_watch_acks_sent_total":                  ``,
		"probe_watch_skipped_total":                    `fault|late|overlapping|unread`,
		"probe_watch_interval_seconds":                 ``,
		"probe_watch_registered_timestamp_seconds":     ``,
		"probe_watch_last_handshake_timestamp_seconds": ``,
	})
	if families["probe_watch_lookups_total"] != nil {
		t.Error("the scrape of an address has probe_watch_lookups_total, want none")
	}
	rtt := families["probe_watch_rtt_seconds"].Metric[0].Histogram
	if rtt.GetSchema() != 3 || len(rtt.Bucket) == 0 || rtt.GetSampleCount() < 5 {
		t.Errorf("the histogram has schema %d, %d classic buckets, %d samples, want 3, some, 5 or more",
			rtt.GetSchema(), len(rtt.Bucket), rtt.GetSampleCount())
	}
	if last := families["probe_watch_last_handshake_timestamp_seconds"].Metric[0].Gauge.GetValue(); last <
		float64(before.Unix()-60) {
		t.Errorf("the last handshake was at %v, want within the last minute", last)
	}
	text := get(h, path, "Accept", "text/plain").Body.String()
	if !strings.Contains(text, `probe_watch_handshakes_total{result="open",errno=""} `) ||
		!strings.Contains(text, "probe_watch_rtt_seconds_bucket") || !strings.Contains(text, "probe_success 1\n") {
		t.Errorf("the scrape as text lacks metrics:\n%s", text)
	}
	if head := get(h, "/probe?module=watched&target=127.0.0.1:7100&debug=true").Body.String(); !strings.HasPrefix(head,
		"# Watched since 2") || !strings.Contains(head, "SYN-ACK from 127.0.0.1:7100") {
		t.Errorf("debug=true begins with\n%.300s\nwant since when the target is watched, and its last handshake", head)
	}
}

// A watched target of a module with flows also has the metrics of each flow. One without flows has none of them, even
// if its scrape uses the same memory.
func TestWatchedFlows(t *testing.T) {
	h := newWatchHandler(t, watch.Options{})
	listen(t, "127.0.0.1:7108")
	const path = "target=127.0.0.1:7108&module="
	before := time.Now()
	var families map[string]*dto.MetricFamily
	lab.Eventually(t, "each flow has three handshakes that are open", func() bool {
		families = scrapeProtobuf(t, h, "/probe?"+path+"watched_flows")
		enough := 0
		for _, series := range families["probe_watch_flow_handshakes_total"].GetMetric() {
			if series.Label[1].GetValue() == "open" && series.Counter.GetValue() >= 3 {
				enough++
			}
		}
		return enough == 3
	})
	module := h.prober.Config().Modules["watched_flows"]
	ports, err := h.prober.FlowPorts(&module)
	if err != nil {
		t.Fatal(err)
	}
	var counters, results []string
	for port := ports.First; port <= ports.Last; port++ {
		for _, result := range []string{"open", "refused", "timeout", "unreachable"} {
			counters = append(counters, fmt.Sprintf("%d,%s", port, result))
		}
		results = append(results, fmt.Sprintf("%d,open,", port))
	}
	checkSeries(t, families, before, map[string]string{
		"probe_watch_flow_handshakes_total": strings.Join(counters, "|"),
		"probe_flow_result_info":            strings.Join(results, "|"),
		"probe_flows":                       "",
		"probe_flows_left_out":              "",
	})
	total := 0.0
	for _, series := range families["probe_watch_flow_handshakes_total"].Metric {
		n := series.Counter.GetValue()
		if open := series.Label[1].GetValue() == "open"; open != (n > 0) {
			t.Errorf("%v, want handshakes that are open, and no others", series)
		}
		total += n
	}
	if all := families["probe_watch_handshakes_total"].Metric[0].Counter.GetValue(); all != total {
		t.Errorf("the flows have %v handshakes, and the target %v, want the same number", total, all)
	}
	head := get(h, "/probe?debug=true&"+path+"watched_flows").Body.String()
	if want := regexp.MustCompile(`^# Watched since \S+, with a handshake every 100ms, of each flow in turn\. ` +
		`What follows is the last one of each flow, the latest of \d\d:\d\d:\d\d\.\d{3}\.\n`); !want.MatchString(head) {
		t.Errorf("debug=true begins with\n%.300s\nwant %v", head, want)
	}
	for range 20 {
		for name := range scrapeProtobuf(t, h, "/probe?"+path+"watched") {
			if strings.Contains(name, "flow") {
				t.Errorf("the scrape of a target without flows has %s, want none", name)
			}
		}
	}
}

// The log says which flows fail.
func TestLogOfFlows(t *testing.T) {
	var log strings.Builder
	h := newHandler(t, settings{Options: Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}})
	req, err := probe.NewRequest(h.prober.Config(), "192.0.2.1:80", "tcp_connect")
	if err != nil {
		t.Fatal(err)
	}
	flow := func(port uint16, result string) probe.Flow {
		return probe.Flow{Port: port, Verdict: probe.Verdict{Result: result}}
	}
	report := &probe.Report{Request: req}
	report.Verdict = report.VerdictOf([]probe.Flow{flow(20000, "timeout"), flow(20001, "open"), flow(20002, "reset")})
	h.LogChange(report)
	const want = `flows=3 flows_failed=2 failed_source_ports="[20000 20002]"`
	if !strings.Contains(log.String(), "Watched target fails") || !strings.Contains(log.String(), want) {
		t.Errorf("the log is %q, want that the target fails, with %s", &log, want)
	}
	log.Reset()
	report.Parting = &probe.Parting{
		Shared: shaker.Hop{TTL: 1, From: netip.MustParseAddr("192.0.2.7")},
		Failed: shaker.Hop{TTL: 2, From: netip.MustParseAddr("192.0.2.9")},
	}
	h.LogParted(report)
	const hops = `flows=3 flows_failed=2 flow_path_shared_hop=192.0.2.7 flow_path_failed_hop=192.0.2.9 ` +
		`failed_source_ports="[20000 20002]"`
	if !strings.Contains(log.String(), "Paths to watched target part") || !strings.Contains(log.String(), hops) {
		t.Errorf("after the trace, the log is %q, want %s", &log, hops)
	}
}

// A limit is a fault with a hint when to try again.
func TestWatchLimit(t *testing.T) {
	h := newWatchHandler(t, watch.Options{MaxTargets: 1})
	scrapeProtobuf(t, h, "/probe?module=watched&target=127.0.0.1:7101")
	const path = "/probe?module=watched&target=127.0.0.1:7102"
	w := get(h, path)
	checkResponse(t, path, w, 503, "target not watched: 1 target is watched already (limit: --watch.max-targets)\n")
	if w.Header().Get("Retry-After") == "" {
		t.Errorf("GET %s has no Retry-After, want one", path)
	}
	checkValue(t, "rejected by watch_limit", h.metrics.rejected.WithLabelValues(watchLimit), 1)
}

// The exporter's own metrics count registrations and handshakes in the background.
func TestOwnMetricsOfWatching(t *testing.T) {
	h := newWatchHandler(t, watch.Options{MaxTargets: 7})
	listen(t, "127.0.0.1:7103")
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(h)
	gather := func(name string) *dto.Metric {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == name {
				return family.Metric[0]
			}
		}
		t.Fatalf("/metrics has no %s", name)
		return nil
	}
	if n := gather("shaker_registrations_total").Counter.GetValue(); n != 0 {
		t.Errorf("%v registrations at the start, want 0", n)
	}
	scrapeProtobuf(t, h, "/probe?module=watched&target=127.0.0.1:7103")
	lab.Eventually(t, "handshakes in the background are counted", func() bool {
		return gather("shaker_watch_lag_seconds").Histogram.GetSampleCount() >= 3
	})
	for name, want := range map[string]float64{"shaker_watched_targets": 1, "shaker_watched_targets_limit": 7} {
		if got := gather(name).Gauge.GetValue(); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if n := gather("shaker_registrations_total").Counter.GetValue(); n != 1 {
		t.Errorf("%v registrations, want 1", n)
	}
	if n := gather("shaker_reset_lag_seconds").Histogram.GetSampleCount(); n < 3 {
		t.Errorf("shaker_reset_lag_seconds has %d samples, want those of the background, 3 or more", n)
	}
}

// A local error of a handshake in the background is counted by its errno.
func TestWatchFaults(t *testing.T) {
	h := newWatchHandler(t, watch.Options{})
	listen(t, "127.0.0.1:7104")
	scrapeProtobuf(t, h, "/probe?module=watched&target=127.0.0.1:7104")
	peer := netip.MustParseAddrPort("127.0.0.1:7104")
	result, err := h.shaker.Shake(t.Context(), peer, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.Observe("watched", &shaker.Repeated{Result: result})
	lab.WithDescriptors(t, 0, func() {
		lab.Eventually(t, "EMFILE is counted", func() bool {
			var m dto.Metric
			h.metrics.faults.WithLabelValues("EMFILE").Write(&m)
			return m.Counter.GetValue() > 0
		})
	})
}

// Scrapes at the same time use different memory: each response has the counters of its own target only.
func TestConcurrentScrapesOfWatchedTargets(t *testing.T) {
	h := newWatchHandler(t, watch.Options{})
	listen(t, "127.0.0.1:7105")
	const path = "/probe?module=watched&target=127.0.0.1:"
	const series = `probe_watch_handshakes_total{result="refused",errno="ECONNREFUSED"} 0`
	var scraping sync.WaitGroup
	for range 8 {
		for port, refused := range map[string]bool{"7105": false, "7106": true} {
			scraping.Go(func() {
				for range 100 {
					body := get(h, path+port).Body.String()
					if strings.Contains(body, series) == refused {
						t.Errorf("scrape of port %s has %s: %t, want %t:\n%s", port, series, refused, !refused, body)
						return
					}
				}
			})
		}
	}
	scraping.Wait()
}

// Only a scrape makes the exporter watch a target: not a request with debug=true, which the form of the status page
// sends, and not HEAD.
func TestInspectionOfWatchedTarget(t *testing.T) {
	h := newWatchHandler(t, watch.Options{})
	listen(t, "127.0.0.1:7107")
	const path = "/probe?module=watched&target=127.0.0.1:7107"
	head := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodHead, path, nil))
		return w
	}
	debug := func() *httptest.ResponseRecorder { return get(h, path+"&debug=true") }
	registrations := func() (n uint64) {
		for _, m := range h.watcher.Modules() {
			n += m.Registrations
		}
		return n
	}
	checkStatus(t, "HEAD", head(), 200)
	if body := debug().Body.String(); !strings.HasPrefix(body, "# Log\n") {
		t.Errorf("debug=true of a target that is not watched begins with\n%.300s\nwant the log of a probe", body)
	}
	checkValue(t, "probes of the module", h.metrics.probes.WithLabelValues("watched"), 2)
	if n := registrations(); n != 0 {
		t.Errorf("%d registrations after HEAD and debug=true, want 0", n)
	}
	get(h, path)
	checkStatus(t, "HEAD", head(), 200)
	debug()
	checkValue(t, "probes of the module", h.metrics.probes.WithLabelValues("watched"), 3)
	if n := registrations(); n != 1 {
		t.Errorf("%d registrations after a scrape, want 1", n)
	}
}

// checkSeries checks which series a scrape has of each metric, given by their label values, such as
// "open,|reset,EPIPE". Counters and histograms must have been created after the given time, or shortly before.
func checkSeries(t *testing.T, families map[string]*dto.MetricFamily, before time.Time, want map[string]string) {
	t.Helper()
	for name, labels := range want {
		family := families[name]
		if family == nil {
			t.Errorf("the scrape has no %s", name)
			continue
		}
		var got []string
		for _, series := range family.Metric {
			var values []string
			for _, label := range series.Label {
				values = append(values, label.GetValue())
			}
			got = append(got, strings.Join(values, ","))
			created := series.GetCounter().GetCreatedTimestamp()
			if series.Histogram != nil {
				created = series.Histogram.CreatedTimestamp
			}
			if series.Gauge == nil && created.AsTime().Before(before.Add(-time.Minute)) {
				t.Errorf("%s was created at %v, want at the registration", name, created.AsTime())
			}
		}
		if strings.Join(got, "|") != labels {
			t.Errorf("%s has the labels %q, want %q", name, strings.Join(got, "|"), labels)
		}
	}
}
