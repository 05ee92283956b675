package collector

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

var update = flag.Bool("update", false, "rewrite the golden files with the results of this run")

// measured matches the metrics whose values differ from run to run.
var measured = regexp.MustCompile(`(?m)^(probe_(?:duration|dns_lookup_time|tcp_handshake|tcp_rtt|` +
	`address_handshake|address_rtt|path_hop_rtt)_seconds(?:\{.*\})?) [0-9.e+-]+$`)

// golden compares an exposition with a file in testdata, except for measured values.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = measured.ReplaceAllStringFunc(got, func(line string) string {
		name, value, _ := strings.Cut(line, " ")
		if value == "0" {
			return line // no measured value is 0, so a 0 must be in the file, too
		}
		return name + " MEASURED"
	})
	file := filepath.Join("testdata", name+".prom")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from the response:\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// For each kind of verdict, the whole response is as expected.
func TestExposition(t *testing.T) {
	router := netip.MustParseAddr("198.51.100.7")
	lost := true
	simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		switch s.Dst.Addr().String() {
		case "192.0.2.1": // open, but the first SYN is lost
			if lost = !lost; lost && s.SYN {
				return [][]byte{s.SYNACK()}
			}
		case "192.0.2.2":
			return [][]byte{s.ICMPError(router, 3, 13)}
		case "2001:db8::2":
			return [][]byte{s.ICMPError(netip.MustParseAddr("2001:db8:ffff::7"), 1, 3)}
		}
		return nil
	}, "192.0.2.0/24", "2001:db8::/32", "198.51.100.0/24")
	h := newHandler(t, settings{
		Options: Options{TimeoutOffset: 500 * time.Millisecond},
		dialDNS: simnet.NewDNS(t, simnet.Names{
			"both.example": {"127.0.0.1", "::1"},
			"four.example": {"127.0.0.1"},
		}),
	})
	listen4, listen6 := listen(t, "127.0.0.1:7004"), listen(t, "[::1]:7006")
	for _, c := range []struct{ golden, query, timeout string }{
		{golden: "open", query: "target=" + listen4},
		{golden: "open_ipv6", query: "target=" + listen6},
		{golden: "open_by_name_prefers_ip6", query: "target=both.example:7006"},
		{golden: "open_by_name_falls_back", query: "target=four.example:7004"},
		{golden: "open_by_name_ip4_only", query: "target=both.example:7004&module=tcp_connect_ip4"},
		{golden: "open_after_retransmit", query: "target=192.0.2.1:80"},
		{golden: "refused", query: "target=127.0.0.1:1"},
		{golden: "timeout", query: "target=192.0.2.3:80", timeout: "0.1"},
		{golden: "prohibited", query: "target=192.0.2.2:80"},
		{golden: "unreachable_ipv6", query: "target=[2001:db8::2]:80"},
		{golden: "no_route", query: "target=203.0.113.1:80"},
		{golden: "dns_not_found", query: "target=absent.example:80"},
		{golden: "dns_not_found_of_family", query: "target=four.example:80&module=tcp_connect_ip6"},
		{golden: "dns_error", query: "target=broken.example:80"},
		{golden: "dns_timeout", query: "target=silent.example:80", timeout: "0.1"},
	} {
		t.Run(c.golden, func(t *testing.T) {
			path := "/probe?" + c.query
			w := get(h, path, timeoutHeader, c.timeout)
			const contentType = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
			if got := w.Header().Get("Content-Type"); w.Code != 200 || got != contentType {
				t.Errorf("GET %s = %d with Content-Type %q, want 200 with %q", path, w.Code, got, contentType)
			}
			if got, want := w.Header().Get("Content-Length"), strconv.Itoa(w.Body.Len()); got != want {
				t.Errorf("GET %s has Content-Length %q, want %s", path, got, want)
			}
			golden(t, c.golden, w.Body.String())
		})
	}
}

// The RTT is not longer than the handshake, and the handshake is not longer than the probe.
func TestLatencies(t *testing.T) {
	h := newHandler(t, settings{})
	value := values(t, get(h, "/probe?target="+listen(t, "127.0.0.1:0")))
	rtt, handshake := value("probe_tcp_rtt_seconds"), value("probe_tcp_handshake_seconds")
	duration := value("probe_duration_seconds")
	if !(0 < rtt && rtt <= handshake && handshake <= duration && duration < 5) {
		t.Errorf("RTT %v, handshake %v, duration %v, want 0 < RTT <= handshake <= duration < 5",
			rtt, handshake, duration)
	}
}

// values parses the metrics in a response and returns a function that returns the value of one of them.
func values(t *testing.T, w *httptest.ResponseRecorder) func(name string) float64 {
	t.Helper()
	families := make(map[string]*dto.MetricFamily)
	decoder := expfmt.NewDecoder(w.Body, expfmt.ResponseFormat(w.Result().Header))
	for {
		var family dto.MetricFamily
		if decoder.Decode(&family) != nil {
			break
		}
		families[family.GetName()] = &family
	}
	return func(name string) float64 {
		t.Helper()
		family := families[name]
		if family == nil {
			t.Fatalf("the response has no %s, want its value", name)
		}
		return family.Metric[0].Gauge.GetValue()
	}
}

// The handler writes OpenMetrics and protobuf to callers that prefer them.
func TestOpenMetrics(t *testing.T) {
	h := newHandler(t, settings{})
	target := listen(t, "127.0.0.1:0")
	accept := "application/openmetrics-text;version=1.0.0"
	w := get(h, "/probe?target="+target, "Accept", accept)
	const openMetrics = "application/openmetrics-text; version=1.0.0"
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, openMetrics) {
		t.Errorf("with Accept: %s, the Content-Type is %q, want the prefix %q", accept, got, openMetrics)
	}
	if want := "probe_tcp_ack_sent 0.0\n# EOF\n"; !strings.HasSuffix(w.Body.String(), want) {
		t.Errorf("with Accept: %s, the body is\n%s\nwant the suffix %q", accept, w.Body, want)
	}
	accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
	w = get(h, "/probe?target="+target, "Accept", accept)
	const protobuf = "application/vnd.google.protobuf; "
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, protobuf) {
		t.Errorf("with Accept: %s, the Content-Type is %q, want the prefix %q", accept, got, protobuf)
	}
	value := values(t, w)
	if success, acks := value("probe_success"), value("probe_tcp_ack_sent"); success != 1 || acks != 0 {
		t.Errorf("with Accept: %s, probe_success is %v, probe_tcp_ack_sent %v, want 1, 0", accept, success, acks)
	}
}

// With debug=true, the response is the log of the probe, the module, and the metrics.
func TestDebug(t *testing.T) {
	h := newHandler(t, settings{dialDNS: simnet.NewDNS(t, simnet.Names{
		"both.example": {"127.0.0.1", "::1"},
		"this.example": {"127.0.0.1", "0.0.0.0"},
	})})
	listen(t, "[::1]:7006")
	for query, want := range map[string]string{
		"target=both.example:7006": `^# Log

 +0s  probe of both\.example:7006 with module tcp_connect, timeout 5s
 +[0-9.]+[mµ]s  both\.example resolves to (127\.0\.0\.1, )?::1; probing ::1
 +[0-9.]+[mµ]s  SYN from \[::1\]:\d+ to \[::1\]:7006
 +[0-9.]+[mµ]s  SYN-ACK from \[::1\]:7006 after [0-9.]+[mµ]s \(kernel: \d+µs\), MSS \d+ bytes
 +[0-9.]+[mµ]s  RST, final ACK sent: false
 +[0-9.]+[mµ]s  success: the result is open; valid results: open

# Module tcp_connect

prober: tcp
timeout: 5s
tcp:
  preferred_ip_protocol: ip6
  ip_protocol_fallback: true
  addresses: first
  dscp: 0
  fwmark: 0
  valid_results:
    - open
  path: never
  max_hops: 30
  close: reset

# Metrics

# HELP probe_success .*
# TYPE probe_success gauge
probe_success 1
`,
		"target=127.0.0.1:1": `SYN from 127\.0\.0\.1:\d+ to 127\.0\.0\.1:1
 +[0-9.]+[mµ]s  shake 127\.0\.0\.1:1: refused
 +[0-9.]+[mµ]s  failure: the result is refused ECONNREFUSED; valid results: open
`,
		"target=203.0.113.1:80": `no SYN could be sent to 203\.0\.113\.1:80
 +[0-9.]+[mµ]s  shake 203\.0\.113\.1:80: unreachable: ENETUNREACH
`,
		"target=this.example:1&module=tcp_connect_ip4": `this\.example resolves to 127\.0\.0\.1, 0\.0\.0\.0; ` +
			`probing 127\.0\.0\.1
 +[0-9.]+[mµ]s  left out: 0\.0\.0\.0 stands for this host, want an address such as 127\.0\.0\.1 or ::1
`,
		"target=absent.example:80": `absent\.example: lookup absent\.example on .*: no such host
 +[0-9.]+[mµ]s  failure: the result is dns_not_found; valid results: open
`,
	} {
		w := get(h, "/probe?debug=true&"+query)
		if got := w.Header().Get("Content-Type"); got != "text/plain; charset=utf-8" {
			t.Errorf("GET /probe?debug=true&%s has the Content-Type %q, want text/plain; charset=utf-8", query, got)
		}
		if !regexp.MustCompile(want).MatchString(w.Body.String()) {
			t.Errorf("GET /probe?debug=true&%s =\n%s\nwant a match of\n%s", query, w.Body, want)
		}
	}
}

// A mistake of the caller gets status 400 and one line that says what is wrong. It counts as rejected.
func TestMistakes(t *testing.T) {
	h := newHandler(t, settings{})
	for query, want := range map[string]string{
		"target=foo": `target "foo": want host:port, as in ` +
			"example.com:443, 192.0.2.1:443 or [2001:db8::1]:443\n",
	} {
		checkResponse(t, "/probe?"+query, get(h, "/probe?"+query), 400, want)
	}
	const path = "/probe?target=127.0.0.1:1"
	checkResponse(t, path+" with a timeout of NaN", get(h, path, timeoutHeader, "NaN"),
		400, timeoutHeader+" is \"NaN\", want a positive number of seconds\n")
	checkValue(t, "rejected by bad_target", h.metrics.rejected.WithLabelValues(badTarget), 1)
	checkValue(t, "rejected by bad_request", h.metrics.rejected.WithLabelValues(badRequest), 1)
}

// The interface of a target's zone may be gone for a while, and may come back: that is a fault.
func TestZoneWithoutInterface(t *testing.T) {
	h := newHandler(t, settings{})
	for _, zone := range []string{"nowhere", "1000000"} {
		path := "/probe?target=[fe80::1%25" + zone + "]:1"
		checkResponse(t, path, get(h, path), 503, "probe not performed, target state unknown: "+
			"shake [fe80::1%"+zone+"]:1: this host has no interface \""+zone+"\"\n")
	}
	checkValue(t, "faults by ENODEV", h.metrics.faults.WithLabelValues("ENODEV"), 2)
}

// The log has one line per second about faults, however many there are: the counter has all of them.
func TestFaultsInTheLog(t *testing.T) {
	var log bytes.Buffer
	h := newHandler(t, settings{Options: Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}})
	const path = "/probe?target=127.0.0.1:1"
	// probe makes one probe and reports how many lines it has logged, and whether an earlier fault was in the same
	// second.
	probe := func() (lines int, again bool) {
		log.Reset()
		before := h.faultLogged.Load()
		lab.WithDescriptors(t, 0, func() { checkStatus(t, path, get(h, path), 503) })
		return strings.Count(log.String(), "\n"), h.faultLogged.Load() == before
	}
	const want = `level=WARN msg="Probe not performed" target=127.0.0.1:1 module=tcp_connect ` +
		`err="shake 127.0.0.1:1: socket: too many open files"` + "\n"
	if lines, _ := probe(); lines != 1 || !strings.HasSuffix(log.String(), want) {
		t.Errorf("the log of the first fault is %q, want one line with the suffix %q", &log, want)
	}
	lab.Eventually(t, "two faults are in the same second", func() bool {
		lines, again := probe()
		if want := map[bool]int{false: 1, true: 0}[again]; lines != want {
			t.Errorf("a fault in the same second as the one before: %t; it has logged %d lines, want %d",
				again, lines, want)
		}
		return again
	})
}

// Without free descriptors there is no verdict, whether the target is an address or a name.
func TestFaults(t *testing.T) {
	h := newHandler(t, settings{dialDNS: simnet.NewDNS(t, simnet.Names{"four.example": {"127.0.0.1"}})})
	target := listen(t, "127.0.0.1:7004")
	for query, want := range map[string]string{
		"target=" + target:         "shake 127.0.0.1:7004: socket: too many open files\n",
		"target=four.example:7004": "resolve four.example: too many open files\n",
	} {
		path := "/probe?" + query
		faults := h.metrics.faults.WithLabelValues("EMFILE")
		before := testutil.ToFloat64(faults)
		lab.WithDescriptors(t, 0, func() { checkResponse(t, path, get(h, path), 503, notPerformed+want) })
		checkValue(t, "faults by EMFILE", faults, before+1)
		if w := get(h, path); values(t, w)("probe_success") != 1 {
			t.Errorf("GET %s, with free descriptors, = %d %s, want probe_success 1", path, w.Code, w.Body)
		}
	}
}

// notPerformed begins the body of the response to a fault.
const notPerformed = "probe not performed, target state unknown: "

// Without a free local port there is no verdict.
func TestNoLocalPort(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	h := newHandler(t, settings{})
	end := probeInBackground(h, "192.0.2.1:80")
	wire.Await(1)
	const path = "/probe?target=192.0.2.1:80"
	checkResponse(t, path, get(h, path),
		503, notPerformed+"shake 192.0.2.1:80: connect: cannot assign requested address\n")
	checkValue(t, "faults by EADDRNOTAVAIL", h.metrics.faults.WithLabelValues("EADDRNOTAVAIL"), 1)
	end()
}

// Without a free local port, a DNS query gets no answer, and there is no verdict about the name. The errno is
// EAGAIN, which package net reports as a timeout: it must not become the result dns_timeout.
func TestNoLocalPortForDNS(t *testing.T) {
	h := newHandler(t, settings{dialDNS: simnet.NewDNS(t, simnet.Names{"four.example": {"127.0.0.1"}})})
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40009") // a lookup makes two queries, or repeats them
	var taken []net.PacketConn
	for port := 40000; port < 40010; port++ {
		conn, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		taken = append(taken, conn)
	}
	const path = "/probe?target=four.example:1"
	checkResponse(t, path, get(h, path), 503, notPerformed+"resolve four.example: resource temporarily unavailable\n")
	checkValue(t, "faults by EAGAIN", h.metrics.faults.WithLabelValues("EAGAIN"), 1)
	for _, conn := range taken {
		conn.Close()
	}
	checkStatus(t, path+" with free local ports", get(h, path), 200)
}

// With a limit of one handshake in flight, a second probe is rejected while the first one runs, and a third
// probe after the end of the first one is not.
func TestInFlightLimit(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	h := newHandler(t, settings{maxInFlight: 1})
	end := probeInBackground(h, "192.0.2.1:80")
	wire.Await(1)
	checkValue(t, "shaker_probes_in_flight", h.metrics.inFlight, 1)
	const path = "/probe?target=127.0.0.1:1"
	w := get(h, path)
	checkResponse(t, path, w, 503, "too many probes in flight (limit: --probe.max-in-flight)\n")
	if got := w.Header().Get("Retry-After"); got != "1" {
		t.Errorf("GET %s has Retry-After %q, want 1", path, got)
	}
	checkValue(t, "rejected by in_flight", h.metrics.rejected.WithLabelValues(inFlightLimit), 1)
	end()
	checkStatus(t, path+" after the first probe", get(h, path), 200)
}

// A request after the shaker was closed gets status 503, because the exporter is shutting down.
func TestShuttingDown(t *testing.T) {
	h := newHandler(t, settings{})
	h.shaker.Close()
	const path = "/probe?target=127.0.0.1:1"
	checkResponse(t, path, get(h, path), 503, "shake 127.0.0.1:1: the shaker is closed\n")
	checkValue(t, "rejected by shutting_down", h.metrics.rejected.WithLabelValues(shuttingDown), 1)
}

// If the caller closes its connection, its probe ends without a verdict, during the handshake as well as during
// name resolution.
func TestCallerGone(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	h := newHandler(t, settings{dialDNS: simnet.NewDNS(t, nil)})
	for i, target := range []string{"192.0.2.1:80", "silent.example:80"} {
		end := probeInBackground(h, target)
		if i == 0 {
			wire.Await(1)
		}
		end()
		rejected := h.metrics.rejected.WithLabelValues(callerGone)
		checkValue(t, "after "+target+", rejected by caller_gone", rejected, float64(i+1))
	}
	if got := testutil.CollectAndCount(h.metrics.failures); got != 0 {
		t.Errorf("shaker_probe_failures_total has %d series, want none: no target was measured", got)
	}
}

// The exporter's own metrics are about the handshakes of all flows, and not only of the worst one. Those that were
// known before the probe were counted when they ended.
func TestOwnMetricsOfFlows(t *testing.T) {
	h := newHandler(t, settings{})
	req, err := probe.NewRequest(h.prober.Config(), "192.0.2.1:80", "tcp_connect")
	if err != nil {
		t.Fatal(err)
	}
	flow := func(r shaker.Result, sent time.Time) probe.Flow {
		return probe.Flow{Sent: sent, Verdict: probe.Verdict{Result: r.Outcome.String(), Handshake: r}}
	}
	open := shaker.Result{Outcome: shaker.Open, Handshake: time.Millisecond, SYNs: 2, ACKSent: true,
		ResetLag: time.Second}
	report := &probe.Report{Request: req}
	report.Verdict = report.VerdictOf([]probe.Flow{
		flow(open, time.Time{}), flow(open, time.Now()),
		flow(shaker.Result{Outcome: shaker.Timeout, SYNs: 3}, time.Time{}),
	})
	h.metrics.count(report)
	checkValue(t, "probes", h.metrics.probes.WithLabelValues("tcp_connect"), 1)
	checkValue(t, "ACKs sent", h.metrics.acksSent, 1)
	checkValue(t, "SYN retransmissions", h.metrics.synRetransmits, 3)
	for name, metric := range map[string]prometheus.Metric{
		"handshakes": h.metrics.handshake.WithLabelValues("tcp_connect").(prometheus.Metric),
		"resets":     h.metrics.resetLag,
	} {
		var m dto.Metric
		if err := metric.Write(&m); err != nil || m.Histogram.GetSampleCount() != 1 {
			t.Errorf("%s: %v, error %v, want one", name, m.Histogram, err)
		}
	}
}

// The exporter's own metrics count probes, failures, retransmissions, ACKs and latencies.
func TestOwnMetrics(t *testing.T) {
	h := newHandler(t, settings{Options: Options{TimeoutOffset: 500 * time.Millisecond}})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(h)
	if err := registry.Register(h); err == nil {
		t.Error("a second registration has no error, want one: Describe gives the names of the metrics")
	}
	began := time.Now()
	for range 3 {
		get(h, "/probe?target="+listen(t, "127.0.0.1:0"))
	}
	get(h, "/probe?target=127.0.0.1:1&module=tcp_connect_ip4")
	req, err := probe.NewRequest(h.prober.Config(), "a:1", "tcp_connect")
	if err != nil {
		t.Fatal(err)
	}
	h.metrics.count(&probe.Report{Request: req, Verdict: probe.Verdict{Result: "open", Handshake: shaker.Result{
		Outcome: shaker.Open, Handshake: time.Second, ResetLag: 100 * time.Millisecond, SYNs: 3, ACKSent: true}}})
	// On platforms other than Linux, SYNs are not counted.
	h.metrics.count(&probe.Report{Request: req, Verdict: probe.Verdict{Result: "open", Handshake: shaker.Result{
		Outcome: shaker.Open, Handshake: time.Second, ACKSent: true}}})
	const want = `
# HELP shaker_acks_sent_total Total number of handshakes whose final ACK was sent after all, ` +
		`so that the target's application may have seen a connection.
# TYPE shaker_acks_sent_total counter
shaker_acks_sent_total 2
# HELP shaker_probe_failures_total Total number of probes whose result is not in valid_results, by result and errno.
# TYPE shaker_probe_failures_total counter
shaker_probe_failures_total{errno="ECONNREFUSED",module="tcp_connect_ip4",result="refused"} 1
# HELP shaker_probes_in_flight Handshakes in progress or reserved for work between scrapes, including name resolution.
# TYPE shaker_probes_in_flight gauge
shaker_probes_in_flight 0
# HELP shaker_probes_total Total number of probes that ended with a verdict about the target, open or not.
# TYPE shaker_probes_total counter
shaker_probes_total{module="tcp_connect"} 5
shaker_probes_total{module="tcp_connect_ip4"} 1
shaker_probes_total{module="tcp_connect_ip6"} 0
# HELP shaker_syn_retransmits_total Total number of SYN retransmissions.
# TYPE shaker_syn_retransmits_total counter
shaker_syn_retransmits_total 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "shaker_acks_sent_total",
		"shaker_probe_failures_total", "shaker_probes_in_flight", "shaker_probes_total",
		"shaker_syn_retransmits_total"); err != nil {
		t.Errorf("the exporter's own metrics differ from the wanted ones: %v", err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetType() != dto.MetricType_HISTOGRAM {
			continue
		}
		want := map[string]struct {
			samples uint64
			sum     float64 // of the samples above; the real probes add at most the time of this test
		}{
			"shaker_handshake_seconds": {samples: 5, sum: 2},
			"shaker_reset_lag_seconds": {samples: 4, sum: 0.1},
		}[family.GetName()]
		for i, series := range family.Metric {
			if i > 0 { // of the modules without an open target
				want.samples, want.sum = 0, 0
			}
			histogram := series.Histogram
			most := want.sum + time.Since(began).Seconds()
			samples, sum := histogram.GetSampleCount(), histogram.GetSampleSum()
			if samples != want.samples || sum < want.sum || sum > most {
				t.Errorf("%s%v has %d samples with a sum of %v, want %d samples with a sum from %v to %v",
					family.GetName(), series.Label, samples, sum, want.samples, want.sum, most)
			}
			classic, native := len(histogram.Bucket), len(histogram.PositiveSpan)
			if classic == 0 || native == 0 && samples > 0 {
				t.Errorf("%s%v has %d classic buckets and %d spans of native ones for %d samples, want both",
					family.GetName(), series.Label, classic, native, samples)
			}
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint of the exporter's own metrics = %v, %v, want no problem", problems, err)
	}
}

// Before the first probe, there is a series for each module, reason and frequent errno, so that rate() sees the
// first increment.
func TestOwnMetricsFromTheStart(t *testing.T) {
	h := newHandler(t, settings{maxInFlight: 7})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(h)
	const want = `
# HELP shaker_faults_total Total number of probes not performed because of a local error, by errno.
# TYPE shaker_faults_total counter
shaker_faults_total{errno="EADDRNOTAVAIL"} 0
shaker_faults_total{errno="EMFILE"} 0
shaker_faults_total{errno="ENFILE"} 0
shaker_faults_total{errno="ENOBUFS"} 0
shaker_faults_total{errno="ENOMEM"} 0
# HELP shaker_probes_in_flight_limit Maximum number of concurrent handshakes; 0 means no limit.
# TYPE shaker_probes_in_flight_limit gauge
shaker_probes_in_flight_limit 7
# HELP shaker_probes_rejected_total Total number of requests whose probe was not performed or not finished, by reason.
# TYPE shaker_probes_rejected_total counter
shaker_probes_rejected_total{reason="addresses"} 0
shaker_probes_rejected_total{reason="bad_request"} 0
shaker_probes_rejected_total{reason="bad_target"} 0
shaker_probes_rejected_total{reason="caller_gone"} 0
shaker_probes_rejected_total{reason="denied"} 0
shaker_probes_rejected_total{reason="hold_fault"} 0
shaker_probes_rejected_total{reason="hold_limit"} 0
shaker_probes_rejected_total{reason="hold_pending"} 0
shaker_probes_rejected_total{reason="idle_limit"} 0
shaker_probes_rejected_total{reason="idle_stale"} 0
shaker_probes_rejected_total{reason="in_flight"} 0
shaker_probes_rejected_total{reason="shutting_down"} 0
shaker_probes_rejected_total{reason="too_late"} 0
shaker_probes_rejected_total{reason="unknown_module"} 0
shaker_probes_rejected_total{reason="watch_limit"} 0
shaker_probes_rejected_total{reason="watch_stale"} 0
# HELP shaker_probes_total Total number of probes that ended with a verdict about the target, open or not.
# TYPE shaker_probes_total counter
shaker_probes_total{module="tcp_connect"} 0
shaker_probes_total{module="tcp_connect_ip4"} 0
shaker_probes_total{module="tcp_connect_ip6"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "shaker_faults_total",
		"shaker_probes_in_flight_limit", "shaker_probes_rejected_total", "shaker_probes_total"); err != nil {
		t.Errorf("the exporter's own metrics differ from the wanted ones: %v", err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetHelp() == "" {
			t.Errorf("%s has no help text, want one", family.GetName())
		}
	}
	if n := testutil.CollectAndCount(h, "shaker_handshake_seconds"); n != 3 {
		t.Errorf("shaker_handshake_seconds has %d series, want 3, one for each module", n)
	}
}

// The metrics of a probe follow the naming conventions of Prometheus.
func TestProbeMetricsLint(t *testing.T) {
	for _, file := range lab.Files(t, "testdata/*.prom") {
		content := strings.ReplaceAll(lab.Read(t, file), "MEASURED", "1")
		problems, err := promlint.New(strings.NewReader(content)).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("lint of %s = %v, %v, want no problem", file, problems, err)
		}
	}
}

// If the deadline passes before the handshake could begin, there is no verdict about the target.
func TestTooLate(t *testing.T) {
	h := newHandler(t, settings{})
	w := get(h, "/probe?target="+listen(t, "127.0.0.1:0"), timeoutHeader, "1e-9")
	const want = "no SYN was sent in time for the deadline\n"
	if w.Code != 503 || !strings.HasSuffix(w.Body.String(), want) {
		t.Errorf("a probe with a timeout of 1 ns = %d %q, want 503 and the suffix %q", w.Code, w.Body, want)
	}
	checkValue(t, "rejected by too_late", h.metrics.rejected.WithLabelValues(tooLate), 1)
}
