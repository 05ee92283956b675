package hold

import (
	"context"
	"net/netip"
	"slices"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Adapt implements registry.Target. The connection stays, whatever addresses its name has now. The next connect uses a
// new address if the name does not have the present one any more. It also uses the present one if the addresses are not
// known now.
func (t *target) Adapt(report *probe.Report, addrs []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resolved(report)
	if len(addrs) == 0 {
		if report.Result == config.DNSNotFound {
			t.gone = &report.Verdict
		}
		return
	}
	if t.lacking {
		// The lookup has not necessarily waited for the addresses of the other IP version.
		addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.Is4() != t.wanted.Is4() })
	}
	switch peer := t.peer.Addr(); {
	case slices.Contains(addrs, peer):
		t.wanted = peer
	case len(addrs) > 0:
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

// fallsBack reports whether a connect has failed because this host lacks the IP version of the address, so that one of
// the other IP version has to be tried, as in a probe. Its caller holds mu.
func (t *target) fallsBack(r *shaker.Result) bool {
	return t.resolution != nil && !t.lacking && t.Module.TCP.Network() == "ip" && probe.LacksFamily(r)
}

// fallBack looks for an address of the other IP version and connects to it. If there is none, the connect has failed.
// Its caller holds mu.
func (t *target) fallBack(e *shaker.ConnectionEvent) {
	failed, own := *e, t.started
	t.looking = true
	t.holder.registry.Go(func(ctx context.Context) {
		addr, found := t.otherAddress(ctx)
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.looking || t.started != own {
			return // it was stopped
		}
		if t.looking = false; !found {
			t.refused(&failed)
			return
		}
		t.wanted, t.lacking = addr, true
		t.open()
	})
}

// otherAddress looks for an address whose IP version is not that of the peer.
func (t *target) otherAddress(ctx context.Context) (addr netip.Addr, found bool) {
	peer := t.Peer().Addr()
	req, err := probe.NewRequest(t.holder.options.Prober.Config(), t.Key.Target, t.Key.Module)
	if err != nil {
		return netip.Addr{}, false
	}
	return t.holder.options.Prober.OtherVersion(ctx, req, peer)
}
