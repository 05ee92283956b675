package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Wire is a TUN device behind which are all addresses of its prefixes. A script
// answers for them, and every packet that this host sends there is recorded.
type Wire struct {
	t      testing.TB
	tun    *os.File
	script func(Segment) [][]byte

	mu       sync.Mutex
	segments []Segment
	sent     sync.Cond // on mu: there is another segment
}

// NewWire lays a wire for the rest of the test. The script gets each TCP segment that
// goes out and returns the IP packets that come in for it. A nil script is silence.
//
// This host's own addresses on the wire are 198.18.0.1 and 2001:2::1 (RFC 2544, RFC 5180).
func NewWire(t testing.TB, script func(Segment) [][]byte, prefixes ...string) *Wire {
	t.Helper()
	Need(t)
	w := &Wire{t: t, script: script}
	w.sent.L = &w.mu
	name := w.open(t)
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"198.18.0.1/32", "2001:2::1/128"} {
		address, err := netlink.ParseAddr(own)
		if err != nil {
			t.Fatal(err)
		}
		address.Flags |= unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, address); err != nil {
			t.Fatalf("address %s: %v", own, err)
		}
		// The kernel takes in packets for an IPv6 address only a moment later.
		Eventually(t, own+" is local", func() bool {
			routes, err := netlink.RouteGet(address.IP)
			return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
		})
	}
	for _, prefix := range prefixes {
		p := netip.MustParsePrefix(prefix)
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{
			IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatalf("route %s: %v", prefix, err)
		}
	}
	var reading sync.WaitGroup
	reading.Go(w.read)
	t.Cleanup(func() { w.tun.Close(); reading.Wait() })
	return w
}

// open makes the TUN device and returns its name. It vanishes when its file is closed.
func (w *Wire) open(t testing.TB) string {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		Skip(t, "needs TUN: %v", err)
	}
	request, err := unix.NewIfreq("wire%d")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		Skip(t, "needs TUN: %v", err)
	}
	w.tun = os.NewFile(uintptr(fd), "/dev/net/tun")
	return request.Name()
}

func (w *Wire) read() {
	for {
		packet := make([]byte, 2048)
		n, err := w.tun.Read(packet)
		if err != nil {
			return // the test is over
		}
		segment, ok := parse(packet[:n])
		if !ok {
			continue
		}
		w.mu.Lock()
		w.segments = append(w.segments, segment)
		w.sent.Broadcast()
		w.mu.Unlock()
		if w.script != nil {
			w.Send(w.script(segment)...)
		}
	}
}

// Send lets IP packets come in. When it returns, the kernel has dealt with them.
func (w *Wire) Send(packets ...[]byte) {
	for _, packet := range packets {
		if _, err := w.tun.Write(packet); err != nil && !errors.Is(err, os.ErrClosed) {
			w.t.Errorf("wire: %v", err)
		}
	}
}

// Segments returns what this host has sent into the wire so far.
func (w *Wire) Segments() []Segment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Segment(nil), w.segments...)
}

// Await waits until this host has sent n segments into the wire.
func (w *Wire) Await(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.segments) < n {
		w.sent.Wait()
	}
}
