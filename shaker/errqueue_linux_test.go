package shaker

import (
	"net/netip"
	"runtime"
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
	local := append([]byte(nil), hostUnreachable...)
	local[20] = unix.SO_EE_ORIGIN_LOCAL
	if icmp, errno := parseErrorQueue(local); icmp != (ICMP{}) || errno != 0 {
		t.Errorf("parseErrorQueue of a local error = %+v, %v, want zeros", icmp, errno)
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
