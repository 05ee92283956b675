package probe

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// One member of several is broken. The flows over this member fail, each time the same ones, and the others do not. The
// paths show which member it is. A probe without flows does not see it, or fails now and then.
func TestBrokenMember(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	for _, members := range []int{2, 4, 8} {
		for _, broken := range []struct{ name, rule, result, errno string }{
			{name: "drops", rule: "drop", result: "timeout", errno: "ETIMEDOUT"},
			{name: "rejects", rule: "meta l4proto tcp reject with tcp reset", result: "refused", errno: "ECONNREFUSED"},
		} {
			t.Run(fmt.Sprintf("%d members, one %s", members, broken.name), func(t *testing.T) {
				fan := kernel.NewFan(t, members)
				fan.Listen(80)
				const member = 1
				fan.Run(member, nft, "table inet broken {\nchain forward {\ntype filter hook forward priority 0\n"+
					broken.rule+"\n}\n}")
				p := newProber(t, Options{Config: parse(t, `
modules:
  flows: {prober: tcp, timeout: 3s, tcp: {flows: 32, path: on_failure}}
  plain: {prober: tcp, timeout: 1s}
`)})
				for _, v6 := range []bool{false, true} {
					checkBrokenMember(t, p, fan, v6, member, broken.result)
				}
			})
		}
	}
}

func checkBrokenMember(t *testing.T, p *Prober, fan *kernel.Fan, v6 bool, member int, result string) {
	t.Helper()
	target := netip.AddrPortFrom(fan.Host(v6), 80).String()
	var before []string
	for range 2 {
		r, err := p.Probe(t.Context(), request(t, p, target, "flows"))
		if err != nil {
			t.Fatalf("probe of %s: %v", target, err)
		}
		var failed []string
		for _, f := range r.Flows {
			if f.Handshake.Local.Port() != f.Port {
				t.Errorf("the flow of port %d was sent from %v", f.Port, f.Handshake.Local)
			}
			if f.Result != "open" {
				failed = append(failed, fmt.Sprint(f.Port, f.Result))
			}
		}
		if len(r.Flows) != 32 || len(failed) == 0 || len(failed) > 31 || r.Result != result || r.Success() {
			t.Fatalf("the probe of %s is %s with the failed flows %v of %d, want %s with some of 32",
				target, r.Result, failed, len(r.Flows), result)
		}
		if before != nil && fmt.Sprint(before) != fmt.Sprint(failed) {
			t.Errorf("the flows %v fail, and the flows %v before, want the same", failed, before)
		}
		before = failed
		if r.Parting == nil || r.Parting.Shared.From != fan.Entry(v6) || r.Parting.Failed.From != fan.Member(v6, member) {
			t.Errorf("the path of %s parts at %+v, path error %v, want the shared hop %v and the failed hop %v",
				target, r.Parting, r.PathErr, fan.Entry(v6), fan.Member(v6, member))
		}
	}
	open := 0
	const probes = 40
	for range probes {
		r, err := p.Probe(t.Context(), request(t, p, target, "plain"))
		if err != nil {
			t.Fatalf("probe of %s: %v", target, err)
		}
		if r.Success() {
			open++
		}
		if open > 0 && open < probes {
			break
		}
	}
	if open == 0 {
		t.Errorf("%d probes of %s without flows, all fail, want that they flap", probes, target)
	}
}

var _ = config.First
