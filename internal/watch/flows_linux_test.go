package watch

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const flowsConfig = `
modules:
  flows:
    prober: tcp
    timeout: 300ms
    watch: {interval: 100ms}
    tcp: {flows: 4, preferred_ip_protocol: ip4}
`

// sum returns the number of handshakes of all flows with an outcome.
func sum(all []FlowCount, outcome shaker.Outcome) (n uint64) {
	for _, f := range all {
		n += f.Total[outcome]
	}
	return n
}

// leastOf returns the number of handshakes of the flow that has the fewest, whatever their outcomes.
func leastOf(all []FlowCount) uint64 {
	least := ^uint64(0)
	for _, f := range all {
		n := uint64(0)
		for _, count := range f.Total {
			n += count
		}
		least = min(least, n)
	}
	return least
}

// failedPorts returns the ports of the flows of a report whose results are not valid.
func failedPorts(r *probe.Report) (ports []uint16) {
	for _, f := range r.Flows {
		if !r.Valid(f.Result) {
			ports = append(ports, f.Port)
		}
	}
	return ports
}

// The first scrape probes all flows, the handshakes in the background take turns, and a scrape has the last result of
// each flow. A reload without a change of the module keeps the counters of the flows.
func TestFlows(t *testing.T) {
	b := newBench(t, flowsConfig, 0, Options{})
	first := b.scrape(openTarget, "flows")
	if !first.Probed || len(first.Flows) != 4 || len(first.Watch.Flows) != 4 ||
		first.Watch.total("open") != 4 || sum(first.Watch.Flows, shaker.Open) != 4 || leastOf(first.Watch.Flows) != 1 {
		t.Errorf("the first scrape: %+v, want a probe with a handshake of each of 4 flows", first.Watch)
	}
	var later Answer
	lab.Eventually(t, "each flow has four handshakes", func() bool {
		later = b.scrape(openTarget, "flows")
		return leastOf(later.Watch.Flows) >= 4
	})
	if later.Probed || !later.Success() || len(later.Flows) != 4 {
		t.Errorf("a later scrape: probed %t, result %s, %d flows, want open with 4 flows from memory",
			later.Probed, later.Result, len(later.Flows))
	}
	if later.Duration != later.At {
		t.Errorf("the report has the duration %v, want %v, that of the flow which it describes",
			later.Duration, later.At)
	}
	for i, f := range later.Flows {
		if f.Port != first.Flows[i].Port || f.Handshake.Local.Port() != f.Port {
			t.Errorf("flow %d has port %d, sent from %v, want port %d as in the first scrape",
				i, f.Port, f.Handshake.Local, first.Flows[i].Port)
		}
	}
	if total := later.Watch.total("open"); sum(later.Watch.Flows, shaker.Open) != total {
		t.Errorf("the flows have %d handshakes, and the target %d, want the same number",
			sum(later.Watch.Flows, shaker.Open), total)
	}
	reload := func(text string) Answer {
		b.prober.Configure(b.parse(text))
		b.watcher.Configure()
		return b.scrape(openTarget, "flows")
	}
	kept := reload(flowsConfig + "  other: {prober: tcp}\n")
	if kept.Probed || leastOf(kept.Watch.Flows) < leastOf(later.Watch.Flows) {
		t.Errorf("after a reload without a change of the module: probed %t, %+v, want the counters of %+v",
			kept.Probed, kept.Watch.Flows, later.Watch.Flows)
	}
	changed := reload(strings.Replace(flowsConfig, "flows: 4", "flows: 8", 1))
	if !changed.Probed || len(changed.Watch.Flows) != 8 || leastOf(changed.Watch.Flows) != 1 {
		t.Errorf("after a reload with other flows: probed %t, %+v, want a probe of 8 flows",
			changed.Probed, changed.Watch.Flows)
	}
	b.awaitHandshakes("10.0.1.1:80", "flows", "refused", 10)
	if closed := b.scrape("10.0.1.1:80", "flows"); sum(closed.Watch.Flows, shaker.Refused) < 10 || closed.Success() {
		t.Errorf("a closed port: %+v, want refused", closed.Watch.Flows)
	}
	plain := strings.Replace(flowsConfig, "flows: 4, ", "", 1)
	if none := reload(plain); none.Flows != nil || len(none.Watch.Flows) != 0 {
		t.Errorf("after a reload without flows: %+v, %+v, want no flows", none.Flows, none.Watch.Flows)
	}
}

// A flow whose port another program has is not performed, and skipped once. It has no result after some time, and the
// others decide. It is back when the port is free. If other programs have all ports, this is a fault each time.
func TestFlowWithATakenPort(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	text := strings.Replace(flowsConfig, "flows: 4", "flows: 4, source_ports: 20000-20003", 1)
	var faults atomic.Int64
	b := newBench(t, text, 0, Options{Observe: func(_ string, r *shaker.Repeated) {
		if r.Err != nil {
			faults.Add(1)
		}
	}})
	if first := b.scrape(openTarget, "flows"); len(first.Flows) != 4 || first.Flows[0].Port != 20000 {
		t.Fatalf("the first scrape has the flows %+v, want 4 from port 20000 on", first.Flows)
	}
	var server net.Listener
	lab.Eventually(t, "a server listens on port 20001", func() (ok bool) {
		var err error
		server, err = net.Listen("tcp4", ":20001")
		return err == nil
	})
	defer server.Close()
	var without Answer
	lab.Eventually(t, "a flow is left out", func() bool {
		without = b.scrape(openTarget, "flows")
		if !without.Success() {
			t.Fatalf("with a taken port: %s, want open", without.Result)
		}
		return len(without.Flows) < 4
	})
	if slices.ContainsFunc(without.Flows, func(f probe.Flow) bool { return f.Port == 20001 }) ||
		len(without.Flows) != 3 || without.Watch.Skipped.Fault != 1 || len(without.Watch.Flows) != 4 ||
		fmt.Sprint(without.LeftOut) != "[20001]" || faults.Load() != 0 {
		t.Errorf("with port 20001 taken: flows %+v, left out %v, %+v, %d faults; want three others, 20001, skipped "+
			"once, no faults", without.Flows, without.LeftOut, without.Watch, faults.Load())
	}
	if told := b.leftOut(); told != "flows ip4 [20001]" {
		t.Errorf("with port 20001 taken, the Prober tells of %q, want the module and the port", told)
	}
	if lost := without.Watch.total("") - without.Watch.total("open"); lost != 0 {
		t.Errorf("with a taken port: %+v, want no result but open", without.Watch.Handshakes)
	}
	server.Close()
	lab.Eventually(t, "the flow is back", func() bool { return len(b.scrape(openTarget, "flows").Flows) == 4 })
	for port := 20000; port <= 20003; port++ {
		lab.Eventually(t, "a server listens on the port", func() (ok bool) {
			server, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
			if err == nil {
				t.Cleanup(func() { server.Close() })
			}
			return err == nil
		})
	}
	lab.Eventually(t, "each turn is a fault", func() bool { return faults.Load() >= 8 })
}

// Another program has a port from the start. Each scrape says that its flow is left out: the first one, which is a
// probe, the next one, and that of a name of the address, which uses the results of the first target.
func TestFlowWithATakenPortFromTheStart(t *testing.T) {
	text := strings.Replace(flowsConfig, "flows: 4", "flows: 4, source_ports: 20000-20003", 1)
	b := newBench(t, text, 0, Options{})
	host, port, _ := net.SplitHostPort(openTarget)
	b.answerDNS(simnet.Names{"host.example": {host}})
	server, err := net.Listen("tcp4", ":20001")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for _, target := range []string{openTarget, openTarget, "host.example:" + port, "host.example:" + port} {
		a := b.scrape(target, "flows")
		if len(a.Flows) != 3 || fmt.Sprint(a.LeftOut) != "[20001]" {
			t.Errorf("the scrape of %s: %d flows, left out %v, want 3 and port 20001", target, len(a.Flows), a.LeftOut)
		}
	}
}

// When a name has another address, the results of flows with the previous one are forgotten, and the counters are not.
func TestFlowsOfANewAddress(t *testing.T) {
	b := newBench(t, flowsConfig, 0, Options{})
	b.answerDNS(simnet.Names{"host.example": {"10.0.1.1"}})
	const name = "host.example:80"
	b.scrape(name, "flows")
	before := b.awaitHandshakes(name, "flows", "refused", 6)
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.1"}})
	b.resolve()
	var after Answer
	lab.Eventually(t, "the name is open", func() bool {
		after = b.scrape(name, "flows")
		return after.Success()
	})
	refused := sum(after.Watch.Flows, shaker.Refused)
	if len(after.Flows) != 4 || refused < before.Watch.total("refused") {
		t.Errorf("after a handshake of each flow with another address: %s, flows %+v, counters %+v; want 4 flows, and "+
			"the counters of before", after.Result, after.Flows, after.Watch.Flows)
	}
	for _, f := range after.Flows {
		if f.Handshake.Peer.Addr().String() != "10.0.0.1" {
			t.Errorf("the flow of port %d has a result about %v, want only about 10.0.0.1", f.Port, f.Handshake.Peer)
		}
	}
}

// A silent target has one handshake of each flow in flight at most, whatever the timeout is.
func TestFlowsAtOnce(t *testing.T) {
	for _, c := range []struct {
		flows   uint8
		timeout time.Duration
		want    int
	}{
		{timeout: time.Second, want: 10}, {flows: 16, timeout: time.Second, want: 10},
		{flows: 4, timeout: time.Second, want: 4}, {flows: 4, timeout: 150 * time.Millisecond, want: 2},
	} {
		m := config.Module{Timeout: c.timeout, Watch: config.Watch{Interval: 100 * time.Millisecond}}
		m.TCP.Flows = c.flows
		if got := atOnce(&m); got != c.want {
			t.Errorf("atOnce with %d flows and timeout %v = %d, want %d", c.flows, c.timeout, got, c.want)
		}
	}
}

// While one path is broken, another one breaks, and the first one is repaired: the target fails all the time. The hop
// at which flows fail is that of the path that is broken now. Then the target itself goes down: no hop is named
// any more, and the path ends in front of the target.
func TestFlowsOverAnotherBrokenPath(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	b := newBench(t, `
modules:
  flows:
    prober: tcp
    timeout: 390ms
    watch: {interval: 100ms}
    tcp: {flows: 8, source_ports: 20000-20007, path: on_failure}
`, 0, Options{})
	routers := []string{"198.51.100.2", "198.51.100.3"}
	var broken atomic.Int32
	broken.Store(-1)
	var open, silent, down [2]*simnet.Host
	for i, router := range routers {
		down[i] = b.network.Hidden().Behind("198.51.100.1", router, "198.51.100.4")
		open[i] = b.network.Hidden(simnet.SYNACK()).Behind("198.51.100.1", router, "198.51.100.4")
		silent[i] = b.network.Hidden().Behind("198.51.100.1", router)
	}
	b.network.At("10.0.2.1").Over(func(syn simnet.Segment) *simnet.Host {
		i := int32(syn.Src.Port() % 2)
		switch broken.Load() {
		case i:
			return silent[i]
		case int32(len(routers)):
			return down[i]
		}
		return open[i]
	})
	const target = "10.0.2.1:80"
	b.scrape(target, "flows")
	for i, router := range routers {
		broken.Store(int32(i))
		lab.Eventually(t, "four flows fail, at "+router, func() bool {
			a := b.scrape(target, "flows")
			return len(failedPorts(a.Report)) == 4 && a.Parting != nil && a.Parting.Failed.From.String() == router
		})
	}
	broken.Store(int32(len(routers)))
	lab.Eventually(t, "all flows fail", func() bool {
		a := b.scrape(target, "flows")
		all := len(failedPorts(a.Report)) == 8
		if all && a.Parting != nil {
			t.Errorf("while all flows fail, the paths part at %+v, want nothing: none is better", a.Parting)
		}
		return all
	})
	lab.Eventually(t, "the path ends at 198.51.100.4", func() bool {
		path := b.scrape(target, "flows").Path
		return path != nil && slices.ContainsFunc(path.Hops, func(h shaker.Hop) bool {
			return h.From.String() == "198.51.100.4"
		})
	})
}

// newFanBench returns a bench without a simulated network.
func newFanBench(t *testing.T, text string, options Options) *bench {
	t.Helper()
	b := &bench{t: t, results: history.New(10_000)}
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	b.prober = probe.New(probe.Options{Shaker: engine, Config: b.parse(text)})
	options.Shaker, options.Prober, options.History = engine, b.prober, b.results
	b.watcher = New(options)
	t.Cleanup(b.watcher.Close)
	return b
}

// portsByMember returns the ports of the flows to a target that take a member of the fan, by the address of the member,
// as traces of these flows show.
func portsByMember(t *testing.T, s *shaker.Shaker, ports shaker.PortRange, target netip.AddrPort) (
	all map[netip.Addr][]uint16,
) {
	t.Helper()
	all = make(map[netip.Addr][]uint16)
	for port := ports.First; port <= ports.Last; port++ {
		r, err := s.Shake(t.Context(), target, &shaker.Options{SourcePort: port, Timeout: 5 * time.Second})
		if err != nil || r.Outcome != shaker.Open {
			t.Fatalf("Shake(%v from port %d) = %+v, error %v, want Open", target, port, r, err)
		}
		path, err := s.Trace(t.Context(), r, &shaker.TraceOptions{Timeout: 5 * time.Second, MaxHops: 8})
		if err != nil || len(path.Hops) < 2 || !path.SameFlow {
			t.Fatalf("Trace(%v from port %d) = %+v, error %v, want the path of the flow", target, port, path, err)
		}
		member := path.Hops[1].From
		all[member] = append(all[member], port)
	}
	return all
}

// One member of four drops what it should forward. Exactly the flows over this member are lost, and the counters, the
// report, the path and the log tell which ones they are.
func TestFlowsOverABrokenMember(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	const members = 4
	const drop = "table inet broken {\nchain forward {\ntype filter hook forward priority 0\ndrop\n}\n}"
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %t", v6), func(t *testing.T) {
			if lab.Apart(t) {
				return
			}
			fan := kernel.NewFan(t, members)
			fan.Listen(80)
			changes, partings := make(chan *probe.Report, 1000), make(chan *probe.Report, 1000)
			b := newFanBench(t, `
modules:
  flows:
    prober: tcp
    timeout: 500ms
    watch: {interval: 100ms}
    tcp: {flows: 16, path: on_failure, max_hops: 6}
`, Options{
				Changed: func(r *probe.Report) { changes <- r },
				Parted:  func(r *probe.Report) { partings <- r },
			})
			address := netip.AddrPortFrom(fan.Host(v6), 80)
			target := address.String()
			ports, err := b.prober.FlowPorts(&b.request(target, "flows").Module)
			if err != nil {
				t.Fatal(err)
			}
			all := portsByMember(t, b.watcher.options.Shaker, ports, address)
			member := 0 // that of most flows
			for i := range members {
				if len(all[fan.Member(v6, i)]) > len(all[fan.Member(v6, member)]) {
					member = i
				}
			}
			broken := all[fan.Member(v6, member)]
			if len(broken) < 4 || len(broken) > 15 {
				t.Fatalf("the flows take the members %v, want several of them", all)
			}
			b.scrape(target, "flows")
			var good Answer
			lab.Eventually(t, "each flow has three handshakes", func() bool {
				good = b.scrape(target, "flows")
				return leastOf(good.Watch.Flows) >= 3
			})
			if lost := sum(good.Watch.Flows, shaker.Timeout); lost != 0 || !good.Success() || len(changes) != 0 {
				t.Fatalf("before a member is broken: %s, %d lost, %d changes, want open, none, none",
					good.Result, lost, len(changes))
			}

			fan.Run(member, nft, drop)
			var bad Answer
			lab.Eventually(t, "the flows over the member have lost three handshakes each", func() bool {
				bad = b.scrape(target, "flows")
				return slices.IndexFunc(bad.Watch.Flows, func(f FlowCount) bool {
					return slices.Contains(broken, f.Port) && f.Total[shaker.Timeout] < 3
				}) < 0
			})
			for _, f := range bad.Watch.Flows {
				if lost := f.Total[shaker.Timeout]; slices.Contains(broken, f.Port) != (lost > 0) {
					t.Errorf("the flow of port %d has lost %d handshakes, want some only with the ports %v",
						f.Port, lost, broken)
				}
			}
			got := failedPorts(bad.Report)
			if !slices.Equal(got, broken) || len(bad.Flows) != 16 || bad.Result != "timeout" {
				t.Errorf("the report is %s with %d flows, failed %v, want timeout with 16, failed %v",
					bad.Result, len(bad.Flows), got, broken)
			}
			tracks := b.results.Tracks("", "")
			if len(tracks) != 1 || tracks[0].Last().Flows == nil ||
				!slices.Equal(tracks[0].Last().Flows.FailedPorts(), broken) {
				t.Errorf("the history has %+v, want a last record with the failed ports %v", tracks, broken)
			}
			if sum(bad.Watch.Flows, shaker.Timeout) != bad.Watch.total("timeout") {
				t.Errorf("the flows have lost %d, and the target %d, want the same",
					sum(bad.Watch.Flows, shaker.Timeout), bad.Watch.total("timeout"))
			}
			lab.Eventually(t, "the path is traced", func() bool {
				bad = b.scrape(target, "flows")
				return bad.Path != nil || bad.PathErr != nil
			})
			if bad.Parting == nil {
				t.Fatalf("path %+v, error %v, without a parting, want one", bad.Path, bad.PathErr)
			}
			if p := bad.Parting; p.Shared.From != fan.Entry(v6) || p.Failed.From != fan.Member(v6, member) {
				t.Errorf("the path parts at %+v, want the shared hop %v and the failed hop %v",
					p, fan.Entry(v6), fan.Member(v6, member))
			}
			if n := len(partings); n < 1 {
				t.Errorf("no call of Parted, want one after each trace")
			} else if r := <-partings; r.Parting.Failed.From != fan.Member(v6, member) {
				t.Errorf("Parted was called about %+v, want the failed hop %v", r.Parting, fan.Member(v6, member))
			} else if ports := r.HistoryFlows(&r.Verdict).FailedPorts(); !slices.Equal(ports, failedPorts(r)) {
				t.Errorf("the log would name the ports %v, want %v: those flows fail", ports, failedPorts(r))
			}
			var last *probe.Report
			calls := 0
			for len(changes) > 0 {
				last = <-changes
				calls++
			}
			most := 2 + int(bad.Watch.Skipped.total()) // a flow that misses its turn fails a round later
			if calls < 1 || calls > most || !slices.Equal(failedPorts(last), broken) {
				t.Errorf("%d changes, the last one with the failed ports %v, want %d at most, the last one with %v",
					calls, failedPorts(last), most, broken)
			}

			fan.Run(member, nft, "delete", "table", "inet", "broken")
			lab.Eventually(t, "the target has recovered", func() bool { return b.scrape(target, "flows").Success() })
			if r := <-changes; !r.Success() || len(changes) != 0 {
				t.Errorf("the change after the recovery is %s, and %d more, want open, and none",
					r.Result, len(changes))
			}
			if again := b.scrape(target, "flows"); again.Path != nil || again.Parting != nil {
				t.Errorf("after the recovery: path %+v, parting %+v, want none", again.Path, again.Parting)
			}

			// When all members drop, the flows fail one after the other. None of them is a good one, even if its
			// turn has not come yet.
			for i := range members {
				fan.Run(i, nft, drop)
			}
			var down Answer
			lab.Eventually(t, "all flows fail, and the path is traced", func() bool {
				down = b.scrape(target, "flows")
				return len(failedPorts(down.Report)) == 16 && down.Path != nil
			})
			if down.Parting != nil {
				t.Errorf("when all members drop, the path parts at %+v, want no statement", down.Parting)
			}
			for i := range members {
				fan.Run(i, nft, "delete", "table", "inet", "broken")
			}
		})
	}
}
