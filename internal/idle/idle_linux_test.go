package idle

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// listen listens on an address until the test ends.
func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// open returns how many connections to a port are established.
func open(t *testing.T, port int) (n int) {
	t.Helper()
	for _, s := range kernel.Sockets(t) {
		if s.Far == port && s.State == unix.BPF_TCP_ESTABLISHED {
			n++
		}
	}
	return n
}

// Until the first round is complete, there is no result. Several clients share one registration.
func TestFirstScrape(t *testing.T) {
	b := newBench(t, idleConfig, 0)
	target := serve(t, listen(t, "127.0.0.1:7201"), 0)
	for range 2 {
		answer := b.scrape(t, target, "hour")
		if answer.Result != "" || answer.Idle == nil || answer.Idle.Rounds != 0 || answer.Idle.Limit() != Unknown {
			t.Errorf("before the first round: result %q, %v, want no result and no round", answer.Result, answer.Idle)
		}
	}
	lab.Eventually(t, "there are a connection for the step and a control connection", func() bool {
		return open(t, 7201) == 2
	})
	if got := b.scrape(t, target, "hour").Result; got != "" {
		t.Errorf("the result is %q although no round is complete, want none", got)
	}
	if got := b.meter.Modules(); len(got) != 1 || got[0].Registered != 1 || got[0].Registrations != 1 {
		t.Errorf("Modules = %+v, want 1 registration", got)
	}
	for status := range b.meter.Targets() {
		if status.Target != target || status.Last.Result != "" || len(status.Steps) != 1 ||
			status.Client != "192.0.2.1" {
			t.Errorf("status %+v, want that of %s", status, target)
		}
	}
}

// A connection that cannot be established is the result, and no round is complete. When it can, there is a round.
func TestRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	b.meter.retry = 100 * time.Millisecond
	const target = "127.0.0.1:7202"
	b.scrape(t, target, "quick")
	lab.Eventually(t, "the connect is refused", func() bool { return b.scrape(t, target, "quick").Result == "refused" })
	refused := b.scrape(t, target, "quick")
	if refused.Success() || refused.Errno != "ECONNREFUSED" || refused.Idle.Rounds != 0 {
		t.Errorf("result %s %s, %v, want ECONNREFUSED and no complete round",
			refused.Result, refused.Errno, refused.Idle)
	}
	serve(t, listen(t, target), 0)
	answer := b.await(t, target, "quick", 1)
	if !answer.Success() || answer.Idle.Survived < 2*s || answer.Idle.Lost != 0 {
		t.Errorf("result %q, %v, want open, and that all survived", answer.Result, answer.Idle)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if want := []string{"refused", "open"}; !slices.Equal(b.changes, want) {
		t.Errorf("the changes are %q, want %q", b.changes, want)
	}
}

// A server that closes connections at once does not accept them: this is the result, and no idle timeout.
func TestClosedAtOnce(t *testing.T) {
	b := newBench(t, idleConfig, 0)
	target := serve(t, listen(t, "127.0.0.1:7203"), 10*time.Millisecond)
	lab.Eventually(t, "there is a result", func() bool { return b.scrape(t, target, "quick").Result != "" })
	if got := b.scrape(t, target, "quick"); got.Result != "closed" || got.Success() || got.Idle.Rounds != 0 {
		t.Errorf("result %q, %v, want closed and no complete round", got.Result, got.Idle)
	}
}

// An RST of an application after a while, as of MariaDB, is told. It does not undo an answer that came before.
func TestApplicationResets(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	const after = 4*s + 500*time.Millisecond // while the answer of the second step waits to be judged
	target := serve(t, listen(t, "127.0.0.1:7204"), after, 0)
	got := b.await(t, target, "short", 1).Idle
	for i, want := range []Kind{Survived, Survived, Told, Told} {
		if f := got.Findings[i]; f.Kind != want || want == Told && f.Outcome != shaker.Reset {
			t.Errorf("%v, want kind %d", f, want)
		}
	}
	if got.Limit() != Application || got.Control.Outcome != shaker.Reset {
		t.Errorf("%v, want that the control connection was reset: an application", got)
	}
}

// A server does not end all connections at the same age: the control connection, which is established first, may be the
// last one to end. The control: it does not end at all, as if a middlebox had ended the others.
func TestControlEndsLater(t *testing.T) {
	t.Parallel()
	const told = 1500 * time.Millisecond // between the two steps
	for name, c := range map[string]struct {
		control time.Duration // when it is ended, 0 for never
		limit   Limit
	}{
		"later": {control: told + 2*s, limit: Application},
		"never": {control: 0, limit: Middlebox},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, idleConfig, 0)
			target := serveEach(t, listen(t, "127.0.0.1:0"), func(n int) time.Duration {
				if n == 0 {
					return c.control
				}
				return told
			})
			got := b.await(t, target, "quick", 1).Idle
			if got.Limit() != c.limit || got.Findings[1].Kind != Told {
				t.Errorf("%v, limit %d, want %d, and that the second step was told", got, got.Limit(), c.limit)
			}
		})
	}
}

// The idle time begins when the peer was heard last. A peer that sends data again and again leaves nothing to measure,
// and one that sends keepalives nothing above their interval.
func TestTalkingPeer(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	talk := func(l net.Listener, delay time.Duration, times int, keepAlive bool) string {
		kernel.Serve(t, l, func(conn net.Conn) {
			conn.(*net.TCPConn).SetKeepAliveConfig(net.KeepAliveConfig{
				Enable: keepAlive, Idle: 2 * time.Second, Interval: 2 * time.Second})
			for range times {
				time.Sleep(delay)
				if _, err := conn.Write([]byte("220 ready\r\n")); err != nil {
					return
				}
			}
			conn.Read(make([]byte, 1))
		})
		t.Cleanup(b.meter.Close) // before the connections are closed
		return l.Addr().String()
	}
	greeting := talk(listen(t, "127.0.0.1:7205"), 600*time.Millisecond, 1, false)
	busy := talk(listen(t, "127.0.0.1:7206"), 300*time.Millisecond, 100, false)
	alive := talk(listen(t, "127.0.0.1:7214"), 0, 0, true)
	b.scrape(t, greeting, "alone")
	b.scrape(t, busy, "alone")
	b.scrape(t, alive, "alone")
	answer := b.await(t, greeting, "alone", 1)
	for _, f := range answer.Idle.Findings {
		if f.Kind != Survived || f.Idle < f.Step-tick || f.Idle > f.Step+stall {
			t.Errorf("after a greeting: %v, want that it survived %v, counted from the greeting", f, f.Step)
		}
	}
	if answer.Idle.Control != nil {
		t.Errorf("control %+v, want none", answer.Idle.Control)
	}
	lab.Eventually(t, "the busy connections are skipped", func() bool {
		return b.scrape(t, busy, "alone").Idle.Skipped[Busy] == 2
	})
	if got := b.scrape(t, busy, "alone"); got.Idle.Rounds != 0 || got.Idle.Lost != 0 {
		t.Errorf("with a peer that sends data: %v, want no complete round", got.Idle)
	}
	got := b.await(t, alive, "alone", 1).Idle
	if got.Skipped[Busy] != got.Rounds || got.Survived > 1500*time.Millisecond {
		t.Errorf("with a peer that sends a keepalive every 2s: %v, want that the step of 3s is skipped", got)
	}
}

// A path that is interrupted while connections are checked loses none of them: the control connection has no answer
// either, and outlives a short interruption.
func TestInterruptedPath(t *testing.T) {
	t.Parallel()
	nft := lab.Program(t, "nft", "nftables")
	b := newBench(t, idleConfig, 0)
	m := kernel.NewMiddlebox(t)
	var target string
	for port := 81; ; port++ {
		target = serve(t, m.Listen(uint16(port)), 0)
		began := time.Now()
		b.scrape(t, target, "short")
		lab.Eventually(t, "all connections are established", func() bool { return open(t, port) == 5 })
		m.Run(nft, "table ip lab { chain forward { type filter hook forward priority 0; policy drop; }; }")
		took := time.Since(began)
		lab.Eventually(t, "two connections have ended", func() bool { return open(t, port) == 3 })
		m.Run(nft, "delete table ip lab")
		if took < 1500*time.Millisecond { // before the first connection is checked
			break
		}
		if port == 85 {
			t.Fatalf("the path was interrupted %v after the first scrape, five times so, want 1.5s at most", took)
		}
	}
	got := b.await(t, target, "short", 1).Idle
	for i, want := range []Kind{Skipped, Skipped, Survived, Survived} {
		if f := got.Findings[i]; f.Kind != want {
			t.Errorf("%v, want kind %d", f, want)
		}
	}
	if got.Lost != 0 || !got.Control.Alive() {
		t.Errorf("%v, want that none was lost, and that the control connection is alive", got)
	}
}

// A target that is not scraped expires in the midst of a round: its connections are closed. If it is scraped again,
// there is a new round, and the counters continue.
func TestExpiry(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	b.meter.retry = 100 * time.Millisecond
	target := serve(t, listen(t, "127.0.0.1:7207"), 0)
	rounds := b.await(t, target, "quick", 1).Idle.Rounds
	lab.Eventually(t, "the next round is running", func() bool { return open(t, 7207) == 3 })
	b.meter.registry.Expire(time.Now().Add(time.Hour))
	if n := open(t, 7207); n != 0 {
		t.Errorf("%d connections after the expiry, want 0", n)
	}
	if got := b.meter.Modules()[0]; got.Registered != 0 || got.Expirations != 1 {
		t.Errorf("Modules = %+v, want 1 expiration", got)
	}
	if tracks := b.results.Tracks(target, "quick"); len(tracks) != 1 || !tracks[0].Ended {
		t.Errorf("after the expiry, the history has %+v, want one track that has ended", tracks)
	}
	back := b.scrape(t, target, "quick")
	if back.Result != "open" || back.Idle.Rounds < rounds {
		t.Errorf("scraped again: %q, %v, want the results of before", back.Result, back.Idle)
	}
	b.await(t, target, "quick", back.Idle.Rounds+1)
}

// A limit permits no further target, and there is room again when one has gone.
func TestLimit(t *testing.T) {
	b := newBench(t, idleConfig, 5)
	b.scrape(t, "127.0.0.1:7208", "quick")
	if got := b.meter.Connections(); !maps.Equal(got, map[string]int{"quick": 3}) {
		t.Errorf("the connections are %v, want 3 of module quick: two steps and the control connection", got)
	}
	_, err := b.meter.Scrape(t.Context(), b.request(t, "127.0.0.1:7209", "quick"), "")
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "needs 3 connections: 3 connections are reserved") {
		t.Errorf("Scrape of a second target: error %v, want %v with the limit", err, ErrLimit)
	}
	b.meter.registry.Expire(time.Now().Add(time.Hour))
	b.scrape(t, "127.0.0.1:7209", "quick")
	b.meter.registry.Expire(time.Now().Add(time.Hour))
	if err := b.connections.Permit(5); err != nil || len(b.meter.Connections()) != 0 {
		t.Errorf("after all have expired: %v, connections %v, want room for 5, and none", err, b.meter.Connections())
	}
}

// A reload keeps the rounds of modules that have not changed, and ends those of the others, and of targets that the
// policy does not permit any more.
func TestReload(t *testing.T) {
	b := newBench(t, idleConfig, 0)
	target := serve(t, listen(t, "127.0.0.1:7210"), 0)
	registered := func(text string) (n int) {
		b.prober.Configure(b.parse(text))
		b.meter.Configure()
		for range b.meter.Targets() {
			n++
		}
		return n
	}
	b.scrape(t, target, "hour")
	lab.Eventually(t, "connections are open", func() bool { return open(t, 7210) == 2 })
	began := slices.Collect(b.meter.Targets())[0].Began
	if n := registered(strings.Replace(idleConfig, "[1s, 3s]", "[1s, 4s]", 1)); n != 1 {
		t.Errorf("%d targets after another module has changed, want 1", n)
	}
	if got := slices.Collect(b.meter.Targets())[0].Began; !got.Equal(began) {
		t.Errorf("the round began at %v, then at %v, want the same round", began, got)
	}
	if n := registered(strings.Replace(idleConfig, "[1h]", "[2h]", 1)); n != 0 || open(t, 7210) != 0 {
		t.Errorf("%d targets and %d connections after the module has changed, want none", n, open(t, 7210))
	}
	b.scrape(t, target, "hour")
	lab.Eventually(t, "connections are open", func() bool { return open(t, 7210) == 2 })
	if n := registered(`targets: {deny: ["127.0.0.1/32:*"]}` + idleConfig); n != 0 || open(t, 7210) != 0 {
		t.Errorf("%d targets and %d connections after the target is denied, want none", n, open(t, 7210))
	}
	_, err := b.meter.Scrape(t.Context(), b.request(t, target, "hour"), "")
	if !errors.Is(err, probe.ErrDenied) {
		t.Errorf("Scrape of a denied target: error %v, want %v", err, probe.ErrDenied)
	}
}

// A local error is not a result. The round is repeated, and nothing is left behind.
func TestFault(t *testing.T) {
	b := newBench(t, idleConfig, 0)
	b.meter.retry = 100 * time.Millisecond
	target := serve(t, listen(t, "127.0.0.1:7211"), 0)
	lab.WithDescriptors(t, 0, func() {
		lab.Eventually(t, "a scrape is a fault", func() bool {
			_, err := b.meter.Scrape(t.Context(), b.request(t, target, "quick"), "")
			if err != nil && (!errors.Is(err, ErrStale) || !errors.Is(err, unix.EMFILE)) {
				t.Fatalf("Scrape without descriptors: error %v, want %v: EMFILE", err, ErrStale)
			}
			return err != nil
		})
		for s := range b.meter.Targets() {
			if !errors.Is(s.Stale, ErrStale) || !errors.Is(s.Fault, unix.EMFILE) {
				t.Errorf("the status page has %v because of %v, want %v because of EMFILE", s.Stale, s.Fault, ErrStale)
			}
		}
	})
	lab.Eventually(t, "a round is complete", func() bool {
		answer, err := b.meter.Scrape(t.Context(), b.request(t, target, "quick"), "")
		return err == nil && answer.Idle.Rounds > 0 && answer.Success()
	})
	for s := range b.meter.Targets() {
		if s.Stale != nil || s.Fault != nil {
			t.Errorf("after a complete round the status page has %v because of %v, want neither", s.Stale, s.Fault)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) == 0 || !errors.Is(b.faults[0], unix.EMFILE) || len(b.changes) != 0 {
		t.Errorf("faults %v, changes %v, want EMFILE, and no change", b.faults, b.changes)
	}
}

// As few source ports as a round needs are enough for one round after the other.
func TestSourcePorts(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	got := b.await(t, serve(t, listen(t, "127.0.0.1:7215"), 0), "ports", 3).Idle
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) != 0 || got.Skipped != [numberReasons]uint64{} {
		t.Errorf("faults %v, %v, want no faults and nothing skipped", b.faults, got)
	}
}

// After Close, scrapes are an error.
func TestClose(t *testing.T) {
	b := newBench(t, idleConfig, 0)
	target := serve(t, listen(t, "127.0.0.1:7212"), 0)
	b.scrape(t, target, "hour")
	lab.Eventually(t, "connections are open", func() bool { return open(t, 7212) == 2 })
	b.meter.Close()
	if n := open(t, 7212); n != 0 {
		t.Errorf("%d connections after Close, want 0", n)
	}
	_, err := b.meter.Scrape(t.Context(), b.request(t, target, "hour"), "")
	if !errors.Is(err, shaker.ErrClosed) {
		t.Errorf("Scrape after Close: error %v, want %v", err, shaker.ErrClosed)
	}
}

// A name is looked up at the start of each round: another address is another path. Without an address, that is the
// result. If the DNS servers do not answer, the rounds go on with the address that is known. An address that the policy
// does not permit gets no connection.
func TestNames(t *testing.T) {
	t.Parallel()
	b := newBench(t, `targets: {deny: ["127.0.0.9/32:*"]}`+idleConfig, 0)
	b.meter.retry = 100 * time.Millisecond
	const name = "host.example:7213"
	serve(t, listen(t, "127.0.0.1:7213"), 0)
	serve(t, listen(t, "127.0.0.2:7213"), 2500*time.Millisecond)
	next := func() Answer {
		t.Helper()
		return b.await(t, name, "quick", b.scrape(t, name, "quick").Idle.Rounds+2)
	}
	if got := b.scrapeAny(t, name); got.Result != "dns_not_found" || got.Idle != nil {
		t.Errorf("the scrape of a name without an address: %q, %v, want dns_not_found, not registered",
			got.Result, got.Idle)
	}
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.1"}})
	b.scrape(t, name, "quick")
	if got := next(); got.Handshake.Peer.String() != "127.0.0.1:7213" || got.Idle.Limit() != None || !got.Success() {
		t.Errorf("peer %v, %v, want 127.0.0.1, all survived", got.Handshake.Peer, got.Idle)
	}
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.2"}})
	lab.Eventually(t, "the other address is measured", func() bool {
		got := b.scrape(t, name, "quick")
		return got.Handshake.Peer.String() == "127.0.0.2:7213" && got.Idle.Control != nil && !got.Idle.Control.Alive()
	})
	b.answerDNS(nil)
	lab.Eventually(t, "the name has no address", func() bool {
		got := b.scrape(t, name, "quick")
		return got.Result == "dns_not_found" && !got.Success()
	})
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.9"}})
	lab.Eventually(t, "the address is denied", func() bool {
		_, err := b.meter.Scrape(t.Context(), b.request(t, name, "quick"), "")
		return errors.Is(err, probe.ErrDenied)
	})
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.1"}})
	lab.Eventually(t, "the address is back", func() bool {
		got := b.scrapeAny(t, name)
		return got.Report != nil && got.Result == "open" && got.Handshake.Peer.String() == "127.0.0.1:7213"
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) != 0 {
		t.Errorf("faults %v, want none: the policy is not one", b.faults)
	}
}

// A reload during a lookup looks at the previous address of a name. The new one must be permitted, too.
func TestReloadDuringLookup(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	const name = "host.example:7223"
	serve(t, listen(t, "127.0.0.1:7223"), 0)
	var denied atomic.Int64
	serveEach(t, listen(t, "127.0.0.2:7223"), func(int) time.Duration {
		denied.Add(1)
		return 0
	})
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.1"}})
	b.scrape(t, name, "quick")
	lab.Eventually(t, "the first round goes on", func() bool { return open(t, 7223) > 0 })
	dial := simnet.NewDNS(t, simnet.Names{"host.example": {"127.0.0.2"}})
	var reload sync.Once
	reloading := func(ctx context.Context, network, address string) (net.Conn, error) {
		reload.Do(func() {
			b.prober.Configure(b.parse(`targets: {deny: ["127.0.0.2/32:*"]}` + idleConfig))
			b.meter.Configure()
		})
		return dial(ctx, network, address)
	}
	b.dns.Store(&reloading)
	lab.Eventually(t, "the address is denied", func() bool {
		_, err := b.meter.Scrape(t.Context(), b.request(t, name, "quick"), "")
		return errors.Is(err, probe.ErrDenied)
	})
	if n := denied.Load(); n != 0 {
		t.Errorf("%d connections to the denied address, want none", n)
	}
}

// If this host lacks the IP version of the preferred address, the rounds use the other one, and stay with it. A name
// with nothing but the IP version that this host lacks is unreachable.
func TestFallBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	b.meter.retry = 100 * time.Millisecond
	const name = "host.example:7222"
	serve(t, listen(t, "127.0.0.1:7222"), 0)
	b.answerDNS(simnet.Names{"host.example": {"2001:db8::1", "127.0.0.1"}, "other.example": {"2001:db8::1"}})
	b.scrape(t, name, "quick")
	got := b.await(t, name, "quick", 2)
	if !got.Success() || got.Handshake.Peer.String() != "127.0.0.1:7222" || got.Idle.Skipped[NotConnected] != 0 {
		t.Errorf("after two rounds: %q, peer %v, %v, want open, with IPv4, and no connection skipped",
			got.Result, got.Handshake.Peer, got.Idle)
	}
	lab.Eventually(t, "a name with nothing but IPv6 is unreachable", func() bool {
		got := b.scrape(t, "other.example:7222", "quick")
		return got.Result == "unreachable" && got.Errno == "ENETUNREACH"
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if want := []string{"unreachable"}; !slices.Equal(b.changes, want) {
		t.Errorf("changes %q, want %q of the other name only", b.changes, want)
	}
}

// If a name has another address, what was found stays until a round with that address is complete.
func TestBracketStaysForNewAddress(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	const name = "host.example:7221"
	serve(t, listen(t, "127.0.0.1:7221"), 1500*time.Millisecond)
	serve(t, listen(t, "127.0.0.2:7221"), 0)
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.1"}})
	b.scrape(t, name, "quick")
	first := b.await(t, name, "quick", 1)
	if first.Idle.Lost == 0 {
		t.Fatalf("%v, want a bracket", first.Idle)
	}
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.2"}})
	var got Answer
	lab.Eventually(t, "the round with the other address goes on", func() bool {
		got = b.scrape(t, name, "quick")
		return got.Handshake.Peer.Addr().String() == "127.0.0.2"
	})
	if old := got.Idle; old.Rounds == first.Idle.Rounds && (old.Survived != first.Idle.Survived ||
		old.Lost != first.Idle.Lost) {
		t.Errorf("before the first round with the other address is complete: %v, want the bracket of %v",
			old, first.Idle)
	}
	lab.Eventually(t, "the bracket is that of the other address", func() bool {
		got = b.scrape(t, name, "quick")
		return got.Idle.Lost == 0
	})
	if got.Idle.Rounds == first.Idle.Rounds || got.Idle.Survived < 2*time.Second {
		t.Errorf("after a round with the other address: %v, want that all survived", got.Idle)
	}
}

// scrapeAny scrapes a target, which need not be registered. The Report is nil if there is an error.
func (b *bench) scrapeAny(t *testing.T, target string) Answer {
	t.Helper()
	answer, _ := b.meter.Scrape(t.Context(), b.request(t, target, "quick"), "192.0.2.1")
	return answer
}

// The lookup of a name needs room among the probes in flight. Without it, a first scrape is rejected, and rounds go on
// with the address that is known.
func TestLookupsAreAdmitted(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	b.meter.retry = 100 * time.Millisecond
	const name = "host.example:7216"
	serve(t, listen(t, "127.0.0.1:7216"), 0)
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.1"}})
	leave := b.fill(t, maxInFlight)
	_, err := b.meter.Scrape(t.Context(), b.request(t, name, "quick"), "")
	if !errors.Is(err, probe.ErrInFlight) || len(b.meter.Connections()) != 0 {
		t.Errorf("a first scrape with all probes in flight: error %v, connections %v, want %v, and none",
			err, b.meter.Connections(), probe.ErrInFlight)
	}
	leave()
	rounds := b.await(t, name, "quick", 1).Idle.Rounds
	leave = b.fill(t, maxInFlight-1) // three connections count as one
	b.answerDNS(nil)                 // a lookup would find no address
	if got := b.await(t, name, "quick", rounds+2); !got.Success() {
		t.Errorf("with all probes in flight, the result is %q, want open", got.Result)
	}
	leave()
	lab.Eventually(t, "the name is looked up again", func() bool {
		return b.scrape(t, name, "quick").Result == "dns_not_found"
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) != 0 {
		t.Errorf("faults %v, want none", b.faults)
	}
}

// fill takes n of the probes in flight, until leave is called.
func (b *bench) fill(t *testing.T, n int) (leave func()) {
	t.Helper()
	var all []func()
	lab.Eventually(t, "lookups leave room", func() bool {
		for len(all) < n {
			leave, err := b.prober.Enter()
			if err != nil {
				return false
			}
			all = append(all, leave)
		}
		return true
	})
	return func() {
		for _, leave := range all {
			leave()
		}
	}
}
