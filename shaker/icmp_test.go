package shaker

import (
	"net/netip"
	"slices"
	"testing"
)

// Each type and code of ICMP and ICMPv6 means exactly what the RFCs say.
func TestICMPMeaning(t *testing.T) {
	for _, c := range []struct {
		from                  string
		unreachable           uint8 // the type of Destination Unreachable
		ttlExceeded, neighbor [2]uint8
		soft, prohibited      []uint8 // codes of Destination Unreachable
	}{
		{from: "198.51.100.7", unreachable: 3, ttlExceeded: [2]uint8{11, 0}, neighbor: [2]uint8{3, 1},
			soft: []uint8{0, 1, 5}, prohibited: []uint8{9, 10, 13}},
		{from: "2001:db8:ffff::7", unreachable: 1, ttlExceeded: [2]uint8{3, 0}, neighbor: [2]uint8{1, 3},
			soft: []uint8{0, 3}, prohibited: []uint8{1, 5, 6}},
	} {
		for number := range 1 << 16 {
			icmp := ICMP{From: netip.MustParseAddr(c.from), Type: uint8(number >> 8), Code: uint8(number)}
			own := icmp
			own.Own = true
			kind, unreachable := [2]uint8{icmp.Type, icmp.Code}, icmp.Type == c.unreachable
			for _, m := range []struct {
				meaning   string
				got, want bool
			}{
				{meaning: "destination unreachable", got: icmp.destinationUnreachable(), want: unreachable},
				{meaning: "TTL exceeded", got: icmp.ttlExceeded(), want: kind == c.ttlExceeded},
				{meaning: "soft", got: icmp.soft(), want: unreachable && slices.Contains(c.soft, icmp.Code)},
				{meaning: "prohibited", got: icmp.prohibited(),
					want: unreachable && slices.Contains(c.prohibited, icmp.Code)},
				{meaning: "neighbor unreachable", got: icmp.String() == "neighbor_unreachable"},
				{meaning: "neighbor unreachable by this host", got: own.String() == "neighbor_unreachable",
					want: kind == c.neighbor},
			} {
				if m.got != m.want {
					t.Errorf("type %d, code %d from %s is %s: %t, want %t",
						icmp.Type, icmp.Code, c.from, m.meaning, m.got, m.want)
				}
			}
		}
	}
}
