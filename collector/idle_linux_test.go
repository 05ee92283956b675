package collector

import (
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
)

const idleModules = `modules:
  idle: {prober: idle, idle: {steps: [1s, 2s, 4s], probe: {interval: 1s, count: 1}}}
  hour: {prober: idle, idle: {steps: [1h]}}
`

// newIdleHandler returns a handler with a Meter for so many connections, 0 for any number.
func newIdleHandler(t *testing.T, most int) *handler {
	t.Helper()
	conf, _, err := config.Parse("idle.yml", []byte(idleModules))
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, settings{config: conf})
	connections := probe.NewConnections(h.prober, most, 0)
	m := idle.New(idle.Options{
		Shaker: h.shaker, Prober: h.prober, Connections: connections, Fault: h.CountFault, Changed: h.LogIdleChange,
	})
	t.Cleanup(m.Close)
	h.MeasureIdle(m)
	holder := hold.New(hold.Options{Shaker: h.shaker, Prober: h.prober, Connections: connections})
	t.Cleanup(holder.Close)
	h.Hold(holder)
	return h
}

// Before the first round, a scrape has no result and no probe_success. After it, all metrics are there, with labels in
// seconds. The application closes connections after 3 s.
func TestIdleMetrics(t *testing.T) {
	h := newIdleHandler(t, 4)
	l, err := net.Listen("tcp", "127.0.0.1:7110")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			time.AfterFunc(3*time.Second, func() { conn.Close() })
		}
	}()
	const path = "/probe?module=idle&target=127.0.0.1:7110"
	first := get(h, path).Body.String()
	for text, want := range map[string]bool{
		"probe_success": false, "probe_result_info": false, "probe_idle_survived": false, "probe_idle_control": false,
		"probe_idle_round_timestamp_seconds": false, "probe_tcp_": false,
		"probe_duration_seconds 0\n": true, "probe_timeout_seconds 5\n": true, "probe_ip_protocol 4\n": true,
		"probe_idle_rounds_total 0\n": true, `probe_idle_skipped_total{reason="late"} 0` + "\n": true,
	} {
		if strings.Contains(first, text) != want {
			t.Errorf("the first scrape contains %q: %t, want %t:\n%s", text, !want, want, first)
		}
	}
	if debug := get(h, path+"&debug=true").Body.String(); !strings.HasPrefix(debug, "# The idle timeout is measured") ||
		!strings.Contains(debug, "no result yet: no round is complete") {
		t.Errorf("debug=true before the first round is\n%s\nwant that the result is missing", debug)
	}
	var body string
	lab.Eventually(t, "a round is complete", func() bool {
		body = get(h, path).Body.String()
		return strings.Contains(body, "probe_idle_rounds_total 1\n")
	})
	for _, want := range []string{
		"probe_success 1\n", `probe_result_info{result="open",errno=""} 1`, "probe_tcp_handshake_seconds ",
		`probe_idle_survived{idle="1"} 1`, `probe_idle_survived{idle="2"} 1`, `probe_idle_survived{idle="4"} 0`,
		`probe_idle_result_info{idle="2",result="open",errno=""} 1`,
		`probe_idle_result_info{idle="4",result="closed",errno=""} 1`,
		"probe_idle_survived_seconds 2.0", "probe_idle_lost_seconds 3.", "probe_idle_told_seconds 3.",
		"probe_idle_consistent 1\n", "probe_idle_control_alive 0\n", "probe_idle_control_age_seconds 3.",
		`probe_idle_control_result_info{result="closed",errno=""} 1`, "probe_idle_round_timestamp_seconds 1.",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the scrape lacks %q:\n%s", want, body)
		}
	}
	debug := get(h, path+"&debug=true").Body.String()
	for _, want := range []string{
		"connected to 127.0.0.1:7110", "ended by the other side", "control connection: closed", "# Module idle",
		"# Metrics", "probe_success 1"} {
		if !strings.Contains(debug, want) {
			t.Errorf("debug=true lacks %q:\n%s", want, debug)
		}
	}
	if problems, err := testutil.GatherAndLint(registered(h)); err != nil || len(problems) > 0 {
		t.Errorf("the exporter's own metrics have problems: %v, %v", problems, err)
	}
}

func registered(h *handler) *prometheus.Registry {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(h)
	return r
}

// A limit is a fault with a hint when to try again.
func TestIdleLimit(t *testing.T) {
	h := newIdleHandler(t, 2)
	checkStatus(t, "hour", get(h, "/probe?module=hour&target=127.0.0.1:7111"), 200)
	const path = "/probe?module=idle&target=127.0.0.1:7112"
	w := get(h, path)
	checkResponse(t, path, w, 503,
		"idle timeout not measured: it needs 4 connections: 2 connections are reserved already "+
			"(limit: 2, --hold.max-connections)\n")
	if w.Header().Get("Retry-After") == "" {
		t.Errorf("GET %s has no Retry-After, want one", path)
	}
	checkValue(t, "rejected by idle_limit", h.metrics.rejected.WithLabelValues(idleLimit), 1)
	want := `
# HELP shaker_held_connections Number of connections that are held, or will be opened again.
# TYPE shaker_held_connections gauge
shaker_held_connections{module="hour"} 2
shaker_held_connections{module="idle"} 0
# HELP shaker_registrations_total ` + "Total number of targets that began to be watched, held or measured " +
		"because of a scrape." + `
# TYPE shaker_registrations_total counter
shaker_registrations_total{module="hour"} 1
shaker_registrations_total{module="idle"} 0
`
	err := testutil.GatherAndCompare(
		registered(h), strings.NewReader(want), "shaker_registrations_total", "shaker_held_connections")
	if err != nil {
		t.Error(err)
	}
}

// A module that has changed its prober has one series with the total of both.
func TestTotalsOfChangedProber(t *testing.T) {
	ch := make(chan prometheus.Metric, 10)
	newRegistrationMetrics().collect(ch, []registry.Module{
		{Name: "a", Registrations: 1, Expirations: 2}, {Name: "b"}, {Name: "a", Registrations: 10, Expirations: 20},
	})
	close(ch)
	sums := make(map[float64]int)
	for metric := range ch {
		var m dto.Metric
		if err := metric.Write(&m); err != nil {
			t.Fatal(err)
		}
		sums[m.Counter.GetValue()]++
	}
	if want := map[float64]int{11: 1, 22: 1, 0: 2}; !maps.Equal(sums, want) {
		t.Errorf("the totals are %v (value: series), want %v", sums, want)
	}
}

// A Handler that has nothing for a prober does not perform a handshake instead.
func TestUnservedProbers(t *testing.T) {
	h := newHandler(t, settings{config: parse(t, "modules: {hold: {prober: hold}, idle: {prober: idle}}")})
	listen(t, "127.0.0.1:7113")
	for _, prober := range []string{"hold", "idle"} {
		path := "/probe?target=127.0.0.1:7113&module=" + prober
		checkResponse(t, path, get(h, path), 400,
			"not a module that this exporter can probe with: there is nothing that serves prober "+prober+"\n")
	}
	checkValue(t, "rejected by unknown_module", h.metrics.rejected.WithLabelValues(unknownModule), 2)
}
