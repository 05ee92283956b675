package collector

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The metrics of /probe about a held connection, in the order in which they are written.
var (
	probeHoldEstablished = &metric{name: "probe_hold_established_timestamp_seconds",
		help: "When the connection was established, absent if there is none."}
	probeHoldLastAnswer = &metric{name: "probe_hold_last_answer_timestamp_seconds",
		help: "When the target's kernel was heard last, on the present connection or the last one."}
	probeHoldLastData = &metric{name: "probe_hold_last_data_timestamp_seconds",
		help: "When the target's application was heard last, on the present connection or the last one, " +
			"absent if it has sent nothing."}
	probeHoldKeepalivesUnanswered = &metric{name: "probe_hold_keepalives_unanswered",
		help: "Number of keepalives in a row that the target has not answered, absent without a connection."}
	probeHoldConnects = &metric{name: "probe_hold_connects_total",
		help:   "Total number of connects, by result and the kernel's errno.",
		labels: []string{"result", "errno"}}
	probeHoldCloses = &metric{name: "probe_hold_closes_total",
		help: "Total number of connections that have ended, by result and the kernel's errno. " +
			"Connections that the exporter has closed do not count.",
		labels: []string{"result", "errno"}}
	probeHoldLifetime = &metric{name: "probe_hold_lifetime_seconds",
		help: "Time from establishing a connection to its end, of the connections in probe_hold_closes_total."}
	probeHoldHeartbeats = &metric{name: "probe_hold_heartbeats_total",
		help: "Total number of heartbeats that were answered, or not answered in time."}
	probeHoldHeartbeatFailures = &metric{name: "probe_hold_heartbeat_failures_total",
		help: "Total number of heartbeats that were not answered in time although the target's kernel has " +
			"acknowledged them (silent), not acknowledged (timeout), or not answered as expected (mismatch).",
		labels: []string{"result"}}
	probeHoldHeartbeat = &metric{name: "probe_hold_heartbeat_seconds",
		help: "Time from a heartbeat to its answer on the exporter's clock, including late answers."}
	probeHoldAddressCurrent = &metric{name: "probe_hold_address_current",
		help: "1 if the target's name still has the address of the connection, 0 otherwise."}
)

// addHold adds the metrics about a held connection.
func (s *sheet) addHold(h *hold.Snapshot) {
	s.created.Seconds, s.created.Nanos = h.Registered.Unix(), int32(h.Registered.Nanosecond())
	at := func(m *metric, t time.Time) {
		if !t.IsZero() {
			s.gauge(m, seconds(t))
		}
	}
	// The series of from exist from the start, so that rate() sees the first increment.
	counters := func(m *metric, counts []hold.ResultCount, from ...hold.ResultCount) {
		for _, c := range merged(from, counts) {
			s.counter(m, c.Total, []string{c.Result, c.Errno}[:len(m.labels)]...)
		}
	}
	timeout := hold.ResultCount{Result: shaker.Timeout.String(), Errno: "ETIMEDOUT"}

	at(probeHoldEstablished, h.Established)
	at(probeHoldLastAnswer, h.LastAnswer)
	at(probeHoldLastData, h.LastData)
	if !h.Established.IsZero() {
		s.gauge(probeHoldKeepalivesUnanswered, float64(h.KeepAlivesUnanswered))
	}
	counters(probeHoldConnects, h.Connects, hold.ResultCount{Result: shaker.Open.String()},
		hold.ResultCount{Result: shaker.Refused.String(), Errno: "ECONNREFUSED"}, timeout)
	counters(probeHoldCloses, h.Closes, hold.ResultCount{Result: shaker.Closed.String()},
		hold.ResultCount{Result: shaker.Reset.String(), Errno: "ECONNRESET"}, timeout)
	s.histogram(probeHoldLifetime, h.Lifetime)
	if b := h.Heartbeat; b != nil {
		s.counter(probeHoldHeartbeats, b.Total)
		counters(probeHoldHeartbeatFailures, b.Failures, hold.ResultCount{Result: shaker.Silent.String()},
			hold.ResultCount{Result: shaker.Timeout.String()}, hold.ResultCount{Result: shaker.Mismatch.String()})
		s.histogram(probeHoldHeartbeat, b.Latency)
	}
	if h.HasName {
		s.gauge(probeHoldAddressCurrent, boolean(h.AddressCurrent))
	}
}

// merged returns counts, with those of from that they lack first.
func merged(from, counts []hold.ResultCount) []hold.ResultCount {
	all := slices.Clone(from)
	for _, c := range counts {
		i := slices.IndexFunc(all, func(f hold.ResultCount) bool { return f.Result == c.Result && f.Errno == c.Errno })
		if i >= 0 {
			all[i] = c
		} else {
			all = append(all, c)
		}
	}
	return all
}

// ObserveConnect counts a connect of a held target. It is for [hold.Options].
func (h *Handler) ObserveConnect(module string, r *shaker.Result, err error) {
	if err != nil {
		h.metrics.countFault(err)
		return
	}
	if r.Outcome == shaker.Open {
		h.metrics.handshake.WithLabelValues(module).Observe(r.Handshake.Seconds())
	}
	h.metrics.countHandshake(r, true)
}

// holdMetrics are the exporter's own metrics about held connections, those that measure idle timeouts included: they
// have one limit.
type holdMetrics struct{ held, limit *prometheus.Desc }

func newHoldMetrics() *holdMetrics {
	return &holdMetrics{
		held: prometheus.NewDesc("shaker_held_connections",
			"Number of connections that are held, or will be opened again.", []string{"module"}, nil),
		limit: prometheus.NewDesc("shaker_held_connections_limit",
			"Maximum number of held connections; 0 means no limit.", nil, nil),
	}
}

func (m *holdMetrics) describe(ch chan<- *prometheus.Desc) {
	ch <- m.held
	ch <- m.limit
}

// collect collects the metrics, given the number of connections of each module.
func (m *holdMetrics) collect(ch chan<- prometheus.Metric, held map[string]int, limit int) {
	for module, n := range held {
		ch <- prometheus.MustNewConstMetric(m.held, prometheus.GaugeValue, float64(n), module)
	}
	ch <- prometheus.MustNewConstMetric(m.limit, prometheus.GaugeValue, float64(limit))
}
