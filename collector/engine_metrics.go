package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// engineMetrics are the exporter's own metrics about the way in which its engine sends SYNs.
type engineMetrics struct {
	shaker                          *shaker.Shaker // nil without metrics about it
	info, dropped, checked, missing *prometheus.Desc
}

func newEngineMetrics(s *shaker.Shaker) *engineMetrics {
	return &engineMetrics{
		shaker: s,
		info: prometheus.NewDesc("shaker_engine_info",
			"How SYNs are sent: through sockets (socket) or without them (raw).", []string{"engine"}, nil),
		dropped: prometheus.NewDesc("shaker_raw_segments_dropped_total",
			"Total number of segments and ICMP errors that arrived at the ports of SYNs without a socket, "+
				"and ended no handshake, by reason.", []string{"reason"}, nil),
		checked: prometheus.NewDesc("shaker_raw_resets_checked_total",
			"Total number of handshakes without a socket that were followed up to find out whether their RST arrived.",
			nil, nil),
		missing: prometheus.NewDesc("shaker_raw_resets_missing_total",
			"Total number of followed up handshakes whose target sent its SYN-ACK again, because no RST arrived.",
			nil, nil),
	}
}

func (m *engineMetrics) describe(ch chan<- *prometheus.Desc) {
	ch <- m.info
	ch <- m.dropped
	ch <- m.checked
	ch <- m.missing
}

func (m *engineMetrics) collect(ch chan<- prometheus.Metric) {
	if m.shaker == nil {
		return
	}
	engine := "socket"
	if m.shaker.Ports() != (shaker.PortRange{}) {
		engine = "raw"
		resets := m.shaker.Resets()
		ch <- prometheus.MustNewConstMetric(m.checked, prometheus.CounterValue, float64(resets.Checked))
		ch <- prometheus.MustNewConstMetric(m.missing, prometheus.CounterValue, float64(resets.Missing))
		strays := m.shaker.Strays()
		for reason, n := range map[string]uint64{
			"late": strays.Late, "forged": strays.Forged, "foreign": strays.Foreign, "lost": strays.Lost,
		} {
			ch <- prometheus.MustNewConstMetric(m.dropped, prometheus.CounterValue, float64(n), reason)
		}
	}
	ch <- prometheus.MustNewConstMetric(m.info, prometheus.GaugeValue, 1, engine)
}
