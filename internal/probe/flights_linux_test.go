package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// flowTarget is a target of which each fourth flow is silent, and which answers the others.
const flowTarget = "192.0.2.1"

// newFlowNetwork returns a network with the flowTarget, which answers after some time.
func newFlowNetwork(t *testing.T, after time.Duration) *simnet.Network {
	t.Helper()
	network := simnet.NewNetwork(t)
	open, silent := network.Hidden(simnet.SYNACK().After(after)), network.Hidden()
	network.At(flowTarget).Over(func(syn simnet.Segment) *simnet.Host {
		if syn.Src.Port()%4 == 0 {
			return silent
		}
		return open
	})
	return network
}

// firstSYNs returns how many different SYNs were sent, and from which ports.
func firstSYNs(network *simnet.Network) (n int, ports []uint16) {
	type syn struct {
		port     uint16
		sequence uint32
	}
	seen := make(map[syn]bool)
	for segment := range network.SentTo(netip.MustParseAddrPort(flowTarget + ":80")) {
		if s := (syn{segment.Src.Port(), segment.Seq}); segment.SYN && !seen[s] {
			seen[s] = true
			ports = append(ports, s.port)
		}
	}
	slices.Sort(ports)
	return len(seen), slices.Compact(ports)
}

// checkFlows checks that each fourth flow of a report has timed out, and that the others are open.
func checkFlows(t *testing.T, r *Report, err error, flows int) {
	t.Helper()
	if err != nil {
		t.Errorf("a probe of %s: error %v, want %d flows", flowTarget, err, flows)
		return
	}
	var wrong []string
	for _, f := range r.Flows {
		want := "open"
		if f.Port%4 == 0 {
			want = "timeout"
		}
		if f.Result != want {
			wrong = append(wrong, fmt.Sprintf("%d %s", f.Port, f.Result))
		}
	}
	if len(r.Flows) != flows || wrong != nil || r.Result != "timeout" {
		t.Errorf("the probe of %s is %s with %d flows, wrong are %v, want timeout with %d, only each fourth silent",
			r.Text, r.Result, len(r.Flows), wrong, flows)
	}
}

// Probes of a target with the same module at the same time need the same ports. They share one probe. One that is gone
// does not end it for the others.
func TestFlowsAtTheSameTime(t *testing.T) {
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		network := simnet.NewNetwork(t)
		network.At(flowTarget, simnet.SYNACK().After(300*time.Millisecond))
		p := newEngineProber(t, engine, Options{Config: parse(t, `modules: {flows: {prober: tcp, tcp: {flows: 16}}}`)})
		req := request(t, p, flowTarget+":80", "flows")
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() { _, err := p.Probe(ctx, req); gone <- err }()
		network.Await(16)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
				if err != nil || len(r.Flows) != 16 || !r.Success() {
					t.Errorf("a probe at the same time = %+v, error %v, want 16 open flows", r, err)
				}
			})
		}
		lab.Eventually(t, "all probes share the handshakes", func() bool { return p.sharing() == 5 })
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the probe that was cancelled: error %v, want context.Canceled", err)
		}
		group.Wait()
		if n, _ := firstSYNs(network); n != 16 {
			t.Errorf("%d SYNs were sent for five probes at the same time, want 16", n)
		}
		if n := p.InFlight(); n != 0 || p.sharing() != 0 {
			t.Errorf("after all probes: %d handshakes in flight, %d probes share flights, want none", n, p.sharing())
		}
	})
}

// sharing returns how many probes take part in flights.
func (p *Prober) sharing() (n int) {
	p.flights.mu.Lock()
	defer p.flights.mu.Unlock()
	for _, f := range p.flights.all {
		n += len(f.seats)
	}
	return n
}

// The last probe that takes part ends the handshakes, and the ports are free when it returns: the next probe can use
// them.
func TestAbandonedFlows(t *testing.T) {
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		network := newFlowNetwork(t, 0)
		p := newEngineProber(t, engine, Options{Config: parse(t,
			`modules: {flows: {prober: tcp, timeout: 800ms, tcp: {flows: 8}}}`)})
		for range 20 {
			before, _ := firstSYNs(network)
			end := probeInBackground(t, p, flowTarget+":80", "flows")
			lab.Eventually(t, "all SYNs are sent", func() bool { n, _ := firstSYNs(network); return n >= before+8 })
			end()
			if n := p.InFlight(); n != 0 {
				t.Fatalf("after a probe was cancelled, %d handshakes are in flight, want 0", n)
			}
		}
		r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
		checkFlows(t, r, err, 8)
	})
}

// Two modules have ports of their own, so that each gets its verdict while flows of the other one fail.
func TestFlowsOfTwoModules(t *testing.T) {
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		network := newFlowNetwork(t, 0)
		p := newEngineProber(t, engine, Options{Config: parse(t, `
modules:
  one: {prober: tcp, timeout: 2s, tcp: {flows: 16}}
  other: {prober: tcp, timeout: 800ms, tcp: {flows: 8, dscp: 46}}
`)})
		end := probeInBackground(t, p, flowTarget+":80", "one")
		network.Await(16)
		r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "other"))
		checkFlows(t, r, err, 8)
		end()
		if n, ports := firstSYNs(network); n != 24 || len(ports) != 24 {
			t.Errorf("two modules with 16 and 8 flows have sent %d SYNs from %d ports, want 24 from 24", n, len(ports))
		}
	})
}

// Two names of one address share the handshakes, and the path, whenever the second probe begins.
func TestFlowsOfTwoNames(t *testing.T) {
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		for _, path := range []string{"never", "on_failure"} {
			t.Run(path, func(t *testing.T) {
				network := newFlowNetwork(t, 0)
				names := simnet.NewDNS(t, simnet.Names{"one.example": {flowTarget}, "other.example": {flowTarget}})
				p := newEngineProber(t, engine, Options{DialDNS: names, Config: parse(t, `
modules:
  flows: {prober: tcp, timeout: 3s, tcp: {flows: 16, preferred_ip_protocol: ip4, path: `+path+`}}
`)})
				var group sync.WaitGroup
				begin := func(target string) {
					group.Go(func() {
						r, err := p.Probe(t.Context(), request(t, p, target, "flows"))
						checkFlows(t, r, err, 16)
						if err == nil && (path == "on_failure") != (r.Path != nil) {
							t.Errorf("the probe of %s with path: %s has the path %+v, error %v",
								target, path, r.Path, r.PathErr)
						}
					})
				}
				begin("one.example:80")
				network.Await(16)
				begin("other.example:80")
				begin(flowTarget + ":80")
				if path == "on_failure" {
					lab.Eventually(t, "the paths are being traced", func() bool { return p.tracing() })
					begin("one.example:80")
				}
				group.Wait()
				if n, _ := firstSYNs(network); path == "never" && n != 16 {
					t.Errorf("%d SYNs were sent for three probes of one address, want 16", n)
				}
			})
		}
	})
}

// With several addresses, the probe is about the one to which the most flows fail. The record also says how many flows
// to the others fail.
func TestFlowsToAllAddresses(t *testing.T) {
	network := newFlowNetwork(t, 0)
	open, silent := network.Hidden(simnet.SYNACK()), network.Hidden()
	network.At("192.0.2.2").Over(func(syn simnet.Segment) *simnet.Host {
		if syn.Src.Port()%2 == 0 {
			return silent
		}
		return open
	})
	network.At("192.0.2.3", simnet.SYNACK())
	p := newProber(t, Options{DialDNS: simnet.NewDNS(t, simnet.Names{
		"host.example": {flowTarget, "192.0.2.2", "192.0.2.3"},
	}), Config: parse(t, `modules: {flows: {prober: tcp, timeout: 800ms, tcp: {flows: 16, addresses: all}}}`)})
	r, err := p.Probe(t.Context(), request(t, p, "host.example:80", "flows"))
	if err != nil {
		t.Fatal(err)
	}
	record := r.Record()
	if failed := record.Flows.Failed(); record.Address.String() != "192.0.2.2" || failed != 8 {
		t.Errorf("the probe is about %v with %d failed flows, want 192.0.2.2 with 8", record.Address, failed)
	}
	if got, want := record.Flows.Others, flowTarget+": 4 of 16 flows failed"; got != want {
		t.Errorf("about the other addresses, the record says %q, want %q", got, want)
	}
}

// tracing reports whether the paths of a flight are being traced.
func (p *Prober) tracing() bool {
	p.flights.mu.Lock()
	defer p.flights.mu.Unlock()
	for _, f := range p.flights.all {
		if len(f.tracing) > 0 {
			return true
		}
	}
	return false
}

// Probes with similar timeouts share the handshakes, which end with the earliest deadline. Then both have a verdict,
// and report the timeout that applied. If one has a much longer timeout, it goes on after the other one, and has the
// time that it needs itself.
func TestFlowsWithOtherTimeouts(t *testing.T) {
	const long, similar = 4 * time.Second, 3500 * time.Millisecond // so that the second probe may begin a bit late
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		for _, test := range []struct {
			name     string
			timeouts [2]time.Duration
			applied  [2]time.Duration
			syns     int
		}{
			{
				name:     "the second one is shorter",
				timeouts: [2]time.Duration{long, similar},
				applied:  [2]time.Duration{similar, similar},
				syns:     16,
			},
			{
				name:     "the first one is shorter",
				timeouts: [2]time.Duration{similar, long},
				applied:  [2]time.Duration{similar, similar},
				syns:     16,
			},
			{
				name:     "the second one is much shorter",
				timeouts: [2]time.Duration{2 * time.Second, 800 * time.Millisecond},
				applied:  [2]time.Duration{2 * time.Second, 800 * time.Millisecond},
				syns:     20, // those of the silent flows again
			},
			{
				name:     "the first one is much shorter",
				timeouts: [2]time.Duration{800 * time.Millisecond, 2 * time.Second},
				applied:  [2]time.Duration{800 * time.Millisecond, 2 * time.Second},
				syns:     20, // those of the silent flows again
			},
		} {
			t.Run(test.name, func(t *testing.T) {
				network := newFlowNetwork(t, 0)
				p := newEngineProber(t, engine, Options{Config: parse(t,
					`modules: {flows: {prober: tcp, timeout: 1m, tcp: {flows: 16}}}`)})
				var group sync.WaitGroup
				for i, timeout := range test.timeouts {
					req := request(t, p, flowTarget+":80", "flows")
					req.Timeout = timeout
					group.Go(func() {
						r, err := p.Probe(t.Context(), req)
						checkFlows(t, r, err, 16)
						if err == nil && r.Request.Timeout != test.applied[i] || req.Timeout != timeout {
							t.Errorf("the probe with the timeout %v reports %v, want %v",
								timeout, r.Request.Timeout, test.applied[i])
						}
					})
					if i == 0 {
						network.Await(16)
					}
				}
				group.Wait()
				if n, _ := firstSYNs(network); n != test.syns {
					t.Errorf("%d SYNs were sent for two probes with the timeouts %v, want %d",
						n, test.timeouts, test.syns)
				}
			})
		}
	})
}

// Probes share a path, and each reports the timeout that applied: that of the shortest one.
func TestPathOfProbesWithOtherTimeouts(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const longer, shorter = 4 * time.Second, 3500 * time.Millisecond
	network := newFlowNetwork(t, 0)
	p := newProber(t, Options{Config: parse(t,
		`modules: {flows: {prober: tcp, timeout: 1m, tcp: {flows: 8, path: on_failure}}}`)})
	var group sync.WaitGroup
	for i, timeout := range []time.Duration{longer, longer, longer, shorter} {
		req := request(t, p, flowTarget+":80", "flows")
		req.Timeout = timeout
		group.Go(func() {
			r, err := p.Probe(t.Context(), req)
			checkFlows(t, r, err, 8)
			if err == nil && (r.Path == nil || r.Request.Timeout != shorter) {
				t.Errorf("the probe with the timeout %v reports %v and the path %+v, error %v, want %v and a path",
					timeout, r.Request.Timeout, r.Path, r.PathErr, shorter)
			}
		})
		if i == 0 {
			network.Await(8)
		}
	}
	group.Wait()
}

// A probe whose timeout is too short for the target, and whose caller may be gone already, does not make a probe with a
// longer timeout fail.
func TestFlowsOfAShorterProbe(t *testing.T) {
	const after, short = 800 * time.Millisecond, 400 * time.Millisecond
	for name, patience := range map[string]time.Duration{"waits": time.Minute, "is gone": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			network := simnet.NewNetwork(t)
			network.At(flowTarget, simnet.SYNACK().After(after))
			p := newProber(t, Options{Config: parse(t,
				`modules: {flows: {prober: tcp, timeout: 8s, tcp: {flows: 4}}}`)})
			var group sync.WaitGroup
			group.Go(func() {
				r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
				if err != nil || !r.Success() {
					t.Errorf("the probe with a timeout of 8s = %+v, error %v, want open after %v", r, err, after)
				}
			})
			network.Await(4)
			req := request(t, p, flowTarget+":80", "flows")
			req.Timeout = short
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			r, err := p.Probe(ctx, req)
			if gone := patience < short; gone != (err != nil) || !gone && r.Result != "timeout" {
				t.Errorf("the probe with a timeout of %v, whose caller %s, is %+v, error %v", short, name, r, err)
			}
			group.Wait()
			if n, _ := firstSYNs(network); patience < short && n != 4 {
				t.Errorf("%d SYNs were sent, want 4: the caller of the shorter probe was gone before its deadline", n)
			}
		})
	}
}

// Once another probe has ended its handshakes too early, a probe is not shortened again so that it would lack the time
// for a reply.
func TestFlowsOfManyShorterProbes(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At(flowTarget, simnet.SYNACK().After(800*time.Millisecond))
	p := newProber(t, Options{Config: parse(t, `modules: {flows: {prober: tcp, timeout: 8s, tcp: {flows: 4}}}`)})
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
		if err != nil || !r.Success() {
			t.Errorf("the probe with a timeout of 8s = %+v, error %v, want open", r, err)
		}
	}()
	network.Await(4)
	for {
		req := request(t, p, flowTarget+":80", "flows")
		req.Timeout = 400 * time.Millisecond
		p.Probe(t.Context(), req)
		select {
		case <-done:
			return
		default:
		}
	}
}

// A probe that begins while another one flies again does not shorten that, and has a verdict itself: the flows were
// silent before.
func TestFlowsOfALaterShorterProbe(t *testing.T) {
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		const short = 400 * time.Millisecond
		network := newFlowNetwork(t, 0)
		p := newEngineProber(t, engine, Options{Config: parse(t,
			`modules: {flows: {prober: tcp, timeout: 8s, tcp: {flows: 4}}}`)})
		end := probeInBackground(t, p, flowTarget+":80", "flows")
		defer end()
		network.Await(4)
		for _, sent := range []int{5, 5} { // one flow of four is silent
			req := request(t, p, flowTarget+":80", "flows")
			req.Timeout = short
			r, err := p.Probe(t.Context(), req)
			checkFlows(t, r, err, 4)
			if err == nil && r.Request.Timeout != short {
				t.Errorf("the probe with the timeout %v reports %v", short, r.Request.Timeout)
			}
			lab.Eventually(t, "the longer probe has sent its SYN again", func() bool {
				n, _ := firstSYNs(network)
				return n >= sent
			})
			if n, _ := firstSYNs(network); n != sent {
				t.Errorf("%d SYNs were sent, want %d", n, sent)
			}
		}
	})
}

// A probe whose flows would have to send again, when too many other handshakes are in flight, has no verdict, and says
// so at once.
func TestFlowsAgainWithoutRoom(t *testing.T) {
	network := newFlowNetwork(t, 0)
	p := newProber(t, Options{MaxInFlight: 50, Config: parse(t,
		`modules: {flows: {prober: tcp, timeout: 1m, tcp: {flows: 4}}}`)})
	failed := make(chan error, 1)
	go func() {
		_, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
		failed <- err
	}()
	network.Await(4)
	shorter := request(t, p, flowTarget+":80", "flows")
	shorter.Timeout = 2 * time.Second
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Probe(t.Context(), shorter)
	}()
	lab.Eventually(t, "another probe takes part", func() bool { return p.sharing() == 2 })
	p.inFlight.Add(50)
	<-done
	select {
	case err := <-failed:
		if !errors.Is(err, ErrInFlight) {
			t.Errorf("the probe that needs more time: error %v, want ErrInFlight", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the probe that needs more time has not ended after 30s, want ErrInFlight")
	}
	p.inFlight.Add(-50)
	if n := p.InFlight(); n != 0 {
		t.Errorf("after the probes, %d handshakes are in flight, want 0", n)
	}
}

// The port of a flow is free only after some time, and the target takes long to answer. A shorter probe, which cannot
// wait for the reply from this port, has no verdict, and neither of them has a wrong one.
func TestShorterProbeOfABusyPort(t *testing.T) {
	network := simnet.NewNetwork(t)
	open, silent := network.Hidden(simnet.SYNACK().After(900*time.Millisecond)), network.Hidden()
	var freed atomic.Bool
	network.At(flowTarget).Over(func(syn simnet.Segment) *simnet.Host {
		if syn.Src.Port() == 20000 && !freed.Load() {
			return silent
		}
		return open
	})
	other, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	p := newProber(t, Options{Config: parse(t,
		`modules: {flows: {prober: tcp, timeout: 12s, tcp: {flows: 4, source_ports: 20000-20003}}}`)})
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		other.Shake(ctx, netip.MustParseAddrPort(flowTarget+":80"),
			&shaker.Options{SourcePort: 20000, Timeout: time.Minute})
	})
	sent := func(n int) {
		lab.Eventually(t, "SYNs are sent", func() bool { sent, _ := firstSYNs(network); return sent >= n })
	}
	sent(1)
	group.Go(func() {
		r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
		if err != nil || !r.Success() || len(r.Flows) != 4 {
			t.Errorf("the longer probe = %+v, error %v, want 4 open flows", r, err)
		}
	})
	sent(4)
	time.AfterFunc(900*time.Millisecond, func() { freed.Store(true); cancel() })
	req := request(t, p, flowTarget+":80", "flows")
	req.Timeout = 1600 * time.Millisecond
	r, err := p.Probe(t.Context(), req)
	if err == nil || !errors.Is(err, syscall.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "port 20000") {
		t.Errorf("the shorter probe = %+v, error %v, want EADDRNOTAVAIL about port 20000", r, err)
	}
	group.Wait()
}

// Name resolution leaves a probe too little time. Its result is dns_timeout, and that of a probe at the same time which
// needs no name resolution is the target's, whichever of the two has begun the handshakes.
func TestFlowsOfASlowName(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const took = 1200 * time.Millisecond
	for _, order := range []string{"alone", "first", "second"} {
		t.Run(order, func(t *testing.T) {
			network := newFlowNetwork(t, 0)
			p := newProber(t, Options{Config: parse(t,
				`modules: {flows: {prober: tcp, timeout: 2s, tcp: {flows: 16}}}`)})
			var group sync.WaitGroup
			slow := func() {
				r := &running{prober: p, lookup: &lookup{asked: true}, Report: &Report{
					Request: request(t, p, flowTarget+":80", "flows"), Start: time.Now().Add(-took)}}
				r.Resolution.Took = took
				group.Go(func() {
					defer r.leaveAll()
					var v Verdict
					err := r.shake(t.Context(), netip.MustParseAddr(flowTarget), &v)
					if err != nil || v.Result != "dns_timeout" {
						t.Errorf("a probe whose name resolution took %v of 2s, %s: %s, error %v, want dns_timeout",
							took, order, v.Result, err)
					}
				})
			}
			quick := func() {
				group.Go(func() {
					r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
					checkFlows(t, r, err, 16)
				})
			}
			switch order {
			case "alone":
				slow()
			case "first":
				slow()
				network.Await(16)
				quick()
			case "second":
				quick()
				network.Await(16)
				slow()
			}
			group.Wait()
		})
	}
}

// Reports about different flows of an address do not share a path.
func TestPathsOfOtherFlows(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At(flowTarget, simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2")
	p := newProber(t, Options{Config: parse(t,
		`modules: {flows: {prober: tcp, timeout: 2s, tcp: {flows: 4, path: on_failure}}}`)})
	r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
	if err != nil {
		t.Fatal(err)
	}
	reports := make([]Report, 2)
	var group sync.WaitGroup
	for i := range reports {
		reports[i] = *r
		flows := slices.Clone(r.Flows)
		flows[i].Result, flows[i].Handshake.Outcome = "timeout", shaker.Timeout
		reports[i].Verdict = r.VerdictOf(flows)
		group.Go(func() { p.TracePath(t.Context(), &reports[i]) })
	}
	group.Wait()
	for i := range reports {
		r := &reports[i]
		if r.Path == nil || r.Path.Hops[0].Local != r.Handshake.Local {
			t.Errorf("the flow from %v has the path %+v, error %v, want hops traced from its port",
				r.Handshake.Local, r.Path, r.PathErr)
		}
	}
}

// A trace that waits for the ports of its flows ends with its caller, and says why.
func TestTraceWhoseCallerIsGone(t *testing.T) {
	p := newProber(t, Options{Config: parse(t, `modules: {flows: {prober: tcp, tcp: {flows: 4, path: on_failure}}}`)})
	req := request(t, p, flowTarget+":80", "flows")
	report := &Report{Request: req, Verdict: Verdict{Handshake: shaker.Result{
		Outcome: shaker.Timeout, Peer: netip.MustParseAddrPort(flowTarget + ":80")}}}
	ports, err := p.FlowPorts(&req.Module)
	if err != nil {
		t.Fatal(err)
	}
	other := p.flights.forTrace(newFlightKey(report.Handshake.Peer, ports, &req.Module), &req.Module)
	other.flight.tracing <- struct{}{}
	gone := errors.New("the caller is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	p.TracePath(ctx, report)
	if !errors.Is(report.PathErr, gone) {
		t.Errorf("a trace whose caller is gone: %v, want %v", report.PathErr, gone)
	}
	p.leave(other)
	if n := p.sharing(); n != 0 {
		t.Errorf("%d probes take part in flights after the traces, want none", n)
	}
}

// Traces of all flows have no time limit. Several targets of one address wait for each other, and each probe counts its
// handshakes.
func TestTracesOfOneAddress(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	newFlowNetwork(t, 0)
	p := newProber(t, Options{Config: parse(t, `modules: {flows: {prober: tcp, timeout: 1s, tcp: {flows: 16}}}`)})
	var group sync.WaitGroup
	var counts [2]atomic.Int64
	for i := range counts {
		group.Go(func() {
			for range 2 {
				req := request(t, p, flowTarget+":80", "flows")
				req.CountSent(&counts[i])
				req.TraceFlows(func(int, int) {})
				r, err := p.Probe(t.Context(), req)
				checkFlows(t, r, err, 16)
				if err == nil && (len(r.FlowPaths) != 16 || r.At > 2*time.Second) {
					t.Errorf("%d paths, verdict after %v, want 16 paths, and no wait for other traces in the time",
						len(r.FlowPaths), r.At)
				}
			}
		})
	}
	group.Wait()
	for i := range counts {
		if n := counts[i].Load(); n != 32 {
			t.Errorf("two probes with 16 flows have counted %d SYNs, want 32", n)
		}
	}
}

// A probe that begins its handshakes late, because name resolution took long, does not shorten those of another probe:
// it has no verdict about the target itself.
func TestFlowsOfALateProbe(t *testing.T) {
	network := newFlowNetwork(t, 0)
	p := newProber(t, Options{Config: parse(t, `modules: {flows: {prober: tcp, timeout: 2s, tcp: {flows: 16}}}`)})
	late := &running{prober: p, Report: &Report{
		Request: request(t, p, flowTarget+":80", "flows"), Start: time.Now().Add(-1500 * time.Millisecond)}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", "flows"))
		checkFlows(t, r, err, 16)
		if err == nil && r.Duration < 1900*time.Millisecond {
			t.Errorf("the probe took %v, want its whole timeout of 2s", r.Duration)
		}
	}()
	network.Await(16)
	var v Verdict
	if err := late.shake(t.Context(), netip.MustParseAddr(flowTarget), &v); !errors.Is(err, shaker.ErrUnsent) {
		t.Errorf("a probe that begins with a quarter of its time left: %+v, error %v, want ErrUnsent", v, err)
	}
	late.leaveAll()
	<-done
}

// Another process has handshakes with the same address from the same ports, as the command line with the exporter's
// ports. The probe waits for a port if it has enough time, and otherwise has no verdict.
func TestFlowsOfAnotherProcess(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	network := newFlowNetwork(t, 0)
	other, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	p := newProber(t, Options{Config: parse(t, `
modules:
  patient: {prober: tcp, timeout: 4s, tcp: {flows: 4, source_ports: 20000-20003}}
  hasty: {prober: tcp, timeout: 500ms, tcp: {flows: 4, source_ports: 20000-20003}}
`)})
	target := netip.MustParseAddrPort(flowTarget + ":80")
	for module, want := range map[string]error{"patient": nil, "hasty": syscall.EADDRNOTAVAIL} {
		before, _ := firstSYNs(network)
		done := make(chan struct{})
		go func() {
			defer close(done)
			other.Shake(t.Context(), target, &shaker.Options{SourcePort: 20000, Timeout: 600 * time.Millisecond})
		}()
		lab.Eventually(t, "the other process has sent its SYN", func() bool {
			n, _ := firstSYNs(network)
			return n > before
		})
		r, err := p.Probe(t.Context(), request(t, p, flowTarget+":80", module))
		if want == nil {
			checkFlows(t, r, err, 4)
		} else if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "flow from port 20000: ") ||
			!strings.HasSuffix(err.Error(), ": another handshake with this address has the port, try again") {
			t.Errorf("the %s probe is %+v, error %v, want %v about the flow from port 20000, and the reason",
				module, r, err, want)
		}
		<-done
	}
}

// Reports keep ports apart if modules have more flows together than one block of reserved ports.
func TestFlowPortsOfManyModules(t *testing.T) {
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		p := newEngineProber(t, engine, Options{Config: parse(t, `
modules:
  a: {prober: tcp, tcp: {flows: 40}}
  b: {prober: tcp, tcp: {flows: 30}}
  c: {prober: tcp, tcp: {flows: 2, source_ports: 20000-20010}}
  d: {prober: tcp, tcp: {flows: 64}}
  e: {prober: tcp, tcp: {flows: 2, close: fin}}
  plain: {prober: tcp}
`)})
		users := make(map[uint16]string)
		for _, name := range []string{"e", "d", "c", "b", "a"} {
			module := p.Config().Modules[name]
			ports, err := p.FlowPorts(&module)
			if err != nil || int(ports.Last-ports.First)+1 != int(module.TCP.Flows) {
				t.Fatalf("module %s has the ports %v, error %v, want %d", name, ports, err, module.TCP.Flows)
			}
			for port := ports.First; port <= ports.Last; port++ {
				if other := users[port]; other != "" {
					t.Errorf("modules %s and %s both have port %d", other, name, port)
				}
				users[port] = name
			}
		}
	})
}

// If an RST is lost, the target keeps the half-open connection of a flow, and another router an entry of connection
// tracking. The next handshake from the same port takes one more SYN, and the one after that none. While all RSTs are
// lost, the flow fails.
func TestFlowsAfterLostRSTs(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		chain := kernel.NewChain(t)
		chain.Run(3, nft, "table inet tracking {\nchain forward {\ntype filter hook forward priority 0\n"+
			"ct state invalid drop\n}\n}")
		p := newEngineProber(t, engine, Options{Config: parse(t,
			`modules: {flows: {prober: tcp, timeout: 2500ms, tcp: {flows: 4}}}`)})
		probe := func(when string, want shaker.Outcome, syns int) {
			t.Helper()
			r, err := p.Probe(t.Context(), request(t, p, "10.77.4.2:80", "flows"))
			if err != nil || len(r.Flows) != 4 {
				t.Fatalf("the probe %s: %+v, error %v, want 4 flows", when, r, err)
			}
			for _, f := range r.Flows {
				h := f.Handshake
				t.Logf("%s, port %d: %s after %v, SYNs: %d", when, f.Port, f.Result, h.Waited, h.SYNs)
				if h.Outcome != want || syns > 0 && h.SYNs != syns {
					t.Errorf("the flow from port %d, %s, is %s after %d SYNs, want %v after %d (0: any number)",
						f.Port, when, f.Result, h.SYNs, want, syns)
				}
			}
		}
		// The target repeats its SYN-ACK after 1 s. Without sockets, the sequence number of the next SYN is within the
		// window of the old connection until 17 ms after the first handshake.
		const wait, repeated = 100 * time.Millisecond, 900 * time.Millisecond
		loseRST := func() (at time.Time) {
			t.Helper()
			chain.Run(2, nft, "table inet lost {\nchain forward {\ntype filter hook forward priority 0\n"+
				"tcp sport != 80 tcp flags & rst == rst drop\n}\n}")
			at = time.Now()
			probe("whose RSTs are lost", shaker.Open, 1)
			return at
		}
		passRST := func() { chain.Run(2, nft, "delete", "table", "inet", "lost") }
		probe("before", shaker.Open, 1)
		for stalled := true; stalled; {
			at := loseRST()
			passRST()
			time.Sleep(wait)
			if stalled = time.Since(at) > repeated; !stalled {
				probe("after lost RSTs", shaker.Open, 2)
			}
			probe("after that", shaker.Open, 1)
		}
		loseRST()
		time.Sleep(wait)
		probe("after lost RSTs, whose RSTs are lost", shaker.Timeout, 0)
	})
}
