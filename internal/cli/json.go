package cli

import (
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A jsonLine is the result of a handshake in JSON. Values that were not measured are absent.
type jsonLine struct {
	Time           time.Time    `json:"time"` // when the probe started
	Target         string       `json:"target"`
	Module         string       `json:"module"`
	Seq            int          `json:"seq"`
	Address        string       `json:"address,omitempty"`
	Success        bool         `json:"success"`
	Result         string       `json:"result,omitempty"`
	Errno          string       `json:"errno,omitempty"`
	Reason         string       `json:"reason,omitempty"` // error of name resolution
	Duration       float64      `json:"duration_seconds,omitempty"`
	Handshake      float64      `json:"handshake_seconds,omitempty"`
	RTT            float64      `json:"rtt_seconds,omitempty"`
	SYNRetransmits *int         `json:"syn_retransmits,omitempty"`
	MSS            int          `json:"mss_bytes,omitempty"`
	ACKSent        *bool        `json:"ack_sent,omitempty"` // of the final ACK
	ICMP           *jsonICMP    `json:"icmp,omitempty"`
	Path           []jsonHop    `json:"path,omitempty"`
	Flows          []jsonFlow   `json:"flows,omitempty"`
	Parting        *jsonParting `json:"parting,omitempty"`
	Error          string       `json:"error,omitempty"` // error of a probe without a result
}

// A jsonICMP is an ICMP error in JSON.
type jsonICMP struct {
	From string `json:"from"`
	Type uint8  `json:"type"`
	Code uint8  `json:"code"`
	Name string `json:"name"`
}

// newJSONICMP returns nil if there was no ICMP error.
func newJSONICMP(icmp shaker.ICMP) *jsonICMP {
	if !icmp.From.IsValid() {
		return nil
	}
	return &jsonICMP{icmp.From.String(), icmp.Type, icmp.Code, icmp.String()}
}

// A jsonHop is a hop in JSON. A silent hop has only its number.
type jsonHop struct {
	Hop     int     `json:"hop"`
	Address string  `json:"address,omitempty"`
	ICMP    string  `json:"icmp,omitempty"`
	RTT     float64 `json:"rtt_seconds,omitempty"`
	Probes  int     `json:"probes,omitempty"`  // in all traces of a flow
	Answers *int    `json:"answers,omitempty"` // to these
}

// newJSONHops returns the hops of a path in JSON.
func newJSONHops(hops []shaker.Hop) []jsonHop {
	var all []jsonHop
	for _, h := range hops {
		all = append(all, newJSONHop(h))
	}
	return all
}

func newJSONHop(h shaker.Hop) jsonHop {
	hop := jsonHop{Hop: h.TTL, RTT: h.RTT.Seconds()}
	if h.From.IsValid() {
		hop.Address = h.From.String()
	}
	if h.ICMP.From.IsValid() {
		hop.ICMP = h.ICMP.String()
	}
	return hop
}

// A jsonFlow is the result of a flow in JSON. Its path has the hops that are known to be on the path of its port.
type jsonFlow struct {
	SourcePort     uint16    `json:"source_port"`
	Success        bool      `json:"success"`
	Result         string    `json:"result"`
	Errno          string    `json:"errno,omitempty"`
	Handshake      float64   `json:"handshake_seconds,omitempty"`
	RTT            float64   `json:"rtt_seconds,omitempty"`
	SYNRetransmits *int      `json:"syn_retransmits,omitempty"`
	Path           []jsonHop `json:"path,omitempty"`
	PathError      string    `json:"path_error,omitempty"`
}

// newJSONFlows returns the flows of a verdict in JSON.
func newJSONFlows(r *probe.Report, v *probe.Verdict) []jsonFlow {
	var flows []jsonFlow
	for i, f := range v.Flows {
		flow := jsonFlow{
			SourcePort: f.Port, Success: r.Valid(f.Result), Result: f.Result, Errno: f.Errno,
			Handshake: f.Handshake.Handshake.Seconds(), RTT: f.Handshake.RTT.Seconds(),
		}
		if n := f.Handshake.SYNs - 1; n >= 0 {
			flow.SYNRetransmits = &n
		}
		if r.FlowPaths != nil && isWorst(r, v) {
			path := &r.FlowPaths[i]
			flow.Path = newJSONFlowPath(path)
			if path.Err != nil {
				flow.PathError = path.Err.Error()
			}
		}
		flows = append(flows, flow)
	}
	return flows
}

// newJSONFlowPath returns the path of a flow in JSON, with the first silent hop behind those that answer.
func newJSONFlowPath(path *probe.FlowPath) []jsonHop {
	hops := newJSONHops(path.Hops)
	if n := len(hops); n < len(path.Counts) && !path.Reached() {
		hops = append(hops, jsonHop{Hop: n + 1})
	}
	for i, n := range path.Counts[:min(len(hops), len(path.Counts))] {
		hops[i].Probes, hops[i].Answers = n.Probes, &n.Answers
	}
	return hops
}

// isWorst reports whether the paths of a report are those of the verdict.
func isWorst(r *probe.Report, v *probe.Verdict) bool { return v.Handshake.Peer == r.Handshake.Peer }

// A jsonParting is where flows that fail part from the others, in JSON. A hop is absent if there is none.
type jsonParting struct {
	SourcePorts []uint16 `json:"source_ports"` // of the flows that fail there
	Shared      *jsonHop `json:"shared_hop,omitempty"`
	Failed      *jsonHop `json:"failed_hop,omitempty"`
}

func newJSONParting(p *probe.Parting) *jsonParting {
	parting := jsonParting{SourcePorts: p.Ports}
	if p.Shared.From.IsValid() {
		parting.Shared = new(newJSONHop(p.Shared))
	}
	if p.Failed.From.IsValid() {
		parting.Failed = new(newJSONHop(p.Failed))
	}
	return &parting
}

// newJSONLine returns a verdict of a report in JSON, which has a record.
func newJSONLine(t *target, seq int, report *probe.Report, r *history.Record, v *probe.Verdict) jsonLine {
	h := &v.Handshake
	line := jsonLine{
		Time: r.Time, Target: t.text, Module: t.flags.module, Seq: seq,
		Success: r.Success, Result: r.Result, Errno: r.Errno, Reason: r.Reason,
		Duration: r.Duration.Seconds(), Handshake: r.Handshake.Seconds(), RTT: r.RTT.Seconds(), MSS: h.MSS,
	}
	if h.ACKSent || h.ACKWithheld { // a SYN-ACK came, and the kernel tells
		line.ACKSent = &h.ACKSent
	}
	if r.Address.IsValid() {
		line.Address = r.Address.String()
	}
	if r.SYNRetransmits >= 0 {
		line.SYNRetransmits = &r.SYNRetransmits
	}
	line.ICMP = newJSONICMP(r.ICMP)
	if path := report.PathTo(r.Address); path != nil {
		line.Path = newJSONHops(path.Hops)
	}
	line.Flows = newJSONFlows(report, v)
	if report.Parting != nil && isWorst(report, v) {
		line.Parting = newJSONParting(report.Parting)
	}
	return line
}
