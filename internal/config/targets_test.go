package config

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// policy returns the Targets of two lists of ranges.
func policy(t testing.TB, allow, deny []string) Targets {
	t.Helper()
	parse := func(texts []string) []Range {
		var ranges []Range
		for _, text := range texts {
			r, err := parseRange(text)
			if err != nil {
				t.Fatalf("parseRange(%s) = %v, want no error", text, err)
			}
			ranges = append(ranges, r)
		}
		return ranges
	}
	return Targets{Allow: parse(allow), Deny: parse(deny)}
}

func TestTargetsCheck(t *testing.T) {
	const (
		unpermitted  = "no rule of targets.allow permits it"
		unspecified4 = "0.0.0.0 stands for an address of this host, want that address"
		unspecified6 = ":: stands for an address of this host, want that address"
	)
	type list = []string
	for _, test := range []struct {
		allow, deny list
		target      string
		want        string // "" if it may be probed
	}{
		{target: "192.0.2.1:1"},
		{target: "0.0.0.0:1"},
		{allow: list{"10.0.0.0/8:443"}, target: "10.255.255.255:443"},
		{allow: list{"10.0.0.0/8:443"}, target: "11.0.0.0:443", want: unpermitted},
		{allow: list{"10.0.0.0/8:443"}, target: "10.0.0.1:444", want: unpermitted},
		{allow: list{"10.0.0.0/8:443"}, target: "[2001:db8::1]:443", want: unpermitted},
		{allow: list{"10.0.0.1:80-90", "10.0.0.1:443"}, target: "10.0.0.1:80"},
		{allow: list{"10.0.0.1:80-90", "10.0.0.1:443"}, target: "10.0.0.1:90"},
		{allow: list{"10.0.0.1:80-90", "10.0.0.1:443"}, target: "10.0.0.1:443"},
		{allow: list{"10.0.0.1:80-90", "10.0.0.1:443"}, target: "10.0.0.1:79", want: unpermitted},
		{allow: list{"10.0.0.1:80-90", "10.0.0.1:443"}, target: "10.0.0.1:91", want: unpermitted},
		{allow: list{"10.0.0.1:*"}, target: "10.0.0.1:1"},
		{allow: list{"10.0.0.1:*"}, target: "10.0.0.1:65535"},
		{allow: list{"10.0.0.1:*"}, target: "10.0.0.2:1", want: unpermitted},

		// deny wins
		{
			deny: list{"169.254.169.254:*"}, target: "169.254.169.254:80",
			want: "targets.deny 169.254.169.254/32:* forbids it",
		},
		{deny: list{"169.254.169.254:*"}, target: "169.254.169.253:80"},
		{
			allow: list{"10.0.0.0/8:*"}, deny: list{"10.1.0.0/16:22"}, target: "10.1.0.1:22",
			want: "targets.deny 10.1.0.0/16:22 forbids it",
		},
		{allow: list{"10.0.0.0/8:*"}, deny: list{"10.1.0.0/16:22"}, target: "10.1.0.1:23"},
		{
			allow: list{"10.1.0.1:22"}, deny: list{"192.0.2.1:*", "10.0.0.0/8:1-1024"}, target: "10.1.0.1:22",
			want: "targets.deny 10.0.0.0/8:1-1024 forbids it",
		},

		// the same address in another form
		{
			deny: list{"10.0.0.0/8:*"}, target: "[::ffff:10.0.0.1]:1",
			want: "targets.deny 10.0.0.0/8:* forbids it",
		},
		{
			deny: list{"[::ffff:10.0.0.0/104]:*"}, target: "10.0.0.1:1",
			want: "targets.deny 10.0.0.0/8:* forbids it",
		},
		{
			deny: list{"[::ffff:10.0.0.0/104]:*"}, target: "[::ffff:10.0.0.1]:1",
			want: "targets.deny 10.0.0.0/8:* forbids it",
		},
		{deny: list{"[::/0]:*"}, target: "[::ffff:10.0.0.1]:1"},
		{allow: list{"[::ffff:10.0.0.1]:1"}, target: "10.0.0.1:1"},
		{
			deny: list{"[fe80::/10]:*"}, target: "[fe80::1%eth0]:22",
			want: "targets.deny [fe80::/10]:* forbids it",
		},
		{allow: list{"[fe80::1]:22"}, target: "[fe80::1%eth0]:22"},

		// unspecified addresses, which stand for this host
		{deny: list{"127.0.0.0/8:*"}, target: "0.0.0.0:1", want: unspecified4},
		{deny: list{"127.0.0.0/8:*"}, target: "[::ffff:0.0.0.0]:1", want: unspecified4},
		{deny: list{"[::1]:*"}, target: "[::]:1", want: unspecified6},
		{deny: list{"[::1]:*"}, target: "[::%eth0]:1", want: unspecified6},
		{deny: list{"0.0.0.0:*"}, target: "127.0.0.1:1"},
		{allow: list{"0.0.0.0/0:*"}, target: "0.0.0.0:1", want: unspecified4},
		{allow: list{"[::]:*", "[::1]:*"}, target: "[::]:1", want: unspecified6},
	} {
		targets := policy(t, test.allow, test.deny)
		got := ""
		if err := targets.Check(netip.MustParseAddrPort(test.target)); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("allow %s, deny %s: Check(%s) = %q, want %q", test.allow, test.deny, test.target, got, test.want)
		}
	}
}

// A rule that denies an IPv4 address denies the IPv6 addresses that contain it, and a rule that allows it does not
// allow them.
func TestTargetsCheckEmbedded(t *testing.T) {
	const denied, allowed = "192.0.2.33:443", "192.0.2.34:443"
	for _, test := range []struct{ addr, other, by string }{ // with the denied address, and with the other one
		{addr: "64:ff9b::c000:221", other: "64:ff9b::c000:222", by: "NAT64"},
		{addr: "64:ff9b:1:c000:2:2100::", other: "64:ff9b:1:c000:2:2200::", by: "NAT64"},
		{addr: "64:ff9b:1:c000:2:2100:1:2", other: "64:ff9b:1:c000:2:2200:1:2", by: "NAT64"},
		{addr: "64:ff9b:1:3c0:0:221::", other: "64:ff9b:1:3c0:0:222::", by: "NAT64"},
		{addr: "64:ff9b:1:344:c0:2:2100:0", other: "64:ff9b:1:344:c0:2:2200:0", by: "NAT64"},
		{addr: "64:ff9b:1:344::c000:221", other: "64:ff9b:1:344::c000:222", by: "NAT64"},
		{addr: "2002:c000:221::1", other: "2002:c000:222::1", by: "6to4"},
		{addr: "2001:0:c000:221:0:1::", other: "2001:0:c000:222:0:1::", by: "Teredo"},
		{addr: "2001:0:c633:1:0:1:3fff:fdde", other: "2001:0:c633:1:0:1:3fff:fddd", by: "Teredo"},
		{addr: "::192.0.2.33", other: "::192.0.2.34", by: "IPv4-compatible"},
		{addr: "::ffff:0:192.0.2.33", other: "::ffff:0:192.0.2.34", by: "IPv4-translated"},
		{addr: "fe80::5efe:192.0.2.33%eth0", other: "fe80::5efe:192.0.2.34%eth0", by: "ISATAP"},
		{addr: "2001:db8:1:2:200:5efe:c000:221", other: "2001:db8:1:2:200:5efe:c000:222", by: "ISATAP"},

		// the same bits, but no embedding
		{other: "64:ff9b:0:1::c000:221"},
		{other: "64:ff9b:2::c000:221"},
		{other: "2003:c000:221::1"},
		{other: "2001:1:c000:221::1"},
		{other: "2001:db8::c000:221"},
		{other: "::1:0:c000:221"},
		{other: "2001:db8:1:2:100:5efe:c000:221"},
		{other: "2001:db8:1:2:0:5eff:c000:221"},
		{other: "2001:db8:1:2:1:5efe:c000:221"},
	} {
		check := func(targets Targets, addr string, port uint16, want string) {
			t.Helper()
			err := targets.Check(netip.AddrPortFrom(netip.MustParseAddr(addr), port))
			if err == nil && want != "" || err != nil && err.Error() != want {
				t.Errorf("allow %v, deny %v: Check(%s, port %d) = %v, want %q",
					targets.Allow, targets.Deny, addr, port, err, want)
			}
		}
		deny := policy(t, nil, []string{denied})
		check(deny, test.other, 443, "")
		if test.addr != "" {
			forbidden := "it contains 192.0.2.33 (" + test.by + "), which targets.deny 192.0.2.33/32:443 forbids"
			check(deny, test.addr, 443, forbidden)
			check(deny, test.addr, 444, "")
			check(policy(t, []string{"[::/0]:*"}, []string{denied}), test.addr, 443, forbidden)
		}
		check(policy(t, []string{allowed, "0.0.0.0/0:*"}, nil), test.other, 443, "no rule of targets.allow permits it")
		check(policy(t, []string{"[::/0]:*"}, []string{denied}), test.other, 443, "")
	}
	// Filler is no address: a rule about 0.0.0.0/8 is not about ::1 or a short NAT64 prefix.
	everything := policy(t, nil, []string{"0.0.0.0/8:*"})
	for _, addr := range []string{"::1", "64:ff9b:1:344::c000:221", "2002::1", "2001:db8::5efe:0:1"} {
		if err := everything.Check(netip.AddrPortFrom(netip.MustParseAddr(addr), 443)); err != nil {
			t.Errorf("deny 0.0.0.0/8:*: Check(%s) = %v, want it permitted", addr, err)
		}
	}
	// With all of IPv4 denied, what is translated to it is denied, too.
	all := policy(t, nil, []string{"0.0.0.0/0:*"})
	if err := all.Check(netip.MustParseAddrPort("[64:ff9b::102:304]:443")); err == nil {
		t.Error("deny 0.0.0.0/0:*: Check(64:ff9b::102:304) = nil, want an error")
	}
}

// For random rules and targets, Check agrees with a comparison bit by bit.
func TestTargetsCheckBitByBit(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	randomAddr := func() netip.Addr { // from a small set, so that rules often match
		bytes := make([]byte, 4)
		if random.IntN(2) == 0 {
			bytes = make([]byte, 16)
		}
		bytes[0], bytes[len(bytes)-1] = byte(random.IntN(4)), byte(1+random.IntN(3))
		addr, _ := netip.AddrFromSlice(bytes)
		return addr
	}
	type rule struct {
		addr        netip.Addr
		bits        int
		first, last uint16
	}
	randomRules := func() (rules []rule, texts []string) {
		for range random.IntN(4) {
			addr := randomAddr()
			prefix, _ := addr.Prefix(random.IntN(addr.BitLen() + 1))
			first := uint16(1 + random.IntN(5))
			r := rule{addr: prefix.Addr(), bits: prefix.Bits(), first: first, last: first + uint16(random.IntN(3))}
			rules = append(rules, r)
			text := fmt.Sprintf("%v:%d-%d", prefix, r.first, r.last)
			if addr.Is6() {
				text = fmt.Sprintf("[%v]:%d-%d", prefix, r.first, r.last)
			}
			texts = append(texts, text)
		}
		return rules, texts
	}
	matches := func(rules []rule, addr netip.Addr, port uint16) bool {
		for _, r := range rules {
			if addr.BitLen() != r.addr.BitLen() || port < r.first || port > r.last {
				continue
			}
			same := true
			for bit := range r.bits {
				mask := byte(0x80 >> (bit % 8))
				same = same && addr.AsSlice()[bit/8]&mask == r.addr.AsSlice()[bit/8]&mask
			}
			if same {
				return true
			}
		}
		return false
	}
	verdicts := map[bool]int{}
	for range 20_000 {
		allow, allowTexts := randomRules()
		deny, denyTexts := randomRules()
		targets := policy(t, allowTexts, denyTexts)
		addr, port := randomAddr(), uint16(1+random.IntN(8))
		want := (len(allow) == 0 || matches(allow, addr, port)) && !matches(deny, addr, port)
		form := addr
		switch {
		case addr.Is4() && random.IntN(2) == 0:
			form = netip.AddrFrom16(addr.As16())
		case addr.Is6() && random.IntN(2) == 0:
			form = addr.WithZone("eth0")
		}
		err := targets.Check(netip.AddrPortFrom(form, port))
		if (err == nil) != want {
			t.Fatalf("allow %s, deny %s: Check(%v port %d) = %v, want permitted %t",
				allowTexts, denyTexts, form, port, err, want)
		}
		verdicts[want]++
	}
	if verdicts[true] < 1000 || verdicts[false] < 1000 {
		t.Errorf("permitted or not: %v, want at least 1000 of both", verdicts)
	}
}

func TestRange(t *testing.T) {
	for text, want := range map[string]string{ // "": the same
		"10.0.0.0/8:443":             "",
		"10.0.0.1:443":               "10.0.0.1/32:443",
		"10.0.0.1/32:1-1024":         "",
		"10.0.0.1/32:443-443":        "10.0.0.1/32:443",
		"0.0.0.0/0:*":                "",
		"0.0.0.0/0:1-65535":          "",
		"[2001:db8::/32]:*":          "",
		"[2001:DB8:0::1]:65535":      "[2001:db8::1/128]:65535",
		"[::/0]:1":                   "",
		"[::ffff:10.0.0.0/104]:443":  "10.0.0.0/8:443",
		"[::ffff:10.0.0.1]:443":      "10.0.0.1/32:443",
		"[::ffff:0:0/96]:443":        "0.0.0.0/0:443",
		"[64:ff9b::10.0.0.0/104]:80": "[64:ff9b::a00:0/104]:80",
	} {
		if want == "" {
			want = text
		}
		r, err := parseRange(text)
		if err != nil || r.String() != want {
			t.Errorf("parseRange(%s) = %v, %v, want %s", text, r, err, want)
		}
		if again, err := parseRange(want); err != nil || again != r {
			t.Errorf("parseRange(%s) = %v, %v, want the same as of %s", want, again, err, text)
		}
	}
}

func TestRangeMistakes(t *testing.T) {
	const (
		noRange = "is not an address range with ports, want one such as 10.0.0.0/8:443 or [2001:db8::/32]:*"
		noAddr  = "has no IP address, want one such as 10.0.0.0/8 or 192.0.2.1: " +
			"rules match resolved addresses, not names"
	)
	for text, want := range map[string]string{
		"":                        noRange,
		"everyone":                noRange,
		"10.0.0.0/8":              "has no port, want 10.0.0.0/8:443 or 10.0.0.0/8:*",
		"10.0.0.1":                "has no port, want 10.0.0.1:443 or 10.0.0.1:*",
		"2001:db8::1":             "has no port, want [2001:db8::1]:443 or [2001:db8::1]:*",
		"2001:db8::/32":           "has no port, want [2001:db8::/32]:443 or [2001:db8::/32]:*",
		"[2001:db8::/32]":         "has no port, want [2001:db8::/32]:443 or [2001:db8::/32]:*",
		"2001:db8::/32:443":       "has no brackets, want [2001:db8::/32]:443",
		"[10.0.0.0/8]:443":        "has brackets, which are only for IPv6, want 10.0.0.0/8:443",
		"10.0.0.1/8:443":          "has bits set beyond its prefix length, want 10.0.0.0/8:443",
		"[2001:db8::1/32]:*":      "has bits set beyond its prefix length, want [2001:db8::/32]:*",
		"[::ffff:10.0.0.1/104]:*": "has bits set beyond its prefix length, want [::ffff:10.0.0.0/104]:*",
		"[::ffff:0.0.0.0/80]:*":   "has bits set beyond its prefix length, want [::/80]:*",
		"10.0.0.0/33:443":         "has prefix length 33, want 0 to 32",
		"10.0.0.0/08:443":         "has prefix length 08, want 0 to 32",
		"10.0.0.0/-1:443":         "has prefix length -1, want 0 to 32",
		"10.0.0.0/:443":           `has prefix length "", want 0 to 32`,
		"10.0.0.0/8/8:443":        "has prefix length 8/8, want 0 to 32",
		"10.0.0.0/255.0.0.0:443":  "has prefix length 255.0.0.0, want 0 to 32",
		"[2001:db8::/129]:443":    "has prefix length 129, want 0 to 128",
		"[::ffff:10.0.0.0/129]:*": "has prefix length 129, want 0 to 128",
		"10.0.0/8:443":            noAddr,
		"10.0.0/33:443":           noAddr,
		"010.0.0.0/8:443":         noAddr,
		"example.com:443":         noAddr,
		"*:443":                   noAddr,
		":443":                    noAddr,
		"[]:443":                  noAddr,
		"[fe80::1%eth0]:22":       "has a zone, want fe80::1: a rule applies to every interface",
		"[fe80::%eth0/64]:22":     "has a zone, want fe80::/64: a rule applies to every interface",
		"10.0.0.0/8:":             `has port "", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:0":            `has port "0", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:0-80":         `has port "0-80", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:65536":        `has port "65536", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:+1":           `has port "+1", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:https":        `has port "https", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:90-80":        `has port "90-80", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:80-":          `has port "80-", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:80-90-100":    `has port "80-90-100", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:80,443":       `has port "80,443", want 1 to 65535, a range such as 1-1024, or *`,
	} {
		if r, err := parseRange(text); err == nil || err.Error() != want {
			t.Errorf("parseRange(%q) = %v\n got %v\nwant %s", text, r, err, want)
		}
	}
}
