package watch

import (
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// With a host on the same link that is down, most handshakes are lost, until the kernel gives up neighbour resolution:
// the handshake of that time is unreachable, and the next one starts neighbour resolution again. The target fails since
// its first handshake.
func TestDeadNeighbour(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	kernel.NewNeighbour(t)
	const dead = "198.18.2.9:80"
	b := newBench(t, "modules: {second: {prober: tcp, watch: {interval: 1s}}}", 0, Options{})
	first := b.scrape(dead, "second")
	if first.Success() {
		t.Fatalf("the first scrape of a dead neighbour: %+v, want a failure", first)
	}
	var lost, unreachable uint64
	lab.Eventually(t, "three handshakes are unreachable, and the last one is not", func() bool {
		now := b.scrape(dead, "second")
		lost, unreachable = now.Watch.total("timeout"), now.Watch.total("unreachable")
		return unreachable >= 3 && now.Result == "timeout"
	})
	if s := b.status(); lost <= unreachable || s.Since.Sub(first.Start).Abs() > time.Second {
		t.Errorf("%d handshakes with a dead neighbour are lost and %d unreachable, and it fails since %v; "+
			"want more lost ones, and since %v", lost, unreachable, s.Since, first.Start)
	}
	t.Logf("%.0f%% of the handshakes with a dead neighbour are lost", 100*float64(lost)/float64(lost+unreachable))
}
