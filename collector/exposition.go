package collector

import (
	"hash/fnv"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// report is all that is known of a probe once it has ended with a verdict.
type report struct {
	*request
	resolution resolution    // zero if the target was an address
	handshake  shaker.Result // zero if there was no address to shake hands with
	result     string        // the verdict, as the result label has it
	errno      string        // its symbolic name, "" if there is none
	duration   time.Duration
}

func (r *report) success() bool { return r.result == shaker.Open.String() }

// metric is a metric of /probe. All of them are gauges.
type metric struct {
	name, help string
	labels     []string
}

// What /probe exports. Prometheus does not care for the order, people do.
var (
	probeSuccess = &metric{name: "probe_success",
		help: "Whether the result is what the module wants: 1 if the port is open, 0 if not."}
	probeResultInfo = &metric{name: "probe_result_info",
		help:   "The verdict: open, refused, reset, timeout, unreachable, prohibited, error, dns_not_found, dns_timeout or dns_error, and the kernel's errno.",
		labels: []string{"result", "errno"}}
	probeDuration = &metric{name: "probe_duration_seconds",
		help: "How long the whole probe took, name resolution included."}
	probeTimeout = &metric{name: "probe_timeout_seconds",
		help: "How long the probe might have taken."}
	probeDNSLookup = &metric{name: "probe_dns_lookup_time_seconds",
		help: "How long name resolution took, 0 if the target was an address."}
	probeIPProtocol = &metric{name: "probe_ip_protocol",
		help: "IP protocol of the probed address: 4, 6, or 0 if there was no address."}
	probeIPAddrHash = &metric{name: "probe_ip_addr_hash",
		help: "FNV-1a hash of the probed address: it changes when the address does."}
	probeHandshake = &metric{name: "probe_tcp_handshake_seconds",
		help: "Time from SYN to SYN-ACK on the exporter's clock, its scheduling included."}
	probeRTT = &metric{name: "probe_tcp_rtt_seconds",
		help: "Time from SYN to SYN-ACK on the kernel's clock, absent if the kernel took no sample."}
	probeSYNRetransmits = &metric{name: "probe_tcp_syn_retransmits",
		help: "SYNs that had to be sent again."}
	probeMSS = &metric{name: "probe_tcp_mss_bytes",
		help: "Maximum segment size in force for data to the target."}
	probeACKSent = &metric{name: "probe_tcp_ack_sent",
		help: "1 if the handshake's last ACK left after all, so that the application may have seen a connection."}
	probeICMPInfo = &metric{name: "probe_icmp_info",
		help:   "The ICMP error that ended the probe, and who sent it.",
		labels: []string{"from", "icmp_type", "icmp_code", "icmp"}}
)

// families returns the metrics of the probe.
func (r *report) families() []*dto.MetricFamily {
	families := make([]*dto.MetricFamily, 0, 16)
	gauge := func(m *metric, value float64, labelValues ...string) {
		families = append(families, m.family(value, labelValues))
	}
	h := &r.handshake

	gauge(probeSuccess, boolean(r.success()))
	gauge(probeResultInfo, 1, r.result, r.errno)
	gauge(probeDuration, r.duration.Seconds())
	gauge(probeTimeout, r.timeout.Seconds())
	gauge(probeDNSLookup, r.resolution.took.Seconds())
	if addr := h.Peer.Addr(); addr.IsValid() {
		gauge(probeIPProtocol, ipVersion(addr))
		gauge(probeIPAddrHash, addrHash(addr))
	} else {
		gauge(probeIPProtocol, 0)
	}
	if h.Handshake > 0 {
		gauge(probeHandshake, h.Handshake.Seconds())
	}
	if h.RTT > 0 {
		gauge(probeRTT, h.RTT.Seconds())
	}
	if h.Local.IsValid() && h.SYNRetransmits >= 0 { // a SYN was sent, and they are counted
		gauge(probeSYNRetransmits, float64(h.SYNRetransmits))
	}
	if h.Outcome == shaker.Open || h.Outcome == shaker.Reset { // a SYN-ACK came
		if h.MSS > 0 {
			gauge(probeMSS, float64(h.MSS))
		}
		gauge(probeACKSent, boolean(h.ACKSent))
	}
	if icmp := h.ICMP; icmp.From.IsValid() {
		gauge(probeICMPInfo, 1, icmp.From.String(), strconv.Itoa(int(icmp.Type)), strconv.Itoa(int(icmp.Code)), icmp.String())
	}
	return families
}

var typeGauge = dto.MetricType_GAUGE

func (m *metric) family(value float64, labelValues []string) *dto.MetricFamily {
	// All of it in one piece: a probe has more than a dozen of these.
	f := &struct {
		family  dto.MetricFamily
		metrics [1]*dto.Metric
		metric  dto.Metric
		gauge   dto.Gauge
		value   float64
	}{value: value}
	f.gauge.Value = &f.value
	f.metric.Gauge = &f.gauge
	f.metrics[0] = &f.metric
	f.family.Name, f.family.Help, f.family.Type, f.family.Metric = &m.name, &m.help, &typeGauge, f.metrics[:]
	for i := range m.labels {
		f.metric.Label = append(f.metric.Label, &dto.LabelPair{Name: &m.labels[i], Value: &labelValues[i]})
	}
	return &f.family
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func ipVersion(addr netip.Addr) float64 {
	if addr.Is4() {
		return 4
	}
	return 6
}

// addrHash is computed as blackbox_exporter does it, so that the series go on.
func addrHash(addr netip.Addr) float64 {
	h := fnv.New32a()
	h.Write(addr.AsSlice())
	return float64(h.Sum32())
}

// An exposition is how the metrics of a probe are written for a caller.
type exposition struct {
	accept string // the caller's Accept header
	format expfmt.Format
	kind   expfmt.FormatType
}

var plainText = &exposition{kind: expfmt.TypeTextPlain}

// negotiate finds out what the caller understands. Callers of an exporter mostly ask for the
// same again and again, so that the last answer is kept.
func (p *Prober) negotiate(h http.Header) *exposition {
	accept := h.Get("Accept")
	if last := p.exposition.Load(); last != nil && last.accept == accept {
		return last
	}
	format := expfmt.NegotiateAccept(h, expfmt.DefaultOpenMetricsAcceptedFormats()...)
	e := &exposition{accept, format, format.FormatType()}
	p.exposition.Store(e)
	return e
}

// write writes the metric families. Their names are such that no format escapes them.
func (e *exposition) write(w io.Writer, families []*dto.MetricFamily) error {
	switch e.kind {
	case expfmt.TypeTextPlain:
		for _, family := range families {
			if _, err := expfmt.MetricFamilyToText(w, family); err != nil {
				return err
			}
		}
		return nil
	case expfmt.TypeOpenMetrics:
		for _, family := range families {
			if _, err := expfmt.MetricFamilyToOpenMetrics(w, family); err != nil {
				return err
			}
		}
		_, err := expfmt.FinalizeOpenMetrics(w)
		return err
	}
	encoder := expfmt.NewEncoder(w, e.format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return err
		}
	}
	if closer, ok := encoder.(expfmt.Closer); ok {
		return closer.Close()
	}
	return nil
}
