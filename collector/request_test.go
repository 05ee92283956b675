package collector

import (
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// parseTimeout subtracts the offset from the header, halves a header below it, and returns at most the timeout of
// the module.
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
		if difference := (got - want).Abs(); err != nil || got <= 0 || difference > 1 { // a rounding error of 1 ns
			t.Errorf("parseTimeout(%q) = %v, %v, want %v", header, got, err, want)
		}
	}
	for _, header := range []string{"NaN", "Inf", "+Inf", "-Inf", "-1", "0", "-0", "1s", "abc", " ", "1e400", "0x"} {
		want := timeoutHeader + " is " + strconv.Quote(header) + ", want a positive number of seconds"
		if got, err := parseTimeout(header, offset, module); err == nil || err.Error() != want || got != 0 {
			t.Errorf("parseTimeout(%q) = %v, %v, want 0 and the error %s", header, got, err, want)
		}
	}
}

// Whatever the header is, parseTimeout returns either an error or a timeout in the permitted range.
func FuzzParseTimeout(f *testing.F) {
	for _, seed := range []string{"", "10", "0.3", "NaN", "1e400", "0x1p-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got, err := parseTimeout(header, 500*time.Millisecond, 5*time.Second)
		if err == nil && (got <= 0 || got > 5*time.Second) || err != nil && got != 0 {
			t.Errorf("parseTimeout(%q) = %v, %v, want above 0 and at most 5 s, or 0 and an error", header, got, err)
		}
	})
}

// parseRequest returns an error that says what is wrong with a request, and what is expected.
func TestParseRequest(t *testing.T) {
	c := config.Default()
	c.Modules["\x1b[31m"] = c.Modules["tcp_connect_ip4"]
	for query, want := range map[string]string{
		"": "missing target, want host:port, as in " +
			"example.com:443, 192.0.2.1:443 or [2001:db8::1]:443",
		"target=a:1;b":                 "query: invalid semicolon separator in query",
		"target=%zz":                   `query: invalid URL escape "%zz"`,
		"target=a:1&target=a:1":        `parameter "target" given 2 times, want once`,
		"target=a:1&module=x&module=y": `parameter "module" given 2 times, want once`,
		"target=a:1&module=http_2xx": `unknown module "http_2xx", ` +
			`the modules are "\x1b[31m", tcp_connect, tcp_connect_ip4, tcp_connect_ip6`,
		"target=a:1&debug=maybe":                `debug is "maybe", want true or false`,
		"target=[::1]:1&module=tcp_connect_ip4": `target "[::1]:1" is ip6, module tcp_connect_ip4 probes only ip4`,
		"target=192.0.2.1:1&module=tcp_connect_ip6": `target "192.0.2.1:1" is ip4, ` +
			"module tcp_connect_ip6 probes only ip6",
		"target=[::1]:1&module=%1b[31m": `target "[::1]:1" is ip6, module "\x1b[31m" probes only ip4`,
	} {
		r := httptest.NewRequest("GET", "/probe?"+query, nil)
		if req, _, err := parseRequest(r, c, 0); err == nil || err.Error() != want {
			t.Errorf("parseRequest(%q) = %+v, %v, want the error %s", query, req, err, want)
		}
	}
	const query = "target=a:1&module=tcp_connect_ip4&debug=true"
	got, debug, err := parseRequest(httptest.NewRequest("GET", "/probe?"+query, nil), c, 0)
	if err != nil || got.Name != "a" || got.Port != 1 || got.ModuleName != "tcp_connect_ip4" || !debug ||
		got.Timeout != 5*time.Second {
		t.Errorf("parseRequest(%q) = %+v, debug %t, %v, want name a, port 1, module tcp_connect_ip4, "+
			"timeout 5 s and debug", query, got, debug, err)
	}
}
