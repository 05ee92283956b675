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
				t.Fatalf("%s %v", text, err)
			}
			ranges = append(ranges, r)
		}
		return ranges
	}
	return Targets{Allow: parse(allow), Deny: parse(deny)}
}

func TestTargetsCheck(t *testing.T) {
	const (
		unpermitted = "no rule of targets.allow permits it"
		unnamed4    = "0.0.0.0 stands for an address of this host, which has to be named"
		unnamed6    = ":: stands for an address of this host, which has to be named"
	)
	type list = []string
	for _, test := range []struct {
		allow, deny list
		target      string
		want        string // "": it may be probed
	}{
		{nil, nil, "192.0.2.1:1", ""},
		{nil, nil, "0.0.0.0:1", ""},
		{list{"10.0.0.0/8:443"}, nil, "10.255.255.255:443", ""},
		{list{"10.0.0.0/8:443"}, nil, "11.0.0.0:443", unpermitted},
		{list{"10.0.0.0/8:443"}, nil, "10.0.0.1:444", unpermitted},
		{list{"10.0.0.0/8:443"}, nil, "[2001:db8::1]:443", unpermitted},
		{list{"10.0.0.1:80-90", "10.0.0.1:443"}, nil, "10.0.0.1:80", ""},
		{list{"10.0.0.1:80-90", "10.0.0.1:443"}, nil, "10.0.0.1:90", ""},
		{list{"10.0.0.1:80-90", "10.0.0.1:443"}, nil, "10.0.0.1:443", ""},
		{list{"10.0.0.1:80-90", "10.0.0.1:443"}, nil, "10.0.0.1:79", unpermitted},
		{list{"10.0.0.1:80-90", "10.0.0.1:443"}, nil, "10.0.0.1:91", unpermitted},
		{list{"10.0.0.1:*"}, nil, "10.0.0.1:1", ""},
		{list{"10.0.0.1:*"}, nil, "10.0.0.1:65535", ""},
		{list{"10.0.0.1:*"}, nil, "10.0.0.2:1", unpermitted},

		// deny wins
		{nil, list{"169.254.169.254:*"}, "169.254.169.254:80", "targets.deny 169.254.169.254/32:* forbids it"},
		{nil, list{"169.254.169.254:*"}, "169.254.169.253:80", ""},
		{list{"10.0.0.0/8:*"}, list{"10.1.0.0/16:22"}, "10.1.0.1:22", "targets.deny 10.1.0.0/16:22 forbids it"},
		{list{"10.0.0.0/8:*"}, list{"10.1.0.0/16:22"}, "10.1.0.1:23", ""},
		{list{"10.1.0.1:22"}, list{"192.0.2.1:*", "10.0.0.0/8:1-1024"}, "10.1.0.1:22", "targets.deny 10.0.0.0/8:1-1024 forbids it"},

		// the same address in another guise
		{nil, list{"10.0.0.0/8:*"}, "[::ffff:10.0.0.1]:1", "targets.deny 10.0.0.0/8:* forbids it"},
		{nil, list{"[::ffff:10.0.0.0/104]:*"}, "10.0.0.1:1", "targets.deny 10.0.0.0/8:* forbids it"},
		{nil, list{"[::ffff:10.0.0.0/104]:*"}, "[::ffff:10.0.0.1]:1", "targets.deny 10.0.0.0/8:* forbids it"},
		{nil, list{"[::/0]:*"}, "[::ffff:10.0.0.1]:1", ""},
		{list{"[::ffff:10.0.0.1]:1"}, nil, "10.0.0.1:1", ""},
		{nil, list{"[fe80::/10]:*"}, "[fe80::1%eth0]:22", "targets.deny [fe80::/10]:* forbids it"},
		{list{"[fe80::1]:22"}, nil, "[fe80::1%eth0]:22", ""},

		// this host, which has to be named
		{nil, list{"127.0.0.0/8:*"}, "0.0.0.0:1", unnamed4},
		{nil, list{"127.0.0.0/8:*"}, "[::ffff:0.0.0.0]:1", unnamed4},
		{nil, list{"[::1]:*"}, "[::]:1", unnamed6},
		{nil, list{"[::1]:*"}, "[::%eth0]:1", unnamed6},
		{nil, list{"0.0.0.0:*"}, "127.0.0.1:1", ""},
		{list{"0.0.0.0/0:*"}, nil, "0.0.0.0:1", unnamed4},
		{list{"[::]:*", "[::1]:*"}, nil, "[::]:1", unnamed6},
	} {
		targets := policy(t, test.allow, test.deny)
		got := ""
		if err := targets.Check(netip.MustParseAddrPort(test.target)); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("allow %s, deny %s: %s: %q, want %q", test.allow, test.deny, test.target, got, test.want)
		}
	}
}

// However rules and targets lie to each other, Check says what comparing bit by bit says.
func TestTargetsCheckBitByBit(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	randomAddr := func() netip.Addr { // of few, so that rules meet targets
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
			r := rule{prefix.Addr(), prefix.Bits(), first, first + uint16(random.IntN(3))}
			rules = append(rules, r)
			text := fmt.Sprintf("%v:%d-%d", prefix, r.first, r.last)
			if addr.Is6() {
				text = fmt.Sprintf("[%v]:%d-%d", prefix, r.first, r.last)
			}
			texts = append(texts, text)
		}
		return rules, texts
	}
	meets := func(rules []rule, addr netip.Addr, port uint16) bool {
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
		want := (len(allow) == 0 || meets(allow, addr, port)) && !meets(deny, addr, port)
		guise := addr
		switch {
		case addr.Is4() && random.IntN(2) == 0:
			guise = netip.AddrFrom16(addr.As16())
		case addr.Is6() && random.IntN(2) == 0:
			guise = addr.WithZone("eth0")
		}
		err := targets.Check(netip.AddrPortFrom(guise, port))
		if (err == nil) != want {
			t.Fatalf("allow %s, deny %s: %v port %d: %v", allowTexts, denyTexts, guise, port, err)
		}
		verdicts[want]++
	}
	if verdicts[true] < 1000 || verdicts[false] < 1000 {
		t.Errorf("too few of a kind: %v", verdicts)
	}
}

func TestRange(t *testing.T) {
	for text, want := range map[string]string{ // "": as it is
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
			t.Errorf("%s: %v, %v", text, r, err)
		}
		if again, err := parseRange(want); err != nil || again != r {
			t.Errorf("%s is %s, which is %v, %v", text, want, again, err)
		}
	}
}

func TestRangeMistakes(t *testing.T) {
	const (
		noRange = "is no range of addresses and ports, want one such as 10.0.0.0/8:443 or [2001:db8::/32]:*"
		noAddr  = "has no address, want one such as 10.0.0.0/8 or 192.0.2.1: names are checked once they are resolved"
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
		"[10.0.0.0/8]:443":        "has brackets, which are for IPv6, want 10.0.0.0/8:443",
		"10.0.0.1/8:443":          "has bits set beyond its prefix, want 10.0.0.0/8:443",
		"[2001:db8::1/32]:*":      "has bits set beyond its prefix, want [2001:db8::/32]:*",
		"[::ffff:10.0.0.1/104]:*": "has bits set beyond its prefix, want [::ffff:10.0.0.0/104]:*",
		"[::ffff:0.0.0.0/80]:*":   "has bits set beyond its prefix, want [::/80]:*",
		"10.0.0.0/33:443":         "has the prefix length 33, want 0 to 32",
		"10.0.0.0/08:443":         "has the prefix length 08, want 0 to 32",
		"10.0.0.0/-1:443":         "has the prefix length -1, want 0 to 32",
		"10.0.0.0/:443":           `has the prefix length "", want 0 to 32`,
		"10.0.0.0/8/8:443":        "has the prefix length 8/8, want 0 to 32",
		"10.0.0.0/255.0.0.0:443":  "has the prefix length 255.0.0.0, want 0 to 32",
		"[2001:db8::/129]:443":    "has the prefix length 129, want 0 to 128",
		"[::ffff:10.0.0.0/129]:*": "has the prefix length 129, want 0 to 128",
		"10.0.0/8:443":            noAddr,
		"10.0.0/33:443":           noAddr,
		"010.0.0.0/8:443":         noAddr,
		"example.com:443":         noAddr,
		"*:443":                   noAddr,
		":443":                    noAddr,
		"[]:443":                  noAddr,
		"[fe80::1%eth0]:22":       "has a zone, want fe80::1: it is matched on every interface",
		"[fe80::%eth0/64]:22":     "has a zone, want fe80::/64: it is matched on every interface",
		"10.0.0.0/8:":             `has the port "", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:0":            `has the port "0", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:0-80":         `has the port "0-80", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:65536":        `has the port "65536", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:+1":           `has the port "+1", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:https":        `has the port "https", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:90-80":        `has the port "90-80", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:80-":          `has the port "80-", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:80-90-100":    `has the port "80-90-100", want 1 to 65535, a range such as 1-1024, or *`,
		"10.0.0.0/8:80,443":       `has the port "80,443", want 1 to 65535, a range such as 1-1024, or *`,
	} {
		if r, err := parseRange(text); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v, %v\nwant %s", text, r, err, want)
		}
	}
}
