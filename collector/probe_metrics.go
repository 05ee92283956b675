package collector

import (
	"hash/fnv"
	"net/netip"
	"strconv"

	dto "github.com/prometheus/client_model/go"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// metric is a metric of /probe. All metrics of /probe are gauges.
type metric struct {
	name, help string
	labels     []string
}

// The metrics of /probe, in the order in which they are written.
var (
	probeSuccess = &metric{name: "probe_success",
		help: "1 if the result is one of the module's valid_results (by default open), 0 otherwise."}
	probeResultInfo = &metric{name: "probe_result_info",
		help: "Result of the probe (open, refused, reset, timeout, unreachable, prohibited, error, " +
			"dns_not_found, dns_timeout or dns_error) and the kernel's errno.",
		labels: []string{"result", "errno"}}
	probeDuration = &metric{name: "probe_duration_seconds",
		help: "Duration of the whole probe, including name resolution."}
	probeTimeout = &metric{name: "probe_timeout_seconds",
		help: "Timeout that applied to the probe."}
	probeDNSLookup = &metric{name: "probe_dns_lookup_time_seconds",
		help: "Duration of name resolution, 0 if the target was an address."}
	probeIPProtocol = &metric{name: "probe_ip_protocol",
		help: "IP protocol of the probed address: 4, 6, or 0 if there was no address."}
	probeIPAddrHash = &metric{name: "probe_ip_addr_hash",
		help: "FNV-1a hash of the probed address, to detect that the address changed."}
	probeHandshake = &metric{name: "probe_tcp_handshake_seconds",
		help: "Time from SYN to SYN-ACK on the exporter's clock, including its scheduling."}
	probeRTT = &metric{name: "probe_tcp_rtt_seconds",
		help: "Time from SYN to SYN-ACK on the kernel's clock, absent if the kernel took no sample."}
	probeSYNRetransmits = &metric{name: "probe_tcp_syn_retransmits",
		help: "Number of SYN retransmissions."}
	probeMSS = &metric{name: "probe_tcp_mss_bytes",
		help: "Maximum segment size for data to the target."}
	probeACKSent = &metric{name: "probe_tcp_ack_sent",
		help: "1 if the final ACK was sent after all, " +
			"so that the application may have seen a connection, 0 otherwise."}
	probeICMPInfo = &metric{name: "probe_icmp_info",
		help:   "ICMP error that ended the probe, and its sender.",
		labels: []string{"from", "icmp_type", "icmp_code", "icmp"}}

	// With a path
	probePathHopInfo = &metric{name: "probe_path_hop_info",
		help: "Address that answered at each hop, and its ICMP error; " +
			"icmp is empty if the reply was a SYN-ACK or RST.",
		labels: []string{"hop", "address", "icmp"}}
	probePathHopRTT = &metric{name: "probe_path_hop_rtt_seconds",
		help:   "Time from SYN to the reply of each hop, on the exporter's clock.",
		labels: []string{"hop", "address"}}
	probePathLastHop = &metric{name: "probe_path_last_hop",
		help:   "Number of the last hop that answered, and its address: where SYNs end, unless it is the target.",
		labels: []string{"address"}}
	probePathHops = &metric{name: "probe_path_hops",
		help: "Hop at which the target answered, or at which a device answered with the target's address."}

	// With addresses: all
	probeAddresses = &metric{name: "probe_addresses",
		help: "Number of addresses of the target that were probed."}
	probeAddressesOpen = &metric{name: "probe_addresses_open",
		help: "Number of addresses of the target that sent a SYN-ACK."}
	probeAddressResultInfo = &metric{name: "probe_address_result_info",
		help:   "Result for each address and the kernel's errno.",
		labels: []string{"ip", "result", "errno"}}
	probeAddressHandshake = &metric{name: "probe_address_handshake_seconds",
		help:   "Time from SYN to SYN-ACK for each address on the exporter's clock, including its scheduling.",
		labels: []string{"ip"}}
	probeAddressRTT = &metric{name: "probe_address_rtt_seconds",
		help:   "Time from SYN to SYN-ACK for each address on the kernel's clock.",
		labels: []string{"ip"}}
)

// A sheet has the metrics of one probe. It can be filled again with those of another probe: without reuse, its memory
// would be half of the garbage of a probe.
type sheet struct {
	families []*dto.MetricFamily
	gauges   [16]gauge // enough for the metrics of one address
	used     int       // how many of gauges
}

// fill replaces the metrics by those of a probe and returns them. They are valid until the next call.
func (s *sheet) fill(r *probe.Report) []*dto.MetricFamily {
	s.families, s.used = s.families[:0], 0
	h := &r.Handshake

	s.add(probeSuccess, boolean(r.Success()))
	s.add(probeResultInfo, 1, r.Result, r.Errno)
	s.add(probeDuration, r.Duration.Seconds())
	s.add(probeTimeout, r.Timeout.Seconds())
	s.add(probeDNSLookup, r.Resolution.Took.Seconds())
	if addr := h.Peer.Addr(); addr.IsValid() {
		s.add(probeIPProtocol, ipVersion(addr))
		s.add(probeIPAddrHash, addrHash(addr))
	} else {
		s.add(probeIPProtocol, 0)
	}
	if h.Handshake > 0 {
		s.add(probeHandshake, h.Handshake.Seconds())
	}
	if h.RTT > 0 {
		s.add(probeRTT, h.RTT.Seconds())
	}
	if h.SYNs > 0 {
		s.add(probeSYNRetransmits, float64(h.SYNs-1))
	}
	if h.MSS > 0 {
		s.add(probeMSS, float64(h.MSS))
	}
	if h.ACKSent || h.ACKWithheld { // a SYN-ACK came, and the kernel tells
		s.add(probeACKSent, boolean(h.ACKSent))
	}
	if icmp := h.ICMP; icmp.From.IsValid() {
		icmpType, icmpCode := strconv.Itoa(int(icmp.Type)), strconv.Itoa(int(icmp.Code))
		s.add(probeICMPInfo, 1, icmp.From.String(), icmpType, icmpCode, icmp.String())
	}
	if r.Path != nil {
		s.families = append(s.families, pathFamilies(r.Path)...)
	}
	if r.Module.TCP.Addresses == config.All {
		s.families = append(s.families, addressFamilies(r)...)
	}
	return s.families
}

// add adds a metric with one series.
func (s *sheet) add(m *metric, value float64, labelValues ...string) {
	if s.used == len(s.gauges) {
		s.families = append(s.families, new(gauge).set(m, value, labelValues))
		return
	}
	s.families = append(s.families, s.gauges[s.used].set(m, value, labelValues))
	s.used++
}

// addressFamilies returns the metrics of the addresses of a probe with addresses: all.
func addressFamilies(r *probe.Report) []*dto.MetricFamily {
	var open int
	var infos, handshakes, rtts []*dto.Metric
	for _, v := range r.Verdicts {
		h, ip := &v.Handshake, v.Handshake.Peer.Addr().String()
		infos = append(infos, probeAddressResultInfo.metric(1, ip, v.Result, v.Errno))
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
		new(gauge).set(probeAddresses, float64(len(r.Verdicts)), nil),
		new(gauge).set(probeAddressesOpen, float64(open), nil),
	}
	families = several(families, probeAddressResultInfo, infos)
	families = several(families, probeAddressHandshake, handshakes)
	families = several(families, probeAddressRTT, rtts)
	return families
}

// pathFamilies returns the metrics of a path. Silent hops have no series.
func pathFamilies(path *shaker.Path) []*dto.MetricFamily {
	var infos, rtts []*dto.Metric
	var last shaker.Hop
	for _, h := range path.Hops {
		if !h.From.IsValid() {
			continue
		}
		last = h
		hop, address := strconv.Itoa(h.TTL), h.From.String()
		infos = append(infos, probePathHopInfo.metric(1, hop, address, h.ICMP.String()))
		rtts = append(rtts, probePathHopRTT.metric(h.RTT.Seconds(), hop, address))
	}
	families := several(nil, probePathHopInfo, infos)
	families = several(families, probePathHopRTT, rtts)
	if last.From.IsValid() {
		families = append(families, new(gauge).set(probePathLastHop, float64(last.TTL), []string{last.From.String()}))
	}
	if path.Reached > 0 {
		families = append(families, new(gauge).set(probePathHops, float64(path.Reached), nil))
	}
	return families
}

// several adds a metric with its series. Without series it adds nothing.
func several(families []*dto.MetricFamily, of *metric, series []*dto.Metric) []*dto.MetricFamily {
	if len(series) == 0 {
		return families
	}
	return append(families, of.familyOf(typeGauge, series...))
}

// metric returns one series of a metric.
func (m *metric) metric(value float64, labelValues ...string) *dto.Metric {
	return new(gauge).set(m, value, labelValues).Metric[0]
}

// A gauge is the memory of a metric with one series.
type gauge struct {
	family  dto.MetricFamily
	metrics [1]*dto.Metric
	metric  dto.Metric
	gauge   dto.Gauge
	value   float64
	labels  [4]struct { // as many as any metric has
		pair  dto.LabelPair
		value string
	}
	pairs [4]*dto.LabelPair
}

var typeGauge = dto.MetricType_GAUGE

// set makes the gauge a metric with one series, and returns the metric.
func (g *gauge) set(m *metric, value float64, labelValues []string) *dto.MetricFamily {
	g.value = value
	g.gauge.Value = &g.value
	for i := range m.labels {
		label := &g.labels[i]
		label.value = labelValues[i]
		label.pair.Name, label.pair.Value = &m.labels[i], &label.value
		g.pairs[i] = &label.pair
	}
	g.metric.Label, g.metric.Gauge = g.pairs[:len(m.labels)], &g.gauge
	g.metrics[0] = &g.metric
	g.family.Name, g.family.Help, g.family.Type, g.family.Metric = &m.name, &m.help, &typeGauge, g.metrics[:]
	return &g.family
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

// addrHash computes the same hash as blackbox_exporter, so that the series continue after a migration.
func addrHash(addr netip.Addr) float64 {
	h := fnv.New32a()
	h.Write(addr.AsSlice())
	return float64(h.Sum32())
}
