package collector

import (
	"hash/fnv"
	"net/netip"
	"strconv"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The metrics of /probe, in the order in which they are written. All of them are gauges.
var (
	probeSuccess = &metric{name: "probe_success",
		help: "1 if the result is one of the module's valid_results (by default open), 0 otherwise."}
	probeResultInfo = &metric{name: "probe_result_info",
		help: "Result of the probe (open, refused, reset, timeout, unreachable, prohibited, error, " +
			"dns_not_found, dns_timeout or dns_error; with prober hold also closed, silent or mismatch; " +
			"with prober idle also closed) " +
			"and the kernel's errno.",
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

	// With flows
	probeFlows = &metric{name: "probe_flows",
		help: "Number of flows to the target that were probed: handshakes from different ports."}
	probeFlowsOpen = &metric{name: "probe_flows_open",
		help: "Number of flows for which the target sent a SYN-ACK."}
	probeFlowsLeftOut = &metric{name: "probe_flows_left_out",
		help: "Number of flows that were not probed because other programs have their ports."}
	probeFlowResultInfo = &metric{name: "probe_flow_result_info",
		help:   "Result for each flow and the kernel's errno.",
		labels: []string{"source_port", "result", "errno"}}
	probeFlowRTT = &metric{name: "probe_flow_rtt_seconds",
		help:   "Time from SYN to SYN-ACK for each flow on the kernel's clock.",
		labels: []string{"source_port"}}
	probeFlowPathSharedHop = &metric{name: "probe_flow_path_shared_hop",
		help:   "Number of the last hop that flows with and without a failure have in common, and its address.",
		labels: []string{"address"}}
	probeFlowPathFailedHop = &metric{name: "probe_flow_path_failed_hop",
		help:   "Number of the hop at or behind which flows fail, and its address.",
		labels: []string{"address"}}

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

// fill replaces the metrics of the sheet by those of a probe. A report without a result is neither a success nor a
// failure.
func (s *sheet) fill(r *probe.Report) {
	s.clear()
	h := &r.Handshake

	if r.Result != "" {
		s.gauge(probeSuccess, boolean(r.Success()))
		s.gauge(probeResultInfo, 1, r.Result, r.Errno)
	}
	s.gauge(probeDuration, r.Duration.Seconds())
	s.gauge(probeTimeout, r.Timeout.Seconds())
	s.gauge(probeDNSLookup, r.Resolution.Took.Seconds())
	if addr := h.Peer.Addr(); addr.IsValid() {
		s.gauge(probeIPProtocol, ipVersion(addr))
		s.gauge(probeIPAddrHash, addrHash(addr))
	} else {
		s.gauge(probeIPProtocol, 0)
	}
	if h.Handshake > 0 {
		s.gauge(probeHandshake, h.Handshake.Seconds())
	}
	if h.RTT > 0 {
		s.gauge(probeRTT, h.RTT.Seconds())
	}
	if h.SYNs > 0 {
		s.gauge(probeSYNRetransmits, float64(h.SYNs-1))
	}
	if h.MSS > 0 {
		s.gauge(probeMSS, float64(h.MSS))
	}
	if h.ACKSent || h.ACKWithheld { // a SYN-ACK came, and the kernel tells
		s.gauge(probeACKSent, boolean(h.ACKSent))
	}
	if icmp := h.ICMP; icmp.From.IsValid() {
		icmpType, icmpCode := strconv.Itoa(int(icmp.Type)), strconv.Itoa(int(icmp.Code))
		s.gauge(probeICMPInfo, 1, icmp.From.String(), icmpType, icmpCode, icmp.String())
	}
	if r.Flows != nil {
		s.addFlows(r)
	}
	if r.Path != nil {
		s.addPath(r.Path)
	}
	if r.Module.TCP.Addresses == config.All {
		s.addAddresses(r)
	}
}

// addAddresses adds the metrics of the addresses of a probe with addresses: all.
func (s *sheet) addAddresses(r *probe.Report) {
	var open int
	for _, v := range r.Verdicts {
		if v.Handshake.Outcome == shaker.Open {
			open++
		}
	}
	s.gauge(probeAddresses, float64(len(r.Verdicts)))
	s.gauge(probeAddressesOpen, float64(open))
	for _, v := range r.Verdicts {
		h, ip := &v.Handshake, v.Handshake.Peer.Addr().String()
		s.gauge(probeAddressResultInfo, 1, ip, v.Result, v.Errno)
		if h.Handshake > 0 {
			s.gauge(probeAddressHandshake, h.Handshake.Seconds(), ip)
		}
		if h.RTT > 0 {
			s.gauge(probeAddressRTT, h.RTT.Seconds(), ip)
		}
	}
}

// addFlows adds the metrics of the flows of a probe.
func (s *sheet) addFlows(r *probe.Report) {
	var open int
	for _, f := range r.Flows {
		if f.Handshake.Outcome == shaker.Open {
			open++
		}
	}
	s.gauge(probeFlows, float64(len(r.Flows)))
	s.gauge(probeFlowsOpen, float64(open))
	s.gauge(probeFlowsLeftOut, float64(len(r.LeftOut)))
	for _, f := range r.Flows {
		port := strconv.Itoa(int(f.Port))
		s.gauge(probeFlowResultInfo, 1, port, f.Result, f.Errno)
		if f.Handshake.RTT > 0 {
			s.gauge(probeFlowRTT, f.Handshake.RTT.Seconds(), port)
		}
	}
	if p := r.Parting; p != nil {
		if p.Shared.From.IsValid() {
			s.gauge(probeFlowPathSharedHop, float64(p.Shared.TTL), p.Shared.From.String())
		}
		if p.Failed.From.IsValid() {
			s.gauge(probeFlowPathFailedHop, float64(p.Failed.TTL), p.Failed.From.String())
		}
	}
}

// addPath adds the metrics of a path. Silent hops have no series.
func (s *sheet) addPath(path *shaker.Path) {
	var last shaker.Hop
	for _, h := range path.Hops {
		if !h.From.IsValid() {
			continue
		}
		last = h
		hop, address := strconv.Itoa(h.TTL), h.From.String()
		s.gauge(probePathHopInfo, 1, hop, address, h.ICMP.String())
		s.gauge(probePathHopRTT, h.RTT.Seconds(), hop, address)
	}
	if last.From.IsValid() {
		s.gauge(probePathLastHop, float64(last.TTL), last.From.String())
	}
	if path.Reached > 0 {
		s.gauge(probePathHops, float64(path.Reached))
	}
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
