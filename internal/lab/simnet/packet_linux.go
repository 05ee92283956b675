package simnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// A Segment is a TCP segment, or a UDP datagram if UDP is set.
type Segment struct {
	Src, Dst           netip.AddrPort
	SYN, ACK, RST, FIN bool
	UDP                bool
	Seq                uint32
	Ack                uint32 // the acknowledgement number, if ACK is set
	TTL                uint8  // or hop limit
	TOS                uint8  // or traffic class: the DSCP and two bits of ECN
	Data               []byte
	Time               time.Time // when the kernel captured it; zero on a Wire

	timestamp uint32 // timestamp of the sender (TSval, RFC 7323), 0 if there is none
	raw       []byte // whole IP packet
}

func (s Segment) String() string {
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{{s.SYN, "SYN"}, {s.FIN, "FIN"}, {s.RST, "RST"}, {s.ACK, "ACK"}, {s.UDP, "UDP"}} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	return fmt.Sprintf("%v > %v %s", s.Src, s.Dst, strings.Join(flags, ","))
}

// Damaged reports whether the TCP checksum is wrong. A captured segment may have just the sum of the pseudo-header,
// because the network card would complete it: that is not wrong.
func (s Segment) Damaged() bool {
	var p parser
	var again Segment
	_, tcp, ok := p.parseIP(s.raw, &again)
	if !ok || s.UDP || len(tcp) < 20 {
		return false
	}
	src, dst := s.Src.Addr().AsSlice(), s.Dst.Addr().AsSlice()
	pseudo := binary.BigEndian.AppendUint32(append(src, dst...), uint32(len(tcp)))
	pseudo = append(pseudo, 0, 0, 0, byte(layers.IPProtocolTCP))
	return sum(append(pseudo, tcp...)) != 0xffff && sum(pseudo) != binary.BigEndian.Uint16(tcp[16:])
}

// sum returns the sum of RFC 1071.
func sum(b []byte) uint16 {
	total := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// Parse parses an IP packet. The segment refers to the bytes of raw. ok is false if the packet is neither TCP
// nor UDP.
func Parse(raw []byte) (s Segment, ok bool) {
	var p parser
	return p.parse(raw)
}

// A parser parses IP packets. It is reused for many packets, to avoid allocations.
type parser struct {
	ip4 layers.IPv4
	ip6 layers.IPv6
	tcp layers.TCP
	udp layers.UDP
}

func (p *parser) parse(raw []byte) (s Segment, ok bool) {
	protocol, payload, ok := p.parseIP(raw, &s)
	if !ok {
		return Segment{}, false
	}
	src, dst := uint16(0), uint16(0)
	switch protocol {
	case layers.IPProtocolTCP:
		if p.tcp.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) != nil {
			return Segment{}, false
		}
		src, dst = uint16(p.tcp.SrcPort), uint16(p.tcp.DstPort)
		s.SYN, s.ACK, s.RST, s.FIN = p.tcp.SYN, p.tcp.ACK, p.tcp.RST, p.tcp.FIN
		s.Seq, s.Ack, s.Data = p.tcp.Seq, p.tcp.Ack, p.tcp.Payload
		for _, option := range p.tcp.Options {
			if option.OptionType == layers.TCPOptionKindTimestamps && len(option.OptionData) == 8 {
				s.timestamp = binary.BigEndian.Uint32(option.OptionData)
			}
		}
	case layers.IPProtocolUDP:
		if p.udp.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) != nil {
			return Segment{}, false
		}
		src, dst = uint16(p.udp.SrcPort), uint16(p.udp.DstPort)
		s.UDP, s.Data = true, p.udp.Payload
	default:
		return Segment{}, false
	}
	s.Src, s.Dst = netip.AddrPortFrom(s.Src.Addr(), src), netip.AddrPortFrom(s.Dst.Addr(), dst)
	return s, true
}

// parseIP parses an IP header and stores the addresses, the TTL and the TOS in s.
func (p *parser) parseIP(raw []byte, s *Segment) (protocol layers.IPProtocol, payload []byte, ok bool) {
	if len(raw) == 0 {
		return 0, nil, false
	}
	s.raw = raw
	src, dst := []byte(nil), []byte(nil)
	if raw[0]>>4 == 6 {
		if p.ip6.DecodeFromBytes(raw, gopacket.NilDecodeFeedback) != nil {
			return 0, nil, false
		}
		src, dst, s.TTL, s.TOS = p.ip6.SrcIP, p.ip6.DstIP, p.ip6.HopLimit, p.ip6.TrafficClass
		protocol, payload = p.ip6.NextHeader, p.ip6.Payload
	} else {
		if p.ip4.DecodeFromBytes(raw, gopacket.NilDecodeFeedback) != nil {
			return 0, nil, false
		}
		src, dst, s.TTL, s.TOS = p.ip4.SrcIP, p.ip4.DstIP, p.ip4.TTL, p.ip4.TOS
		protocol, payload = p.ip4.Protocol, p.ip4.Payload
	}
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	s.Src, s.Dst = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)
	return protocol, payload, true
}

// describe describes a packet in one line.
func describe(raw []byte) string {
	var p parser
	if s, ok := p.parse(raw); ok {
		return s.String()
	}
	var s Segment
	protocol, payload, ok := p.parseIP(raw, &s)
	if ok && len(payload) >= 8 && (protocol == layers.IPProtocolICMPv4 || protocol == layers.IPProtocolICMPv6) {
		line := fmt.Sprintf("%v > %v ICMP type %d code %d", s.Src.Addr(), s.Dst.Addr(), payload[0], payload[1])
		// An ICMP error quotes the IP header and at least the ports of a packet.
		if _, quoted, ok := p.parseIP(payload[8:], &s); ok && len(quoted) >= 4 {
			src, dst := binary.BigEndian.Uint16(quoted), binary.BigEndian.Uint16(quoted[2:])
			line += fmt.Sprintf(" about %v > %v",
				netip.AddrPortFrom(s.Src.Addr(), src), netip.AddrPortFrom(s.Dst.Addr(), dst))
		}
		return line
	}
	return fmt.Sprintf("% x", raw)
}

// serverISN is the sequence number of every SYN-ACK.
const serverISN = 1_000_000

// SYNACK returns the SYN-ACK with which an open port answers the SYN s.
func (s Segment) SYNACK() []byte { return SYNACK().packet(s) }

// Refusal returns the RST with which a closed port answers the SYN s.
func (s Segment) Refusal() []byte { return RST().packet(s) }

// Reset returns the RST with which a server closes the connection after the SYN-ACK for s.
func (s Segment) Reset() []byte {
	return s.answer(&layers.TCP{RST: true, ACK: true, Seq: serverISN + 1, Ack: s.Seq + 1})
}

// Finish returns the FIN with which a server closes the connection after the SYN-ACK for s, without sending
// data.
func (s Segment) Finish() []byte {
	return s.answer(&layers.TCP{FIN: true, ACK: true, Seq: serverISN + 1, Ack: s.Seq + 1, Window: 65535})
}

// ResetAfterFinish returns the RST with which a server closes the connection after the FIN of Finish.
func (s Segment) ResetAfterFinish() []byte {
	return s.answer(&layers.TCP{RST: true, ACK: true, Seq: serverISN + 2, Ack: s.Seq + 1})
}

// ICMPError returns the ICMP error of a type and code with which a router answers the packet s. It is an
// ICMPv6 error if the address of the router is IPv6.
func (s Segment) ICMPError(from netip.Addr, icmpType, icmpCode uint8) []byte {
	if from.Is4() {
		quoted := s.raw[:min(len(s.raw), 20+8)]
		return serialize(ipLayer(from, s.Src.Addr(), layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(icmpType, icmpCode)}, gopacket.Payload(quoted))
	}
	ip := ipLayer(from, s.Src.Addr(), layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(icmpType, icmpCode)}
	icmp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	return serialize(ip, icmp, gopacket.Payload(append(make([]byte, 4), s.raw...)))
}

// answer returns a packet with a TCP segment from the destination of s to its source.
func (s Segment) answer(tcp *layers.TCP) []byte {
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(s.Dst.Port()), layers.TCPPort(s.Src.Port())
	ip := ipLayer(s.Dst.Addr(), s.Src.Addr(), layers.IPProtocolTCP)
	tcp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	return serialize(ip, tcp)
}

func ipLayer(src, dst netip.Addr, protocol layers.IPProtocol) gopacket.SerializableLayer {
	if src.Is4() {
		return &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func serialize(l ...gopacket.SerializableLayer) []byte {
	buffer := gopacket.NewSerializeBufferExpectedSize(128, 0)
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, l...); err != nil {
		panic(err) // the layers are complete, so this cannot happen
	}
	return buffer.Bytes()
}
