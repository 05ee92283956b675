package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// fallBack probes an address of the other IP version, because this host lacks the one of the first address. If there
// is none, or the module does not permit it, the first verdict stands.
func (r *running) fallBack(ctx context.Context) error {
	first := r.Verdict
	lacking := protocol(first.Handshake.Peer.Addr())
	r.addrs = slices.DeleteFunc(r.addrs, func(addr netip.Addr) bool { return protocol(addr) == lacking })
	if err := r.resolve(ctx); err != nil {
		return err
	}
	if len(r.addrs) > 0 {
		r.leaveOut(&first)
		r.Verdict = Verdict{}
		return r.shake(ctx, r.choose(r.addrs), &r.Verdict)
	} else if reason := r.lookup.failure(); reason != nil {
		r.leaveOut(&first)
		r.Verdict = r.aboutName(reason)
	}
	return nil
}

// leaveOut notes that an address does not count, because this host lacks its IP version.
func (r *running) leaveOut(v *Verdict) {
	peer, version := v.Handshake.Peer, "IPv6"
	if peer.Addr().Is4() {
		version = "IPv4"
	}
	r.Resolution.LeftOut = append(r.Resolution.LeftOut,
		fmt.Errorf("target %v: this host has no %s (%s)", peer, version, v.Errno))
}

// LacksFamily reports whether the result of a handshake only means that this host lacks the IP version of the address.
func LacksFamily(r *shaker.Result) bool { return lacksFamily(&Verdict{Handshake: *r}) }

// OtherVersion returns the address of a request's name that a probe would choose if this host lacks the IP version of
// addr. found is false if there is none, or if the module permits no other IP version.
func (p *Prober) OtherVersion(ctx context.Context, req *Request, addr netip.Addr) (other netip.Addr, found bool) {
	if req.Addr.IsValid() || req.Module.TCP.Network() != "ip" {
		return netip.Addr{}, false
	}
	preferring := *req
	preferring.Module.TCP.PreferredIPProtocol = config.IP4
	if protocol(addr) == config.IP4 {
		preferring.Module.TCP.PreferredIPProtocol = config.IP6
	}
	_, addrs, err := p.Resolve(ctx, &preferring)
	if err != nil || len(addrs) == 0 || protocol(addrs[0]) == protocol(addr) {
		return netip.Addr{}, false
	}
	return addrs[0], true
}

// lacksFamily reports whether the verdict about an address only means that this host lacks its IP version: the kernel
// does not have it, there is no address to send from, or there is no route and the host has no other address than
// those of the loopback interface and the links. A host that has an address and no route is not without the IP
// version, but has lost its route.
func lacksFamily(v *Verdict) bool {
	h := &v.Handshake
	if h.ICMP.From.IsValid() {
		return false
	}
	switch h.Errno {
	case syscall.EAFNOSUPPORT, syscall.EADDRNOTAVAIL:
		return true
	case syscall.ENETUNREACH:
		return !hasGlobalAddress(protocol(h.Peer.Addr()))
	}
	return false
}

// hasGlobalAddress reports whether this host has an address of the network, "ip4" or "ip6", with which it can reach
// more than itself and its links. It reports true if that cannot be found out.
func hasGlobalAddress(network string) bool {
	addrs, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(addrs, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		addr := prefix.Addr()
		return err == nil && protocol(addr) == network && !addr.IsLoopback() && !addr.IsLinkLocalUnicast()
	})
}

// leaveOutLacking leaves out the addresses whose IP version this host lacks, unless nothing else is known of the name.
func (r *running) leaveOutLacking() {
	lacking := make([]bool, len(r.Verdicts))
	others := r.Unknown != nil
	for i := range r.Verdicts {
		lacking[i] = lacksFamily(&r.Verdicts[i])
		others = others || !lacking[i]
	}
	if !others {
		return
	}
	kept := r.Verdicts[:0]
	for i, v := range r.Verdicts {
		if lacking[i] {
			r.leaveOut(&v)
		} else {
			kept = append(kept, v)
		}
	}
	r.Verdicts = kept
}
