package hold

import (
	"net/netip"
	"slices"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// Adapt implements registry.Target. The connection stays, whatever addresses its name has now: that connections outlive
// DNS entries is what address_current shows. The next connect uses a new address if the name does not have the present
// one any more. It also uses the present one if the addresses are not known now.
func (t *target) Adapt(report *probe.Report, addrs []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resolved(report)
	switch {
	case len(addrs) == 0 && report.Result == config.DNSNotFound:
		t.gone = &report.Verdict
		return
	case len(addrs) == 0:
		return
	case slices.Contains(addrs, t.peer.Addr()):
		t.wanted = t.peer.Addr()
	default:
		t.wanted = addrs[0]
	}
	waits := t.gone != nil && t.timer == nil
	if t.gone = nil; waits && !t.isBusy() {
		t.schedule(0)
	}
}

// resolved notes how the name was resolved last. Its caller holds mu.
func (t *target) resolved(report *probe.Report) {
	resolution := report.Resolution
	t.resolution = &resolution
}

// isCurrent reports whether the name still has the address of the connection, as far as is known. Its caller holds mu.
func (t *target) isCurrent() bool { return t.gone == nil && t.wanted == t.peer.Addr() }
