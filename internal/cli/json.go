package cli

import (
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A jsonLine is the result of a handshake in JSON. Values that were not measured are absent.
type jsonLine struct {
	Time           time.Time `json:"time"` // when the probe started
	Target         string    `json:"target"`
	Module         string    `json:"module"`
	Seq            int       `json:"seq"`
	Address        string    `json:"address,omitempty"`
	Success        bool      `json:"success"`
	Result         string    `json:"result,omitempty"`
	Errno          string    `json:"errno,omitempty"`
	Reason         string    `json:"reason,omitempty"` // error of name resolution
	Duration       float64   `json:"duration_seconds,omitempty"`
	Handshake      float64   `json:"handshake_seconds,omitempty"`
	RTT            float64   `json:"rtt_seconds,omitempty"`
	SYNRetransmits *int      `json:"syn_retransmits,omitempty"`
	MSS            int       `json:"mss_bytes,omitempty"`
	ACKSent        *bool     `json:"ack_sent,omitempty"` // of the final ACK
	ICMP           *jsonICMP `json:"icmp,omitempty"`
	Path           []jsonHop `json:"path,omitempty"`
	Error          string    `json:"error,omitempty"` // error of a probe without a result
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
}

// newJSONLine returns the result of a handshake in JSON. The path is nil if it was not traced.
func newJSONLine(t *target, seq int, r *history.Record, h *shaker.Result, path *shaker.Path) jsonLine {
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
	if path != nil {
		for _, h := range path.Hops {
			hop := jsonHop{Hop: h.TTL, RTT: h.RTT.Seconds()}
			if h.From.IsValid() {
				hop.Address = h.From.String()
			}
			if h.ICMP.From.IsValid() {
				hop.ICMP = h.ICMP.String()
			}
			line.Path = append(line.Path, hop)
		}
	}
	return line
}
