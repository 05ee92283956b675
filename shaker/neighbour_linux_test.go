package shaker

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// newSilentNeighbour returns a target on the network of this host, on which no host has its address, and two
// addresses of this host on that network. The kernel sends one ARP request and waits that long for a reply.
func newSilentNeighbour(t *testing.T, wait string) (target netip.AddrPort, primary, secondary netip.Addr) {
	t.Helper()
	lab.NeedRoot(t) // a user namespace has no such parameters
	device := kernel.NewNeighbour(t).Interface()
	link, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	secondary = netip.MustParseAddr("198.18.2.3")
	address, err := netlink.ParseAddr(secondary.String() + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, address); err != nil {
		t.Fatal(err)
	}
	kernel.Sysctl(t, "net.ipv4.neigh."+device+".mcast_solicit", "1")
	kernel.Sysctl(t, "net.ipv4.neigh."+device+".retrans_time_ms", wait)
	return netip.MustParseAddrPort("198.18.2.99:80"), netip.MustParseAddr("198.18.2.1"), secondary
}

// If ARP gets no reply, this host generates the ICMP error, whichever of its addresses the SYN has. The kernel sends
// the error from the primary address of the network.
func TestOwnErrorOfEachAddress(t *testing.T) {
	target, primary, secondary := newSilentNeighbour(t, "100")
	for _, source := range []netip.Addr{{}, primary, secondary} {
		r, err := start(t).Shake(t.Context(), target, &Options{Source: source, Timeout: 5 * time.Second})
		want := ICMP{From: primary, Type: 3, Code: 1, Own: true}
		if err != nil || r.Outcome != Unreachable || r.Errno != unix.EHOSTUNREACH || r.ICMP != want {
			t.Errorf("Shake(%v) from %v = %+v, error %v, want unreachable, EHOSTUNREACH and %+v",
				target, source, r, err, want)
		}
	}
}

// This host is not a hop of a path: if ARP fails only after the handshake, the path is empty.
func TestTraceWithoutReplyToARP(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	traces(t, testWithoutReplyToARP)
}

func testWithoutReplyToARP(t *testing.T, _ *Config, s *Shaker) {
	target, _, _ := newSilentNeighbour(t, "400")
	r, err := s.Shake(t.Context(), target, &Options{Timeout: 150 * time.Millisecond})
	if err != nil || r.Outcome != Timeout {
		t.Fatalf("Shake(%v) = %+v, error %v, want a timeout, before ARP fails", target, r, err)
	}
	var replies []Hop
	path, err := s.Trace(t.Context(), r, &TraceOptions{OnHop: func(h Hop) {
		if h.From.IsValid() {
			replies = append(replies, h)
		}
	}})
	if err != nil || len(path.Hops) > 0 || len(replies) > 0 {
		t.Errorf("Trace to %v = %s, with the replies %+v, error %v, want no hops", target, sketch(path), replies, err)
	}
}
