package watch

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A silent flow has a handshake for nearly all of the time, because the timeout is nearly as long as a round of turns.
const silentConfig = `
modules:
  flows:
    prober: tcp
    timeout: 390ms
    watch: {interval: 100ms}
    tcp: {flows: 4, preferred_ip_protocol: ip4}
`

// partlySilent lets each fourth flow to an address be silent.
func (b *bench) partlySilent(address string) {
	open, silent := b.network.Hidden(simnet.SYNACK()), b.network.Hidden()
	b.network.At(address).Over(func(syn simnet.Segment) *simnet.Host {
		if syn.Src.Port()%4 == 0 {
			return silent
		}
		return open
	})
}

// Names of one address, and the address itself, share the handshakes. A flow that fails has a handshake in flight for
// nearly all of the time. Nevertheless all of the targets see it from the first scrape on, none leaves it out, and
// there are no faults. The handshakes go on until the last target is gone.
func TestNamesOfOneAddress(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	for _, engine := range []*shaker.Config{nil, {Raw: &shaker.Raw{}}} {
		t.Run(fmt.Sprintf("raw %t", engine != nil), func(t *testing.T) {
			b := newEngineBench(t, engine, silentConfig, 0, Options{})
			const address = "10.0.2.1"
			b.partlySilent(address)
			b.answerDNS(simnet.Names{"one.example": {address}, "other.example": {address}})
			targets := []string{"one.example:80", address + ":80", "other.example:80"}
			fails := func(a Answer) {
				t.Helper()
				if len(a.Flows) != 4 || len(failedPorts(a.Report)) != 1 || failedPorts(a.Report)[0]%4 != 0 {
					t.Errorf("the flows of %s are %+v, want 4, and only each fourth one fails", a.Text, a.Flows)
				}
			}
			for _, target := range targets {
				fails(b.scrape(target, "flows"))
				fails(b.scrape(target, "flows"))
			}
			b.awaitHandshakes(targets[2], "flows", "open", 40)
			for _, target := range targets {
				a := b.scrape(target, "flows")
				fails(a)
				if a.Watch.Skipped.Fault > 0 || a.Probed {
					t.Errorf("%s: probed %t, skipped %+v, want neither a probe nor faults",
						target, a.Probed, a.Watch.Skipped)
				}
			}
			b.watcher.streams.mu.Lock()
			if n := len(b.watcher.streams.all); n != 1 {
				t.Errorf("%d streams for three targets of one address, want 1", n)
			}
			b.watcher.streams.mu.Unlock()

			b.target(targets[0], "flows").Stop()
			stopped := b.target(targets[0], "flows").snapshot()
			before := b.scrape(targets[1], "flows").Watch.total("open")
			fails(b.awaitHandshakes(targets[1], "flows", "open", before+10))
			if now := b.target(targets[0], "flows").snapshot(); now.total("") != stopped.total("") {
				t.Errorf("a target that was stopped goes on counting: %+v after %+v", now.Flows, stopped.Flows)
			}
			b.target(targets[1], "flows").Stop()
			b.target(targets[2], "flows").Stop()
			if all := b.watcher.streams.targetsOf(streamKey{}); all != nil || len(b.watcher.streams.all) != 0 {
				t.Errorf("after all targets were stopped, there are the streams %+v, want none", b.watcher.streams.all)
			}
		})
	}
}

// A name that gets the address of another target joins its handshakes, and leaves the previous ones.
func TestNameJoinsAnAddress(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	b := newBench(t, silentConfig, 0, Options{})
	const address = "10.0.2.1"
	b.partlySilent(address)
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.1"}})
	const name = "host.example:80"
	if !b.scrape(name, "flows").Success() {
		t.Fatal("the name with an open address does not succeed")
	}
	b.scrape(address+":80", "flows")
	b.answerDNS(simnet.Names{"host.example": {address}})
	b.resolve()
	var joined Answer
	lab.Eventually(t, "the name has the results of the other address", func() bool {
		joined = b.scrape(name, "flows")
		return len(joined.Flows) == 4 && joined.Handshake.Peer.Addr().String() == address
	})
	if failed := failedPorts(joined.Report); len(failed) != 1 || failed[0]%4 != 0 {
		t.Errorf("the ports %v of %s fail, want one, which is a multiple of 4", failed, name)
	}
	b.watcher.streams.mu.Lock()
	defer b.watcher.streams.mu.Unlock()
	if n := len(b.watcher.streams.all); n != 1 {
		t.Errorf("%d streams, want 1: the previous one has no target", n)
	}
}

// A name that gets another address is not open before each flow has a result with this address, and a target that has
// the same address does not use a part of the results.
func TestPartlyKnownFlows(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const text = `
modules:
  flows:
    prober: tcp
    timeout: 400ms
    watch: {interval: 500ms}
    tcp: {flows: 8, preferred_ip_protocol: ip4}
`
	const address, name = "10.0.2.1", "host.example:80"
	for _, before := range []string{"10.0.0.1", "10.0.1.1"} { // open, closed
		t.Run(before, func(t *testing.T) {
			b := newBench(t, text, 0, Options{})
			open, silent := b.network.Hidden(simnet.SYNACK()), b.network.Hidden()
			b.network.At(address).Over(func(syn simnet.Segment) *simnet.Host {
				if syn.Src.Port()%4 == 3 {
					return silent
				}
				return open
			})
			b.answerDNS(simnet.Names{"host.example": {before}})
			first := b.scrape(name, "flows")
			b.answerDNS(simnet.Names{"host.example": {address}})
			b.resolve()
			asked := false
			lab.Eventually(t, "each flow has a result with the new address", func() bool {
				a := b.scrape(name, "flows")
				peer := a.Handshake.Peer.Addr().String()
				if peer == address && a.Success() || peer == before && a.Result != first.Result {
					t.Fatalf("the scrape is about %s: %s with %d flows, want %s of %s, or a failure of %s",
						peer, a.Result, len(a.Flows), first.Result, before, address)
				}
				known := b.target(name, "flows").knownOf(address)
				if known > 0 && known < 8 && !asked {
					asked = true
					if other := b.scrape(address+":80", "flows"); other.Success() || len(other.Flows) != 8 {
						t.Fatalf("while %d of 8 flows are known, the first scrape of another target of the address: "+
							"%s with %d flows, want a failure with 8", known, other.Result, len(other.Flows))
					}
				}
				return known == 8
			})
			if !asked {
				t.Error("the other target was not scraped while a part of the flows was known")
			}
		})
	}
}

// knownOf returns how many flows have a result with an address.
func (t *target) knownOf(address string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.currentFlows(&probe.Resolution{}) {
		if f.Handshake.Peer.Addr().String() == address {
			n++
		}
	}
	return n
}

// A target uses the results of another one that has the same address. It has not had these handshakes, and does not
// count them.
func TestReusedResultsAreNotCounted(t *testing.T) {
	b := newBench(t, strings.Replace(silentConfig, "interval: 100ms", "interval: 1m", 1), 0, Options{})
	const address = "10.0.2.1"
	b.partlySilent(address)
	b.answerDNS(simnet.Names{"one.example": {address}})
	first := b.scrape("one.example:80", "flows")
	other := b.scrape(address+":80", "flows")
	if len(other.Flows) != 4 || other.Result != first.Result {
		t.Errorf("the second target: %s with %d flows, want %s with 4", other.Result, len(other.Flows), first.Result)
	}
	if n := other.Watch.total(""); n != 0 || leastOf(other.Watch.Flows) != 0 {
		t.Errorf("the second target has counted %d handshakes, by flow %+v, want none", n, other.Watch.Flows)
	}
	if d := other.Watch.LastHandshake.Sub(first.Watch.LastHandshake).Abs(); d > time.Millisecond {
		t.Errorf("the last handshake of the second target is %v after that of the first one, want the same", d)
	}
}

// The handshakes with an address do not begin again before the previous ones have ended, because they use the same
// ports.
func TestStreamThatEnds(t *testing.T) {
	b := newBench(t, silentConfig, 0, Options{})
	b.scrape(openTarget, "flows")
	first, all := b.target(openTarget, "flows"), &b.watcher.streams
	ending := first.flows.stream
	ports, err := b.prober.FlowPorts(first.Module)
	if err != nil {
		t.Fatal(err)
	}
	schedule := &shaker.Schedule{Interval: time.Second, SourcePorts: ports}
	if !all.remove(ending, first) {
		t.Fatal("the stream of one target has another one")
	}
	joined := make(chan *stream)
	go func() {
		s, err := all.join(first, ending.key.peer, schedule)
		if err != nil {
			t.Error(err)
		}
		joined <- s
	}()
	all.mu.Lock()
	if s := all.all[ending.key]; s != ending {
		t.Errorf("before a stream has ended, there is %+v in its place, want itself", s)
	}
	all.mu.Unlock()
	all.end(ending)
	if s := <-joined; s == ending || all.targetsOf(ending.key) == nil {
		t.Errorf("after a stream has ended, a target joins %+v, want a new one", s)
	} else {
		first.flows.stream, first.repetition = s, s.repetition
	}
}

// Another program has a connection with the target from the port of a flow that fails. This is not a reason to leave
// the flow out: there is no verdict.
func TestFlowInUseWithTheTarget(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	text := strings.Replace(flowsConfig, "flows: 4", "flows: 4, source_ports: 20000-20003", 1)
	b := newBench(t, text, 0, Options{})
	b.partlySilent("10.0.2.1")
	const target = "10.0.2.1:80"
	if first := b.scrape(target, "flows"); len(first.Flows) != 4 || first.Success() {
		t.Fatalf("the first scrape: %s with %d flows, want a failure with 4", first.Result, len(first.Flows))
	}
	hold(t, 20000, netip.MustParseAddrPort(target))
	checkStale(t, b, target, "20000", syscall.EADDRNOTAVAIL)
}

// This host's firewall drops the SYNs of one flow. That says nothing about the target: there is no verdict, and the
// error names the port.
func TestFlowDroppedByThisHost(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	raw := &shaker.Config{Raw: &shaker.Raw{Ports: shaker.PortRange{First: 20000, Last: 20127}}}
	for _, engine := range []*shaker.Config{nil, raw} {
		t.Run(fmt.Sprintf("raw %t", engine != nil), func(t *testing.T) {
			text := flowsConfig
			if engine == nil { // a socket shows it with the first retransmission
				text = strings.Replace(text, "flows: 4", "flows: 4, source_ports: 20000-20003", 1)
				text = strings.Replace(text, "timeout: 300ms", "timeout: 1200ms", 1)
			}
			b := newEngineBench(t, engine, text, 0, Options{})
			b.scrape(openTarget, "flows")
			kernel.DropFrom(t, 20001)
			checkStale(t, b, openTarget, "20001", syscall.EPERM)
		})
	}
}

// checkStale checks that scrapes of a target end with an error that names the port of a flow and its errno, and that
// none of them succeeds after that.
func checkStale(t *testing.T, b *bench, target, port string, errno syscall.Errno) {
	t.Helper()
	lab.Eventually(t, "there is no verdict", func() bool {
		a, err := b.watcher.Scrape(t.Context(), b.request(target, "flows"), "192.0.2.1")
		if err == nil {
			if len(a.Flows) != 4 {
				t.Fatalf("the scrape of %s is %s with %d flows, want all 4, or no verdict",
					target, a.Result, len(a.Flows))
			}
			return false
		}
		return errors.Is(err, ErrStale) && errors.Is(err, errno) && strings.Contains(err.Error(), "port "+port)
	})
}

// hold lets another engine, which stands for another program, have a handshake with a target from a port for as long as
// the test runs.
func hold(t *testing.T, port uint16, target netip.AddrPort) {
	t.Helper()
	other, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for t.Context().Err() == nil {
			other.Shake(t.Context(), target, &shaker.Options{SourcePort: port, Timeout: time.Minute})
			time.Sleep(5 * time.Millisecond) // until it gets the port
		}
	}()
	t.Cleanup(func() { <-done })
}
