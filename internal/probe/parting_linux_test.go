package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// One router of a fan is broken. The flows that it breaks fail each time, and the others do not. The report names the
// router, if it is a member, and no member if the router behind all of them, or the target, is what breaks flows. A
// probe without flows does not see a broken member, or fails now and then.
func TestBrokenMember(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	const member = 1
	for _, members := range []int{2, 4, 8} {
		t.Run(fmt.Sprintf("%d members", members), func(t *testing.T) {
			if lab.Apart(t) {
				return
			}
			fan := kernel.NewFan(t, members)
			fan.Listen(80)
			views := viewsOf(t, fan)
			onMember := func(args ...string) { fan.Run(member, nft, args...) }
			onExit := func(args ...string) { fan.RunOnExit(nft, args...) }
			onHost := func(args ...string) { fan.RunOnHost(nft, args...) }
			for _, c := range []struct {
				name  string
				run   func(args ...string) // on the router that is broken
				hook  string
				rule  string // for all flows that arrive there, or only for those that match ports
				check func(t *testing.T, v *view)
			}{
				{
					name: "a member drops", run: onMember, hook: "forward", rule: "drop",
					check: func(t *testing.T, v *view) { v.checkMember(t, member, "timeout") },
				},
				{
					name: "a member rejects by RST", run: onMember, hook: "forward",
					rule:  "meta l4proto tcp reject with tcp reset",
					check: func(t *testing.T, v *view) { v.checkMember(t, member, "refused") },
				},
				{
					name: "a member rejects by ICMP", run: onMember, hook: "forward",
					rule:  "meta l4proto tcp reject with icmpx admin-prohibited",
					check: func(t *testing.T, v *view) { v.checkMember(t, member, "prohibited") },
				},
				{
					// A dead member does not answer the trace either. The SYNs to the hops behind a silent one have
					// other ports, and may get through.
					name: "a member is silent", run: onMember, hook: "prerouting", rule: "meta l4proto tcp drop",
					check: func(t *testing.T, v *view) {
						r := v.check(t, func(p *Parting) bool {
							return p.Shared.From == fan.Entry(v.v6) && !p.Failed.From.IsValid()
						}, "the shared hop %v, and no failed hop", fan.Entry(v.v6))
						if p := r.Path; p != nil && (len(p.Hops) > 1 || p.Reached > 0) {
							t.Errorf("the path of port %d is %+v, want the entry at most", r.Handshake.Local.Port(), p)
						}
					},
				},
				{
					name: "the exit drops flows", run: onExit, hook: "forward", rule: "tcp sport PORTS drop",
					check: func(t *testing.T, v *view) { v.checkNoName(t) },
				},
				{
					name: "the exit rejects flows by ICMP", run: onExit, hook: "forward",
					rule: "tcp sport PORTS reject with icmpx admin-prohibited",
					check: func(t *testing.T, v *view) {
						v.check(t, func(p *Parting) bool {
							return fan.IsExit(p.Failed.From) && !fan.IsExit(p.Shared.From)
						}, "the exit as the failed hop, and another one as the shared hop")
					},
				},
				{
					name: "the host drops flows", run: onHost, hook: "input", rule: "tcp sport PORTS drop",
					check: func(t *testing.T, v *view) { v.checkNoName(t) },
				},
				{
					name: "the host rejects flows", run: onHost, hook: "input",
					rule:  "tcp sport PORTS reject with tcp reset",
					check: func(t *testing.T, v *view) { v.checkNoName(t) },
				},
				{
					name: "the host drops one flow", run: onHost, hook: "input", rule: "tcp sport PORT drop",
					check: func(t *testing.T, v *view) { v.checkNoName(t) },
				},
				// The last one, because the host keeps connections of which it has not got the RST.
				{
					name: "a member loses half", run: onMember, hook: "forward", rule: "numgen random mod 2 0 drop",
					check: func(t *testing.T, v *view) { v.checkLoss(t, member) },
				},
			} {
				t.Run(c.name, func(t *testing.T) {
					var rules []string
					for _, v := range views {
						rules = append(rules, v.ruleFor(c.rule))
					}
					c.run("table inet broken {\nchain broken {\ntype filter hook " + c.hook + " priority 0\n" +
						strings.Join(slices.Compact(rules), "\n") + "\n}\n}")
					defer c.run("delete table inet broken")
					t.Run("probes", func(t *testing.T) {
						for _, v := range views {
							t.Run(v.String(), func(t *testing.T) {
								t.Parallel()
								c.check(t, v)
							})
						}
					})
				})
			}
		})
	}
}

// A view is how a Prober with an engine sees a fan over one IP version.
type view struct {
	*Prober
	raw, v6 bool
	fan     *kernel.Fan
	target  string
	ports   []uint16 // of one flow over each member
}

func (v *view) String() string {
	return fmt.Sprintf("%s over IPv%d", map[bool]string{false: "sockets", true: "raw"}[v.raw],
		map[bool]int{false: 4, true: 6}[v.v6])
}

func viewsOf(t *testing.T, fan *kernel.Fan) (views []*view) {
	t.Helper()
	for _, raw := range []bool{false, true} {
		engineConfig := &shaker.Config{}
		if raw {
			engineConfig.Raw = &shaker.Raw{}
		}
		engine, err := shaker.New(engineConfig)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { engine.Close() })
		p := New(Options{Shaker: engine, Config: parse(t, `
modules:
  flows: {prober: tcp, timeout: 2s, tcp: {flows: 32, path: on_failure}}
  many: {prober: tcp, timeout: 2s, tcp: {flows: 64, path: on_failure}}
  plain: {prober: tcp, timeout: 900ms}
`)})
		for _, v6 := range []bool{false, true} {
			v := &view{
				Prober: p, raw: raw, v6: v6, fan: fan, target: netip.AddrPortFrom(fan.Host(v6), 80).String(),
			}
			v.findPorts(t)
			views = append(views, v)
		}
	}
	return views
}

// findPorts finds out which flow passes which member.
func (v *view) findPorts(t *testing.T) {
	t.Helper()
	req := request(t, v.Prober, v.target, "flows")
	req.TraceFlows(func(int, int) {})
	r, err := v.Probe(t.Context(), req)
	if err != nil || !r.Success() {
		t.Fatalf("%v: probe of %s = %+v, error %v, want that all flows are open", v, v.target, r, err)
	}
	first := make(map[netip.Addr]bool)
	for _, path := range r.FlowPaths {
		if len(path.Hops) < 3 {
			t.Fatalf("%v: the path of port %d is %+v, want three routers", v, path.Port, path.Hops)
		}
		if over := path.Hops[1].From; !first[over] {
			first[over] = true
			v.ports = append(v.ports, path.Port)
		}
	}
}

// ruleFor fills the ports of the flows into a rule that is for some flows only.
func (v *view) ruleFor(rule string) string {
	if !strings.Contains(rule, "PORT") {
		return rule
	}
	protocol := map[bool]string{false: "ipv4", true: "ipv6"}[v.v6]
	set := strings.Join(strings.Fields(strings.Trim(fmt.Sprint(v.ports), "[]")), ", ")
	return "meta nfproto " + protocol + " " +
		strings.NewReplacer("PORTS", "{ "+set+" }", "PORT", fmt.Sprint(v.ports[0])).Replace(rule)
}

// probe probes the target with flows, some of which fail.
func (v *view) probe(t *testing.T, module string) *Report {
	t.Helper()
	for try := 1; ; try++ { // a busy machine may send no SYN in time
		r, err := v.Probe(t.Context(), request(t, v.Prober, v.target, module))
		if err == nil {
			return r
		}
		if !errors.Is(err, shaker.ErrUnsent) || try == 5 {
			t.Fatalf("probe of %s: %v", v.target, err)
		}
	}
}

// check checks the parting of a probe some of whose flows fail: of one of several, because all routers of an older
// kernel have one limit of ICMP errors together.
func (v *view) check(t *testing.T, ok func(*Parting) bool, format string, args ...any) *Report {
	t.Helper()
	for left := 2; ; left-- {
		r := v.probe(t, "flows")
		failed := len(r.FailedFlows(&r.Verdict))
		if failed == 0 || failed == len(r.Flows) {
			t.Fatalf("%d of %d flows of the probe of %s fail, want some", failed, len(r.Flows), v.target)
		}
		if r.Parting != nil && ok(r.Parting) {
			return r
		}
		report := t.Logf
		if left == 0 {
			report = t.Errorf
		}
		report("the paths to %s: %s; path error %v, want %s", v.target, describe(r.Parting), r.PathErr,
			fmt.Sprintf(format, args...))
		if left == 0 {
			return r
		}
	}
}

func describe(p *Parting) string {
	if p == nil {
		return "no parting"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %v", ListPorts(p.Ports), p)
	for _, path := range p.Paths {
		fmt.Fprintf(&text, "\n  port %d, %s: %s %v", path.Port, path.Result, DescribeHops(path.Hops), path.Err)
	}
	return text.String()
}

// checkMember checks two probes of which the flows over a member fail.
func (v *view) checkMember(t *testing.T, member int, result string) {
	t.Helper()
	var before []uint16
	for range 2 {
		r := v.check(t, func(p *Parting) bool {
			return p.Shared.From == v.fan.Entry(v.v6) && p.Failed.From == v.fan.Member(v.v6, member)
		}, "the shared hop %v and the failed hop %v", v.fan.Entry(v.v6), v.fan.Member(v.v6, member))
		var failed []uint16
		results := make(map[string]int)
		for _, f := range r.Flows {
			if f.Handshake.Local.Port() != f.Port {
				t.Errorf("the flow of port %d was sent from %v", f.Port, f.Handshake.Local)
			}
			if !r.Valid(f.Result) {
				failed = append(failed, f.Port)
				results[f.Result]++
			}
		}
		if result == "prohibited" { // a router limits how many ICMP errors it sends
			delete(results, "timeout")
		}
		if len(r.Flows) != 32 || len(results) != 1 || results[result] == 0 || r.Success() {
			t.Fatalf("the failed ones of %d flows of %s have the results %v, want %s, and 32 flows",
				len(r.Flows), v.target, results, result)
		}
		if before != nil && !slices.Equal(before, failed) {
			t.Errorf("the flows %d fail, and the flows %d before, want the same", failed, before)
		}
		before = failed
		if p := r.Path; p != nil && p.Reached != 0 && result != "refused" { // it may take too long
			t.Errorf("the path of the flow that fails is %+v, want one that does not reach the target", p)
		}
	}
	v.checkPlain(t)
}

// checkPlain is the control: without flows, probes fail now and then.
func (v *view) checkPlain(t *testing.T) {
	t.Helper()
	open := 0
	const probes = 40
	for range probes {
		if v.probe(t, "plain").Success() {
			open++
		}
		if open > 0 && open < probes {
			break
		}
	}
	if open == 0 {
		t.Errorf("%d probes of %s without flows, all fail, want that they flap", probes, v.target)
	}
}

// checkLoss checks that a member is named which loses half of the packets, and seldom another router. Not every probe
// shows the member: the flows that fail are too few, or their traces get through.
func (v *view) checkLoss(t *testing.T, member int) {
	t.Helper()
	const most = 40
	right, wrong, n := 0, 0, 0
	var last string
	for ; n < most && right < 3; n++ {
		p := v.probe(t, "many").Parting
		switch {
		case p == nil || !p.Failed.From.IsValid():
		case p.Failed.From == v.fan.Member(v.v6, member) && p.Shared.From == v.fan.Entry(v.v6):
			right++
		default:
			wrong++
			last = describe(p)
		}
	}
	t.Logf("%d of %d probes name the member, and %d another router", right, n, wrong)
	if right < 3 || wrong > 1 {
		t.Errorf("%d of %d probes of %s name the member, and %d another router, want 3 or more, and 1 at most:\n%s",
			right, n, v.target, wrong, last)
	}
}

// checkNoName checks that the flows fail behind a hop that others pass, and that no router is named.
func (v *view) checkNoName(t *testing.T) {
	t.Helper()
	v.check(t, func(p *Parting) bool {
		if p.Failed.From.IsValid() {
			t.Errorf("the paths to %s: %s, want no failed hop", v.target, describe(p))
		}
		return p.Shared.From.IsValid()
	}, "a shared hop")
}
