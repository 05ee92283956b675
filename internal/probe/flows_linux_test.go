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

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A million flows, with random targets and each with a verdict of its own, are never confused.
func TestMillionFlows(t *testing.T) {
	flows := int64(1_000_000)
	if lab.Race || testing.Short() {
		flows /= 20
	}
	const atOnce, each = 50, config.MaxFlows
	lab.NeedDescriptors(t, atOnce*each+100)
	network := simnet.NewNetwork(t)
	kinds := []struct {
		result string
		host   *simnet.Host
	}{
		{"open", network.Hidden(simnet.SYNACK())},
		{"refused", network.Hidden(simnet.RST())},
		{"unreachable", network.Hidden(simnet.ICMP("198.51.100.7", 3, 1))},
		{"timeout", network.Hidden()},
	}
	// In one of 64 targets, some flows are silent.
	kind := func(target netip.Addr, port uint16) int {
		a := target.As4()
		n := int(a[2])*7 + int(a[3])*13 + int(port)*31
		if a[3]%64 == 0 {
			return n % 4
		}
		return n % 3
	}
	network.At("10.0.0.0/16").Over(func(syn simnet.Segment) *simnet.Host {
		return kinds[kind(syn.Dst.Addr(), syn.Src.Port())].host
	})
	network.WatchStalls()
	process.Prefer(t)
	p := newProber(t, Options{Config: parse(t, `modules: {flows: {prober: tcp, timeout: 900ms, tcp: {flows: 64}}}`)})
	var next, seen, wrong atomic.Int64
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for seen.Load() < flows && wrong.Load() == 0 {
				i := next.Add(1)
				target := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
				r, err := p.Probe(t.Context(), request(t, p, netip.AddrPortFrom(target, 80).String(), "flows"))
				if errors.Is(err, shaker.ErrUnsent) { // the machine was too slow: no verdict
					continue
				}
				if err != nil || len(r.Flows) != each {
					wrong.Add(1)
					t.Errorf("probe of %v: error %v, want %d flows", target, err, each)
					return
				}
				for _, f := range r.Flows {
					want := kinds[kind(target, f.Port)].result
					if f.Result != want || f.Handshake.Local.Port() != f.Port || f.Handshake.Peer.Addr() != target {
						wrong.Add(1)
						t.Errorf("flow %d of %v is %+v, want %s\n%s", f.Port, target, f, want, network.Trace(target))
						return
					}
				}
				seen.Add(each)
			}
		})
	}
	group.Wait()
	t.Logf("%d flows, %d probes", seen.Load(), next.Load())
}

// A flow whose port another program has is left out. If all of them are taken, this host could not measure.
func TestTakenPortOfAFlow(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	var told []string
	p := newProber(t, Options{Config: parse(t, `
modules:
  flows: {prober: tcp, tcp: {flows: 2, source_ports: 20000-20001}}
`), LeftOut: func(module, protocol string, ports []uint16) {
		told = append(told, fmt.Sprint(module, " ", protocol, " ", ports))
	}})
	for i, want := range []int{2, 1} {
		r, err := p.Probe(t.Context(), request(t, p, "192.0.2.1:80", "flows"))
		if err != nil || len(r.Flows) != want || !r.Success() {
			t.Fatalf("with %d of 2 ports taken, the probe is %+v, error %v, want %d open flows", i, r, err, want)
		}
		text := DescribeFailedFlows(r.HistoryFlows(&r.Verdict))
		const leftOut = "; 1 left out, because another program has its port: 20000"
		if names := strings.HasSuffix(text, leftOut); names != (i > 0) {
			t.Errorf("with %d of 2 ports taken: %q, want the port: %t", i, text, i > 0)
		}
		listen(t, fmt.Sprintf(":%d", 20000+i))
	}
	r, err := p.Probe(t.Context(), request(t, p, "192.0.2.1:80", "flows"))
	if !errors.Is(err, shaker.ErrLocal) || !errors.Is(err, syscall.EADDRINUSE) ||
		!strings.HasPrefix(err.Error(), "all ports of the flows, 20000-20001, are in use by other programs, or ") {
		t.Errorf("with both ports taken, the probe is %+v, error %v, want ErrLocal and EADDRINUSE", r, err)
	}
	if !slices.Equal(told, []string{"flows ip4 [20000]"}) { // there is another call a minute later
		t.Errorf("the Prober tells of %q, want the port that was taken first", told)
	}
}

// Without sockets are only the modules whose flows have ports of the engine.
func TestFlowsWithoutSockets(t *testing.T) {
	p := newEngineProber(t, &shaker.Config{Raw: &shaker.Raw{}}, Options{Config: parse(t, `
modules:
  plain: {prober: tcp}
  fin: {prober: tcp, tcp: {close: fin}}
  a: {prober: tcp, tcp: {flows: 64}}
  b: {prober: tcp, tcp: {flows: 64}}
  c: {prober: tcp, tcp: {flows: 64}}
  d: {prober: tcp, tcp: {flows: 2, source_ports: 20000-20001}}
  e: {prober: tcp, tcp: {flows: 2, close: fin}}
`)})
	for name, want := range map[string]bool{
		"plain": true, "fin": false, "a": true, "b": true, "c": false, "d": false, "e": false,
	} {
		module := p.Config().Modules[name]
		if got := p.IsRawFor(&module); got != want {
			t.Errorf("IsRawFor(module %s) = %t, want %t", name, got, want)
		}
	}
}

// This host's firewall drops the SYNs of one flow. That is a fault, which names the port.
func TestFlowDroppedByThisHost(t *testing.T) {
	onEngines(t, func(t *testing.T, engine *shaker.Config) {
		network := simnet.NewNetwork(t)
		network.At("192.0.2.1", simnet.SYNACK())
		p := newEngineProber(t, engine, Options{Config: parse(t,
			`modules: {flows: {prober: tcp, timeout: 2s, tcp: {flows: 4}}}`)})
		module := p.Config().Modules["flows"]
		ports, err := p.FlowPorts(&module)
		if err != nil {
			t.Fatal(err)
		}
		port := ports.First + 2
		kernel.DropFrom(t, port)
		r, err := p.Probe(t.Context(), request(t, p, "192.0.2.1:80", "flows"))
		if !errors.Is(err, syscall.EPERM) || !strings.HasPrefix(err.Error(), fmt.Sprintf("flow from port %d: ", port)) {
			t.Errorf("the probe is %+v, error %v, want EPERM about the flow from port %d", r, err, port)
		}
	})
}

// More flows than may be in flight are a clear error, whether one address has them or several.
func TestTooManyFlows(t *testing.T) {
	p := newProber(t, Options{MaxInFlight: 8, Config: parse(t, `modules: {flows: {prober: tcp, tcp: {flows: 16}}}`)})
	r, err := p.Probe(t.Context(), request(t, p, "127.0.0.1:80", "flows"))
	if !errors.Is(err, ErrInFlight) || !strings.Contains(err.Error(), "16 flows, the limit is 8: want fewer") {
		t.Errorf("the probe of 16 flows with a limit of 8 is %+v, error %v, want ErrInFlight and the number", r, err)
	}
	p = newProber(t, Options{MaxInFlight: 40, DialDNS: simnet.NewDNS(t, simnet.Names{
		"host.example": {"192.0.2.1", "192.0.2.2", "192.0.2.3"},
	}), Config: parse(t, `modules: {flows: {prober: tcp, tcp: {flows: 16, addresses: all}}}`)})
	r, err = p.Probe(t.Context(), request(t, p, "host.example:80", "flows"))
	if !errors.Is(err, ErrAddresses) ||
		!strings.Contains(err.Error(),
			"has 3, the limit is 2 (--probe.max-in-flight is 40, and the module has 16 flows") {
		t.Errorf("the probe of 3 addresses by 16 flows with a limit of 40 is %+v, error %v, want ErrAddresses", r, err)
	}
}

// If the caller leaves while one address of several is silent, it gets the results of the flows to the others.
func TestPartOfTheAddresses(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2")
	p := newProber(t, Options{DialDNS: simnet.NewDNS(t, simnet.Names{"host.example": {"192.0.2.1", "192.0.2.2"}}),
		Config: parse(t, `modules: {flows: {prober: tcp, timeout: 10s, tcp: {flows: 4, addresses: all}}}`)})
	req := request(t, p, "host.example:80", "flows")
	var parts []*Report
	req.ReportPart(func(part *Report) { parts = append(parts, part) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // a flow that is not lost takes no time
	defer cancel()
	if r, err := p.Probe(ctx, req); err == nil {
		t.Errorf("the probe is %+v, want an error, because its caller left", r)
	}
	if len(parts) != 1 || len(parts[0].Flows) != 4 || parts[0].Handshake.Peer.Addr().String() != "192.0.2.1" {
		t.Errorf("the parts are %+v, want one, of the four flows to 192.0.2.1", parts)
	}
}
