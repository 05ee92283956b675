package collector

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The reasons for which a probe is not made or not finished. The reason label has no others.
const (
	badRequest    = "bad_request"   // the caller's mistake
	denied        = "denied"        // the policy for targets forbids it
	inFlightLimit = "in_flight"     // too many probes at once
	shuttingDown  = "shutting_down" // the exporter is going away
	tooLate       = "too_late"      // the timeout was over before a SYN could be sent
	callerGone    = "caller_gone"   // the caller hung up while the probe ran
)

// metrics are those of the exporter itself.
type metrics struct {
	probes         *prometheus.CounterVec
	failures       *prometheus.CounterVec
	rejected       *prometheus.CounterVec
	faults         *prometheus.CounterVec
	handshake      *prometheus.HistogramVec
	synRetransmits prometheus.Counter
	acksSent       prometheus.Counter
	resetLag       prometheus.Histogram
	inFlight       prometheus.GaugeFunc
	inFlightLimit  prometheus.Gauge
}

func newMetrics(inFlight func() float64, limit int) *metrics {
	histogram := func(name, help string, buckets ...float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour}
	}
	m := &metrics{
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_probes_total",
			Help: "Probes that ended with a verdict about the target, open or not."}, []string{"module"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_probe_failures_total",
			Help: "Probes whose verdict was not what the module wants, by verdict."}, []string{"module", "result", "errno"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_probes_rejected_total",
			Help: "Requests for a probe that was not made or not finished, by reason."}, []string{"reason"}),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_faults_total",
			Help: "Probes that failed for want of something on this host, by errno."}, []string{"errno"}),
		handshake: prometheus.NewHistogramVec(histogram("shaker_handshake_seconds",
			"Time from SYN to SYN-ACK on this process's clock.",
			.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5), []string{"module"}),
		synRetransmits: prometheus.NewCounter(prometheus.CounterOpts{Name: "shaker_syn_retransmits_total",
			Help: "SYNs that had to be sent again."}),
		acksSent: prometheus.NewCounter(prometheus.CounterOpts{Name: "shaker_acks_sent_total",
			Help: "Handshakes whose last ACK left after all, so that the target's application may have seen a connection."}),
		resetLag: prometheus.NewHistogram(histogram("shaker_reset_lag_seconds",
			"Time from seeing a SYN-ACK to sending the RST. At 0.2 the kernel sends the ACK.",
			.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .2)),
		inFlight: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "shaker_probes_in_flight",
			Help: "Handshakes that are under way, name resolution included."}, inFlight),
		inFlightLimit: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shaker_probes_in_flight_limit",
			Help: "Handshakes that may be under way at once, 0 if there is no limit."}),
	}
	m.inFlightLimit.Set(float64(limit))
	// What can be counted is there from the start, so that rate() sees the first one.
	for _, reason := range []string{badRequest, denied, inFlightLimit, shuttingDown, tooLate, callerGone} {
		m.rejected.WithLabelValues(reason)
	}
	for _, errno := range []string{"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL"} {
		m.faults.WithLabelValues(errno)
	}
	return m
}

// expect makes the modules' metrics be there before the first probe.
func (m *metrics) expect(c *config.Config) {
	for name := range c.Modules {
		m.probes.WithLabelValues(name)
		m.handshake.WithLabelValues(name)
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.probes, m.failures, m.rejected, m.faults, m.handshake,
		m.synRetransmits, m.acksSent, m.resetLag, m.inFlight, m.inFlightLimit}
}

// count counts a probe that ended with a verdict.
func (m *metrics) count(r *Report) {
	m.probes.WithLabelValues(r.module).Inc()
	if !r.success() {
		m.failures.WithLabelValues(r.module, r.result, r.errno).Inc()
	}
	for _, v := range r.each() {
		h := &v.handshake
		if h.Outcome == shaker.Open {
			m.handshake.WithLabelValues(r.module).Observe(h.Handshake.Seconds())
		}
		if h.ResetLag > 0 {
			m.resetLag.Observe(h.ResetLag.Seconds())
		}
		m.synRetransmits.Add(float64(max(0, h.SYNRetransmits)))
		if h.ACKSent && r.moduleData.TCP.Close != config.FIN { // which is meant to send it
			m.acksSent.Inc()
		}
	}
}
