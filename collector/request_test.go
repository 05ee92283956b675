package collector

import (
	"net"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]target{
		"example.com:443":      {name: "example.com", port: 443},
		"example.com.:443":     {name: "example.com.", port: 443},
		"db_1.internal:65535":  {name: "db_1.internal", port: 65535},
		"192.0.2.1:80":         {addr: netip.MustParseAddr("192.0.2.1"), port: 80},
		"[2001:db8::1]:80":     {addr: netip.MustParseAddr("2001:db8::1"), port: 80},
		"[::ffff:192.0.2.1]:1": {addr: netip.MustParseAddr("192.0.2.1"), port: 1},
		"[fe80::1%eth0]:22":    {addr: netip.MustParseAddr("fe80::1%eth0"), port: 22},
		"1.2.3:80":             {name: "1.2.3", port: 80},
	} {
		want.text = text
		if got, err := parseTarget(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestParseTargetMistakes(t *testing.T) {
	const want = "want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443"
	long := strings.Repeat("x", 64)
	for text, message := range map[string]string{
		"":                     "target is missing, " + want,
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
		"a b:80":               `target "a b:80": host "a b": ' ' cannot be in a host name`,
		"a\n:80":               `target "a\n:80": host "a\n": '\n' cannot be in a host name`,
		"<script>:80":          `target "<script>:80": host "<script>": '<' cannot be in a host name`,
		"bücher.de:80":         `target "bücher.de:80": host "bücher.de": 'ü' cannot be in a host name`,
		"[example.com]:80":     `target "[example.com]:80": what is in brackets is no IPv6 address`,
		"[fe80::1]:80":         `target "[fe80::1]:80": a link-local address wants its zone, as in [fe80::1%eth0]:80`,
		"[fe80::1%a\nb]:80":    `target "[fe80::1%a\nb]:80": the zone is no name of an interface`,
		long + ".com:1":        `target "` + long + `.com:1": label "` + long + `" of the host name is longer than 63 characters`,
	} {
		if got, err := parseTarget(text); err == nil || err.Error() != message || got != (target{}) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, message)
		}
	}
	if _, err := parseTarget(strings.Repeat("x.", 128) + ":80"); err == nil || !strings.HasSuffix(err.Error(), "longer than 253 characters") {
		t.Errorf("a name of 256 characters: %v", err)
	}
}

// What is accepted is a port and either a name or an address, and means what it says.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"example.com:443", "[fe80::1%eth0]:22", "192.0.2.1:80", "[::1]:", "%:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseTarget(text)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("more than one line: %q", err)
			}
			return
		}
		if got.port == 0 || got.addr.IsValid() == (got.name != "") {
			t.Errorf("%q: %+v", text, got)
		}
		host := got.name
		if got.addr.IsValid() {
			given, _, _ := net.SplitHostPort(text)
			if addr := netip.MustParseAddr(given).Unmap(); addr != got.addr {
				t.Errorf("%q: address %v", text, got.addr)
			}
			host = got.addr.String()
		}
		again, err := parseTarget(net.JoinHostPort(host, strconv.Itoa(int(got.port))))
		if again.text = got.text; err != nil || again != got {
			t.Errorf("%q is %+v, which is %+v, %v", text, got, again, err)
		}
	})
}

func TestParseTimeout(t *testing.T) {
	const offset, module = 500 * time.Millisecond, 5 * time.Second
	for header, want := range map[string]time.Duration{
		"":       5 * time.Second,
		"10":     5 * time.Second,
		"5.5":    5 * time.Second,
		"3":      2500 * time.Millisecond,
		"1":      500 * time.Millisecond,
		"0.6":    100 * time.Millisecond,
		"0.5":    250 * time.Millisecond,
		"0.1":    50 * time.Millisecond,
		"1e-300": 1,
		"1e300":  5 * time.Second,
	} {
		got, err := parseTimeout(header, offset, module)
		if difference := (got - want).Abs(); err != nil || difference > 1 { // of rounding
			t.Errorf("%q: %v, %v, want %v", header, got, err, want)
		}
	}
	for _, header := range []string{"NaN", "Inf", "+Inf", "-Inf", "-1", "0", "-0", "1s", "abc", " ", "1e400", "0x"} {
		want := timeoutHeader + " is " + strconv.Quote(header) + ", want a positive number of seconds"
		if got, err := parseTimeout(header, offset, module); err == nil || err.Error() != want || got != 0 {
			t.Errorf("%q: %v, %v", header, got, err)
		}
	}
}

func FuzzParseTimeout(f *testing.F) {
	for _, seed := range []string{"", "10", "0.3", "NaN", "1e400", "0x1p-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got, err := parseTimeout(header, 500*time.Millisecond, 5*time.Second)
		if err == nil && (got <= 0 || got > 5*time.Second) || err != nil && got != 0 {
			t.Errorf("%q: %v, %v", header, got, err)
		}
	})
}

func TestParseRequest(t *testing.T) {
	c := config.Default()
	for query, want := range map[string]string{
		"":                                      "target is missing, want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443",
		"target=a:1;b":                          "query: invalid semicolon separator in query",
		"target=%zz":                            `query: invalid URL escape "%zz"`,
		"target=a:1&target=a:1":                 "target is given 2 times, want it once",
		"target=a:1&module=x&module=y":          "module is given 2 times, want it once",
		"target=a:1&module=http_2xx":            `module "http_2xx" is unknown, there are tcp_connect, tcp_connect_ip4, tcp_connect_ip6`,
		"target=a:1&debug=maybe":                `debug is "maybe", want true or false`,
		"target=[::1]:1&module=tcp_connect_ip4": `target "[::1]:1" is ip6, module tcp_connect_ip4 probes only ip4`,
		"target=192.0.2.1:1&module=tcp_connect_ip6": `target "192.0.2.1:1" is ip4, module tcp_connect_ip6 probes only ip6`,
	} {
		if _, err := parseRequest(httptest.NewRequest("GET", "/probe?"+query, nil), c, 0); err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", query, err, want)
		}
	}
	got, err := parseRequest(httptest.NewRequest("GET", "/probe?target=a:1&module=tcp_connect_ip4&debug=true", nil), c, 0)
	if err != nil || got.name != "a" || got.port != 1 || got.module != "tcp_connect_ip4" || !got.debug || got.timeout != 5*time.Second {
		t.Errorf("%+v, %v", got, err)
	}
}
