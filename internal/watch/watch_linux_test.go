package watch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const openTarget = "10.0.0.1:80"

// The first scrape performs a probe and registers the target. The next ones are answered from memory.
func TestScrape(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	first := b.scrape(openTarget, "fast")
	if !first.Probed || first.Result != "open" || first.Watch == nil || first.Watch.total("open") != 1 {
		t.Errorf("the first scrape: %+v, want a probe that is open, and 1 handshake", first)
	}
	second := b.scrape(openTarget, "fast")
	if second.Probed || second.Result != "open" || second.Handshake.RTT == 0 ||
		second.Timeout != 300*time.Millisecond || time.Since(second.Start) > time.Minute {
		t.Errorf("the second scrape: %+v, want the last handshake from memory", second)
	}
	later := b.awaitHandshakes(openTarget, "fast", "open", 5)
	if later.Watch.Registered != first.Watch.Registered || !later.Watch.LastHandshake.After(first.Watch.LastHandshake) {
		t.Errorf("registered %v, then %v, last handshake %v, then %v; want the same, and later",
			first.Watch.Registered, later.Watch.Registered, first.Watch.LastHandshake, later.Watch.LastHandshake)
	}
	if other := b.scrape("10.0.1.1:80", "fast"); !other.Probed || other.Result != "refused" || other.Success() {
		t.Errorf("the first scrape of a closed port: %+v, want refused", other)
	}
	b.awaitHandshakes("10.0.1.1:80", "fast", "refused", 3)
	got, want := b.watcher.Modules(), []registry.Module{{Name: "fast", Registered: 2, Registrations: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("Modules = %+v, want %+v", got, want)
	}
}

// The counters are what the wire shows, with losses, and no scrape sends a packet.
func TestCountersMatchTheWire(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.network.At("10.0.2.0/24", simnet.SYNACK().After(time.Millisecond)).Losing(0.2, 0)
	targets := []string{"10.0.2.1:80", "10.0.2.2:80", "10.0.2.3:80", "10.0.2.4:80"}
	for _, target := range targets {
		b.scrape(target, "fast")
	}
	for _, target := range targets {
		b.awaitHandshakes(target, "fast", "", 20)
	}
	// Nothing is sent any more when the Watcher is closed. The handshakes that were running then have no result.
	all := make(map[string]*Snapshot)
	watched := slices.Collect(b.watcher.registry.Targets())
	b.watcher.Close()
	for _, t := range watched {
		all[t.Key.Target] = t.snapshot()
	}
	lost := uint64(0)
	for _, target := range targets {
		syns := uint64(0)
		for segment := range b.network.SentTo(netip.MustParseAddrPort(target)) {
			if segment.SYN {
				syns++
			}
		}
		s := all[target]
		lost += s.total("timeout")
		if got := s.total("") + s.SYNRetransmits; got > syns || got+4 < syns {
			t.Errorf("%s: %+v, want %d SYNs, except at most 4 whose handshakes were running",
				target, s.Handshakes, syns)
		}
	}
	if lost == 0 {
		t.Error("no handshake was lost, want one in five")
	}
}

// A target that is not scraped expires: no further SYN is sent. If it is scraped again within a minute, its counters
// continue; later they begin again.
func TestExpiry(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	first := b.scrape(openTarget, "fast")
	b.awaitHandshakes(openTarget, "fast", "open", 3)
	b.expire(4 * time.Minute) // the module says 5m
	if got := b.watcher.Modules()[0]; got.Registered != 1 || got.Expirations != 0 {
		t.Errorf("Modules = %+v before the target expires, want 1 watched", got)
	}
	b.expire(6 * time.Minute)
	if got := b.watcher.Modules()[0]; got.Registered != 0 || got.Expirations != 1 {
		t.Errorf("Modules = %+v after the target has expired, want 1 expiration, 0 watched", got)
	}
	back := b.scrape(openTarget, "fast")
	if !back.Probed || back.Watch.total("open") < 4 || back.Watch.Registered != first.Watch.Registered {
		t.Errorf("the scrape after the expiry: probed %t, %+v, want a probe and the counters of before",
			back.Probed, back.Watch)
	}
	b.awaitHandshakes(openTarget, "fast", "open", back.Watch.total("open")+2)
	b.expire(6 * time.Minute)
	b.expire(2 * time.Minute) // after the expiry
	anew := b.scrape(openTarget, "fast")
	if anew.Watch.total("open") != 1 || anew.Watch.Registered.Equal(first.Watch.Registered) {
		t.Errorf("the scrape two minutes after the expiry: %+v, want new counters", anew.Watch)
	}
}

// A limit permits no further target, and says which limit. Targets that are watched are not affected, and when one of
// them has gone there is room again.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		flag        string
		maxInFlight int
		options     Options
	}{
		{flag: "--watch.max-targets", options: Options{MaxTargets: 2}},
		{flag: "--watch.max-rate", options: Options{MaxRate: 20}},
		{flag: "--probe.max-in-flight", maxInFlight: 4},
	} {
		t.Run(c.flag, func(t *testing.T) {
			b := newBench(t, watchConfig, c.maxInFlight, c.options)
			b.scrape("10.0.0.1:80", "fast")
			b.scrape("10.0.0.2:80", "fast")
			_, err := b.watcher.Scrape(t.Context(), b.request("10.0.0.3:80", "fast"), "")
			if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), c.flag) {
				t.Errorf("Scrape of a third target: error %v, want %v that names %s", err, ErrLimit, c.flag)
			}
			b.scrape("10.0.0.1:80", "fast")
			b.expire(time.Hour)
			b.scrape("10.0.0.3:80", "fast")
			if got := b.watcher.Modules()[0].Registered; got != 1 {
				t.Errorf("%d watched targets, want 1", got)
			}
		})
	}
}

// What is reserved for held connections is not there for watched targets.
func TestLimitOfHeldConnections(t *testing.T) {
	b := newBench(t, watchConfig, 64, Options{})
	b.prober.Reserve(62)
	_, err := b.watcher.Scrape(t.Context(), b.request("10.0.0.1:80", "fast"), "")
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "held connections") {
		t.Errorf("Scrape with 62 of 64 probes reserved: error %v, want %v because of held connections", err, ErrLimit)
	}
	b.prober.Reserve(-1)
	b.scrape("10.0.0.1:80", "fast")
}

// A reload keeps the targets of modules that have not changed, with their counters. It forgets the others, and those
// that the policy does not permit any more.
func TestReload(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	reload := func(text string) {
		b.prober.Configure(b.parse(text))
		b.watcher.Configure()
	}
	b.scrape(openTarget, "fast")
	b.scrape(openTarget, "traced")
	kept := b.awaitHandshakes(openTarget, "fast", "open", 3)
	reload(strings.Replace(watchConfig, "tcp: {path: on_failure}", "tcp: {ttl: 9}", 1))
	if again := b.scrape(openTarget, "fast"); again.Probed || again.Watch.total("open") < kept.Watch.total("open") {
		t.Errorf("after a reload without a change of the module: %+v, want its counters", again)
	}
	if again := b.scrape(openTarget, "traced"); !again.Probed || again.Watch.total("") != 1 {
		t.Errorf("after a reload with a change of the module: %+v, want a new registration", again)
	}
	reload(`targets: {deny: ["10.0.0.0/24:*"]}` + watchConfig)
	for _, m := range b.watcher.Modules() {
		if m.Registered != 0 {
			t.Errorf("module %s has %d watched targets that are denied now, want 0", m.Name, m.Registered)
		}
	}
	if _, err := b.watcher.Scrape(t.Context(), b.request(openTarget, "fast"), ""); !errors.Is(err, probe.ErrDenied) {
		t.Errorf("Scrape of a denied target: error %v, want %v", err, probe.ErrDenied)
	}
	reload(strings.Replace(watchConfig, "  fast:", "  slow:", 1))
	if got := slices.Collect(b.watcher.registry.Targets()); len(got) != 0 {
		t.Errorf("%d targets after the module has gone, want 0", len(got))
	}
}

// The address of a name is followed: another one, none, one again, more, a denied one. DNS servers that do not answer
// change nothing.
func TestNames(t *testing.T) {
	b := newBench(t, `targets: {deny: ["10.0.0.9/32:*"]}`+watchConfig, 0, Options{})
	const name = "host.example:80"
	const module = "ip6"
	look := func(result string) Answer {
		t.Helper()
		before := b.scrape(name, module).Watch.looked(result)
		b.resolve()
		var answer Answer
		lab.Eventually(t, "the name is looked up: "+result, func() bool {
			answer = b.scrape(name, module)
			return answer.Watch.looked(result) > before
		})
		return answer
	}
	awaitPeer := func(addr string) {
		t.Helper()
		lab.Eventually(t, "the address is "+addr, func() bool {
			return b.scrape(name, module).Handshake.Peer.Addr().String() == addr
		})
	}
	unregistered := b.scrape(name, module)
	if unregistered.Watch != nil || unregistered.Result != config.DNSNotFound {
		t.Errorf("a name that does not exist: %+v, want %s, not watched", unregistered, config.DNSNotFound)
	}
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.1"}})
	if first := b.scrape(name, module); first.Watch.looked(registry.Resolved) != 1 || first.Resolution.Addrs == nil {
		t.Errorf("the first scrape: %+v, want 1 lookup", first)
	}
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.2"}})
	look(registry.Resolved)
	awaitPeer("10.0.0.2")

	b.answerDNS(simnet.Names{"host.example": {"10.0.0.3", "10.0.0.2"}})
	look(registry.Resolved)
	b.awaitHandshakes(name, module, "open", b.scrape(name, module).Watch.total("open")+3)
	awaitPeer("10.0.0.2") // as long as the name has it

	b.answerDNS(simnet.Names{"host.broken.example": nil})
	refuse := simnet.DialDNS("127.0.0.1:1")
	b.dns.Store(&refuse)
	if during := look(config.DNSError); during.Result != "open" {
		t.Errorf("while no DNS server answers: %+v, want open", during)
	}

	b.answerDNS(nil)
	gone := look(config.DNSNotFound)
	total := gone.Watch.total("")
	if gone.Result != config.DNSNotFound || gone.Success() || total == 0 || gone.Handshake.Peer.IsValid() {
		t.Errorf("when the name has gone: %+v, want %s and its counters", gone, config.DNSNotFound)
	}
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.4"}})
	if back := look(registry.Resolved); back.Watch.total("") < total {
		t.Errorf("when the name is back: %+v, want the counters of before, %d or more", back.Watch, total)
	}
	awaitPeer("10.0.0.4")

	b.answerDNS(simnet.Names{"host.example": {"10.0.0.9"}})
	b.resolve()
	lab.Eventually(t, "the target with the denied address is forgotten", func() bool {
		_, err := b.watcher.Scrape(t.Context(), b.request(name, module), "")
		return errors.Is(err, probe.ErrDenied)
	})
	for segment := range b.network.SentTo(netip.MustParseAddrPort("10.0.0.9:80")) {
		t.Errorf("%v was sent to the denied address, want nothing", segment)
	}
}

// Handshakes that this host cannot perform are skipped and counted. If that goes on for too long, a scrape is an error,
// and no verdict.
func TestFaults(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.scrape(openTarget, "fast")
	before := b.awaitHandshakes(openTarget, "fast", "open", 2)
	lab.WithDescriptors(t, 0, func() {
		lab.Eventually(t, "the scrape is an error", func() bool {
			answer, err := b.watcher.Scrape(t.Context(), b.request(openTarget, "fast"), "")
			if err == nil {
				if answer.Result != "open" {
					t.Errorf("without descriptors: %+v, want no verdict but open", answer)
				}
				return false
			}
			if !errors.Is(err, ErrStale) || !errors.Is(err, unix.EMFILE) || !errors.Is(err, shaker.ErrLocal) {
				t.Errorf("without descriptors: error %v, want %v, EMFILE", err, ErrStale)
			}
			return true
		})
	})
	var after Answer
	lab.Eventually(t, "the target is shaken hands with again", func() (ok bool) {
		var err error
		after, err = b.watcher.Scrape(t.Context(), b.request(openTarget, "fast"), "")
		return err == nil && after.Watch.total("open") >= before.Watch.total("open")+2
	})
	if after.Watch.Skipped.Fault < 3 || after.Watch.total("") != after.Watch.total("open") {
		t.Errorf("afterwards: %+v, want skipped faults, and no result but open", after.Watch)
	}
}

// Failures are in the history with their own times, successes are not. The path is traced once when a target begins to
// fail.
func TestFailures(t *testing.T) {
	var changes []string // appended to by one goroutine after the other
	b := newBench(t, watchConfig, 0, Options{Changed: func(r *probe.Report) {
		changes = append(changes, r.Text+" "+r.Result)
	}})
	host := b.network.At("10.0.3.1:80", simnet.SYNACK()).Behind("10.1.0.1", "10.1.0.2")
	const name = "10.0.3.1:80"
	b.scrape(name, "traced")
	b.awaitHandshakes(name, "traced", "open", 2)
	if tracks := b.results.Tracks("", ""); len(tracks) != 0 {
		t.Errorf("the history has %+v, want nothing: the target is open", tracks)
	}
	host.Losing(1, 0)
	failing := b.awaitHandshakes(name, "traced", "timeout", 3)
	lab.Eventually(t, "the path is traced", func() bool {
		failing = b.scrape(name, "traced")
		return failing.Path != nil || failing.PathErr != nil
	})
	if failing.PathErr != nil || len(failing.Path.Hops) < 2 {
		t.Errorf("path %+v, error %v, want the two routers", failing.Path, failing.PathErr)
	}
	tracks := b.results.Tracks("", "")
	if len(tracks) != 1 || tracks[0].Target != name || len(tracks[0].Records) < 3 {
		t.Fatalf("the history has %+v, want one target with 3 records or more", tracks)
	}
	for _, record := range tracks[0].Records {
		if record.Success || record.Result != "timeout" || time.Since(record.Time) > time.Minute {
			t.Errorf("the history has %+v, want timeouts of the last minute", record)
		}
	}
	host.Losing(0, 0)
	b.awaitHandshakes(name, "traced", "open", failing.Watch.total("open")+1)
	if good := b.scrape(name, "traced"); good.Success() && good.Path != nil {
		t.Errorf("the target is open and has the path %+v, want none", good.Path)
	}
	b.watcher.Close()
	// There are more if the machine stood still.
	if n := len(changes); n < 2 || changes[0] != name+" timeout" || changes[n-1] != name+" open" {
		t.Errorf("the changes of the target are %q, want timeout first and open last", changes)
	}
}

// A name that has no address any more is a change, and so is the first handshake with its next address. What fails in
// another way afterwards is not.
func TestChangesOfName(t *testing.T) {
	var mu sync.Mutex
	var changes []string
	b := newBench(t, watchConfig, 0, Options{Changed: func(r *probe.Report) {
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, r.Result)
	}})
	await := func(want ...string) {
		t.Helper()
		lab.Eventually(t, "the changes are "+strings.Join(want, ", "), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Equal(changes, want)
		})
	}
	resolve := func(names simnet.Names) {
		t.Helper()
		target := b.target("host.example:80", "ip6")
		before := lookups(target)
		b.answerDNS(names)
		lab.Eventually(t, "the name is looked up", func() bool {
			b.resolve()
			return lookups(target) > before
		})
	}
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.1"}})
	b.scrape("host.example:80", "ip6")
	resolve(nil)
	await(config.DNSNotFound)
	resolve(simnet.Names{"host.example": {"10.0.1.1"}})
	b.awaitHandshakes("host.example:80", "ip6", "refused", 2)
	resolve(nil)
	await(config.DNSNotFound)
	resolve(simnet.Names{"host.example": {"10.0.0.2"}})
	await(config.DNSNotFound, "open")
}

// lookups returns the number of lookups with any result.
func lookups(t *target) (n uint64) {
	for _, c := range t.Lookups() {
		n += c.Total
	}
	return n
}

// To inspect a target does not make the exporter watch it.
func TestInspect(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	inspect := func() Answer {
		t.Helper()
		answer, err := b.watcher.Inspect(t.Context(), b.request(openTarget, "fast"))
		if err != nil || answer.Result != "open" {
			t.Fatalf("Inspect of %s = %+v, error %v, want open", openTarget, answer, err)
		}
		return answer
	}
	for range 2 {
		if answer := inspect(); !answer.Probed || answer.Watch != nil {
			t.Errorf("Inspect of a target that is not watched: %+v, want a probe", answer)
		}
	}
	if got := b.watcher.Modules(); len(got) != 0 {
		t.Errorf("Modules = %+v after Inspect, want none", got)
	}
	b.scrape(openTarget, "fast")
	if answer := inspect(); answer.Probed || answer.Watch == nil {
		t.Errorf("Inspect of a watched target: %+v, want an answer from memory", answer)
	}
	b.watcher.Close()
	if answer := inspect(); !answer.Probed {
		t.Errorf("Inspect after Close: %+v, want a probe", answer)
	}
}

// If the Watcher is closed during the probe of a first scrape, the scrape has its result.
func TestCloseDuringFirstScrape(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	serve := simnet.NewDNS(t, simnet.Names{"host.example": {"10.0.0.1"}})
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		b.watcher.Close()
		return serve(ctx, network, address)
	}
	b.dns.Store(&dial)
	answer, err := b.watcher.Scrape(t.Context(), b.request("host.example:80", "fast"), "")
	if err != nil || !answer.Probed || answer.Watch != nil || answer.Result != "open" {
		t.Errorf("a first scrape during Close: %+v, error %v, want the result of its probe, open", answer, err)
	}
}

// After Close, scrapes are an error, and no handshake runs.
func TestClose(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.scrape(openTarget, "fast")
	b.watcher.Close()
	b.watcher.Close()
	if _, err := b.watcher.Scrape(t.Context(), b.request(openTarget, "fast"), ""); !errors.Is(err, shaker.ErrClosed) {
		t.Errorf("Scrape after Close: error %v, want %v", err, shaker.ErrClosed)
	}
}

// Scrapes, reloads, expiry and results at the same time.
func TestConcurrency(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{MaxTargets: 30})
	var group sync.WaitGroup
	over := make(chan struct{})
	again := func(f func()) {
		group.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					f()
				}
			}
		})
	}
	for i := range 4 {
		n := i
		again(func() {
			n = (n + 7) % 40
			addr := netip.AddrFrom4([4]byte{10, 0, byte(n % 2), byte(n)})
			req := b.request(netip.AddrPortFrom(addr, 80).String(), "fast")
			answer, err := b.watcher.Scrape(t.Context(), req, "")
			want := []string{"open", "refused"}[n%2]
			allowed := errors.Is(err, ErrLimit) || errors.Is(err, ErrStale)
			if err == nil && answer.Result != want || err != nil && !allowed {
				t.Errorf("Scrape of %v = %+v, error %v, want %s", addr, answer, err, want)
			}
		})
	}
	again(func() { b.expire(time.Duration(time.Now().UnixNano()%10) * time.Minute) })
	again(func() { b.watcher.Configure() })
	again(func() { b.watcher.Modules() })
	time.Sleep(time.Second)
	close(over)
	group.Wait()
	b.expire(time.Hour)
	if l := &b.watcher.limits; l.watched != 0 || l.reserved != 0 || l.rate > 1e-6 || l.rate < -1e-6 {
		t.Errorf("with all targets expired: %d watched, %d reserved, rate %g, want 0", l.watched, l.reserved, l.rate)
	}
}

// A handshake that waited for a lost SYN may end after one that was sent later. It counts, but does not describe the
// present state.
func TestLastHandshakeIsTheOneSentLast(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	module := b.prober.Config().Modules["fast"]
	target := &target{watcher: b.watcher, Registration: registry.Registration{Module: &module}}
	now := time.Now()
	add := func(outcome shaker.Outcome, sent time.Time) {
		target.add(&shaker.Repeated{Result: shaker.Result{Outcome: outcome}, Sent: sent})
	}
	add(shaker.Timeout, now)
	if !target.isFailing() {
		t.Error("the target is not failing after a timeout, want that it is")
	}
	add(shaker.Open, now.Add(200*time.Millisecond))
	add(shaker.Timeout, now.Add(100*time.Millisecond))
	if s := target.snapshot(); target.isFailing() || s.total("timeout") != 2 || s.total("open") != 1 {
		t.Errorf("%+v, failing: %t, want all three handshakes, and that the last one is open",
			s.Handshakes, target.isFailing())
	}
}

// Without a recent handshake, the error has the cause: the local error of the last handshake, unless one was completed
// afterwards.
func TestCauseOfStale(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	module := b.prober.Config().Modules["fast"]
	target := &target{watcher: b.watcher, Registration: registry.Registration{Module: &module}}
	for _, c := range []struct {
		last shaker.Repeated
		want bool // the local error
	}{
		{last: shaker.Repeated{Sent: time.Now(), Result: shaker.Result{Outcome: shaker.Open}}, want: false},
		{last: shaker.Repeated{Err: shaker.ErrLocal}, want: true},
		{last: shaker.Repeated{Sent: time.Now(), Result: shaker.Result{Outcome: shaker.Open}}, want: false},
	} {
		target.add(&c.last)
		target.completed = b.watcher.now() - moment(time.Hour)
		if err := target.stale(); !errors.Is(err, ErrStale) || errors.Is(err, shaker.ErrLocal) != c.want {
			t.Errorf("an hour after %+v: error %v, want %v, with its cause %v: %t",
				c.last, err, ErrStale, shaker.ErrLocal, c.want)
		}
	}
}

// A lookup may end after the target has expired. It starts no handshakes then: nothing would stop them.
func TestLookupOfAnExpiredTarget(t *testing.T) {
	b := newBench(t, watchConfig, 0, Options{})
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.1"}})
	const name = "host.example:80"
	b.scrape(name, "fast")
	target := b.target(name, "fast")
	look := func() {
		t.Helper()
		report, addrs, err := b.prober.Resolve(t.Context(), b.request(name, "fast"))
		if err != nil {
			t.Fatal(err)
		}
		target.Adapt(report, addrs)
	}
	repeats := func() bool {
		target.mu.Lock()
		defer target.mu.Unlock()
		return target.repetition != nil
	}
	b.answerDNS(nil)
	if look(); repeats() {
		t.Error("handshakes go on although the name has gone, want none")
	}
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.2"}})
	b.expire(time.Hour)
	if look(); repeats() {
		t.Error("handshakes begin with an expired target, want none")
	}
	b.scrape(name, "fast") // the control: it is registered again
	if look(); !repeats() {
		t.Error("no handshakes with a target that was scraped again, want some")
	}
}

// The policy is about the address in use, even if no handshake with it has been completed yet.
func TestReloadDeniesNewAddress(t *testing.T) {
	text := strings.ReplaceAll(watchConfig, "interval: 100ms", "interval: 1m")
	b := newBench(t, text, 0, Options{})
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.1"}})
	const name = "host.example:80"
	b.scrape(name, "ip6")
	b.answerDNS(simnet.Names{"host.example": {"10.0.3.1"}}) // no handshake with it ends soon
	b.resolve()
	target := b.target(name, "ip6")
	lab.Eventually(t, "the name is looked up", func() bool { return target.Lookups()[0].Total == 2 })
	b.prober.Configure(b.parse(`targets: {deny: ["10.0.3.1/32:*"]}` + text))
	b.watcher.Configure()
	for s := range b.watcher.Targets() {
		t.Errorf("%s is watched although its address is denied, want that it is not", s.Target)
	}
}
