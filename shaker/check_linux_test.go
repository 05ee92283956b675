package shaker

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// One open address is enough. Without one, the first verdict counts, unless this host could not measure
// one of the addresses.
func TestCheckEach(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2", simnet.RST())
	open, refused := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80")
	silent, busy := netip.MustParseAddrPort("192.0.2.3:80"), netip.MustParseAddrPort("192.0.2.4:80")

	// There is one local port, and it is in use towards one of the targets.
	s, err := New(&Config{Options: Options{SourcePorts: PortRange{First: 40100, Last: 40100}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() { s.Shake(ctx, busy, nil) })
	lab.Eventually(t, "the local port is in use", func() bool { return synsTo(network, busy) == 1 })

	for _, c := range []struct {
		name    string
		targets []netip.AddrPort
		want    error // nil if open
		isLocal bool
		shaken  int // number of targets that get a SYN
	}{
		{name: "the first is open", targets: []netip.AddrPort{open, refused}, shaken: 1},
		{name: "the second is open", targets: []netip.AddrPort{refused, open}, shaken: 2},
		{name: "the first is silent", targets: []netip.AddrPort{silent, open}, shaken: 2},
		{name: "the first could not be measured", targets: []netip.AddrPort{busy, open}, shaken: 1},
		{name: "Refused first", targets: []netip.AddrPort{refused, silent}, want: unix.ECONNREFUSED, shaken: 2},
		{name: "Timeout first", targets: []netip.AddrPort{silent, refused}, want: os.ErrDeadlineExceeded, shaken: 2},
		{name: "one could not be measured", targets: []netip.AddrPort{refused, busy, silent},
			want: unix.EADDRNOTAVAIL, isLocal: true, shaken: 2},
	} {
		before := 0
		for _, target := range c.targets {
			before += synsTo(network, target)
		}
		err := s.checkEach(t.Context(), c.targets, time.Now().Add(500*time.Millisecond))
		if !errors.Is(err, c.want) || errors.Is(err, ErrLocal) != c.isLocal {
			t.Errorf("%s: checkEach(%v): error %v, want %v, ErrLocal %t", c.name, c.targets, err, c.want, c.isLocal)
		}
		shaken := -before
		for _, target := range c.targets {
			shaken += synsTo(network, target)
		}
		if shaken != c.shaken {
			t.Errorf("%s: checkEach(%v) sent %d SYNs, want %d", c.name, c.targets, shaken, c.shaken)
		}
	}
	// A caller who gives up gets no verdict, although there is one.
	before := synsTo(network, silent)
	done := make(chan error)
	go func() { done <- s.checkEach(ctx, []netip.AddrPort{refused, silent}, time.Now().Add(time.Hour)) }()
	lab.Eventually(t, "the second target gets a SYN", func() bool { return synsTo(network, silent) > before })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("checkEach that is cancelled after the verdict Refused: error %v, want %v", err, context.Canceled)
	}
}

// synsTo returns how many SYNs were sent to the target.
func synsTo(network *simnet.Network, target netip.AddrPort) (n int) {
	for segment := range network.SentTo(target) {
		if segment.SYN {
			n++
		}
	}
	return n
}
