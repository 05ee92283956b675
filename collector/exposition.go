package collector

import (
	"hash/fnv"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// metric is a metric of /probe. All of them are gauges.
type metric struct {
	name, help string
	labels     []string
}

// What /probe exports. Prometheus does not care for the order, people do.
var (
	probeSuccess = &metric{name: "probe_success",
		help: "1 if the result is what the module wants (valid_results, by default open), 0 if not."}
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

	// With a path
	probePathHopInfo = &metric{name: "probe_path_hop_info",
		help:   "Who answered for each hop of the path, and with which ICMP error; an empty one stands for the answer of the target, or in its name.",
		labels: []string{"hop", "address", "icmp"}}
	probePathHopRTT = &metric{name: "probe_path_hop_rtt_seconds",
		help:   "Time from SYN to the answer of each hop, on the exporter's clock.",
		labels: []string{"hop", "address"}}
	probePathLastHop = &metric{name: "probe_path_last_hop",
		help:   "The last hop that answered, and who it is: where SYNs end, if it is not the target.",
		labels: []string{"address"}}
	probePathHops = &metric{name: "probe_path_hops",
		help: "The hop at which the target itself answered, or somebody in its name."}

	// With addresses: all
	probeAddresses = &metric{name: "probe_addresses",
		help: "Addresses of the target that were probed."}
	probeAddressesOpen = &metric{name: "probe_addresses_open",
		help: "Addresses of the target that sent a SYN-ACK."}
	probeAddressResultInfo = &metric{name: "probe_address_result_info",
		help:   "The verdict about each address, and the kernel's errno.",
		labels: []string{"ip", "result", "errno"}}
	probeAddressHandshake = &metric{name: "probe_address_handshake_seconds",
		help:   "Time from SYN to SYN-ACK for each address on the exporter's clock, its scheduling included.",
		labels: []string{"ip"}}
	probeAddressRTT = &metric{name: "probe_address_rtt_seconds",
		help:   "Time from SYN to SYN-ACK for each address on the kernel's clock.",
		labels: []string{"ip"}}
)

// families returns the metrics of the probe.
func (r *Report) families() []*dto.MetricFamily {
	families := make([]*dto.MetricFamily, 0, 16) // all but those of several addresses
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
	if r.path != nil {
		families = append(families, pathFamilies(r.path)...)
	}
	if r.moduleData.TCP.Addresses == config.All {
		families = append(families, r.addressFamilies()...)
	}
	return families
}

// addressFamilies returns the metrics of the addresses, all of which were probed.
func (r *Report) addressFamilies() []*dto.MetricFamily {
	var open int
	var infos, handshakes, rtts []*dto.Metric
	for _, v := range r.verdicts {
		h, ip := &v.handshake, v.handshake.Peer.Addr().String()
		infos = append(infos, probeAddressResultInfo.metric(1, ip, v.result, v.errno))
		if h.Outcome == shaker.Open {
			open++
		}
		if h.Handshake > 0 {
			handshakes = append(handshakes, probeAddressHandshake.metric(h.Handshake.Seconds(), ip))
		}
		if h.RTT > 0 {
			rtts = append(rtts, probeAddressRTT.metric(h.RTT.Seconds(), ip))
		}
	}
	families := []*dto.MetricFamily{
		probeAddresses.family(float64(len(r.verdicts)), nil),
		probeAddressesOpen.family(float64(open), nil),
	}
	families = several(families, probeAddressResultInfo, infos)
	families = several(families, probeAddressHandshake, handshakes)
	families = several(families, probeAddressRTT, rtts)
	return families
}

// pathFamilies returns the metrics of a path. Hops that stayed silent have none.
func pathFamilies(path *shaker.Path) []*dto.MetricFamily {
	var infos, rtts []*dto.Metric
	var last shaker.Hop
	for _, h := range path.Hops {
		if !h.From.IsValid() {
			continue
		}
		last = h
		hop, address, icmp := strconv.Itoa(h.TTL), h.From.String(), ""
		if h.ICMP.From.IsValid() {
			icmp = h.ICMP.String()
		}
		infos = append(infos, probePathHopInfo.metric(1, hop, address, icmp))
		rtts = append(rtts, probePathHopRTT.metric(h.RTT.Seconds(), hop, address))
	}
	families := several(nil, probePathHopInfo, infos)
	families = several(families, probePathHopRTT, rtts)
	if last.From.IsValid() {
		families = append(families, probePathLastHop.family(float64(last.TTL), []string{last.From.String()}))
	}
	if path.Reached > 0 {
		families = append(families, probePathHops.family(float64(path.Reached), nil))
	}
	return families
}

// several adds a metric with several series, if it has any.
func several(families []*dto.MetricFamily, of *metric, series []*dto.Metric) []*dto.MetricFamily {
	if len(series) == 0 {
		return families
	}
	return append(families, &dto.MetricFamily{Name: &of.name, Help: &of.help, Type: &typeGauge, Metric: series})
}

// metric returns one of several series of a metric.
func (m *metric) metric(value float64, labelValues ...string) *dto.Metric {
	return m.family(value, labelValues).Metric[0]
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

// WriteOpenMetrics writes the metrics of several probes, with the target and the module of
// each as labels.
func WriteOpenMetrics(w io.Writer, reports []*Report) error {
	targetLabel, moduleLabel := "target", "module"
	byName := make(map[string]*dto.MetricFamily)
	var families []*dto.MetricFamily
	for _, report := range reports {
		labels := []*dto.LabelPair{{Name: &targetLabel, Value: &report.text}, {Name: &moduleLabel, Value: &report.module}}
		for _, family := range report.families() {
			for _, metric := range family.Metric {
				metric.Label = append(slices.Clone(labels), metric.Label...)
			}
			if first := byName[family.GetName()]; first != nil {
				first.Metric = append(first.Metric, family.Metric...)
				continue
			}
			byName[family.GetName()] = family
			families = append(families, family)
		}
	}
	return (&exposition{kind: expfmt.TypeOpenMetrics}).write(w, families)
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
