package collector

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Reasons why a probe is not performed or not finished. The label reason has no other values.
const (
	badTarget     = "bad_target" // the target is not one that can be probed
	unknownModule = "unknown_module"
	badRequest    = "bad_request"   // any other mistake of the caller
	denied        = "denied"        // the policy for targets does not permit the target
	inFlightLimit = "in_flight"     // the limit of handshakes in flight is reached
	watchLimit    = "watch_limit"   // a limit permits no further watched target
	watchStale    = "watch_stale"   // no handshake with a watched target was completed recently because of this host
	holdLimit     = "hold_limit"    // a limit permits no further held connection
	holdPending   = "hold_pending"  // the connect to a held target has not begun, or not long ago
	holdFault     = "hold_fault"    // this host cannot connect to a held target
	idleLimit     = "idle_limit"    // a limit permits no connections for a further target whose path is measured
	idleStale     = "idle_stale"    // no round of idle connections was performed recently because of this host
	tooManyAddrs  = "addresses"     // the name has more addresses than can ever be probed at once
	shuttingDown  = "shutting_down" // the exporter is shutting down
	tooLate       = "too_late"      // the timeout ended before a SYN had been out for long enough
	callerGone    = "caller_gone"   // the caller closed the connection during the probe
)

// metrics are the exporter's own metrics about probes.
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

// histogram returns the options of a histogram with classic and native buckets.
func histogram(name, help string, buckets ...float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
		NativeHistogramMinResetDuration: time.Hour}
}

// newMetrics returns the metrics. Their initial values are 0.
func newMetrics(prober *probe.Prober) *metrics {
	m := &metrics{
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_probes_total",
			Help: "Total number of probes that ended with a verdict about the target, open or not."},
			[]string{"module"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_probe_failures_total",
			Help: "Total number of probes whose result is not in valid_results, by result and errno."},
			[]string{"module", "result", "errno"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_probes_rejected_total",
			Help: "Total number of requests whose probe was not performed or not finished, by reason."},
			[]string{"reason"}),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shaker_faults_total",
			Help: "Total number of probes not performed because of a local error, by errno."}, []string{"errno"}),
		handshake: prometheus.NewHistogramVec(histogram("shaker_handshake_seconds",
			"Time from SYN to SYN-ACK on the exporter's clock.",
			.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5), []string{"module"}),
		synRetransmits: prometheus.NewCounter(prometheus.CounterOpts{Name: "shaker_syn_retransmits_total",
			Help: "Total number of SYN retransmissions."}),
		acksSent: prometheus.NewCounter(prometheus.CounterOpts{Name: "shaker_acks_sent_total",
			Help: "Total number of handshakes whose final ACK was sent after all, " +
				"so that the target's application may have seen a connection."}),
		resetLag: prometheus.NewHistogram(histogram("shaker_reset_lag_seconds",
			"Time from the arrival of a SYN-ACK to sending the RST. After 0.2 s the kernel sends the ACK.",
			.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .2)),
		inFlight: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "shaker_probes_in_flight",
			Help: "Handshakes in progress or reserved for work between scrapes, including name resolution."},
			func() float64 { return float64(prober.InFlight()) }),
		inFlightLimit: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shaker_probes_in_flight_limit",
			Help: "Maximum number of concurrent handshakes; 0 means no limit."}),
	}
	m.inFlightLimit.Set(float64(prober.MaxInFlight()))
	// These series exist from the start, so that rate() sees the first increment.
	for _, reason := range []string{
		badTarget, unknownModule, badRequest, denied, inFlightLimit, watchLimit, watchStale, holdLimit, holdPending,
		holdFault, idleLimit, idleStale, tooManyAddrs, shuttingDown, tooLate, callerGone,
	} {
		m.rejected.WithLabelValues(reason)
	}
	for _, errno := range []string{"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL"} {
		m.faults.WithLabelValues(errno)
	}
	return m
}

// initialize creates the series of the modules, so that they exist before the first probe.
func (m *metrics) initialize(c *config.Config) {
	for name := range c.Modules {
		m.probes.WithLabelValues(name)
		m.handshake.WithLabelValues(name)
	}
}

// all returns all metrics.
func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.probes, m.failures, m.rejected, m.faults, m.handshake,
		m.synRetransmits, m.acksSent, m.resetLag, m.inFlight, m.inFlightLimit}
}

// count counts a probe that ended with a verdict.
func (m *metrics) count(r *probe.Report) {
	m.probes.WithLabelValues(r.ModuleName).Inc()
	if !r.Success() {
		m.failures.WithLabelValues(r.ModuleName, r.Result, r.Errno).Inc()
	}
	for _, v := range r.Each() {
		flows := v.Flows
		if flows == nil {
			flows = []probe.Flow{{Verdict: v}}
		}
		for i := range flows {
			if !flows[i].Sent.IsZero() {
				continue // it was known before the probe, and counted then
			}
			h := &flows[i].Handshake
			if h.Outcome == shaker.Open {
				m.handshake.WithLabelValues(r.ModuleName).Observe(h.Handshake.Seconds())
			}
			m.countHandshake(h, r.Module.TCP.Close == config.FIN)
		}
	}
}

// countFault counts a local error, unless it is that the exporter is shutting down.
func (m *metrics) countFault(err error) {
	if errors.Is(err, shaker.ErrClosed) {
		return
	}
	var errno shaker.Errno
	errors.As(err, &errno)
	m.faults.WithLabelValues(shaker.ErrnoName(errno)).Inc()
}

// countHandshake counts what a handshake shows about this host. fin reports whether the ACK was sent on purpose.
func (m *metrics) countHandshake(h *shaker.Result, fin bool) {
	if h.ResetLag > 0 {
		m.resetLag.Observe(h.ResetLag.Seconds())
	}
	m.synRetransmits.Add(float64(max(0, h.SYNs-1)))
	if h.ACKSent && !fin {
		m.acksSent.Inc()
	}
}
