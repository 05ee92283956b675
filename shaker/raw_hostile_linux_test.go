package shaker

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// startWithoutSockets starts a Shaker that sends SYNs without sockets, for the rest of the test.
func startWithoutSockets(tb testing.TB) *Shaker {
	tb.Helper()
	lab.Need(tb)
	s, err := New(withoutSockets)
	if err != nil {
		tb.Fatalf("New(%+v): error %v, want none", *withoutSockets.Raw, err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// A forgery is a TCP segment of which a test chooses every part.
type forgery struct {
	from, to  netip.AddrPort
	tcp       layers.TCP // without ports and checksum
	offset    uint8      // the length of the TCP header in words that the header claims; 0 is the right one
	data      []byte
	routed    bool // the header of IPv4 has options, of 8 bytes
	length    int  // of the TCP segment, which is cut off; 0 is the right one
	corrupted bool // the checksum is wrong
}

// answering returns a segment from the target to this host that answers a SYN and has the given flags.
func answering(syn simnet.Segment, flags layers.TCP) forgery {
	if flags.ACK {
		flags.Ack = syn.Seq + 1
	}
	return forgery{from: syn.Dst, to: syn.Src, tcp: flags}
}

// packet returns the segment with its IP header.
func (f forgery) packet() []byte {
	const router = 148 // an IPv4 option that routers look at (RFC 2113)
	tcp := f.tcp
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(f.from.Port()), layers.TCPPort(f.to.Port())
	tcp.DataOffset = f.offset
	var ip interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	} = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP,
		SrcIP: f.from.Addr().AsSlice(), DstIP: f.to.Addr().AsSlice()}
	if f.from.Addr().Is4() {
		ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP,
			SrcIP: f.from.Addr().AsSlice(), DstIP: f.to.Addr().AsSlice()}
		if f.routed {
			option := layers.IPv4Option{OptionType: router, OptionLength: 4, OptionData: []byte{0, 0}}
			ip4.Options = []layers.IPv4Option{option, option}
		}
		ip = ip4
	}
	tcp.SetNetworkLayerForChecksum(ip)
	segment := serialize(gopacket.SerializeOptions{FixLengths: f.offset == 0, ComputeChecksums: true},
		&tcp, gopacket.Payload(f.data))
	if f.corrupted {
		segment[len(segment)-1] ^= 1
	}
	if f.length > 0 {
		segment = segment[:f.length]
	}
	return serialize(gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, gopacket.Payload(segment))
}

func serialize(options gopacket.SerializeOptions, all ...gopacket.SerializableLayer) []byte {
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, options, all...); err != nil {
		panic(err) // the layers are complete, so this cannot happen
	}
	return buffer.Bytes()
}

// Whatever arrives in place of an answer, a handshake without a socket ends as one with a socket.
func TestMalformedAnswers(t *testing.T) {
	synack, rst := layers.TCP{SYN: true, ACK: true, Window: 65535}, layers.TCP{RST: true, ACK: true}
	option := func(f *forgery, length uint8) {
		f.tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: length,
			OptionData: []byte{5, 0}}}
		f.offset = 6
	}
	cases := []struct {
		name  string
		flags layers.TCP
		with  func(*forgery)
		want  Outcome
	}{
		{name: "SYN-ACK", flags: synack, want: Open},
		{name: "SYN-ACK with 300 bytes", flags: synack, want: Open,
			with: func(f *forgery) { f.data = make([]byte, 300) }},
		{name: "SYN-ACK behind an IP option", flags: synack, want: Open,
			with: func(f *forgery) { f.routed = true }},
		{name: "SYN-ACK with FIN", flags: layers.TCP{SYN: true, ACK: true, FIN: true, Window: 65535}, want: Open},
		{name: "SYN-ACK with RST", flags: layers.TCP{SYN: true, ACK: true, RST: true}, want: Refused},
		{name: "SYN-ACK with an option of length 0", flags: synack, want: Open,
			with: func(f *forgery) { option(f, 0) }},
		{name: "SYN-ACK with an option that is too long", flags: synack, want: Open,
			with: func(f *forgery) { option(f, 40) }},
		{name: "SYN-ACK whose header is too short", flags: synack, want: Timeout,
			with: func(f *forgery) { f.offset = 4 }},
		{name: "SYN-ACK whose header is longer than the segment", flags: synack, want: Timeout,
			with: func(f *forgery) { f.offset = 6 }},
		{name: "14 bytes of an RST", flags: rst, want: Timeout,
			with: func(f *forgery) { f.routed, f.length = true, 14 }},
		{name: "RST", flags: rst, want: Refused},
		{name: "RST with 300 bytes", flags: rst, want: Refused,
			with: func(f *forgery) { f.data = make([]byte, 300) }},
		{name: "RST without ACK", flags: layers.TCP{RST: true}, want: Timeout},
		{name: "ACK", flags: layers.TCP{ACK: true}, want: Timeout},
		{name: "RST with a wrong checksum", flags: rst, want: Timeout,
			with: func(f *forgery) { f.corrupted = true }},
		{name: "RST with a wrong checksum, to another port", flags: rst, want: Timeout,
			with: func(f *forgery) { f.corrupted, f.to = true, netip.AddrPortFrom(f.to.Addr(), 9) }},
	}
	wire := simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if !s.SYN || s.ACK {
			return nil
		}
		c := cases[s.Dst.Port()-1]
		f := answering(s, c.flags)
		if c.with != nil {
			c.with(&f)
		}
		return [][]byte{f.packet()}
	}, "192.0.2.0/24", "2001:db8::/64")
	for engine, config := range map[string]*Config{"socket": nil, "raw": withoutSockets} {
		for _, target := range []netip.AddrPort{target4, target6} {
			for i, c := range cases {
				t.Run(fmt.Sprintf("%s, %v, %s", engine, target.Addr(), c.name), func(t *testing.T) {
					t.Parallel() // most of the time it waits
					s, err := New(config)
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					at := netip.AddrPortFrom(target.Addr(), uint16(i+1))
					r, err := inTime(func() (Result, error) {
						return s.Shake(context.Background(), at, &Options{Timeout: 500 * time.Millisecond})
					})
					if err != nil || r.Outcome != c.want {
						t.Errorf("Shake(%v) = %+v, error %v, want %v:\n%s", at, r, err, c.want, wire.Trace(at.Addr()))
					}
				})
			}
		}
	}
}
