package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// parseTarget accepts a port of a name, of an IPv4 address or of an IPv6 address in brackets.
func TestParseTarget(t *testing.T) {
	longest := strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("x", 61) + "." // 253 and the final dot
	for text, want := range map[string]Target{
		"example.com:443":      {Name: "example.com", Port: 443},
		"example.com.:443":     {Name: "example.com.", Port: 443},
		"db_1.internal:65535":  {Name: "db_1.internal", Port: 65535},
		"192.0.2.1:80":         {Addr: netip.MustParseAddr("192.0.2.1"), Port: 80},
		"[2001:db8::1]:80":     {Addr: netip.MustParseAddr("2001:db8::1"), Port: 80},
		"[::ffff:192.0.2.1]:1": {Addr: netip.MustParseAddr("192.0.2.1"), Port: 1},
		"[fe80::1%eth0]:22":    {Addr: netip.MustParseAddr("fe80::1%eth0"), Port: 22},
		"1.2.3.example:80":     {Name: "1.2.3.example", Port: 80},
		"10.0.0.256a:80":       {Name: "10.0.0.256a", Port: 80},
		"db-1:80":              {Name: "db-1", Port: 80},
		"a--b.x:80":            {Name: "a--b.x", Port: 80},
		"AZaz09.example:80":    {Name: "AZaz09.example", Port: 80},
		"169.254.1.1:80":       {Addr: netip.MustParseAddr("169.254.1.1"), Port: 80},
		"[fe80::1%!~]:22":      {Addr: netip.MustParseAddr("fe80::1%!~"), Port: 22},
		longest + ":80":        {Name: longest, Port: 80},
		"0xyz:80":              {Name: "0xyz", Port: 80},
		"x0:80":                {Name: "x0", Port: 80},
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
		"":               "missing target, " + want,
		"foo":            `target "foo": ` + want,
		"192.0.2.1":      `target "192.0.2.1": ` + want,
		"::1:80":         `target "::1:80": ` + want,
		"[::1]":          `target "[::1]": ` + want,
		"[192.0.2.1]:80": `target "[192.0.2.1]:80": brackets must contain an IPv6 address`,
		"[]:80":          `target "[]:80" has no host, ` + want,
		"http://example.com:1": `target "http://example.com:1": ` +
			`has a scheme, want host:port, as in example.com:443`,
		"https://example.com": `target "https://example.com": has a scheme, want host:port, as in example.com:443`,
		"https://x.test/a:b":  `target "https://x.test/a:b": has a scheme, want host:port, as in example.com:443`,
		"example.com:":        `target "example.com:": port "", want a number from 1 to 65535`,
		"example.com:0":       `target "example.com:0": port "0", want a number from 1 to 65535`,
		"example.com:65536":   `target "example.com:65536": port "65536", want a number from 1 to 65535`,
		"example.com:00080":   `target "example.com:00080": port "00080" has leading zeros, want 80`,
		"[::1]:0443":          `target "[::1]:0443": port "0443" has leading zeros, want 443`,
		"example.com:000":     `target "example.com:000": port "000", want a number from 1 to 65535`,
		"example.com:+1":      `target "example.com:+1": port "+1", want a number from 1 to 65535`,
		"example.com:https":   `target "example.com:https": port "https", want a number from 1 to 65535`,
		":80":                 `target ":80" has no host, ` + want,
		".:80":                `target ".:80": host "." has an empty label`,
		"-x.invalid:80":       `target "-x.invalid:80": label "-x" of the host name begins or ends with a hyphen`,
		"a.x-.test:80":        `target "a.x-.test:80": label "x-" of the host name begins or ends with a hyphen`,
		"-:80":                `target "-:80": label "-" of the host name begins or ends with a hyphen`,
		"a..b:80":             `target "a..b:80": host "a..b" has an empty label`,
		"a b:80":              `target "a b:80": host "a b": invalid character ' '`,
		"a\n:80":              `target "a\n:80": host "a\n": invalid character '\n'`,
		"<script>:80":         `target "<script>:80": host "<script>": invalid character '<'`,
		"[example.com]:80":    `target "[example.com]:80": brackets must contain an IPv6 address`,
		"[fe80::1]:80": `target "[fe80::1]:80": the link-local address fe80::1 needs a zone, ` +
			`as in fe80::1%eth0`,
		"[fe80::1%a\nb]:80":             `target "[fe80::1%a\nb]:80": the zone is not an interface name`,
		"[fe80::1%a234567890123456]:80": `target "[fe80::1%a234567890123456]:80": the zone is not an interface name`,
		"[fe80::1%a b]:80":              `target "[fe80::1%a b]:80": the zone is not an interface name`,
		"[fe80::1%a\x7f]:80":            `target "[fe80::1%a\x7f]:80": the zone is not an interface name`,
		long + ".com:1": `target "` + long + `.com:1": label "` + long +
			`" of the host name is longer than 63 characters`,
	} {
		if got, err := parseTarget(text); err == nil || err.Error() != message || got != (Target{}) {
			t.Errorf("parseTarget(%q) = %+v, %v\nwant the error %s", text, got, err, message)
		}
	}
	for _, host := range []string{
		"10.0.0.256", "192.168.1.300", "10.0.0", "1.2.3", "1.2.3.4.5", "10.0.0.1.", "010.0.0.1", "1", "4294967296",
		"0x7f.1", "0x7f000001", "0X7F", "127.0x", "0x", "example.1", "example.0xf",
	} {
		want := fmt.Sprintf("target %[1]q: host %[2]q is not a valid IPv4 address, "+
			"want four decimal numbers from 0 to 255, as in 192.0.2.1", host+":80", host)
		if got, err := parseTarget(host + ":80"); err == nil || err.Error() != want || got != (Target{}) {
			t.Errorf("parseTarget(%q) = %+v, %v\nwant the error %s", host+":80", got, err, want)
		}
	}
	for host, addr := range map[string]string{
		"0.0.0.0": "0.0.0.0", "[::]": "::", "[::ffff:0.0.0.0]": "0.0.0.0", "[::%lo]": "::%lo",
	} {
		want := fmt.Sprintf("target %q: %s stands for this host, want an address such as 127.0.0.1 or ::1",
			host+":80", addr)
		if got, err := parseTarget(host + ":80"); err == nil || err.Error() != want || got != (Target{}) {
			t.Errorf("parseTarget(%q) = %+v, %v\nwant the error %s", host+":80", got, err, want)
		}
	}
	got, err := parseTarget(strings.Repeat("x.", 127) + "x:80")
	if err == nil || !strings.HasSuffix(err.Error(), "longer than 253 characters") {
		t.Errorf("parseTarget of a name of 255 characters = %+v, %v, want an error: longer than 253 characters",
			got, err)
	}
}

// A target has at most as many characters as the longest name and the longest port.
func TestParseTargetLength(t *testing.T) {
	label := strings.Repeat("x", 63) + "."
	longest := strings.Repeat(label, 3) + strings.Repeat("x", 61) + ".:65535" // 253, the final dot and the port
	if got, err := parseTarget(longest); err != nil || len(longest) != 260 {
		t.Errorf("parseTarget of a target of %d characters = %+v, %v, want 260 characters and no error",
			len(longest), got, err)
	}
	for name, text := range map[string]string{
		"zeros before the port": "example.com:" + strings.Repeat("0", 60_000) + "80",
		"a long port":           "example.com:" + strings.Repeat("1", 60_000),
		"a long name":           strings.Repeat("x.", 30_000) + "x:80",
		"a long zone":           "[fe80::1%" + strings.Repeat("x", 60_000) + "]:80",
		"no port":               strings.Repeat("x", 60_000),
		"characters of 2 bytes": strings.Repeat("é", 60_000) + ":80",
		"one character more":    "x" + longest,
	} {
		want := fmt.Sprintf("target %s: %d characters, want at most 260", Quote(text), utf8.RuneCountInString(text))
		if got, err := parseTarget(text); err == nil || err.Error() != want || got != (Target{}) {
			t.Errorf("%s: parseTarget(%.20q…) = %+v, %.500v\nwant the error %s", name, text, got, err, want)
		}
	}
}

// An error has at most 80 characters of what the caller sent, whatever is wrong with it.
func TestMistakesAreShort(t *testing.T) {
	long := strings.Repeat("x", 30_000)
	c := config.Default()
	for _, request := range [][2]string{
		{long}, {long + ":80"}, {"a:" + long}, {long + "://a"}, {"[" + long + "]:80"}, {"[::%" + long + "]:80"},
		{"1." + strings.Repeat("1", 100) + ":80"}, {strings.Repeat("a\u200db", 80) + ":80"}, {long + "%3A80"},
		{strings.Repeat("é", 60_000) + ":80"}, {strings.Repeat("é", 100) + ":80"}, {"a:80", long},
	} {
		_, err := NewRequest(c, request[0], request[1])
		if err == nil || len(err.Error()) > 500 || strings.Contains(err.Error(), strings.Repeat("x", 81)) {
			t.Errorf("NewRequest(%.20q, %.20q) = error %.600v, want at most 80 characters of each",
				request[0], request[1], err)
		}
	}
	for text, want := range map[string]string{
		strings.Repeat("é", 80): `"` + strings.Repeat("é", 80) + `"`,
		strings.Repeat("é", 81): `"` + strings.Repeat("é", 80) + `..."`,
	} {
		if got := Quote(text); got != want {
			t.Errorf("Quote(%q) = %s, want %s", text, got, want)
		}
	}
}

// An internationalized name is looked up in its ASCII form, and the target's text stays as it was given.
func TestParseTargetInternationalized(t *testing.T) {
	longest := strings.Repeat("ü", 57) // a label of 63 characters in ASCII
	for host, want := range map[string]string{
		"мтр24.рф":              "xn--24-7lcqj.xn--p1ai",
		"bücher.example":        "xn--bcher-kva.example",
		"BÜCHER.Example.":       "xn--bcher-kva.example.",
		"faß.example":           "xn--fa-hia.example",
		"例え。テスト":                "xn--r8jz45g.xn--zckzah",
		"_sip._tcp.мтр.рф":      "_sip._tcp.xn--l1aif.xn--p1ai",
		"xn--bcher-kva.bücher":  "xn--bcher-kva.xn--bcher-kva",
		"xn--bcher-kva.example": "xn--bcher-kva.example",
		"xn--zz":                "xn--zz", // ASCII stays as it is
	} {
		want := Target{Text: host + ":443", Name: want, Port: 443}
		if got, err := parseTarget(host + ":443"); err != nil || got != want {
			t.Errorf("parseTarget(%s:443) = %+v, %v, want %+v", host, got, err, want)
		}
	}
	if got, err := parseTarget(longest + ":443"); err != nil || len(got.Name) != 63 {
		t.Errorf("parseTarget(%s:443) = %+v, %v, want a name of 63 characters", longest, got, err)
	}
	const invalid = "host %q is not a valid internationalized name"
	for host, want := range map[string]string{
		"a\u200db.example": invalid, // a joiner between letters that are not joined
		"-ü.example":       invalid,
		"ü-.example":       invalid,
		"xn--zz.ü":         invalid,
		"٠א.example":       invalid, // of two directions
		"a\xff.example":    invalid, // not UTF-8
		"a\ufffd.example":  invalid,
		"ü..example":       `host "xn--tda..example" has an empty label`,
		"\u00ad":           `host "" has an empty label`, // a soft hyphen, which is left out
		"ü ü.example":      `host "xn-- -dhab.example": invalid character ' '`,
		"℀.example":        `host "a/c.example": invalid character '/'`,
		longest + "ü":      `label "xn--`,
	} {
		want = fmt.Sprintf("target %q: %s", host+":443", strings.ReplaceAll(want, "%q", strconv.Quote(host)))
		got, err := parseTarget(host + ":443")
		if err == nil || got != (Target{}) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("parseTarget(%q) = %+v, %v\nwant an error that begins with %s", host+":443", got, err, want)
		}
	}
	// A digit of another script is the same digit.
	const want = `target "１２７.０.０.１:443": host "１２７.０.０.１" is not a valid IPv4 address, `
	if got, err := parseTarget("１２７.０.０.１:443"); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("parseTarget of an address in wide digits = %+v, %v\nwant an error that begins with %s",
			got, err, want)
	}
	long := strings.Repeat("ü.", 127) + "x" // 255 characters
	if got, err := parseTarget(long + ":443"); err == nil || !strings.HasSuffix(err.Error(), errLongName.Error()) {
		t.Errorf("parseTarget of a name of 255 characters = %+v, %v, want the error %v", got, err, errLongName)
	}
}

// A target that was encoded twice is decoded once more, and its text too. One that is valid as it is stays as it is.
func TestDecodeTarget(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1%3A10115":              "127.0.0.1:10115",
		"db.example%3a5432":              "db.example:5432",
		"%5Bfe80%3A%3A1%25eth0%5D%3A22":  "[fe80::1%eth0]:22",
		"%D0%BC%D1%82%D1%80.example%3A1": "мтр.example:1",
		"[fe80::1%3A]:22":                "[fe80::1%3A]:22",
		"[fe80::1%20]:22":                "[fe80::1%20]:22",
		"db.example:5432":                "db.example:5432",
	} {
		wanted, err := parseTarget(want)
		if err != nil {
			t.Fatalf("parseTarget(%q): %v", want, err)
		}
		if got, err := decodeTarget(text); err != nil || got != wanted {
			t.Errorf("decodeTarget(%q) = %+v, %v, want %+v", text, got, err, wanted)
		}
	}
	for text, want := range map[string]string{
		"https%3A%2F%2Fa.example%2F": `target "https://a.example/": has a scheme`,
		"a.example%3Ahttps":          `target "a.example:https": port "https", want a number`,
		"a.example%253A443":          `target "a.example%253A443": want host:port`, // encoded three times
		"a.example%3A%zz":            `target "a.example%3A%zz": want host:port`,
		"a.example%20443":            `target "a.example%20443": want host:port`,
	} {
		if got, err := decodeTarget(text); err == nil || got != (Target{}) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("decodeTarget(%q) = %+v, %v\nwant an error that begins with %s", text, got, err, want)
		}
	}
}

// A request has the module and its timeout, if the module is known and probes the target's IP version.
func TestNewRequest(t *testing.T) {
	c := config.Default()
	for target, module := range map[string]string{
		"192.0.2.1:80":   "tcp_connect_ip4",
		"[::1]:80":       "tcp_connect_ip6",
		"example.com:80": "tcp_connect_ip4",
		"192.0.2.2:80":   "tcp_connect",
	} {
		req, err := NewRequest(c, target, module)
		if err != nil || req.Text != target || req.ModuleName != module || req.Timeout != c.Modules[module].Timeout {
			t.Errorf("NewRequest(%s, %s) = %+v, %v, want that target and module, and its timeout",
				target, module, req, err)
		}
	}
	for want, request := range map[string]struct{ target, module string }{
		`target "[::1]:80" is ip6, module tcp_connect_ip4 probes only ip4`: {
			target: "[::1]:80", module: "tcp_connect_ip4"},
		`target "192.0.2.1:80" is ip4, module tcp_connect_ip6 probes only ip6`: {
			target: "192.0.2.1:80", module: "tcp_connect_ip6"},
		`unknown module "http", the modules are tcp_connect, tcp_connect_ip4, ` +
			`tcp_connect_ip6`: {target: "192.0.2.1:80", module: "http"},
		`target "a b:80": host "a b": invalid character ' '`: {target: "a b:80", module: "tcp_connect"},
	} {
		if req, err := NewRequest(c, request.target, request.module); err == nil || err.Error() != want {
			t.Errorf("NewRequest(%s, %s) = %+v, %v, want the error %s", request.target, request.module, req, err, want)
		}
	}
	if got := protocol(netip.MustParseAddr("::ffff:192.0.2.1")); got != config.IP4 {
		t.Errorf("protocol(::ffff:192.0.2.1) = %s, want ip4", got)
	}
}

// A request for a module that the configuration lacks gets an error that says whether one was named, and whether
// blackbox_exporter has it.
func TestNoModule(t *testing.T) {
	const handshakes = "this exporter performs only TCP handshakes"
	foreign := map[string]config.Foreign{
		"http_2xx":   {Prober: "http"},
		"ssh_banner": {Prober: "tcp", Key: "query_response"},
	}
	ours := map[string]config.Module{"a b": {}, "redis": {}}
	many := map[string]config.Module{}
	for i := range 1000 {
		many[fmt.Sprintf("module_%03d", i)] = config.Module{}
	}
	for _, test := range []struct {
		name   string
		c      config.Config
		module string
		want   string
	}{
		{
			name: "an unknown module", c: config.Config{Modules: ours, Foreign: foreign}, module: "x",
			want: `unknown module "x", the modules are "a b", redis`,
		},
		{
			name: "a module with another prober", c: config.Config{Modules: ours, Foreign: foreign}, module: "http_2xx",
			want: `module "http_2xx" is left to blackbox_exporter, because its prober is http: ` + handshakes,
		},
		{
			name: "a tcp module with queries", c: config.Config{Modules: ours, Foreign: foreign}, module: "ssh_banner",
			want: `module "ssh_banner" is left to blackbox_exporter, because it has tcp.query_response: ` + handshakes,
		},
		{
			name: "no module, without a default", c: config.Config{Modules: ours},
			want: `no module given, and the configuration lacks the default module tcp_connect, ` +
				`the modules are "a b", redis`,
		},
		{
			name: "no module, with a foreign default",
			c: config.Config{
				Modules: ours,
				Foreign: map[string]config.Foreign{"tcp_connect": {Prober: "tcp", Key: "tls"}},
			},
			want: `no module given, and the default module tcp_connect is left to blackbox_exporter, ` +
				`because it has tcp.tls, the modules are "a b", redis`,
		},
		{
			name: "an unknown module, and only foreign ones", c: config.Config{Foreign: foreign}, module: "x",
			want: `unknown module "x", and the configuration has no modules`,
		},
		{
			name: "an unknown module, and many others", c: config.Config{Modules: many}, module: "x",
			want: `unknown module "x", the modules are ` +
				strings.Join(config.Names(many)[:20], ", ") + ", and 980 more",
		},
	} {
		req, err := NewRequest(&test.c, "a:1", test.module)
		if req != nil || !errors.Is(err, ErrModule) || err.Error() != test.want {
			t.Errorf("NewRequest with %s = %+v\n got %v\nwant %s, an ErrModule", test.name, req, err, test.want)
		}
	}
	if req, err := NewRequest(config.Default(), "a:1", ""); err != nil || req.ModuleName != config.DefaultModule {
		t.Errorf("NewRequest without a module = %+v, %v, want module %s", req, err, config.DefaultModule)
	}
}

// An accepted target has a port and either a name or an address, and they are the given ones. The error for
// another target is one line.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{
		"example.com:443", "[fe80::1%eth0]:22", "192.0.2.1:80", "[::1]:", "%:1", "bücher.example:1",
	} {
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
		if n := utf8.RuneCountInString(got.Text); n > maxTarget {
			t.Errorf("parseTarget(%q) accepts %d characters, want at most %d", text, n, maxTarget)
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
