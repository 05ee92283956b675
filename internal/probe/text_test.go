package probe

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Milliseconds formats three significant digits.
func TestMilliseconds(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0.000": 0,
		"0.123": 123 * time.Microsecond,
		"0.999": 999 * time.Microsecond,
		"1.00":  time.Millisecond,
		"9.99":  9990 * time.Microsecond,
		"10.0":  10 * time.Millisecond,
		"99.9":  99900 * time.Microsecond,
		"100":   100 * time.Millisecond,
		"1234":  1234 * time.Millisecond,
	} {
		if got := Milliseconds(d); got != want {
			t.Errorf("Milliseconds(%v) = %s, want %s", d, got, want)
		}
	}
}

// DescribeHop leaves out what is usual for a router: that the TTL was exceeded.
func TestDescribeHop(t *testing.T) {
	router := netip.MustParseAddr("198.51.100.7")
	for want, hop := range map[string]shaker.Hop{
		" 1  *": {TTL: 1, Outcome: shaker.Timeout},
		" 2  198.51.100.7  1.50 ms": {TTL: 2, From: router, RTT: 1500 * time.Microsecond,
			ICMP: shaker.ICMP{From: router, Type: 11}, Outcome: shaker.Unreachable},
		" 3  198.51.100.7  1.50 ms  host_unreachable": {TTL: 3, From: router, RTT: 1500 * time.Microsecond,
			ICMP: shaker.ICMP{From: router, Type: 3, Code: 1}, Outcome: shaker.Unreachable},
		"12  198.51.100.7  1.50 ms  open": {TTL: 12, From: router, RTT: 1500 * time.Microsecond, Outcome: shaker.Open},
	} {
		if got := DescribeHop(hop); got != want {
			t.Errorf("DescribeHop(%+v) = %q, want %q", hop, got, want)
		}
	}
}
