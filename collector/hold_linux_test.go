package collector

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// newHoldHandler returns a handler with a Holder for so many connections, whose module "held" has heartbeats.
func newHoldHandler(t *testing.T, most int) *handler {
	t.Helper()
	conf, _, err := config.Parse("hold.yml", []byte(
		`modules: {held: {prober: hold, hold: {heartbeat: {send: "?"}}}, plain: {prober: hold}}`))
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, settings{config: conf})
	holder := hold.New(hold.Options{
		Shaker: h.shaker, Prober: h.prober, Connections: probe.NewConnections(h.prober, most, 0),
		Observe: h.ObserveConnect, Changed: h.LogHeld,
	})
	t.Cleanup(holder.Close)
	h.Hold(holder)
	return h
}

// A scrape of a held target has the metrics of its connection. Counters and histograms have the time of their creation.
func TestHeldTarget(t *testing.T) {
	h := newHoldHandler(t, 0)
	listen(t, "127.0.0.1:7110")
	before := time.Now()
	families := scrapeProtobuf(t, h, "/probe?module=held&target=127.0.0.1:7110")
	checkSeries(t, families, before, map[string]string{
		"probe_success": ``,
		"probe_hold_established_timestamp_seconds": ``,
		"probe_hold_last_answer_timestamp_seconds": ``,
		"probe_hold_keepalives_unanswered":         ``,
		"probe_hold_connects_total":                `open,|refused,ECONNREFUSED|timeout,ETIMEDOUT`,
		"probe_hold_closes_total":                  `closed,|reset,ECONNRESET|timeout,ETIMEDOUT`,
		"probe_hold_lifetime_seconds":              ``,
		"probe_hold_heartbeats_total":              ``,
		"probe_hold_heartbeat_failures_total":      `silent|timeout|mismatch`,
		"probe_hold_heartbeat_seconds":             ``,
	})
	for _, name := range []string{"probe_hold_address_current", "probe_hold_last_data_timestamp_seconds"} {
		if families[name] != nil {
			t.Errorf("the scrape of an address that has sent nothing has %s, want none", name)
		}
	}
	plain := scrapeProtobuf(t, h, "/probe?module=plain&target=127.0.0.1:7110")
	if plain["probe_hold_heartbeats_total"] != nil || plain["probe_hold_connects_total"] == nil {
		t.Error("the scrape with a module without heartbeats has metrics of heartbeats, or none of connects")
	}
	text := get(h, "/probe?module=held&target=127.0.0.1:7110", "Accept", "text/plain").Body.String()
	if !strings.Contains(text, `probe_hold_connects_total{result="open",errno=""} 1`) ||
		!strings.Contains(text, `probe_hold_lifetime_seconds_bucket{le="86400"} 0`) {
		t.Errorf("the scrape as text lacks metrics:\n%s", text)
	}
	checkValue(t, "faults with EMFILE", h.metrics.faults.WithLabelValues("EMFILE"), 0)
}

// What the exporter cannot do is a fault, counted by its reason.
func TestHoldRejections(t *testing.T) {
	h := newHoldHandler(t, 1)
	listen(t, "127.0.0.1:7111")
	lab.WithDescriptors(t, 0, func() {
		const path = "/probe?module=held&target=127.0.0.1:7111"
		w := get(h, path)
		checkStatus(t, path, w, 503)
		if body := w.Body.String(); !strings.HasPrefix(body, hold.ErrFault.Error()+": hold 127.0.0.1:7111: ") {
			t.Errorf("GET %s = %q, want the local error", path, body)
		}
	})
	checkValue(t, "rejected by hold_fault", h.metrics.rejected.WithLabelValues(holdFault), 1)
	checkValue(t, "faults with EMFILE", h.metrics.faults.WithLabelValues("EMFILE"), 1)
	const path = "/probe?module=held&target=127.0.0.1:7112"
	w := get(h, path)
	checkResponse(t, path, w, 503,
		"connection not held: 1 connection is reserved already (limit: 1, --hold.max-connections)\n")
	if w.Header().Get("Retry-After") == "" {
		t.Errorf("GET %s has no Retry-After, want one", path)
	}
	checkValue(t, "rejected by hold_limit", h.metrics.rejected.WithLabelValues(holdLimit), 1)
}

// The exporter's own metrics count held targets, and their connects.
func TestOwnMetricsOfHolding(t *testing.T) {
	h := newHoldHandler(t, 7)
	listen(t, "127.0.0.1:7113")
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(h)
	value := func(name, module string) float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, series := range family.Metric {
				if family.GetName() == name && (module == "" || series.Label[0].GetValue() == module) {
					return series.GetGauge().GetValue() + series.GetCounter().GetValue() +
						float64(series.GetHistogram().GetSampleCount())
				}
			}
		}
		t.Fatalf("/metrics has no %s of module %q", name, module)
		return 0
	}
	if n := value("shaker_held_connections", "held") + value("shaker_registrations_total", "held"); n != 0 {
		t.Errorf("%v held connections and registrations at the start, want 0", n)
	}
	scrapeProtobuf(t, h, "/probe?module=held&target=127.0.0.1:7113")
	for name, want := range map[string]float64{
		"shaker_held_connections": 1, "shaker_registrations_total": 1, "shaker_expirations_total": 0,
		"shaker_handshake_seconds": 1, "shaker_probes_total": 0,
	} {
		if got := value(name, "held"); got != want {
			t.Errorf("%s of the module is %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]float64{"shaker_held_connections_limit": 7, "shaker_acks_sent_total": 0} {
		if got := value(name, ""); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	h.ObserveConnect("held", nil, errors.Join(shaker.ErrClosed)) // at the end, which is not a fault
}
