package watch

import (
	"net/netip"
	"slices"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// Adapt implements registry.Target. The handshakes go on with the present address as long as it is one of those of the
// name, even if it is not the first one, because DNS servers change the order. They also go on if the addresses are not
// known at present. They pause if the name has no address any more.
func (t *target) Adapt(report *probe.Report, addrs []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resolved(report)
	switch {
	case t.stopped: // during the lookup
	case len(addrs) == 0 && report.Result == config.DNSNotFound:
		t.pause()
		t.name.gone, t.name.goneAt = &report.Verdict, report.Start
		t.found(report.Result, t.watcher.at(report.Start))
		if !report.Success() {
			t.recordFailure(report)
		}
		t.noteChange(report)
	case len(addrs) == 0 || t.repetition != nil && slices.Contains(addrs, t.name.peer.Addr()):
	default:
		if t.name.gone != nil {
			t.completed = t.watcher.now() // the pause was not the fault of this host
		}
		if err := t.repeat(netip.AddrPortFrom(addrs[0], t.name.peer.Port())); err != nil {
			t.haveSkips().fault = err
		}
	}
}

// resolved notes how the name was resolved last. Its caller holds mu.
func (t *target) resolved(report *probe.Report) {
	if t.name == nil {
		t.name = new(name)
	}
	t.name.resolution = report.Resolution
}
