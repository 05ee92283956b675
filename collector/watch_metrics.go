package collector

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The metrics of /probe about a watched target, in the order in which they are written.
var (
	probeWatchHandshakes = &metric{name: "probe_watch_handshakes_total",
		help:   "Total number of completed handshakes, by result and the kernel's errno.",
		labels: []string{"result", "errno"}}
	probeWatchRTT = &metric{name: "probe_watch_rtt_seconds",
		help: "Time from SYN to SYN-ACK on the kernel's clock, of the handshakes of which the kernel took a sample."}
	probeWatchSYNRetransmits = &metric{name: "probe_watch_syn_retransmits_total",
		help: "Total number of SYN retransmissions."}
	probeWatchACKsSent = &metric{name: "probe_watch_acks_sent_total",
		help: "Total number of handshakes whose final ACK was sent after all, " +
			"so that the application may have seen a connection."}
	probeWatchSkipped = &metric{name: "probe_watch_skipped_total",
		help: "Total number of handshakes that the exporter's host could not perform in time (late, overlapping), " +
			"not perform at all (fault) or not count (unread). They do not count as handshakes.",
		labels: []string{"reason"}}
	probeWatchLookups = &metric{name: "probe_watch_lookups_total",
		help: "Total number of lookups of the target's name, by result " +
			"(resolved, dns_not_found, dns_timeout, dns_error, or fault if the exporter's host could not ask).",
		labels: []string{"result"}}
	probeWatchInterval = &metric{name: "probe_watch_interval_seconds",
		help: "Time between two handshakes."}
	probeWatchRegistered = &metric{name: "probe_watch_registered_timestamp_seconds",
		help: "When the target was registered. The counters count from then on."}
	probeWatchLastHandshake = &metric{name: "probe_watch_last_handshake_timestamp_seconds",
		help: "When the SYN of the last completed handshake was sent."}
)

// watchFamilies returns the metrics about a watched target.
func watchFamilies(s *watch.Snapshot) []*dto.MetricFamily {
	created := timestamppb.New(s.Registered)
	counter := func(m *metric, value uint64, labelValues ...string) *dto.Metric {
		series := m.labelled(labelValues)
		series.Counter = &dto.Counter{Value: new(float64(value)), CreatedTimestamp: created}
		return series
	}
	gauge := func(m *metric, value float64) *dto.MetricFamily {
		series := m.labelled(nil)
		series.Gauge = &dto.Gauge{Value: &value}
		return m.familyOf(dto.MetricType_GAUGE, series)
	}
	// These series exist from the start, so that rate() sees the first increment.
	handshakes := []watch.HandshakeCount{
		{Result: shaker.Open.String()},
		{Result: shaker.Timeout.String(), Errno: "ETIMEDOUT"},
	}
	for _, count := range s.Handshakes {
		i := slices.IndexFunc(handshakes, func(c watch.HandshakeCount) bool {
			return c.Result == count.Result && c.Errno == count.Errno
		})
		if i >= 0 {
			handshakes[i] = count
		} else {
			handshakes = append(handshakes, count)
		}
	}
	var results, skipped, lookups []*dto.Metric
	for _, c := range handshakes {
		results = append(results, counter(probeWatchHandshakes, c.Total, c.Result, c.Errno))
	}
	for _, c := range []struct {
		reason string
		total  uint64
	}{
		{"fault", s.Skipped.Fault},
		{"late", s.Skipped.Late},
		{"overlapping", s.Skipped.Overlapping},
		{"unread", s.Skipped.Unread},
	} {
		skipped = append(skipped, counter(probeWatchSkipped, c.total, c.reason))
	}
	for _, c := range s.Lookups {
		lookups = append(lookups, counter(probeWatchLookups, c.Total, c.Result))
	}
	rtt := probeWatchRTT.labelled(nil)
	rtt.Histogram = s.RTT

	const total = dto.MetricType_COUNTER
	all := []*dto.MetricFamily{
		probeWatchHandshakes.familyOf(total, results...),
		probeWatchRTT.familyOf(dto.MetricType_HISTOGRAM, rtt),
		probeWatchSYNRetransmits.familyOf(total, counter(probeWatchSYNRetransmits, s.SYNRetransmits)),
		probeWatchACKsSent.familyOf(total, counter(probeWatchACKsSent, s.ACKsSent)),
		probeWatchSkipped.familyOf(total, skipped...),
	}
	if len(lookups) > 0 {
		all = append(all, probeWatchLookups.familyOf(total, lookups...))
	}
	return append(all,
		gauge(probeWatchInterval, s.Interval.Seconds()),
		gauge(probeWatchRegistered, seconds(s.Registered)),
		gauge(probeWatchLastHandshake, seconds(s.LastHandshake)),
	)
}

// seconds returns a time as Prometheus has it, in steps of 1 ms.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// labelled returns a series of the metric without a value.
func (m *metric) labelled(labelValues []string) *dto.Metric {
	series := &dto.Metric{}
	for i := range m.labels {
		series.Label = append(series.Label, &dto.LabelPair{Name: &m.labels[i], Value: &labelValues[i]})
	}
	return series
}

// familyOf returns the metric with its series.
func (m *metric) familyOf(kind dto.MetricType, series ...*dto.Metric) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &m.name, Help: &m.help, Type: &kind, Metric: series}
}

// clientOf returns the address of the client of a request, without its port.
func clientOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// Observe counts a handshake with a watched target. It is for [watch.Options].
func (h *Handler) Observe(_ string, r *shaker.Repeated) {
	h.watch.lag.Observe(r.Lag.Seconds())
	if r.Err != nil {
		var errno shaker.Errno
		errors.As(r.Err, &errno)
		h.metrics.faults.WithLabelValues(shaker.ErrnoName(errno)).Inc()
		return
	}
	h.metrics.countHandshake(&r.Result, false)
}

// watchMetrics are the exporter's own metrics about watched targets.
type watchMetrics struct {
	watched, limit             *prometheus.Desc
	registrations, expirations *prometheus.Desc
	lag                        prometheus.Histogram
}

func newWatchMetrics() *watchMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &watchMetrics{
		watched: desc("shaker_watched_targets", "Number of watched targets.", "module"),
		limit:   desc("shaker_watched_targets_limit", "Maximum number of watched targets; 0 means no limit."),
		registrations: desc("shaker_registrations_total",
			"Total number of targets that began to be watched because of a scrape.", "module"),
		expirations: desc("shaker_expirations_total",
			"Total number of watched targets that expired because they were not scraped.", "module"),
		lag: prometheus.NewHistogram(histogram("shaker_watch_lag_seconds",
			"Time from when a handshake with a watched target was due to sending its SYN.",
			.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25)),
	}
}

func (m *watchMetrics) describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.watched, m.limit, m.registrations, m.expirations} {
		ch <- desc
	}
	m.lag.Describe(ch)
}

// collect collects the metrics. The series of all modules that are watched exist from the start.
func (m *watchMetrics) collect(ch chan<- prometheus.Metric, w *watch.Watcher, c *config.Config) {
	modules := w.Modules()
	for name, module := range c.Modules {
		known := slices.ContainsFunc(modules, func(m registry.Module) bool { return m.Name == name })
		if module.Watched() && !known {
			modules = append(modules, registry.Module{Name: name})
		}
	}
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
	}
	for _, module := range modules {
		send(m.watched, prometheus.GaugeValue, float64(module.Registered), module.Name)
		send(m.registrations, prometheus.CounterValue, float64(module.Registrations), module.Name)
		send(m.expirations, prometheus.CounterValue, float64(module.Expirations), module.Name)
	}
	send(m.limit, prometheus.GaugeValue, float64(w.MaxTargets()))
	m.lag.Collect(ch)
}
