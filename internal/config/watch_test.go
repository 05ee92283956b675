package config

import (
	"slices"
	"testing"
	"time"
)

// Some watched modules are valid, but measure less than expected.
func TestWatchWarnings(t *testing.T) {
	for _, test := range []struct {
		name, module string
		want         []string
	}{
		{name: "one SYN for each handshake", module: "timeout: 1s, watch: {}"},
		{
			name: "a timeout with retransmissions", module: "timeout: 1001ms, watch: {}",
			want: []string{"shaker.yml:1: module m: timeout is 1001ms, but the kernel retransmits a lost SYN " +
				"after 1s: use at most 1s to count each lost SYN of a watched module as a timeout"},
		},
		{name: "the same, not watched", module: "timeout: 1001ms"},
		{
			name: "one port", module: "tcp: {source_ports: 40000}, watch: {}",
			want: []string{"shaker.yml:1: module m: tcp.source_ports is 40000, but up to 2 handshakes with a silent " +
				"target overlap, each with a port of its own: use at least 2 ports or a shorter timeout, otherwise " +
				"handshakes are skipped"},
		},
		{name: "one port, not watched", module: "tcp: {source_ports: 40000}"},
		{name: "one port, a shorter timeout", module: "timeout: 999ms, tcp: {source_ports: 40000}, watch: {}"},
		{name: "a port for each", module: "tcp: {source_ports: 40000-40010}, watch: {interval: 100ms}"},
		{
			name: "a port less", module: "tcp: {source_ports: 40000-40009}, watch: {interval: 100ms}",
			want: []string{"shaker.yml:1: module m: tcp.source_ports is 40000-40009, but up to 11 handshakes with a " +
				"silent target overlap, each with a port of its own: use at least 11 ports or a shorter timeout, " +
				"otherwise handshakes are skipped"},
		},
		{name: "a flow for each", module: "tcp: {flows: 11}, watch: {interval: 100ms}"},
		{
			name: "a flow less", module: "tcp: {flows: 10}, watch: {interval: 100ms}",
			want: []string{"shaker.yml:1: module m: tcp.flows is 10, but up to 11 handshakes with a silent target " +
				"overlap, each with a port of its own: use at least 11 flows or a shorter timeout, otherwise " +
				"handshakes are skipped"},
		},
		{name: "a flow less, a shorter timeout", module: "timeout: 999ms, tcp: {flows: 10}, watch: {interval: 100ms}"},
		{name: "few flows, not watched", module: "tcp: {flows: 2}"},
		{name: "turns of 5 minutes", module: "tcp: {flows: 5}, watch: {interval: 1m}"},
		{
			name: "turns of 6 minutes", module: "tcp: {flows: 6}, watch: {interval: 1m}",
			want: []string{"shaker.yml:1: module m: tcp.flows is 6, and the flows take turns of 6m: a flow that " +
				"fails is noticed only after so long. Use fewer flows or a shorter watch.interval for turns of at " +
				"most 5m"},
		},
	} {
		text := "modules: {m: {prober: tcp, " + test.module + "}}"
		if _, warnings, err := Parse("shaker.yml", []byte(text)); err != nil || !slices.Equal(warnings, test.want) {
			t.Errorf("Parse(%s), %s:\n got warnings %q, error %v\nwant warnings %q, no error",
				text, test.name, warnings, err, test.want)
		}
	}
}

func TestWatched(t *testing.T) {
	for name, module := range Default().Modules {
		if module.Watched() {
			t.Errorf("the built-in module %s is watched, want it probed by scrapes only", name)
		}
	}
	if m := (Module{Watch: Watch{Interval: time.Second}}); !m.Watched() {
		t.Errorf("%+v is not watched, want it watched", m)
	}
}

func TestShowDuration(t *testing.T) {
	for text, want := range map[string]string{
		"0s": "0s", "10s": "10s", "100ms": "100ms", "1m": "1m", "10m": "10m", "1m30s": "1m30s", "1h": "1h",
		"20h": "20h", "1h10m": "1h10m", "1h10m10s": "1h10m10s", "1h0m10s": "1h0m10s", "1h0m0.5s": "1h0m0.5s",
	} {
		d, err := time.ParseDuration(text)
		if got := showDuration(d); got != want || err != nil {
			t.Errorf("showDuration(%s) = %s, error %v, want %s", text, got, err, want)
		}
	}
}
