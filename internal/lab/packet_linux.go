package lab

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// A Segment is a TCP segment, or a UDP datagram if it has no flags and UDP is set.
type Segment struct {
	Src, Dst           netip.AddrPort
	SYN, ACK, RST, FIN bool
	UDP                bool
	Seq                uint32
	Data               []byte
	raw                []byte // the whole IP packet
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

// parse reads an IP packet. It is not ok if that is neither TCP nor UDP.
func parse(raw []byte) (s Segment, ok bool) {
	if len(raw) == 0 {
		return Segment{}, false
	}
	first := gopacket.Decoder(layers.LayerTypeIPv4)
	if raw[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	packet := gopacket.NewPacket(raw, first, gopacket.NoCopy)
	if packet.NetworkLayer() == nil || packet.TransportLayer() == nil {
		return Segment{}, false
	}
	src, _ := netip.AddrFromSlice(packet.NetworkLayer().NetworkFlow().Src().Raw())
	dst, _ := netip.AddrFromSlice(packet.NetworkLayer().NetworkFlow().Dst().Raw())
	s.raw = raw
	switch l := packet.TransportLayer().(type) {
	case *layers.TCP:
		s.Src, s.Dst = netip.AddrPortFrom(src, uint16(l.SrcPort)), netip.AddrPortFrom(dst, uint16(l.DstPort))
		s.SYN, s.ACK, s.RST, s.FIN = l.SYN, l.ACK, l.RST, l.FIN
		s.Seq, s.Data = l.Seq, l.Payload
	case *layers.UDP:
		s.Src, s.Dst = netip.AddrPortFrom(src, uint16(l.SrcPort)), netip.AddrPortFrom(dst, uint16(l.DstPort))
		s.UDP, s.Data = true, l.Payload
	default:
		return Segment{}, false
	}
	return s, true
}

// SYNACK answers a SYN as an open port does.
func (s Segment) SYNACK() []byte {
	return s.answer(&layers.TCP{SYN: true, ACK: true, Seq: 1_000_000, Ack: s.Seq + 1, Window: 65535,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{1400 >> 8, 1400 & 0xff}}}})
}

// Refusal answers a SYN with the RST of a closed port.
func (s Segment) Refusal() []byte {
	return s.answer(&layers.TCP{RST: true, ACK: true, Ack: s.Seq + 1})
}

// Reset follows a SYNACK with the RST of a server that has changed its mind.
func (s Segment) Reset() []byte {
	return s.answer(&layers.TCP{RST: true, ACK: true, Seq: 1_000_001, Ack: s.Seq + 1})
}

// Finish follows a SYNACK with the FIN of a server that has nothing to say.
func (s Segment) Finish() []byte {
	return s.answer(&layers.TCP{FIN: true, ACK: true, Seq: 1_000_001, Ack: s.Seq + 1, Window: 65535})
}

// ResetAfterFinish follows a Finish with an RST.
func (s Segment) ResetAfterFinish() []byte {
	return s.answer(&layers.TCP{RST: true, ACK: true, Seq: 1_000_002, Ack: s.Seq + 1})
}

// answer addresses a TCP segment to the sender of s.
func (s Segment) answer(tcp *layers.TCP) []byte {
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(s.Dst.Port()), layers.TCPPort(s.Src.Port())
	ip := ipLayer(s.Dst.Addr(), s.Src.Addr(), layers.IPProtocolTCP)
	tcp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	return serialize(ip, tcp)
}

// ICMPError answers a packet with the ICMP error of the type and code, or the ICMPv6
// error if the packet is IPv6, from the given router.
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

func ipLayer(src, dst netip.Addr, protocol layers.IPProtocol) gopacket.SerializableLayer {
	if src.Is4() {
		return &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func serialize(l ...gopacket.SerializableLayer) []byte {
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, l...); err != nil {
		panic(err) // the layers above are complete
	}
	return buffer.Bytes()
}
