package shaker

import (
	"context"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// Reserved ports are the same each time, outside of those of ordinary sockets, and no other program can listen on
// them. Handshakes with many targets at the same time can use one.
func TestReservePorts(t *testing.T) {
	lab.Need(t)
	const n = 16
	ephemeral, err := ephemeralPorts()
	if err != nil {
		t.Fatal(err)
	}
	reserve := func() *Ports {
		p, err := ReservePorts(n)
		if err != nil {
			t.Fatalf("ReservePorts(%d): error %v, want none", n, err)
		}
		return p
	}
	first := reserve()
	if first.Last-first.First != n-1 || first.Last >= ephemeral.First {
		t.Errorf("ReservePorts(%d) = %v, want %d ports below %v", n, first.PortRange, n, ephemeral)
	}
	second := reserve()
	if second.Last != first.First-1 {
		t.Errorf("ReservePorts(%d) again = %v, want the ports below %v", n, second.PortRange, first.PortRange)
	}
	listener := net.TCPAddr{IP: net.IPv4zero, Port: int(first.First)}
	if l, err := net.ListenTCP("tcp", &listener); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening on the reserved port %v: %v, error %v, want EADDRINUSE", &listener, l, err)
	}

	s := start(t)
	open, _ := listen(t, "0.0.0.0:0")
	for _, target := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		open6, _ := listen(t, "[::1]:0")
		port := open.Port()
		if target.Is6() {
			port = open6.Port()
		}
		var group sync.WaitGroup
		for p := first.First; p <= first.Last; p++ {
			group.Go(func() {
				options := Options{SourcePort: p, Timeout: 5 * time.Second}
				r, err := s.Shake(context.Background(), netip.AddrPortFrom(target, port), &options)
				if err != nil || r.Outcome != Open || r.Local.Port() != p {
					t.Errorf("Shake(%v from port %d) = %+v, error %v, want Open from that port", target, p, r, err)
				}
			})
		}
		group.Wait()
	}
	first.Close()
	second.Close()
	again := reserve()
	defer again.Close()
	if again.PortRange != first.PortRange {
		t.Errorf("ReservePorts(%d) after Close = %v, want %v as before", n, again.PortRange, first.PortRange)
	}
}

// A handshake from a port that another program has, or that another handshake with the same target has, is a local
// error.
func TestTakenSourcePort(t *testing.T) {
	lab.Need(t)
	s := start(t)
	target, _ := listen(t, "127.0.0.1:0")
	busy, _ := listen(t, "0.0.0.0:0")
	r, err := s.Shake(context.Background(), target, &Options{SourcePort: busy.Port(), Timeout: time.Second})
	if !errors.Is(err, ErrLocal) || !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("Shake from a port on which a server listens = %+v, error %v, want ErrLocal and EADDRINUSE", r, err)
	}
}

// A number of ports that cannot be is an error of the caller, and no port is reserved.
func TestReserveNoPorts(t *testing.T) {
	for _, n := range []int{math.MinInt, -1, 0, 1 << 16, math.MaxInt} {
		before := lab.Descriptors(t)
		p, err := ReservePorts(n)
		if p != nil || !errors.Is(err, os.ErrInvalid) || errors.Is(err, ErrLocal) {
			t.Errorf("ReservePorts(%d) = %+v, error %v, want os.ErrInvalid", n, p, err)
		}
		if open := lab.Descriptors(t); open != before {
			t.Errorf("%d descriptors are open after ReservePorts(%d), want %d", open, n, before)
		}
	}
}
