package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Whatever a DNS server does, the result is correct, the probe ends by its deadline, and its sockets are
// closed. Nearly all names have the address of an open port, so that a resolver that accepts a wrong answer
// leads to an open port.
func TestDNS(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	listen(t, "127.0.0.1:7004")
	names := simnet.Names{"empty.example": nil}
	for _, name := range []string{
		"four.example", "xn--bcher-kva.example", "refused.example", "broken.example", "lame.example",
		"silent.example", "10s.example",
		"garbage.silent.example", "stray.silent.example", "other.silent.example", "garbage.stray.other.example",
		"truncated.example", "truncated.silent.example", "truncated.refused.example",
		"truncated.garbage.example", "truncated.stray.example", "truncated.other.example",
	} {
		names[name] = []string{"127.0.0.1"}
	}
	server := simnet.NewDNS(t, names)
	down := simnet.DialDNS("127.0.0.1:53")
	filtered := simnet.DialDNS("192.0.2.53:53")
	onlyUDP := func(tcp dialer) dialer {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if network == "tcp" {
				return tcp(ctx, network, address)
			}
			return server(ctx, network, address)
		}
	}
	for _, c := range []struct {
		test, name string
		dial       dialer // server if nil
		result     string // with config.DNSTimeout, the probe lasts until its deadline
	}{
		{test: "answers", name: "four.example", result: "open"},
		{test: "answers about the ASCII form", name: "bücher.example", result: "open"},
		{test: "refuses", name: "refused.example", result: config.DNSError},
		{test: "has no such name", name: "absent.example", result: config.DNSNotFound},
		{test: "has no address", name: "empty.example", result: config.DNSNotFound},
		{test: "fails", name: "broken.example", result: config.DNSError},
		{test: "is lame", name: "lame.example", result: config.DNSError},
		{test: "is silent", name: "silent.example", result: config.DNSTimeout},
		{test: "is late", name: "10s.example", result: config.DNSTimeout},
		{test: "sends garbage", name: "garbage.silent.example", result: config.DNSTimeout},
		{test: "answers with a wrong ID", name: "stray.silent.example", result: config.DNSTimeout},
		{test: "answers another question", name: "other.silent.example", result: config.DNSTimeout},
		{test: "answers after all that", name: "garbage.stray.other.example", result: "open"},
		{test: "truncates", name: "truncated.example", result: "open"},
		{test: "truncates, is silent on TCP", name: "truncated.silent.example", result: config.DNSTimeout},
		{test: "truncates, refuses on TCP", name: "truncated.refused.example", result: config.DNSError},
		{test: "truncates, sends garbage on TCP", name: "truncated.garbage.example", result: config.DNSError},
		{test: "truncates, answers with a wrong ID on TCP", name: "truncated.stray.example", result: config.DNSError},
		{test: "truncates, answers another question on TCP", name: "truncated.other.example", result: config.DNSError},
		{test: "truncates, TCP is closed", name: "truncated.example", dial: onlyUDP(down), result: config.DNSError},
		{test: "truncates, TCP is filtered", name: "truncated.example", dial: onlyUDP(filtered),
			result: config.DNSTimeout},
		{test: "is down", name: "four.example", dial: down, result: config.DNSError},
		{test: "is filtered", name: "four.example", dial: filtered, result: config.DNSTimeout},
		{test: "is not asked (RFC 7686)", name: "hidden.onion", result: config.DNSNotFound},
	} {
		t.Run(c.test, func(t *testing.T) {
			if c.dial == nil {
				c.dial = server
			}
			p := newProber(t, Options{DialDNS: c.dial})
			check := func(a outcome) {
				t.Helper()
				if a.Report == nil || a.result != c.result || a.Success() != (c.result == "open") {
					t.Fatalf("Probe(%s) has the result %s, want %s", c.name, a.result, c.result)
				}
				if reason := a.Record().Reason; c.result == config.DNSTimeout && reason != "" {
					t.Errorf("Probe(%s) has the reason %q, want none: %s says it", c.name, reason, c.result)
				}
				if lookup := a.Resolution.Took; !(0 < lookup && lookup <= a.Duration && a.Duration <= a.took) {
					t.Errorf("Probe(%s) took %v and reports the duration %v and the lookup time %v, "+
						"want 0 < lookup time <= duration <= time until Probe returned",
						c.name, a.took, a.Duration, lookup)
				}
			}
			target := c.name + ".:7004" // because of the final dot, the resolver adds no search domain
			if c.result == config.DNSTimeout {
				probeUntilDeadline(t, p, target, 200*time.Millisecond, func(a outcome) bool { check(a); return true })
				return
			}
			check(probeName(t, p, target, 0)) // a probe that lasts the 5 s of the module would have dns_timeout
		})
	}
}

// The deadline is the deadline of the whole probe: the longer the lookup takes, the less time the handshake
// has.
func TestDeadlineSpansLookupAndHandshake(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newProber(t, Options{DialDNS: simnet.NewDNS(t, simnet.Names{
		"600ms.example": {"192.0.2.1"},
		"999ms.example": {"192.0.2.1"},
	})})
	for _, target := range []string{"600ms.example.:80", "999ms.example.:80"} {
		probeUntilDeadline(t, p, target, time.Second, func(a outcome) bool {
			if a.result != config.DNSTimeout {
				t.Errorf("Probe(%s) with a timeout of 1 s has the result %s, want %s",
					target, a.result, config.DNSTimeout)
			}
			return true
		})
	}
}

// Silence is the verdict timeout only if name resolution has left the handshake three quarters of the time that the
// two have together. If it has left less, the verdict is about the DNS servers. A target that answers is open in
// both cases. The time that is reserved for the path belongs to neither of the two.
func TestSlowLookupIsNoVerdictAboutTheTarget(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	if again(t, map[string]string{"/etc/resolv.conf": "nameserver 127.0.0.1\n"}) {
		return
	}
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2")
	names := simnet.Names{}
	for _, delay := range []string{"0ms", "250ms", "400ms", "700ms", "silent6"} {
		names["open."+delay+".example"] = []string{"192.0.2.1"}
		names["silent-host."+delay+".example"] = []string{"192.0.2.2"}
	}
	p := newProber(t, Options{
		Config: parse(t, `
modules:
  first: {prober: tcp, timeout: 1200ms}
  all: {prober: tcp, timeout: 1200ms, tcp: {addresses: all}}
  path: {prober: tcp, timeout: 1200ms, tcp: {path: always}}
`),
		DialDNS: simnet.NewDNS(t, names),
	})
	for _, c := range []struct {
		module, name string
		budget       time.Duration
		want         string
	}{
		{module: "first", name: "open.0ms", budget: 1200 * time.Millisecond, want: "open"},
		{module: "first", name: "open.700ms", budget: 1200 * time.Millisecond, want: "open"},
		{module: "first", name: "silent-host.0ms", budget: 1200 * time.Millisecond, want: "timeout"},
		{module: "first", name: "silent-host.250ms", budget: 1200 * time.Millisecond, want: "timeout"},
		{module: "first", name: "silent-host.700ms", budget: 1200 * time.Millisecond, want: config.DNSTimeout},
		// The probe itself waits only as long as a silent target can still have the verdict timeout.
		{module: "first", name: "silent-host.silent6", budget: 1200 * time.Millisecond, want: "timeout"},
		{module: "all", name: "open.400ms", budget: 1200 * time.Millisecond, want: "open"},
		{module: "all", name: "silent-host.0ms", budget: 1200 * time.Millisecond, want: "timeout"},
		{module: "all", name: "silent-host.700ms", budget: 1200 * time.Millisecond, want: config.DNSTimeout},
		{module: "path", name: "silent-host.0ms", budget: 800 * time.Millisecond, want: "timeout"},
		{module: "path", name: "silent-host.250ms", budget: 800 * time.Millisecond, want: config.DNSTimeout},
	} {
		t.Run(c.module+" "+c.name, func(t *testing.T) {
			target := c.name + ".example.:80"
			var took []time.Duration
			for range 5 { // on a busy machine even a quick lookup can take long
				report, err := p.Probe(t.Context(), request(t, p, target, c.module))
				if err != nil {
					took = append(took, 0)
					continue // this host was late
				}
				lookup := report.Resolution.Took
				if late := lookup > c.budget/4; late != (c.want == config.DNSTimeout) && c.want != "open" {
					took = append(took, lookup)
					continue
				}
				if report.Result != c.want {
					t.Errorf("Probe(%s) with module %s, whose lookup took %v of %v, has the result %s, want %s",
						target, c.module, lookup, c.budget, report.Result, c.want)
				}
				checkSlowLookup(t, report)
				return
			}
			t.Errorf("the lookups of five probes of %s with module %s took %v of %v, want one with the result %s",
				target, c.module, took, c.budget, c.want)
		})
	}
}

// checkSlowLookup checks that a report with the result dns_timeout gives the reason and names the address, and that
// another report gives no reason.
func checkSlowLookup(t *testing.T, report *Report) {
	t.Helper()
	record := report.Records()[0]
	late := report.Result == config.DNSTimeout
	explained := strings.HasPrefix(record.Reason, "name resolution took ")
	if explained != late || !record.Address.IsValid() || late && record.Errno != "" {
		t.Errorf("the record of %s with the result %s is %+v, want the address, and for %s the reason and no errno",
			report.Text, report.Result, record, config.DNSTimeout)
	}
}

// If this host itself was late, and not name resolution, there is no verdict about a silent target. A target that
// answers is open.
func TestLateHostIsNoVerdict(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2")
	p := newProber(t, Options{})
	expired, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	for _, c := range []struct {
		addr     string
		ctx      context.Context // t.Context() if nil
		late     time.Duration   // of 1.2 s
		resolved time.Duration
		want     string
	}{
		{addr: "192.0.2.1", late: 700 * time.Millisecond, want: "open"},
		{addr: "192.0.2.2", late: 700 * time.Millisecond, want: tooLate},
		{addr: "192.0.2.2", late: 1100 * time.Millisecond, want: tooLate},
		{addr: "192.0.2.2", late: 1200 * time.Millisecond, want: tooLate},
		{addr: "192.0.2.2", late: 700 * time.Millisecond, resolved: 400 * time.Millisecond, want: config.DNSTimeout},
		{addr: "192.0.2.2", late: 1100 * time.Millisecond, resolved: 300 * time.Millisecond, want: tooLate},
		{addr: "192.0.2.2", late: 1100 * time.Millisecond, resolved: time.Second, want: config.DNSTimeout},
		{addr: "192.0.2.2", late: 1200 * time.Millisecond, resolved: 400 * time.Millisecond, want: tooLate},
		{addr: "192.0.2.2", late: 1200 * time.Millisecond, resolved: time.Second, want: config.DNSTimeout},
		{addr: "192.0.2.2", ctx: expired, late: 100 * time.Millisecond, resolved: 90 * time.Millisecond, want: tooLate},
	} {
		req := request(t, p, "name.example:80", config.DefaultModule)
		req.Timeout = 1200 * time.Millisecond
		r := &running{Report: &Report{Request: req, Start: time.Now().Add(-c.late)}, prober: p}
		r.Resolution.Took = c.resolved
		r.lookup = &lookup{asked: true}
		if c.ctx == nil {
			c.ctx = t.Context()
		}
		var v Verdict
		err := r.shake(c.ctx, netip.MustParseAddr(c.addr), &v)
		if peer := v.Handshake.Peer.String(); err == nil && peer != c.addr+":80" {
			t.Errorf("a handshake with %s has the peer %s, want %s:80", c.addr, peer, c.addr)
		}
		got := v.Result
		if errors.Is(err, shaker.ErrUnsent) {
			got, err = tooLate, nil
		}
		if got != c.want || err != nil {
			t.Errorf("a handshake with %s, %v of 1.2 s late, %v of it by name resolution = %s, %v, want %s",
				c.addr, c.late, c.resolved, got, err, c.want)
		}
	}
}

// tooLate is the result of a probe without a verdict, because the deadline passed before a SYN was sent.
const tooLate = "too late"

// An outcome is what became of a probe of a name.
type outcome struct {
	*Report // nil if the result is tooLate
	result  string
	took    time.Duration // time until Probe returned
}

// probeName probes a target by name. A timeout of 0 means the timeout of the module. It checks that the sockets
// of the probe are closed afterwards, and not only after the 5 s for which the resolver would keep them open.
func probeName(t *testing.T, p *Prober, target string, timeout time.Duration) outcome {
	t.Helper()
	req := request(t, p, target, config.DefaultModule)
	if timeout > 0 {
		req.Timeout = timeout
	}
	descriptors := lab.Descriptors(t)
	began := time.Now()
	report, err := p.Probe(t.Context(), req)
	ended := time.Now()
	lab.Eventually(t, "the sockets are closed", func() bool { return lab.Descriptors(t) == descriptors })
	if took := time.Since(ended); took > 4*time.Second {
		t.Errorf("after Probe(%s), sockets were open for another %v, want at most 4 s", target, took)
	}
	a := outcome{Report: report, took: ended.Sub(began)}
	switch {
	case err == nil:
		a.result = report.Result
	case errors.Is(err, shaker.ErrUnsent):
		a.result = tooLate
	default:
		t.Fatalf("Probe(%s) = %v, %v, want a report or ErrUnsent", target, report, err)
	}
	return a
}

// probeUntilDeadline makes up to five probes, each of which must wait for its deadline. No probe may end before
// its deadline, and one of them must end less than 50 ms after it. Five attempts are for a busy machine: a
// prober that ignores the deadline fails all of them. An attempt counts only if ok returns true.
func probeUntilDeadline(t *testing.T, p *Prober, target string, timeout time.Duration, ok func(outcome) bool) {
	t.Helper()
	var took []time.Duration
	for range 5 {
		a := probeName(t, p, target, timeout)
		if a.result != tooLate && a.Duration < timeout {
			t.Errorf("Probe(%s) ended after %v with %s, want it to last for its timeout of %v",
				target, a.Duration, a.result, timeout)
		}
		if ok(a) && a.took < timeout+50*time.Millisecond {
			return
		}
		took = append(took, a.took)
	}
	t.Errorf("five probes of %s took %v, want one that ends at its deadline of %v with the wanted result",
		target, took, timeout)
}
