package collector

import (
	"flag"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
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

var update = flag.Bool("update", false, "write the golden files anew")

// measured are the metrics whose values differ from run to run.
var measured = regexp.MustCompile(`(?m)^(probe_(?:duration|dns_lookup_time|tcp_handshake|tcp_rtt|address_handshake|address_rtt|path_hop_rtt)_seconds(?:\{.*\})?) [0-9.e+-]+$`)

// golden compares an exposition, but for what was measured, with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = measured.ReplaceAllStringFunc(got, func(line string) string {
		name, value, _ := strings.Cut(line, " ")
		if value == "0" {
			return line // a measured 0 would be wrong, one that is meant is not
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
		t.Errorf("%s:\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// The whole answer for each kind of verdict.
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
	p := newHandler(t, settings{Options: Options{TimeoutOffset: 500 * time.Millisecond}, dialDNS: simnet.NewDNS(t, simnet.Names{
		"both.example": {"127.0.0.1", "::1"},
		"four.example": {"127.0.0.1"},
	})})
	listen4, listen6 := listen(t, "127.0.0.1:7004"), listen(t, "[::1]:7006")
	for _, c := range []struct{ golden, query, timeout string }{
		{"open", "target=" + listen4, ""},
		{"open_ipv6", "target=" + listen6, ""},
		{"open_by_name_prefers_ip6", "target=both.example:7006", ""},
		{"open_by_name_falls_back", "target=four.example:7004", ""},
		{"open_by_name_ip4_only", "target=both.example:7004&module=tcp_connect_ip4", ""},
		{"open_after_retransmit", "target=192.0.2.1:80", ""},
		{"refused", "target=127.0.0.1:1", ""},
		{"timeout", "target=192.0.2.3:80", "0.1"},
		{"prohibited", "target=192.0.2.2:80", ""},
		{"unreachable_ipv6", "target=[2001:db8::2]:80", ""},
		{"no_route", "target=203.0.113.1:80", ""},
		{"dns_not_found", "target=absent.example:80", ""},
		{"dns_not_found_of_family", "target=four.example:80&module=tcp_connect_ip6", ""},
		{"dns_error", "target=broken.example:80", ""},
		{"dns_timeout", "target=silent.example:80", "0.1"},
	} {
		t.Run(c.golden, func(t *testing.T) {
			w := get(p, "/probe?"+c.query, timeoutHeader, c.timeout)
			if w.Code != 200 || w.Header().Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8; escaping=underscores" {
				t.Errorf("%d, %v", w.Code, w.Header())
			}
			golden(t, c.golden, w.Body.String())
		})
	}
}

// A latency that was measured lies within the one around it.
func TestLatencies(t *testing.T) {
	p := newHandler(t, settings{})
	value := values(t, get(p, "/probe?target="+listen(t, "127.0.0.1:0")))
	rtt, handshake, duration := value("probe_tcp_rtt_seconds"), value("probe_tcp_handshake_seconds"), value("probe_duration_seconds")
	if !(0 < rtt && rtt <= handshake && handshake <= duration && duration < 5) {
		t.Errorf("RTT %v, handshake %v, duration %v", rtt, handshake, duration)
	}
}

// values reads an answer of /probe.
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
			t.Fatalf("no %s", name)
		}
		return family.Metric[0].Gauge.GetValue()
	}
}

func TestOpenMetrics(t *testing.T) {
	p := newHandler(t, settings{})
	target := listen(t, "127.0.0.1:0")
	w := get(p, "/probe?target="+target, "Accept", "application/openmetrics-text;version=1.0.0")
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "application/openmetrics-text; version=1.0.0") {
		t.Errorf("Content-Type %s", got)
	}
	if !strings.HasSuffix(w.Body.String(), "probe_tcp_ack_sent 0.0\n# EOF\n") {
		t.Errorf("%s", w.Body)
	}
	w = get(p, "/probe?target="+target, "Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "application/vnd.google.protobuf; ") {
		t.Errorf("Content-Type %s", got)
	}
	if got := values(t, w)("probe_success"); got != 1 {
		t.Errorf("protobuf: probe_success %v", got)
	}
}

func TestDebug(t *testing.T) {
	p := newHandler(t, settings{dialDNS: simnet.NewDNS(t, simnet.Names{"both.example": {"127.0.0.1", "::1"}})})
	listen(t, "[::1]:7006")
	for query, want := range map[string]string{
		"target=both.example:7006": `^# Log

 +0s  probe of both\.example:7006 with module tcp_connect, timeout 5s
 +[0-9.]+[mµ]s  both\.example is (127\.0\.0\.1, ::1|::1, 127\.0\.0\.1); probing ::1
 +[0-9.]+[mµ]s  SYN from \[::1\]:\d+ to \[::1\]:7006
 +[0-9.]+[mµ]s  SYN-ACK from \[::1\]:7006 after [0-9.]+[mµ]s \(kernel: \d+µs\), MSS \d+ bytes
 +[0-9.]+[mµ]s  RST, final ACK sent: false
 +[0-9.]+[mµ]s  result: open; valid results: open: success

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
 +[0-9.]+[mµ]s  result: refused ECONNREFUSED; valid results: open: failure
`,
		"target=203.0.113.1:80": `no SYN could be sent to 203\.0\.113\.1:80
 +[0-9.]+[mµ]s  shake 203\.0\.113\.1:80: unreachable: ENETUNREACH
`,
		"target=absent.example:80": `absent\.example: lookup absent\.example on .*: no such host
 +[0-9.]+[mµ]s  result: dns_not_found; valid results: open: failure
`,
	} {
		w := get(p, "/probe?debug=true&"+query)
		if got := w.Header().Get("Content-Type"); got != "text/plain; charset=utf-8" {
			t.Errorf("%s: Content-Type %s", query, got)
		}
		if !regexp.MustCompile(want).MatchString(w.Body.String()) {
			t.Errorf("%s: no match in\n%s", query, w.Body)
		}
	}
}

func TestMistakes(t *testing.T) {
	p := newHandler(t, settings{})
	for query, want := range map[string]string{
		"target=foo":                   `target "foo": want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443`,
		"target=[fe80::1%25nowhere]:1": `shake [fe80::1%nowhere]:1: invalid target: zone "nowhere": route ip+net: no such network interface`,
	} {
		w := get(p, "/probe?"+query)
		if w.Code != 400 || w.Body.String() != want+"\n" {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	w := get(p, "/probe?target=127.0.0.1:1", timeoutHeader, "NaN")
	if w.Code != 400 || w.Body.String() != timeoutHeader+" is \"NaN\", want a positive number of seconds\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := testutil.ToFloat64(p.metrics.rejected.WithLabelValues(badRequest)); got != 3 {
		t.Errorf("counted %v times", got)
	}
}

// Without descriptors there is no verdict, with a name for a target neither.
func TestFaults(t *testing.T) {
	p := newHandler(t, settings{dialDNS: simnet.NewDNS(t, simnet.Names{"four.example": {"127.0.0.1"}})})
	target := listen(t, "127.0.0.1:7004")
	for query, want := range map[string]string{
		"target=" + target:         "probe not performed, target state unknown: shake 127.0.0.1:7004: socket: too many open files\n",
		"target=four.example:7004": "probe not performed, target state unknown: resolve four.example: too many open files\n",
	} {
		before := testutil.ToFloat64(p.metrics.faults.WithLabelValues("EMFILE"))
		lab.WithDescriptors(t, 0, func() {
			if w := get(p, "/probe?"+query); w.Code != 503 || w.Body.String() != want {
				t.Errorf("%s: %d %s", query, w.Code, w.Body)
			}
		})
		if got := testutil.ToFloat64(p.metrics.faults.WithLabelValues("EMFILE")) - before; got != 1 {
			t.Errorf("%s: counted %v times", query, got)
		}
		if w := get(p, "/probe?"+query); values(t, w)("probe_success") != 1 {
			t.Errorf("%s, afterwards: %d %s", query, w.Code, w.Body)
		}
	}
}

func TestNoLocalPort(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	p := newHandler(t, settings{})
	end := probeInBackground(p, "192.0.2.1:80")
	wire.Await(1)
	w := get(p, "/probe?target=192.0.2.1:80")
	const want = "probe not performed, target state unknown: shake 192.0.2.1:80: connect: cannot assign requested address\n"
	if w.Code != 503 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := testutil.ToFloat64(p.metrics.faults.WithLabelValues("EADDRNOTAVAIL")); got != 1 {
		t.Errorf("counted %v times", got)
	}
	end()
}

// Without a local port there is no answer to a DNS query, which then says nothing about the
// name, as its errno, EAGAIN, seems to: to the net package that is a timeout.
func TestNoLocalPortForDNS(t *testing.T) {
	p := newHandler(t, settings{dialDNS: simnet.NewDNS(t, simnet.Names{"four.example": {"127.0.0.1"}})})
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40001") // one for each of a name's queries
	var taken []net.PacketConn
	for _, address := range []string{":40000", ":40001"} {
		conn, err := net.ListenPacket("udp4", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		taken = append(taken, conn)
	}
	w := get(p, "/probe?target=four.example:1")
	const want = "probe not performed, target state unknown: resolve four.example: resource temporarily unavailable\n"
	if w.Code != 503 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := testutil.ToFloat64(p.metrics.faults.WithLabelValues("EAGAIN")); got != 1 {
		t.Errorf("counted %v times", got)
	}
	for _, conn := range taken {
		conn.Close()
	}
	if w := get(p, "/probe?target=four.example:1"); w.Code != 200 {
		t.Errorf("afterwards: %d %s", w.Code, w.Body)
	}
}

// With one probe allowed in flight, another one is turned away, and then a third is not.
func TestInFlightLimit(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{maxInFlight: 1})
	end := probeInBackground(p, "192.0.2.1:80")
	wire.Await(1)
	if got := testutil.ToFloat64(p.metrics.inFlight); got != 1 {
		t.Errorf("%v in flight", got)
	}
	w := get(p, "/probe?target=127.0.0.1:1")
	if w.Code != 503 || w.Header().Get("Retry-After") != "1" ||
		w.Body.String() != "too many probes in flight (limit set by --probe.max-in-flight)\n" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if got := testutil.ToFloat64(p.metrics.rejected.WithLabelValues(inFlightLimit)); got != 1 {
		t.Errorf("counted %v times", got)
	}
	end()
	if w := get(p, "/probe?target=127.0.0.1:1"); w.Code != 200 {
		t.Errorf("afterwards: %d %s", w.Code, w.Body)
	}
}

// Callers that are turned away are at no time in flight, where they would take the place of
// others.
func TestTurnedAwayIsNotInFlight(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{maxInFlight: 1})
	end := probeInBackground(p, "192.0.2.1:80")
	wire.Await(1)
	var callers sync.WaitGroup
	var running atomic.Int64
	for range 4 {
		running.Add(1)
		callers.Go(func() {
			defer running.Add(-1)
			for range 2000 {
				if w := get(p, "/probe?target=127.0.0.1:1"); w.Code != 503 {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			}
		})
	}
	most := int64(0)
	for running.Load() > 0 {
		most = max(most, p.prober.InFlight())
	}
	callers.Wait()
	if most != 1 {
		t.Errorf("%d in flight, of 1 that may be", most)
	}
	end()
}

func TestShuttingDown(t *testing.T) {
	p := newHandler(t, settings{})
	p.shaker.Close()
	w := get(p, "/probe?target=127.0.0.1:1")
	if w.Code != 503 || w.Body.String() != "shake 127.0.0.1:1: the shaker is closed\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := testutil.ToFloat64(p.metrics.rejected.WithLabelValues(shuttingDown)); got != 1 {
		t.Errorf("counted %v times", got)
	}
}

// A caller that hangs up ends its probe, in the handshake as in name resolution.
func TestCallerGone(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{dialDNS: simnet.NewDNS(t, nil)})
	for i, target := range []string{"192.0.2.1:80", "silent.example:80"} {
		end := probeInBackground(p, target)
		if i == 0 {
			wire.Await(1)
		}
		end()
		if got := testutil.ToFloat64(p.metrics.rejected.WithLabelValues(callerGone)); got != float64(i+1) {
			t.Errorf("%s: counted %v times", target, got)
		}
	}
	if got := testutil.CollectAndCount(p.metrics.failures); got != 0 {
		t.Errorf("%d verdicts about targets that were not measured", got)
	}
}

// What the exporter counts of its probes.
func TestOwnMetrics(t *testing.T) {
	p := newHandler(t, settings{Options: Options{TimeoutOffset: 500 * time.Millisecond}})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(p)
	began := time.Now()
	for range 3 {
		get(p, "/probe?target="+listen(t, "127.0.0.1:0"))
	}
	get(p, "/probe?target=127.0.0.1:1&module=tcp_connect_ip4")
	req, err := probe.NewRequest(p.prober.Config(), "a:1", "tcp_connect")
	if err != nil {
		t.Fatal(err)
	}
	p.metrics.count(&probe.Report{Request: req, Verdict: probe.Verdict{Result: "open", Handshake: shaker.Result{
		Outcome: shaker.Open, Handshake: time.Second, ResetLag: 100 * time.Millisecond, SYNRetransmits: 2, ACKSent: true}}})
	p.metrics.count(&probe.Report{Request: req, Verdict: probe.Verdict{Result: "open", Handshake: shaker.Result{
		Outcome: shaker.Open, Handshake: time.Second, SYNRetransmits: -1, ACKSent: true}}}) // on another platform
	const want = `
# HELP shaker_acks_sent_total Total number of handshakes whose final ACK was sent despite the withholding, so that the target's application may have seen a connection.
# TYPE shaker_acks_sent_total counter
shaker_acks_sent_total 2
# HELP shaker_probe_failures_total Total number of probes whose result is not in valid_results, by result and errno.
# TYPE shaker_probe_failures_total counter
shaker_probe_failures_total{errno="ECONNREFUSED",module="tcp_connect_ip4",result="refused"} 1
# HELP shaker_probes_in_flight Handshakes in progress, name resolution included.
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
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "shaker_acks_sent_total", "shaker_probe_failures_total",
		"shaker_probes_in_flight", "shaker_probes_total", "shaker_syn_retransmits_total"); err != nil {
		t.Error(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetType() != dto.MetricType_HISTOGRAM {
			continue
		}
		h := family.Metric[0].Histogram
		want := map[string]struct {
			samples    uint64
			sumOfKnown float64 // of the samples that the test made
		}{"shaker_handshake_seconds": {5, 2}, "shaker_reset_lag_seconds": {4, 0.1}}[family.GetName()]
		if h.GetSampleCount() != want.samples || h.GetSampleSum() <= want.sumOfKnown || h.GetSampleSum() > want.sumOfKnown+time.Since(began).Seconds() ||
			len(h.Bucket) == 0 || len(h.PositiveSpan) == 0 {
			t.Errorf("%s: want %v in classic and native buckets: %v", family.GetName(), want, h)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// The metrics of a probe are what a registry would take, too.
func TestProbeMetricsLint(t *testing.T) {
	files, err := filepath.Glob("testdata/*.prom")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		problems, err := promlint.New(strings.NewReader(strings.ReplaceAll(string(content), "MEASURED", "1"))).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("%s: %v, %v", file, problems, err)
		}
	}
}

// A deadline that is over before the handshake could begin is not the target's.
func TestTooLate(t *testing.T) {
	p := newHandler(t, settings{})
	w := get(p, "/probe?target="+listen(t, "127.0.0.1:0"), timeoutHeader, "1e-9")
	if w.Code != 503 || !strings.HasSuffix(w.Body.String(), "the deadline passed before a SYN was sent\n") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := testutil.ToFloat64(p.metrics.rejected.WithLabelValues(tooLate)); got != 1 {
		t.Errorf("counted %v times", got)
	}
}
