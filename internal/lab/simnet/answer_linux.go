package simnet

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/gopacket/gopacket/layers"
)

// An Answer is a packet that answers a SYN. Its methods return a modified copy.
type Answer struct {
	tcp  layers.TCP // without ports, sequence numbers and checksum
	from netip.Addr // sender of an ICMP error; invalid if the answer is a TCP segment
	kind [2]uint8   // type and code of the ICMP error

	soonest, latest time.Duration // range of the delay

	timestamps bool   // whether the answer echoes the SYN's timestamp
	ackOff     uint32 // added to the acknowledgement number
	portOff    uint16 // added to the source port
	quoteOff   uint32 // added to the sequence number that an ICMP error quotes
	corrupt    bool   // whether the checksum is wrong
}

// SYNACK returns the answer of an open port. It has an MSS of 1400 bytes and no other TCP option.
func SYNACK() Answer {
	a := Answer{tcp: layers.TCP{SYN: true, ACK: true, Window: 65535}}
	return a.option(layers.TCPOptionKindMSS, 1400>>8, 1400&0xff)
}

// RST returns the answer of a closed port.
func RST() Answer { return Answer{tcp: layers.TCP{RST: true, ACK: true}} }

// SYN returns the answer of a port that opens a connection to the prober's port at the same time.
func SYN() Answer { return Answer{tcp: layers.TCP{SYN: true, Window: 65535}} }

// ACK returns a bare acknowledgement, which follows a SYN in a simultaneous open.
func ACK() Answer { return Answer{tcp: layers.TCP{ACK: true, Window: 65535}} }

// ICMP returns an ICMP error from the given address. It is an ICMPv6 error if the SYN is an IPv6 packet.
func ICMP(from string, icmpType, icmpCode uint8) Answer {
	return Answer{from: netip.MustParseAddr(from), kind: [2]uint8{icmpType, icmpCode}}
}

// After delays the answer. Answers with the same delay arrive in any order; answers without a delay arrive
// in the order in which they are given.
func (a Answer) After(d time.Duration) Answer { return a.Between(d, d) }

// Between delays the answer by a random time, evenly distributed from soonest to latest.
func (a Answer) Between(soonest, latest time.Duration) Answer {
	a.soonest, a.latest = soonest, latest
	return a
}

// WithoutOptions removes all TCP options.
func (a Answer) WithoutOptions() Answer {
	a.tcp.Options = nil
	return a
}

// MSS replaces all TCP options by a maximum segment size.
func (a Answer) MSS(bytes uint16) Answer {
	return a.WithoutOptions().option(layers.TCPOptionKindMSS, byte(bytes>>8), byte(bytes))
}

// WindowScale adds the TCP option for a window scale.
func (a Answer) WindowScale(shift uint8) Answer {
	return a.option(layers.TCPOptionKindWindowScale, shift)
}

// Window replaces the receive window, which is 65535 bytes.
func (a Answer) Window(bytes uint16) Answer {
	a.tcp.Window = bytes
	return a
}

// SACK adds the TCP option that permits selective acknowledgements.
func (a Answer) SACK() Answer { return a.option(layers.TCPOptionKindSACKPermitted) }

// Timestamps makes the answer accept timestamps, if the SYN has one.
func (a Answer) Timestamps() Answer {
	a.timestamps = true
	return a
}

// ECN makes the answer accept explicit congestion notification.
func (a Answer) ECN() Answer {
	a.tcp.ECE = true
	return a
}

// Acknowledging adds n to the acknowledgement number.
func (a Answer) Acknowledging(n uint32) Answer {
	a.ackOff = n
	return a
}

// FromPort adds n to the source port.
func (a Answer) FromPort(n uint16) Answer {
	a.portOff = n
	return a
}

// Quoting adds n to the sequence number that an ICMP error quotes.
func (a Answer) Quoting(n uint32) Answer {
	a.quoteOff = n
	return a
}

// Corrupt makes the TCP checksum wrong.
func (a Answer) Corrupt() Answer {
	a.corrupt = true
	return a
}

// option adds a TCP option. The original answer and the copy do not share their options.
func (a Answer) option(kind layers.TCPOptionKind, data ...byte) Answer {
	option := layers.TCPOption{OptionType: kind, OptionData: data}
	a.tcp.Options = append(slices.Clip(a.tcp.Options), option)
	return a
}

// delay returns a random delay in the answer's range.
func (a *Answer) delay(random *rand.Rand) time.Duration {
	return a.soonest + time.Duration(random.Int64N(int64(a.latest-a.soonest)+1))
}

// packet returns the answer to the SYN.
func (a Answer) packet(syn Segment) []byte {
	if a.from.IsValid() {
		if a.quoteOff != 0 {
			ipHeader := 20
			if syn.Src.Addr().Is6() {
				ipHeader = 40
			}
			syn.raw = append([]byte(nil), syn.raw...)
			binary.BigEndian.PutUint32(syn.raw[ipHeader+4:], syn.Seq+a.quoteOff)
		}
		return syn.ICMPError(a.from, a.kind[0], a.kind[1])
	}
	if a.timestamps && syn.timestamp != 0 {
		const own = 1 // the sender's timestamp
		data := binary.BigEndian.AppendUint32([]byte{0, 0, 0, own}, syn.timestamp)
		a = a.option(layers.TCPOptionKindTimestamps, data...)
	}
	tcp := a.tcp
	switch {
	case tcp.SYN:
		tcp.Seq = serverISN
	case !tcp.RST:
		tcp.Seq = serverISN + 1
	}
	if tcp.ACK {
		tcp.Ack = syn.Seq + 1 + a.ackOff
	}
	syn.Dst = netip.AddrPortFrom(syn.Dst.Addr(), syn.Dst.Port()+a.portOff)
	packet := syn.answer(&tcp)
	if a.corrupt {
		packet[len(packet)-1] ^= 1 // the last byte of the options
	}
	return packet
}
