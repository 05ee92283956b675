package endtoend

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// If the exporter is stopped for longer than the kernel withholds the final ACK, the kernel sends the ACK. The
// exporter reports exactly those ACKs that are on the wire.
func TestACKsOfAStoppedExporter(t *testing.T) {
	network := simnet.NewNetwork(t)
	running := exporter.Start(t)
	const early, late = 15, 25 // handshakes whose SYN-ACK arrives while the exporter is stopped, and afterwards
	target := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 443)
	}
	answers := make([]string, early+late)
	var probing sync.WaitGroup
	for i := range answers {
		probing.Go(func() { _, answers[i] = exporter.Get(t, "/probe?target="+target(i).String()) })
	}
	syns := make(map[netip.AddrPort]simnet.Segment)
	lab.Eventually(t, "all SYNs are on the wire", func() bool {
		for syn := range network.Sent() {
			syns[syn.Dst] = syn
		}
		return len(syns) == len(answers)
	})
	running.Signal(syscall.SIGSTOP)
	lab.Eventually(t, "the exporter is stopped", running.Stopped)
	for i := range early {
		network.Send(syns[target(i)].SYNACK())
	}
	lab.Eventually(t, "the kernel sends the ACKs", func() bool { return len(acked(network)) == early })
	running.Signal(syscall.SIGCONT)
	for i := early; i < len(answers); i++ {
		network.Send(syns[target(i)].SYNACK())
	}
	probing.Wait()

	onTheWire := acked(network)
	for i, answer := range answers {
		ack := 0
		if onTheWire[target(i)] {
			ack = 1
		}
		if !strings.Contains(answer, fmt.Sprintf("\nprobe_tcp_ack_sent %d\n", ack)) {
			t.Errorf("probe of %v = %s\nwant probe_tcp_ack_sent %d, as on the wire:\n%s",
				target(i), answer, ack, network.Trace(target(i).Addr()))
		}
	}
	if got, want := exporter.Metrics(t)["shaker_acks_sent_total"], fmt.Sprint(len(onTheWire)); got != want {
		t.Errorf("shaker_acks_sent_total = %s, want %s, as on the wire", got, want)
	}
	if n := len(onTheWire); n == len(answers) {
		t.Errorf("all %d handshakes sent an ACK, want fewer: the exporter ran when %d of the SYN-ACKs arrived", n, late)
	}
}

// acked returns the targets to which this host has sent an ACK.
func acked(network *simnet.Network) map[netip.AddrPort]bool {
	targets := make(map[netip.AddrPort]bool)
	for segment := range network.Sent() {
		if segment.ACK && !segment.RST {
			targets[segment.Dst] = true
		}
	}
	return targets
}
