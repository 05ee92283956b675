package idle

import (
	"fmt"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// stall is how long the machine may stand still between two lines, so that a keepalive is sent later than measured.
const stall = 400 * time.Millisecond

// Rules of nftables for routers that track connections.
const (
	dropInvalid  = "chain forward { type filter hook forward priority 0; ct state invalid drop; }; "
	resetInvalid = "chain forward { type filter hook forward priority 0; " +
		"ct state invalid meta l4proto tcp reject with tcp reset; }; "
	masquerade = "chain postrouting { type nat hook postrouting priority 100; oifname far masquerade; }; "
	// track does nothing except that connections are tracked.
	track = "chain forward { type filter hook forward priority 0; ct state invalid counter; }; "
)

// The bracket holds the time after which the kernel of a router forgets connections, and is narrow after the second
// round. Where that router lets every packet pass, as Linux does by default (nf_conntrack_tcp_loose), there is nothing
// to measure: all connections survive.
func TestRouters(t *testing.T) {
	t.Parallel()
	nft := lab.Program(t, "nft", "nftables")
	b := newBench(t, idleConfig, 0)
	b.meter.retry = time.Second // if the machine stands still for longer than the timeout of a connect
	type router struct {
		name, rules string
		loose       string
		outcome     shaker.Outcome // of lost connections
		truth       time.Duration

		target, module string
	}
	var routers []*router
	for _, r := range []router{
		{name: "drop", rules: dropInvalid, loose: "0", outcome: shaker.Timeout},
		{name: "reset", rules: resetInvalid, loose: "0", outcome: shaker.Reset},
		{name: "NAT", rules: dropInvalid + masquerade, loose: "0", outcome: shaker.Timeout},
		{name: "loose", rules: track, loose: "1", outcome: shaker.Open},
		{name: "loose NAT", rules: masquerade, loose: "1", outcome: shaker.Open},
	} {
		for _, seconds := range []int{5, 9, 14, 20} {
			r := r
			r.truth, r.module = time.Duration(seconds)*time.Second, "short"
			if seconds > 10 {
				r.module = "long"
			}
			if r.module == "long" && !*everyRouter {
				continue
			}
			m := kernel.NewMiddlebox(t)
			m.Run(nft, "table ip lab { "+r.rules+" }")
			m.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", fmt.Sprint(seconds))
			m.Sysctl("net.netfilter.nf_conntrack_tcp_loose", r.loose)
			r.target = serve(t, m.Listen(80), 0)
			b.scrape(t, r.target, r.module) // all are measured at the same time
			routers = append(routers, &r)
		}
	}
	for _, r := range routers {
		t.Run(fmt.Sprintf("%s/%v", r.name, r.truth), func(t *testing.T) {
			rounds := uint64(2)
			if r.loose == "1" {
				rounds = 1
			}
			answer := b.await(t, r.target, r.module, rounds)
			s := answer.Idle
			t.Logf("%v", s)
			if !answer.Success() || answer.Result != "open" {
				t.Errorf("the result is %q, want open", answer.Result)
			}
			for _, f := range s.Findings {
				want := Finding{Step: f.Step, Idle: f.Idle, Kind: Survived, Outcome: shaker.Open}
				if f.Step > r.truth && r.loose == "0" {
					want.Kind, want.Outcome, want.Errno = Lost, r.outcome, f.Errno
				}
				if f != want || (f.Errno != 0) != (f.Kind == Lost) {
					t.Errorf("the connection that was idle for %v: %v, want %v", f.Step, f, want)
				}
			}
			checkControl(t, s, true)
			if r.loose == "1" {
				if s.Lost != 0 || s.Limit() != None {
					t.Errorf("a bracket (%v, %v], want that all survived", s.Survived, s.Lost)
				}
				return
			}
			checkBracket(t, s, r.truth)
			if width := s.Lost - s.Survived; width > max(time.Second, s.Lost/10)+stall {
				t.Errorf("the bracket (%v, %v] is %v wide after the second round, want 1s or 10%%",
					s.Survived, s.Lost, width)
			}
			if s.Limit() != Middlebox || s.Told != 0 || !s.Consistent {
				t.Errorf("%v, limit %d, want a middlebox, nothing told, consistent", s, s.Limit())
			}
		})
	}
}

func checkBracket(t *testing.T, s *Snapshot, truth time.Duration) {
	t.Helper()
	if s.Survived > truth+tick || s.Lost < truth-stall {
		t.Errorf("bracket (%v, %v], want one that holds %v", s.Survived, s.Lost, truth)
	}
}

func checkControl(t *testing.T, s *Snapshot, alive bool) {
	t.Helper()
	if s.Control == nil || s.Control.Alive() != alive {
		t.Errorf("control %+v, want one that is alive: %t", s.Control, alive)
	}
}

// An application that closes connections after a while is not a middlebox: the connections are told so, and the control
// connection ends at the same age.
func TestApplicationLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t, idleConfig, 0)
	const after = 5 * time.Second // shortly after the second step was checked
	target := serve(t, kernel.NewMiddlebox(t).Listen(80), after)
	s := b.await(t, target, "short", 1).Idle
	t.Logf("%v", s)
	near := func(d time.Duration) bool { return d > after-tick && d < after+2*stall }
	if !near(s.Told) || s.Lost != s.Told || s.Survived != s.Findings[1].Idle {
		t.Errorf("told %v, bracket (%v, %v], want %v and (%v, %[4]v]", s.Told, s.Survived, s.Lost, after,
			s.Findings[1].Idle)
	}
	for i, want := range []Kind{Survived, Survived, Told, Told} {
		if f := s.Findings[i]; f.Kind != want || want == Told && f.Outcome != shaker.Closed {
			t.Errorf("%v, want kind %d", f, want)
		}
	}
	checkControl(t, s, false)
	if c := s.Control; c.Outcome != shaker.Closed || !near(c.Age) || s.Limit() != Application {
		t.Errorf("control %+v, limit %d, want closed after %v, an application", c, s.Limit(), after)
	}
}
