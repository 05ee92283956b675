package config

import "net/netip"

// An embedding is a way to write an IPv4 address within an IPv6 address, so that a router, a translator or this host
// delivers the packets to the IPv4 address.
type embedding struct {
	name   string
	prefix netip.Prefix // of the IPv6 addresses
	at     [4]int       // which bytes are the IPv4 address
	toggle byte         // is XORed to each of them
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
	compatible = netip.MustParsePrefix("::/96")
	translated = netip.MustParsePrefix("::ffff:0:0:0/96")

	last = [4]int{12, 13, 14, 15}
)

// embeddings are those with a prefix that is assigned to them. The local prefix of NAT64 is for prefixes of a network's
// own, of any of the lengths that RFC 6052 permits.
var embeddings = []embedding{
	{name: "NAT64", prefix: nat64, at: last},                       // RFC 6052
	{name: "NAT64", prefix: localNAT64, at: last},                  // RFC 8215, with a prefix of 96 bits
	{name: "NAT64", prefix: localNAT64, at: [4]int{6, 7, 9, 10}},   // 48 bits: byte 8 is always 0
	{name: "NAT64", prefix: localNAT64, at: [4]int{7, 9, 10, 11}},  // 56 bits
	{name: "NAT64", prefix: localNAT64, at: [4]int{9, 10, 11, 12}}, // 64 bits
	{name: "6to4", prefix: sixToFour, at: [4]int{2, 3, 4, 5}},      // RFC 3056
	{name: "Teredo", prefix: teredo, at: [4]int{4, 5, 6, 7}},       // RFC 4380, the server
	{name: "Teredo", prefix: teredo, at: last, toggle: 0xff},       // the client
	{name: "IPv4-compatible", prefix: compatible, at: last},        // RFC 4291
	{name: "IPv4-translated", prefix: translated, at: last},        // RFC 2765
}

// isatap is the embedding of interface identifiers, with any prefix (RFC 5214).
var isatap = embedding{name: "ISATAP", at: last}

// isISATAP reports whether the interface identifier is one of ISATAP. The bit of value 2 says that the IPv4 address is
// globally unique.
func isISATAP(addr [16]byte) bool {
	return addr[8]&^2 == 0 && addr[9] == 0 && addr[10] == 0x5e && addr[11] == 0xfe
}

// An embedded address is an IPv4 address within an IPv6 address.
type embedded struct {
	netip.Addr
	by string // the name of the embedding
}

// embeddedIn returns the IPv4 addresses that an IPv6 address contains. Addresses of 0.0.0.0/8 are not among them: they
// are no destinations, but filler, as in ::1.
func embeddedIn(addr netip.Addr) (found []embedded) {
	bytes := addr.As16()
	add := func(e embedding) {
		var four [4]byte
		for i, at := range e.at {
			four[i] = bytes[at] ^ e.toggle
		}
		if four[0] != 0 {
			found = append(found, embedded{netip.AddrFrom4(four), e.name})
		}
	}
	for _, e := range embeddings {
		if e.prefix.Contains(addr) {
			add(e)
		}
	}
	if isISATAP(bytes) {
		add(isatap)
	}
	return found
}
