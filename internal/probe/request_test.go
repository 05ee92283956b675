package probe

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

// parseTarget accepts a port of a name, of an IPv4 address or of an IPv6 address in brackets.
func TestParseTarget(t *testing.T) {
	for text, want := range map[string]Target{
		"example.com:443":      {Name: "example.com", Port: 443},
		"example.com.:443":     {Name: "example.com.", Port: 443},
		"db_1.internal:65535":  {Name: "db_1.internal", Port: 65535},
		"192.0.2.1:80":         {Addr: netip.MustParseAddr("192.0.2.1"), Port: 80},
		"[2001:db8::1]:80":     {Addr: netip.MustParseAddr("2001:db8::1"), Port: 80},
		"[::ffff:192.0.2.1]:1": {Addr: netip.MustParseAddr("192.0.2.1"), Port: 1},
		"[fe80::1%eth0]:22":    {Addr: netip.MustParseAddr("fe80::1%eth0"), Port: 22},
		"1.2.3:80":             {Name: "1.2.3", Port: 80},
	} {
		want.Text = text
		if got, err := parseTarget(text); err != nil || got != want {
			t.Errorf("parseTarget(%q) = %+v, %v, want %+v", text, got, err, want)
		}
	}
}

// An invalid target gets an error in one line, which says what is wrong, and what is expected.
func TestParseTargetMistakes(t *testing.T) {
	const want = "want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443"
	long := strings.Repeat("x", 64)
	for text, message := range map[string]string{
		"":                     "missing target, " + want,
		"foo":                  `target "foo": ` + want,
		"192.0.2.1":            `target "192.0.2.1": ` + want,
		"::1:80":               `target "::1:80": ` + want,
		"[::1]":                `target "[::1]": ` + want,
		"[192.0.2.1]:80":       `target "[192.0.2.1]:80": ` + want,
		"http://example.com:1": `target "http://example.com:1": ` + want,
		"example.com:":         `target "example.com:": port "", want a number from 1 to 65535`,
		"example.com:0":        `target "example.com:0": port "0", want a number from 1 to 65535`,
		"example.com:65536":    `target "example.com:65536": port "65536", want a number from 1 to 65535`,
		"example.com:+1":       `target "example.com:+1": port "+1", want a number from 1 to 65535`,
		"example.com:https":    `target "example.com:https": port "https", want a number from 1 to 65535`,
		":80":                  `target ":80": host "" has an empty label`,
		"a..b:80":              `target "a..b:80": host "a..b" has an empty label`,
		"a b:80":               `target "a b:80": host "a b": invalid character ' '`,
		"a\n:80":               `target "a\n:80": host "a\n": invalid character '\n'`,
		"<script>:80":          `target "<script>:80": host "<script>": invalid character '<'`,
		"bücher.de:80":         `target "bücher.de:80": host "bücher.de": invalid character 'ü'`,
		"[example.com]:80":     `target "[example.com]:80": brackets must contain an IPv6 address`,
		"[fe80::1]:80":         `target "[fe80::1]:80": a link-local address needs a zone, as in [fe80::1%eth0]:80`,
		"[fe80::1%a\nb]:80":    `target "[fe80::1%a\nb]:80": the zone is not an interface name`,
		long + ".com:1": `target "` + long + `.com:1": label "` + long +
			`" of the host name is longer than 63 characters`,
	} {
		if got, err := parseTarget(text); err == nil || err.Error() != message || got != (Target{}) {
			t.Errorf("parseTarget(%q) = %+v, %v\nwant the error %s", text, got, err, message)
		}
	}
	got, err := parseTarget(strings.Repeat("x.", 128) + ":80")
	if err == nil || !strings.HasSuffix(err.Error(), "longer than 253 characters") {
		t.Errorf("parseTarget of a name of 256 characters = %+v, %v, want an error: longer than 253 characters",
			got, err)
	}
}

// An accepted target has a port and either a name or an address, and they are the given ones. The error for
// another target is one line.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"example.com:443", "[fe80::1%eth0]:22", "192.0.2.1:80", "[::1]:", "%:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseTarget(text)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("parseTarget(%q) = error %q, want one line", text, err)
			}
			return
		}
		if got.Port == 0 || got.Addr.IsValid() == (got.Name != "") {
			t.Errorf("parseTarget(%q) = %+v, want a port and either a name or an address", text, got)
		}
		host := got.Name
		if got.Addr.IsValid() {
			given, _, _ := net.SplitHostPort(text)
			if addr := netip.MustParseAddr(given).Unmap(); addr != got.Addr {
				t.Errorf("parseTarget(%q) has the address %v, want %v", text, got.Addr, addr)
			}
			host = got.Addr.String()
		}
		formatted := net.JoinHostPort(host, strconv.Itoa(int(got.Port)))
		again, err := parseTarget(formatted)
		if again.Text = got.Text; err != nil || again != got {
			t.Errorf("parseTarget(%q) = %+v, but parseTarget(%q) = %+v, %v, want the same",
				text, got, formatted, again, err)
		}
	})
}
