package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// engineMetrics are the exporter's own metrics about the way in which its engine sends SYNs.
type engineMetrics struct {
	shaker        *shaker.Shaker // nil without metrics about it
	info, dropped *prometheus.Desc
}

func newEngineMetrics(s *shaker.Shaker) *engineMetrics {
	return &engineMetrics{
		shaker: s,
		info: prometheus.NewDesc("shaker_engine_info",
			"How SYNs are sent: through sockets (socket) or without them (raw).", []string{"engine"}, nil),
		dropped: prometheus.NewDesc("shaker_raw_segments_dropped_total",
			"Total number of segments and ICMP errors that arrived at the ports of SYNs without a socket, "+
				"and ended no handshake, by reason.", []string{"reason"}, nil),
	}
}

func (m *engineMetrics) describe(ch chan<- *prometheus.Desc) {
	ch <- m.info
	ch <- m.dropped
}

func (m *engineMetrics) collect(ch chan<- prometheus.Metric) {
	if m.shaker == nil {
		return
	}
	engine := "socket"
	if m.shaker.Ports() != (shaker.PortRange{}) {
		engine = "raw"
		strays := m.shaker.Strays()
		for reason, n := range map[string]uint64{
			"late": strays.Late, "forged": strays.Forged, "foreign": strays.Foreign, "lost": strays.Lost,
		} {
			ch <- prometheus.MustNewConstMetric(m.dropped, prometheus.CounterValue, float64(n), reason)
		}
	}
	ch <- prometheus.MustNewConstMetric(m.info, prometheus.GaugeValue, 1, engine)
}
