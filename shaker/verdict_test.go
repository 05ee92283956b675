//go:build !plan9

package shaker

import (
	"net/netip"
	"syscall"
	"testing"
)

func TestVerdict(t *testing.T) {
	router4, router6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:ffff::7")
	for _, c := range []struct {
		errno syscall.Errno
		icmp  ICMP
		want  Outcome // 0 for a local error, which is not a verdict
	}{
		{errno: syscall.EMFILE},
		{errno: syscall.ENFILE},
		{errno: syscall.ENOBUFS},
		{errno: syscall.ENOMEM},
		{errno: syscall.EADDRNOTAVAIL},
		{errno: syscall.EADDRINUSE},
		{errno: syscall.EAGAIN},
		{errno: syscall.ENODEV},
		{errno: syscall.ECONNREFUSED, want: Refused},
		{errno: syscall.ECONNREFUSED, icmp: ICMP{From: router4, Type: 3, Code: 3}, want: Refused},
		{errno: syscall.ECONNRESET, want: Reset},
		{errno: syscall.EPIPE, want: Reset},
		{errno: syscall.ETIMEDOUT, want: Timeout},
		{errno: syscall.EACCES, want: Prohibited},
		{errno: syscall.EPERM, want: Prohibited},
		{errno: syscall.EHOSTUNREACH, want: Unreachable},
		{errno: syscall.ENETUNREACH, want: Unreachable},
		{errno: ehostdown, want: Unreachable},
		{errno: syscall.ENETDOWN, want: Unreachable},
		{errno: syscall.ENOPROTOOPT, want: Unreachable},
		{errno: syscall.EHOSTUNREACH, icmp: ICMP{From: router4, Type: 11}, want: Unreachable},
		{errno: syscall.EHOSTUNREACH, icmp: ICMP{From: router4, Type: 3, Code: 10}, want: Prohibited},
		{errno: syscall.ENETUNREACH, icmp: ICMP{From: router4, Type: 3, Code: 9}, want: Prohibited},
		{errno: syscall.EOPNOTSUPP, icmp: ICMP{From: router4, Type: 3, Code: 5}, want: Unreachable},
		{errno: syscall.EINVAL, icmp: ICMP{From: router6, Type: 1, Code: 2}, want: Unreachable},
		{errno: syscall.EACCES, icmp: ICMP{From: router6, Type: 1, Code: 5}, want: Prohibited},
		{errno: syscall.EINVAL, icmp: ICMP{From: router4, Type: 12}, want: Failed},
		{errno: syscall.EINVAL, want: Failed},
		{errno: syscall.EAFNOSUPPORT, want: Failed},
	} {
		got, ok := verdict(c.errno, c.icmp)
		if got != c.want || ok != (c.want != 0) {
			t.Errorf("verdict(%v, %+v) = %v, %t, want %v, %t", c.errno, c.icmp, got, ok, c.want, c.want != 0)
		}
	}
}
