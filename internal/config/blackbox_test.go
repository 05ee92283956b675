package config

import (
	"slices"
	"testing"
)

// A setting of blackbox_exporter that has no effect here is a warning.
func TestBlackboxWarnings(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{
			name: "sections for other probers",
			text: "modules:\n  m:\n    prober: tcp\n    http: {method: POST}\n" +
				"    dns: !!binary aGVsbG8=\n    icmp: {}\n",
			want: []string{
				"blackbox.yml:4: module m: http is ignored, because the prober is tcp",
				"blackbox.yml:5: module m: dns is ignored, because the prober is tcp",
			},
		},
		{
			name: "a longer timeout than the kernel's",
			text: "modules:\n  m:\n    prober: tcp\n    timeout: 121s\n",
			want: []string{"blackbox.yml:4: module m: timeout is 121s, " +
				"but the kernel gives up after about 2m: 2m applies"},
		},
		{name: "the longest timeout", text: "modules:\n  m:\n    prober: tcp\n    timeout: 2m\n"},
		{
			name: "only foreign modules",
			text: "modules:\n  m:\n    prober: http\n  n:\n    prober: tcp\n    timeout: 5m\n    tcp: {tls: true}\n",
			want: []string{"blackbox.yml:1: modules are all left to blackbox_exporter, " +
				"so that no target can be probed: add a module with prober: tcp"},
		},
		{name: "one that is not", text: "modules:\n  m:\n    prober: http\n  n:\n    prober: tcp\n"},
	} {
		c, warnings, err := Parse("blackbox.yml", []byte(test.text))
		if err != nil || !slices.Equal(warnings, test.want) {
			t.Errorf("Parse of %s:\n got warnings %q, error %v\nwant warnings %q, no error",
				test.name, warnings, err, test.want)
		} else if m, ok := c.Modules["m"]; ok && m.Timeout > MaxTimeout {
			t.Errorf("Parse of %s: timeout %v, want at most %v", test.name, m.Timeout, MaxTimeout)
		}
	}
}

// A foreign module knows why it is left to blackbox_exporter.
func TestForeignString(t *testing.T) {
	for want, foreign := range map[string]Foreign{
		"its prober is http":        {Prober: "http"},
		"it has tcp.tls":            {Prober: "tcp", Key: "tls"},
		"it has tcp.query_response": {Prober: "tcp", Key: "query_response"},
	} {
		if got := foreign.String(); got != want {
			t.Errorf("%#v.String() = %q, want %q", foreign, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	got := Names(map[string]Module{"tcp_connect": {}, "a b": {}, "x\n\x1b[31m": {}, "": {}})
	if want := []string{`""`, `"a b"`, `tcp_connect`, `"x\n\x1b[31m"`}; !slices.Equal(got, want) {
		t.Errorf("Names = %q, want %q", got, want)
	}
}
