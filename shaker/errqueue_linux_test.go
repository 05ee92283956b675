package shaker

import (
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// hostUnreachable is what Linux 6.18 on amd64 delivered for an ICMP host unreachable from
// 198.51.100.7: a struct cmsghdr, a sock_extended_err and a sockaddr_in.
var hostUnreachable = []byte{
	48, 0, 0, 0, 0, 0, 0, 0 /* level */, 0, 0, 0, 0 /* type */, 11, 0, 0, 0,
	113, 0, 0, 0 /* origin, type, code */, 2, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	2, 0, 0, 0, 198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 0, 0,
}

func TestParseErrorQueue(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		lab.Skip(t, "needs amd64, because the sample is from amd64")
	}
	icmp, errno := parseErrorQueue(hostUnreachable)
	want := ICMP{From: netip.MustParseAddr("198.51.100.7"), Type: 3, Code: 1}
	if icmp != want || errno != unix.EHOSTUNREACH {
		t.Errorf("parseErrorQueue of a host unreachable = %+v, %v, want %+v, %v", icmp, errno, want, unix.EHOSTUNREACH)
	}
	// Other control messages may precede it.
	timestamp := make([]byte, 32)
	timestamp[0], timestamp[8], timestamp[12] = 32, unix.SOL_SOCKET, unix.SO_TIMESTAMP
	icmp, errno = parseErrorQueue(append(timestamp, hostUnreachable...))
	if icmp != want || errno != unix.EHOSTUNREACH {
		t.Errorf("parseErrorQueue of a timestamp and a host unreachable = %+v, %v, want %+v, %v",
			icmp, errno, want, unix.EHOSTUNREACH)
	}
	for what, change := range map[string]func(control []byte){
		"a local error":                    func(c []byte) { c[20] = unix.SO_EE_ORIGIN_LOCAL },
		"another level":                    func(c []byte) { c[8] = unix.SOL_SOCKET },
		"another type":                     func(c []byte) { c[12]++ },
		"the level of IPv6":                func(c []byte) { c[8] = unix.IPPROTO_IPV6 },
		"the type of IPv6":                 func(c []byte) { c[12] = unix.IPV6_RECVERR },
		"an error without a sender":        func(c []byte) { c[32] = unix.AF_UNSPEC },
		"a header longer than the message": func(c []byte) { c[0]++ },
	} {
		control := slices.Clone(hostUnreachable)
		change(control)
		if icmp, errno := parseErrorQueue(control); icmp != (ICMP{}) || errno != 0 {
			t.Errorf("parseErrorQueue of %s = %+v, %v, want zeros", what, icmp, errno)
		}
	}
	for n := range 17 { // an error of 16 bytes has no sender
		if icmp, errno := parseExtendedError(hostUnreachable[16 : 16+n]); icmp != (ICMP{}) || errno != 0 {
			t.Errorf("parseExtendedError of %d bytes = %+v, %v, want zeros", n, icmp, errno)
		}
	}
}

func FuzzParseErrorQueue(f *testing.F) {
	f.Add(hostUnreachable)
	f.Fuzz(func(t *testing.T, control []byte) {
		icmp, errno := parseErrorQueue(control)
		if icmp.From.IsValid() == (icmp == ICMP{}) {
			t.Errorf("parseErrorQueue(%v) = %+v, %v, want a sender with every ICMP error", control, icmp, errno)
		}
		if errno != 0 && !icmp.From.IsValid() {
			t.Errorf("parseErrorQueue(%v) = %+v, %v, want no errno without an ICMP error", control, icmp, errno)
		}
	})
}
