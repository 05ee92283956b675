package collector

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The metrics of /probe about a watched target, in the order in which they are written.
var (
	probeWatchHandshakes = &metric{name: "probe_watch_handshakes_total",
		help:   "Total number of completed handshakes, by result and the kernel's errno.",
		labels: []string{"result", "errno"}}
	probeWatchFlowHandshakes = &metric{name: "probe_watch_flow_handshakes_total",
		help:   "Total number of completed handshakes from each source port of a module with flows, by result.",
		labels: []string{"source_port", "result"}}
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

// addWatch adds the metrics about a watched target. They are valid until the Snapshot is released.
func (s *sheet) addWatch(w *watch.Snapshot) {
	s.created.Seconds, s.created.Nanos = w.Registered.Unix(), int32(w.Registered.Nanosecond())
	// These series exist from the start, so that increase() sees the first handshake.
	handshakes := append(make([]watch.HandshakeCount, 0, 16), // on the stack, unless there are more
		watch.HandshakeCount{Result: shaker.Open.String()},
		watch.HandshakeCount{Result: shaker.Timeout.String(), Errno: "ETIMEDOUT"},
		watch.HandshakeCount{Result: shaker.Refused.String(), Errno: "ECONNREFUSED"},
		watch.HandshakeCount{Result: shaker.Unreachable.String(), Errno: "EHOSTUNREACH"})
	for _, count := range w.Handshakes {
		i := slices.IndexFunc(handshakes, func(c watch.HandshakeCount) bool {
			return c.Result == count.Result && c.Errno == count.Errno
		})
		if i >= 0 {
			handshakes[i] = count
		} else {
			handshakes = append(handshakes, count)
		}
	}
	for _, c := range handshakes {
		s.counter(probeWatchHandshakes, c.Total, c.Result, c.Errno)
	}
	for _, flow := range w.Flows {
		port := strconv.Itoa(int(flow.Port))
		for outcome := shaker.Open; outcome <= shaker.Failed; outcome++ {
			always := slices.ContainsFunc(handshakes[:4], func(c watch.HandshakeCount) bool {
				return c.Result == outcome.String()
			})
			if n := flow.Total[outcome]; n > 0 || always {
				s.counter(probeWatchFlowHandshakes, n, port, outcome.String())
			}
		}
	}
	s.histogram(probeWatchRTT, w.RTT)
	s.counter(probeWatchSYNRetransmits, w.SYNRetransmits)
	s.counter(probeWatchACKsSent, w.ACKsSent)
	s.counter(probeWatchSkipped, w.Skipped.Fault, "fault")
	s.counter(probeWatchSkipped, w.Skipped.Late, "late")
	s.counter(probeWatchSkipped, w.Skipped.Overlapping, "overlapping")
	s.counter(probeWatchSkipped, w.Skipped.Unread, "unread")
	for _, c := range w.Lookups {
		s.counter(probeWatchLookups, c.Total, c.Result)
	}
	s.gauge(probeWatchInterval, w.Interval.Seconds())
	s.gauge(probeWatchRegistered, seconds(w.Registered))
	s.gauge(probeWatchLastHandshake, seconds(w.LastHandshake))
}

// seconds returns a time as Prometheus has it, in steps of 1 ms.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

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
		h.metrics.countFault(r.Err)
		return
	}
	h.metrics.countHandshake(&r.Result, false)
}

// watchMetrics are the exporter's own metrics about watched targets.
type watchMetrics struct {
	watched, limit *prometheus.Desc
	lag            prometheus.Histogram
}

func newWatchMetrics() *watchMetrics {
	return &watchMetrics{
		watched: prometheus.NewDesc("shaker_watched_targets", "Number of watched targets.", []string{"module"}, nil),
		limit: prometheus.NewDesc("shaker_watched_targets_limit",
			"Maximum number of watched targets; 0 means no limit.", nil, nil),
		lag: prometheus.NewHistogram(histogram("shaker_watch_lag_seconds",
			"Time from when a handshake with a watched target was due to sending its SYN.",
			.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25)),
	}
}

func (m *watchMetrics) describe(ch chan<- *prometheus.Desc) {
	ch <- m.watched
	ch <- m.limit
	m.lag.Describe(ch)
}

// collect collects the metrics of a Watcher, whose modules are given.
func (m *watchMetrics) collect(ch chan<- prometheus.Metric, w *watch.Watcher, modules []registry.Module) {
	for _, module := range modules {
		ch <- prometheus.MustNewConstMetric(m.watched, prometheus.GaugeValue, float64(module.Registered), module.Name)
	}
	ch <- prometheus.MustNewConstMetric(m.limit, prometheus.GaugeValue, float64(w.MaxTargets()))
	m.lag.Collect(ch)
}
