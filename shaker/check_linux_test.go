package shaker

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
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
	if lab.Apart(t) {
		return
	}
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
		syns    int // to the targets whose local port is free
	}{
		{name: "the first is open", targets: []netip.AddrPort{open, refused}, syns: 1},
		{name: "the second is open", targets: []netip.AddrPort{refused, open}, syns: 2},
		{name: "the first is silent", targets: []netip.AddrPort{silent, open}, syns: 2},
		{name: "the first could not be measured", targets: []netip.AddrPort{busy, open}, syns: 1},
		{name: "Refused first", targets: []netip.AddrPort{refused, silent}, want: unix.ECONNREFUSED, syns: 2},
		{name: "Timeout first", targets: []netip.AddrPort{silent, refused}, want: os.ErrDeadlineExceeded, syns: 2},
		{name: "one could not be measured", targets: []netip.AddrPort{refused, busy, silent},
			want: unix.EADDRNOTAVAIL, isLocal: true, syns: 2},
	} {
		free := slices.DeleteFunc(slices.Clone(c.targets), func(t netip.AddrPort) bool { return t == busy })
		before := synsTo(network, free...)
		err := s.checkEach(t.Context(), c.targets, time.Now().Add(500*time.Millisecond))
		if !errors.Is(err, c.want) || errors.Is(err, ErrLocal) != c.isLocal {
			t.Errorf("%s: checkEach(%v): error %v, want %v, ErrLocal %t", c.name, c.targets, err, c.want, c.isLocal)
		}
		if syns := synsTo(network, free...) - before; syns != c.syns {
			t.Errorf("%s: checkEach(%v) sent %d SYNs to %v, want %d", c.name, c.targets, syns, free, c.syns)
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

// synsTo returns how many SYNs were sent to the targets.
func synsTo(network *simnet.Network, targets ...netip.AddrPort) (n int) {
	for _, target := range targets {
		for segment := range network.SentTo(target) {
			if segment.SYN {
				n++
			}
		}
	}
	return n
}
