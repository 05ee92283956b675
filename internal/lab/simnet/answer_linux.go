package simnet

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/gopacket/gopacket/layers"
)

// An Answer is a packet that comes for a SYN. Its methods return it changed.
type Answer struct {
	tcp  layers.TCP // but for ports, numbers and checksum
	from netip.Addr // who sends an ICMP error
	kind [2]uint8   // type and code of the ICMP error

	soonest, latest time.Duration // the delay is between them

	timestamps bool   // echoes the SYN's timestamp
	ackOff     uint32 // is added to the acknowledgement number
	portOff    uint16 // is added to the source port
	quoteOff   uint32 // is added to the sequence number that an ICMP error quotes
	corrupt    bool   // has a wrong checksum
}

// SYNACK is the answer of an open port. It has an MSS of 1400 bytes and no other option.
func SYNACK() Answer {
	a := Answer{tcp: layers.TCP{SYN: true, ACK: true, Window: 65535}}
	return a.option(layers.TCPOptionKindMSS, 1400>>8, 1400&0xff)
}

// RST is the answer of a closed port.
func RST() Answer { return Answer{tcp: layers.TCP{RST: true, ACK: true}} }

// SYN is the answer of a port that opens a connection to the prober's at the same time.
func SYN() Answer { return Answer{tcp: layers.TCP{SYN: true, Window: 65535}} }

// ACK is an acknowledgement without more, as it follows a SYN in a simultaneous open.
func ACK() Answer { return Answer{tcp: layers.TCP{ACK: true, Window: 65535}} }

// ICMP is an ICMP error, or an ICMPv6 error if it is about an IPv6 packet, that the
// given address sends.
func ICMP(from string, icmpType, icmpCode uint8) Answer {
	return Answer{from: netip.MustParseAddr(from), kind: [2]uint8{icmpType, icmpCode}}
}

// After delays the answer. Answers that are due at the same time come in any order, those
// without a delay come in their own.
func (a Answer) After(d time.Duration) Answer { return a.Between(d, d) }

// Between delays the answer by a time that is drawn evenly from soonest to latest.
func (a Answer) Between(soonest, latest time.Duration) Answer {
	a.soonest, a.latest = soonest, latest
	return a
}

// WithoutOptions has no TCP option.
func (a Answer) WithoutOptions() Answer {
	a.tcp.Options = nil
	return a
}

// MSS announces a maximum segment size.
func (a Answer) MSS(bytes uint16) Answer {
	return a.WithoutOptions().option(layers.TCPOptionKindMSS, byte(bytes>>8), byte(bytes))
}

// WindowScale announces a window scale.
func (a Answer) WindowScale(shift uint8) Answer {
	return a.option(layers.TCPOptionKindWindowScale, shift)
}

// SACK permits selective acknowledgements.
func (a Answer) SACK() Answer { return a.option(layers.TCPOptionKindSACKPermitted) }

// Timestamps agrees to timestamps.
func (a Answer) Timestamps() Answer {
	a.timestamps = true
	return a
}

// ECN agrees to explicit congestion notification.
func (a Answer) ECN() Answer {
	a.tcp.ECE = true
	return a
}

// Acknowledging acknowledges a number that is off by n.
func (a Answer) Acknowledging(n uint32) Answer {
	a.ackOff = n
	return a
}

// FromPort comes from a port that is off by n.
func (a Answer) FromPort(n uint16) Answer {
	a.portOff = n
	return a
}

// Quoting quotes, if it is an ICMP error, a sequence number that is off by n.
func (a Answer) Quoting(n uint32) Answer {
	a.quoteOff = n
	return a
}

// Corrupt has a wrong TCP checksum.
func (a Answer) Corrupt() Answer {
	a.corrupt = true
	return a
}

func (a Answer) option(kind layers.TCPOptionKind, data ...byte) Answer {
	options := make([]layers.TCPOption, 0, len(a.tcp.Options)+1) // the old answer keeps its own
	a.tcp.Options = append(append(options, a.tcp.Options...), layers.TCPOption{OptionType: kind, OptionData: data})
	return a
}

// delay draws the answer's delay.
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
		const own = 1
		a = a.option(layers.TCPOptionKindTimestamps, binary.BigEndian.AppendUint32([]byte{0, 0, 0, own}, syn.timestamp)...)
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
