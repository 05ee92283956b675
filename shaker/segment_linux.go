package shaker

import (
	"encoding/binary"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The SYNs of the raw engine and the answers to them, as bytes (RFC 9293, RFC 791, RFC 8200).

const (
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4

	// longestSYN is the length of a SYN over IPv6 with its headers and options.
	longestSYN = 40 + 20 + synOptions

	// synOptions is the length of the TCP options of a SYN: those that Linux sends, in the same order.
	synOptions = 20

	optionEnd        = 0
	optionNone       = 1
	optionMSS        = 2
	optionScale      = 3
	optionSACK       = 4
	optionTimestamps = 8

	timestampsLength = 12 // in every segment of a connection with timestamps, with padding
)

// A syn is what is in a SYN.
type syn struct {
	from, to  netip.AddrPort
	sequence  uint32
	stamp     uint32 // the value of the TCP timestamps option
	mss       uint16
	ttl, dscp uint8
	label     uint32 // the flow label, for IPv6
	damaged   bool   // the checksum is wrong
	reset     bool   // it is the RST that ends the handshake
}

// append appends the SYN with its IP header to b. The kernel sets the length, the identification and the checksum of
// an IPv4 header.
func (s *syn) append(b []byte) []byte {
	length := byte(20 + synOptions)
	if s.reset {
		length = 20
	}
	begin := len(b)
	if to := s.to.Addr(); to.Is4() {
		const doNotFragment = 1 << 6
		b = append(b, 4<<4|5, s.dscp<<2, 0, 20+length, 0, 0, doNotFragment, 0, s.ttl, unix.IPPROTO_TCP, 0, 0)
		from4, to4 := s.from.Addr().As4(), to.As4()
		b = append(append(b, from4[:]...), to4[:]...)
	} else {
		b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(s.dscp)<<22|s.label&0xfffff)
		b = append(b, 0, length, unix.IPPROTO_TCP, s.ttl)
		from6, to6 := s.from.Addr().As16(), to.As16()
		b = append(append(b, from6[:]...), to6[:]...)
	}
	tcp := len(b)
	b = binary.BigEndian.AppendUint16(b, s.from.Port())
	b = binary.BigEndian.AppendUint16(b, s.to.Port())
	b = binary.BigEndian.AppendUint32(b, s.sequence)
	if s.reset {
		b = append(b, 0, 0, 0, 0, length/4<<4, flagRST, 0, 0, 0, 0, 0, 0)
	} else {
		b = append(b, 0, 0, 0, 0, length/4<<4, flagSYN, 0xfa, 0xf0, 0, 0, 0, 0) // a window of 64240, as Linux
		b = append(b, optionMSS, 4, byte(s.mss>>8), byte(s.mss), optionSACK, 2, optionTimestamps, 10)
		b = binary.BigEndian.AppendUint32(b, s.stamp)
		b = append(b, 0, 0, 0, 0, optionNone, optionScale, 3, 7)
	}
	addresses := b[tcp-8 : tcp]
	if !s.to.Addr().Is4() {
		addresses = b[begin+8 : tcp]
	}
	pseudo := addWords(unix.IPPROTO_TCP+uint64(length), addresses)
	checksum := ^fold(addWords(pseudo, b[tcp:]))
	if s.damaged {
		checksum ^= 1
		if checksum == fold(pseudo) {
			checksum ^= 3 // see checksumHolds
		}
	}
	binary.BigEndian.PutUint16(b[tcp+16:], checksum)
	return b
}

// An answer is what is known from a segment that may answer a SYN.
type answer struct {
	flow         flow
	rst          bool
	bare         bool // neither an RST nor a SYN-ACK: the target has an earlier connection from the port
	acknowledged uint32
	window       uint16
	mss          uint16 // 0 if there is none
	timestamps   bool
	echo         uint32 // of the timestamps option
	ttl          uint8
}

// parseAnswer parses the TCP header of a segment. ok is false if the header is not complete, or if the segment
// acknowledges nothing.
func parseAnswer(tcp []byte, a *answer) (ok bool) {
	if len(tcp) < 20 {
		return false
	}
	header := int(tcp[12]>>4) * 4
	if header < 20 || header > len(tcp) {
		return false
	}
	flags := tcp[13]
	if flags&flagACK == 0 {
		return false
	}
	a.rst = flags&flagRST != 0
	a.bare = flags&(flagRST|flagSYN) == 0
	a.flow.port = binary.BigEndian.Uint16(tcp[2:])
	a.acknowledged = binary.BigEndian.Uint32(tcp[8:])
	a.window = binary.BigEndian.Uint16(tcp[14:])
	a.mss, a.timestamps, a.echo = 0, false, 0
	options := tcp[20:header]
	for len(options) > 0 && options[0] != optionEnd {
		if options[0] == optionNone {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			break
		}
		switch value := options[2:options[1]]; {
		case options[0] == optionMSS && len(value) == 2:
			a.mss = binary.BigEndian.Uint16(value)
		case options[0] == optionTimestamps && len(value) == 8:
			a.timestamps, a.echo = true, binary.BigEndian.Uint32(value[4:])
		}
		options = options[options[1]:]
	}
	return true
}

// mostOfWindow returns how long a segment Linux would send into the receive window: no longer than half of it.
// (From tcp_bound_to_half_wnd in Linux 6.18.)
func (a *answer) mostOfWindow() int {
	shortest := 68 - 20 // an IP packet that every network takes (RFC 791), without the TCP header
	if a.timestamps {
		shortest -= timestampsLength
	}
	switch {
	case a.window == 0:
		return math.MaxInt
	case a.window <= 536:
		return max(shortest, int(a.window))
	}
	return int(a.window) / 2
}

// checksumHolds reports whether the checksum of a segment between two IP addresses is right. A segment that has not
// left this host, or comes from a virtual machine's host, has just the sum of the pseudo-header: the network card would
// do the rest.
func checksumHolds(from, to, tcp []byte) bool {
	pseudo := addWords(addWords(unix.IPPROTO_TCP+uint64(len(tcp)), from), to)
	return fold(addWords(pseudo, tcp)) == 0xffff || binary.BigEndian.Uint16(tcp[16:]) == fold(pseudo)
}

// addWords adds the 16-bit words of b to a sum that fold turns into a checksum (RFC 1071).
func addWords(sum uint64, b []byte) uint64 {
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
