package shaker

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// SYNs are what a well-kept library reads in them, with valid checksums.
func TestSYNsAsBytes(t *testing.T) {
	for _, s := range []syn{
		{from: netip.MustParseAddrPort("192.0.2.1:32768"), to: target4, ttl: 64, mss: 1460},
		{from: netip.MustParseAddrPort("0.0.0.0:1"), to: netip.MustParseAddrPort("255.255.255.255:65535"),
			sequence: 1<<32 - 1, stamp: 1<<32 - 1, mss: 65535, ttl: 255, dscp: 63},
		{from: netip.MustParseAddrPort("1.2.3.4:1025"), to: netip.MustParseAddrPort("5.6.7.8:257"),
			sequence: 0x01020304, stamp: 0x05060708, mss: 536, ttl: 1, dscp: 1},
		{from: netip.MustParseAddrPort("192.0.2.1:32768"), to: target4, ttl: 64, mss: 1460, damaged: true},
		{from: netip.MustParseAddrPort("[2001:db8::2]:32768"), to: target6, ttl: 64, mss: 1440},
		{from: netip.MustParseAddrPort("[::]:1"),
			to:       netip.MustParseAddrPort("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
			sequence: 1<<32 - 1, stamp: 1<<32 - 1, mss: 65535, ttl: 255, dscp: 63, label: 1<<20 - 1},
		{from: netip.MustParseAddrPort("[fe80::1]:1025"), to: netip.MustParseAddrPort("[fe80::2]:257"),
			sequence: 0x01020304, stamp: 0x05060708, mss: 1220, ttl: 1, dscp: 1, label: 0xfff00001},
		{from: netip.MustParseAddrPort("[2001:db8::2]:32768"), to: target6, ttl: 64, mss: 1440, damaged: true},
	} {
		before := []byte{1, 2, 3} // the SYN is appended
		packet := s.append(slices.Clone(before))
		if !slices.Equal(packet[:3], before) || len(packet)-3 > longestSYN {
			t.Fatalf("%+v: append to % x is % x, want %d bytes more at most", s, before, packet, longestSYN)
		}
		first := layers.LayerTypeIPv4
		if s.to.Addr().Is6() {
			first = layers.LayerTypeIPv6
		} else {
			binary.BigEndian.PutUint16(packet[3+2:], uint16(len(packet)-3)) // the kernel does so
		}
		parsed := gopacket.NewPacket(packet[3:], first, gopacket.Default)
		if err := parsed.ErrorLayer(); err != nil {
			t.Fatalf("%+v: gopacket reads % x: %v", s, packet[3:], err.Error())
		}
		tcp := parsed.Layer(layers.LayerTypeTCP).(*layers.TCP)
		got := syn{
			sequence: tcp.Seq,
			from:     netip.AddrPortFrom(s.from.Addr(), uint16(tcp.SrcPort)),
			to:       netip.AddrPortFrom(s.to.Addr(), uint16(tcp.DstPort)),
		}
		var from, to []byte
		switch ip := parsed.NetworkLayer().(type) {
		case *layers.IPv4:
			from, to, got.ttl, got.dscp = ip.SrcIP, ip.DstIP, ip.TTL, ip.TOS>>2
			if ip.TOS&3 != 0 || ip.Flags != layers.IPv4DontFragment || ip.Protocol != layers.IPProtocolTCP {
				t.Errorf("%+v: %+v, want DF, and neither ECN nor options", s, ip)
			}
		case *layers.IPv6:
			from, to, got.ttl, got.dscp, got.label = ip.SrcIP, ip.DstIP, ip.HopLimit, ip.TrafficClass>>2, ip.FlowLabel
			if ip.TrafficClass&3 != 0 || ip.NextHeader != layers.IPProtocolTCP || int(ip.Length) != len(packet)-3-40 {
				t.Errorf("%+v: %+v, want no ECN, and a length of %d", s, ip, len(packet)-3-40)
			}
		}
		if !slices.Equal(from, s.from.Addr().AsSlice()) || !slices.Equal(to, s.to.Addr().AsSlice()) {
			t.Errorf("%+v: addresses %v and %v", s, from, to)
		}
		var kinds []layers.TCPOptionKind
		for _, option := range tcp.Options {
			kinds = append(kinds, option.OptionType)
			switch option.OptionType {
			case layers.TCPOptionKindMSS:
				got.mss = binary.BigEndian.Uint16(option.OptionData)
			case layers.TCPOptionKindTimestamps:
				got.stamp = binary.BigEndian.Uint32(option.OptionData)
				if echo := binary.BigEndian.Uint32(option.OptionData[4:]); echo != 0 {
					t.Errorf("%+v: the SYN echoes the timestamp %d, want 0", s, echo)
				}
			}
		}
		if want := []layers.TCPOptionKind{2, 4, 8, 1, 3}; !slices.Equal(kinds, want) {
			t.Errorf("%+v: options %v, want %v", s, kinds, want)
		}
		if !tcp.SYN || tcp.Contents[13] != flagSYN || tcp.Ack != 0 || tcp.Window == 0 || len(tcp.Payload) > 0 {
			t.Errorf("%+v: %+v, want just a SYN, with a window and without data", s, tcp)
		}
		want := s
		want.label &= 1<<20 - 1
		want.damaged = false
		if got != want {
			t.Errorf("gopacket reads %+v, want %+v", got, want)
		}
		tcp.SetNetworkLayerForChecksum(parsed.NetworkLayer())
		if err, sum := tcp.VerifyChecksum(); err != nil || sum.Valid == s.damaged {
			t.Errorf("%+v: the checksum is %#x, error %v, want %#x, and wrong if the SYN is damaged: %t",
				s, sum.Actual, err, sum.Correct, s.damaged)
		}
	}
}

// What a well-kept library writes is understood.
func TestParseAnswer(t *testing.T) {
	mss := layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionData: []byte{5, 180}}
	stamps := layers.TCPOption{OptionType: layers.TCPOptionKindTimestamps, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}
	nop := layers.TCPOption{OptionType: layers.TCPOptionKindNop}
	end := layers.TCPOption{OptionType: layers.TCPOptionKindEndList}
	other := layers.TCPOption{OptionType: 254, OptionData: []byte{1, 2}}
	for _, c := range []struct {
		tcp  layers.TCP
		want answer
		ok   bool
	}{
		{tcp: layers.TCP{SYN: true, ACK: true, Ack: 1<<32 - 1}, want: answer{acknowledged: 1<<32 - 1}, ok: true},
		{tcp: layers.TCP{RST: true, ACK: true, Ack: 7}, want: answer{rst: true, acknowledged: 7}, ok: true},
		{tcp: layers.TCP{SYN: true, RST: true, ACK: true}, want: answer{rst: true}, ok: true},
		{tcp: layers.TCP{SYN: true, ACK: true, ECE: true, Options: []layers.TCPOption{mss}},
			want: answer{mss: 1460}, ok: true},
		{tcp: layers.TCP{SYN: true, ACK: true, Options: []layers.TCPOption{nop, nop, stamps, other, mss}},
			want: answer{mss: 1460, timestamps: true, echo: 0x05060708}, ok: true},
		{tcp: layers.TCP{SYN: true, ACK: true, Options: []layers.TCPOption{other, end, mss}}, want: answer{}, ok: true},
		{tcp: layers.TCP{SYN: true}},
		{tcp: layers.TCP{RST: true}},
		{tcp: layers.TCP{ACK: true, Ack: 7}, want: answer{bare: true, acknowledged: 7}, ok: true},
		{tcp: layers.TCP{FIN: true, ACK: true, Ack: 7}, want: answer{bare: true, acknowledged: 7}, ok: true},
		{tcp: layers.TCP{}},
	} {
		c.tcp.SrcPort, c.tcp.DstPort = 80, 32768
		segment := serialize(gopacket.SerializeOptions{FixLengths: true}, &c.tcp, gopacket.Payload("data"))
		got := answer{mss: 9, timestamps: true, echo: 9} // of another segment
		if ok := parseAnswer(segment, &got); ok != c.ok {
			t.Errorf("parseAnswer(% x) = %t, want %t", segment, ok, c.ok)
			continue
		}
		if c.want.flow.port = 32768; c.ok && got != c.want {
			t.Errorf("parseAnswer(% x): %+v, want %+v", segment, got, c.want)
		}
		for n := range len(segment) - len("data") {
			if parseAnswer(segment[:n], &got) {
				t.Errorf("parseAnswer(% x) = true, want false without the whole header", segment[:n])
			}
		}
	}
}

// FuzzAnswer lets an ear parse any bytes, and compares it with gopacket.
func FuzzAnswer(f *testing.F) {
	for _, target := range []netip.AddrPort{target4, target6} {
		to := netip.AddrPortFrom(target.Addr().Next(), 32768)
		for _, tcp := range []layers.TCP{
			{SYN: true, ACK: true, Options: []layers.TCPOption{
				{OptionType: layers.TCPOptionKindMSS, OptionData: []byte{5, 180}},
				{OptionType: layers.TCPOptionKindTimestamps, OptionData: make([]byte, 8)},
			}},
			{RST: true, ACK: true},
		} {
			f.Add(forgery{from: target, to: to, tcp: tcp}.packet(), target.Addr().Is6())
			f.Add(forgery{from: target, to: to, tcp: tcp, routed: true}.packet(), target.Addr().Is6())
			f.Add(forgery{from: target, to: to, tcp: tcp, routed: true, length: 14}.packet(), target.Addr().Is6())
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte, six bool) {
		e := &ear{family: unix.AF_INET}
		first, header := gopacket.LayerType(layers.LayerTypeIPv4), 20
		if six {
			e.family, first, header = unix.AF_INET6, layers.LayerTypeIPv6, 40
		}
		if len(packet) < header {
			return // the kernel drops it
		}
		heard := packet
		if six { // the kernel passes on the addresses, and no header
			from := netip.AddrPortFrom(netip.AddrFrom16([16]byte(packet[8:24])), 0)
			e.names[0], _ = newRawAddress(from, 0)
			heard = packet[header:]
			info := controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, append(packet[24:40:40], 0, 0, 0, 0))
			e.messages[0].header.SetControllen(copy(e.controls[0][:], info))
		} else {
			e.names[0], _ = newRawAddress(netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[12:16])), 0), 0)
		}
		e.messages[0].length = uint32(copy(e.data[0][:], heard))
		if len(heard) > longestHeard {
			e.messages[0].header.Flags = unix.MSG_TRUNC
		}
		var got answer
		_, ok := e.parse(0, &got)

		parsed := gopacket.NewPacket(packet, first, gopacket.NoCopy)
		tcp, _ := parsed.Layer(layers.LayerTypeTCP).(*layers.TCP)
		whole := header + len(heard)
		if ip, _ := parsed.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ip != nil {
			whole = int(ip.IHL)*4 + len(ip.Payload)
		}
		if tcp == nil || parsed.ErrorLayer() != nil || whole != len(packet) || len(heard) > longestHeard ||
			six && int(binary.BigEndian.Uint16(packet[4:])) != len(heard) || six && packet[6] != unix.IPPROTO_TCP {
			return // the kernel does not deliver it so
		}
		tcp.SetNetworkLayerForChecksum(parsed.NetworkLayer())
		err, sum := tcp.VerifyChecksum()
		if err != nil {
			return
		}
		want := sum.Valid && tcp.ACK
		if unfinished := tcp.Checksum == pseudo(parsed.NetworkLayer(),
			len(tcp.Contents)+len(tcp.Payload)); !unfinished &&
			ok != want {
			t.Fatalf("parse(% x) = %t, want %t as gopacket: %+v, checksum %+v", packet, ok, want, tcp, sum)
		}
		if !ok {
			return
		}
		if got.rst != tcp.RST || got.bare == (tcp.RST || tcp.SYN) ||
			got.acknowledged != tcp.Ack || got.flow.port != uint16(tcp.DstPort) ||
			got.flow.peer.addrPort("").Port() != uint16(tcp.SrcPort) {
			t.Fatalf("parse(% x): %+v, want as gopacket: %+v", packet, got, tcp)
		}
		var of answer
		for _, option := range tcp.Options {
			switch {
			case option.OptionType == layers.TCPOptionKindMultipathTCP:
				return // gopacket does not read what follows if it does not know this one
			case option.OptionType == layers.TCPOptionKindMSS && len(option.OptionData) == 2:
				of.mss = binary.BigEndian.Uint16(option.OptionData)
			case option.OptionType == layers.TCPOptionKindTimestamps && len(option.OptionData) == 8:
				of.timestamps, of.echo = true, binary.BigEndian.Uint32(option.OptionData[4:])
			}
		}
		if got.mss != of.mss || got.timestamps != of.timestamps || got.echo != of.echo {
			t.Fatalf("parse(% x): %+v, want the options of gopacket: %+v", packet, got, of)
		}
	})
}

// pseudo returns the sum of the pseudo-header of a segment.
func pseudo(ip gopacket.NetworkLayer, length int) uint16 {
	ends := ip.NetworkFlow()
	from, to := ends.Endpoints()
	return fold(addWords(addWords(unix.IPPROTO_TCP+uint64(length), from.Raw()), to.Raw()))
}

// controlMessage returns a control message with the given data (cmsg(3)).
func controlMessage(level, kind int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	length := binary.NativeEndian.AppendUint64(nil, uint64(unix.CmsgLen(len(data))))
	if unix.SizeofPtr == 4 {
		length = binary.NativeEndian.AppendUint32(nil, uint32(unix.CmsgLen(len(data))))
	}
	n := copy(b, length)
	binary.NativeEndian.PutUint32(b[n:], uint32(level))
	binary.NativeEndian.PutUint32(b[n+4:], uint32(kind))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// No SYN that is meant to be damaged has the sum of the pseudo-header, as segments have that have not left their host.
func TestDamagedChecksum(t *testing.T) {
	s := syn{from: netip.MustParseAddrPort("192.0.2.1:32768"), to: target4, ttl: 64, mss: 1460, damaged: true}
	for s.sequence = range uint32(1 << 17) {
		packet := s.append(nil)
		if checksumHolds(packet[12:16], packet[16:20], packet[20:]) {
			t.Fatalf("the checksum of %+v holds, want a damaged one", s)
		}
	}
}
