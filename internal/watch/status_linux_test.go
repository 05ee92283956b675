package watch

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// status returns the status of the only watched target.
func (b *bench) status() *Status {
	b.t.Helper()
	var all []*Status
	for s := range b.watcher.Targets() {
		all = append(all, s)
	}
	if len(all) != 1 {
		b.t.Fatalf("Targets has %d statuses, want 1", len(all))
	}
	return all[0]
}

// resultsOf returns the results in the history of a target.
func (b *bench) resultsOf(target string) (results []string) {
	for _, track := range b.results.Tracks(target, "") {
		for _, r := range track.Records {
			results = append(results, r.Result)
		}
	}
	return results
}

// The status agrees with the counters of a scrape and with the history: how many handshakes lost a SYN, when the last
// one failed, and who scrapes.
func TestStatus(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	host := b.network.At("10.0.3.1:80", simnet.SYNACK().After(2*time.Millisecond))
	const target = "10.0.3.1:80"
	b.scrape(target, "fast")
	b.awaitHandshakes(target, "fast", "open", 3)
	healthy := b.status()
	if healthy.All.Lost != 0 || healthy.All.Failed != 0 || healthy.Unstable() || healthy.Failure != "" {
		t.Errorf("the status of an open target is %+v, want no loss and no failure", healthy)
	}
	if !healthy.Last.Success || healthy.P50 <= 0 || healthy.P99 < healthy.P50 || healthy.Changed ||
		healthy.Client != "192.0.2.1" || healthy.Expires.Sub(healthy.Scraped) != 5*time.Minute {
		t.Errorf("the status of an open target is %+v, want open, quantiles, the client, 5m until it expires", healthy)
	}
	host.Losing(1, 0)
	b.awaitHandshakes(target, "fast", "timeout", 3)
	if s := b.status(); s.Last.Success || s.Last.Result != "timeout" || !s.Changed || s.Since.Before(healthy.Since) {
		t.Errorf("the status of a silent target is %+v, want a timeout since it is silent", s)
	}
	host.Losing(0, 0)
	b.awaitHandshakes(target, "fast", "open", b.scrape(target, "fast").Watch.total("open")+3)

	watched := b.target(target, "fast")
	watched.stop() // from now on, nothing changes
	s, counters := b.status(), watched.snapshot()
	if lost := counters.total("timeout"); s.All.Lost != lost || s.All.Failed != lost ||
		s.All.Completed != counters.total("") {
		t.Errorf("the status has the handshakes %+v, want those of the counters, %+v", s.All, counters.Handshakes)
	}
	if got := TallyOf(s.Slots); got != s.All {
		t.Errorf("the slots have %+v, want all handshakes, %+v, which are younger than five minutes", got, s.All)
	}
	if !s.Unstable() || !s.Last.Success {
		t.Errorf("after a loss the status is %+v, want open and unstable", s)
	}
	records := b.results.Tracks(target, "")[0].Records
	last := records[len(records)-1]
	if !s.FailureAt.Equal(last.Time) || s.Failure != last.Result || uint64(len(records)) != s.All.Failed {
		t.Errorf("the status has the last failure %s at %v; want that of %d records in the history, %s at %v",
			s.Failure, s.FailureAt, s.All.Failed, last.Result, last.Time)
	}
}

// The time of a failure in the history is when its SYN was sent, to the millisecond, and not when it was given up.
func TestTimeOfFailure(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.scrape(openTarget, "fast")
	watched := b.target(openTarget, "fast")
	sent := time.Now().Add(-1234567 * time.Microsecond)
	watched.take(shaker.Repeated{
		Sent:   sent,
		Result: shaker.Result{Outcome: shaker.Timeout, Peer: netip.MustParseAddrPort(openTarget), Waited: time.Second},
	})
	records := b.results.Tracks(openTarget, "fast")[0].Records
	if got := records[0].Time; len(records) != 1 || got.Sub(sent).Abs() > time.Millisecond {
		t.Errorf("the history has %d records, the first at %v, want 1 at %v", len(records), got, sent)
	}
	if s := b.status(); !s.FailureAt.Equal(records[0].Time) {
		t.Errorf("the last failure is at %v, want the time in the history, %v", s.FailureAt, records[0].Time)
	}
}

// What this host skips is no loss of the target. If it goes on, the target has no recent handshake.
func TestStatusOfFaults(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.scrape(openTarget, "fast")
	b.awaitHandshakes(openTarget, "fast", "open", 2)
	lab.WithDescriptors(t, 0, func() {
		lab.Eventually(t, "the status is stale", func() bool { return b.status().Stale != nil })
	})
	s := b.status()
	if got := TallyOf(s.Slots); got.Skipped < 3 || got.Skipped != s.All.Skipped || got.Failed > 0 || got.Lost > 0 {
		t.Errorf("without descriptors the slots have %+v, want skipped handshakes as in %+v, and no loss", got, s.All)
	}
	if s.Failure != "" || s.Unstable() {
		t.Errorf("without descriptors the status is %+v, want no failure", s)
	}
}

// A timeout that the module wants is no loss.
func TestStatusOfExpectedSilence(t *testing.T) {
	b := newBench(t, `
modules:
  silent:
    prober: tcp
    timeout: 300ms
    watch: {interval: 100ms}
    tcp: {valid_results: [timeout]}
`, 0, Options{})
	b.network.At("10.0.3.1:80", simnet.SYNACK()).Losing(1, 0)
	b.scrape("10.0.3.1:80", "silent")
	b.awaitHandshakes("10.0.3.1:80", "silent", "timeout", 3)
	if s := b.status(); s.All.Completed < 3 || s.All.Lost != 0 || s.All.Failed != 0 || s.Unstable() {
		t.Errorf("the status is %+v, want 3 handshakes or more, and no loss", s)
	}
}

// A SYN whose retransmission was answered is lost, and the handshake has not failed.
func TestStatusOfRetransmission(t *testing.T) {
	b := newBench(t, strings.Replace(watchConfig, "timeout: 300ms", "timeout: 3s", 1), 0, Options{})
	b.network.At("10.0.3.1:80", simnet.SYNACK()).LosingSYNs(1)
	b.scrape("10.0.3.1:80", "fast")
	b.awaitHandshakes("10.0.3.1:80", "fast", "open", 3)
	if s := b.status(); s.All.Lost < 3 || s.All.Failed != 0 || !s.Unstable() {
		t.Errorf("the status is %+v, want lost SYNs and no failed handshake", s)
	}
}

// A name that has no address any more is a failure: each lookup is in the history.
func TestStatusOfName(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.1"}})
	const name = "host.example:80"
	b.scrape(name, "ip6")
	b.answerDNS(nil)
	for range 2 {
		before := len(b.resultsOf(name))
		b.resolve()
		lab.Eventually(t, "the lookup is in the history", func() bool { return len(b.resultsOf(name)) > before })
	}
	results, s := b.resultsOf(name), b.status()
	if len(results) != 2 || results[0] != config.DNSNotFound || results[1] != config.DNSNotFound {
		t.Errorf("the history has %q, want 2 times %s", results, config.DNSNotFound)
	}
	if s.Last.Success || s.Last.Result != config.DNSNotFound || s.Failure != config.DNSNotFound ||
		!s.Last.Time.Equal(s.FailureAt) || s.Stale != nil || !s.NoAddress {
		t.Errorf("the status is %+v, want %s at the time of the last lookup", s, config.DNSNotFound)
	}
}

// A target fails since its first failure in a row, even if the kinds of the failures alternate, as those of a host that
// is down on the same link.
func TestSinceOfAlternatingFailures(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	module := b.prober.Config().Modules["fast"]
	target := &target{watcher: b.watcher, Registration: registry.Registration{Module: &module}}
	began := time.Now()
	for i, c := range []struct {
		outcome shaker.Outcome
		since   int // number of the handshake
	}{
		{outcome: shaker.Open, since: 0},
		{outcome: shaker.Timeout, since: 1},
		{outcome: shaker.Unreachable, since: 1},
		{outcome: shaker.Timeout, since: 1},
		{outcome: shaker.Open, since: 4},
		{outcome: shaker.Open, since: 4},
		{outcome: shaker.Unreachable, since: 6},
	} {
		at := func(n int) time.Time { return began.Add(time.Duration(n) * time.Second) }
		target.add(&shaker.Repeated{Sent: at(i), Result: shaker.Result{Outcome: c.outcome}})
		if want := b.watcher.at(at(c.since)); target.since != want || target.changed != (i > 0) {
			t.Errorf("after handshake %d, which is %v, the result is the same since %v, changed %t; want %v, %t",
				i, c.outcome, time.Duration(target.since), target.changed, time.Duration(want), i > 0)
		}
	}
}

// When a target expires, it is not listed any more, and its history does not end with a failure from which it has
// recovered.
func TestStatusEnds(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	host := b.network.At("10.0.3.1:80", simnet.SYNACK())
	const target = "10.0.3.1:80"
	b.scrape(target, "fast")
	host.Losing(1, 0)
	b.awaitHandshakes(target, "fast", "timeout", 2)
	host.Losing(0, 0)
	b.awaitHandshakes(target, "fast", "open", b.scrape(target, "fast").Watch.total("open")+6)
	b.expire(time.Hour)
	for s := range b.watcher.Targets() {
		t.Errorf("Targets has %+v, which has expired", s)
	}
	track := b.results.Tracks(target, "")[0]
	if !track.Ended {
		t.Error("Ended is false in the history of an expired target, want true")
	}
	if last := track.Last(); !last.Success || track.Complete != len(track.Records)-1 {
		t.Errorf("the history ends with %+v, complete from %d of %d, want the last success, and a gap before it",
			last, track.Complete, len(track.Records))
	}
}

// A skipped handshake is in the slot of its time, not in that of the time when the status is read.
func TestTimeOfSkipped(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.scrape(openTarget, "fast")
	watched := b.target(openTarget, "fast")
	watched.take(shaker.Repeated{Err: shaker.ErrLocal})
	watched.mu.Lock()
	defer watched.mu.Unlock()
	slots := watched.recent.read(0) // as they are: no time passes
	if got := TallyOf(slots[:]); got.Skipped == 0 {
		t.Errorf("after a local error the slots have %+v, want a skipped handshake", got)
	}
}
