package probe

import (
	"context"
	"errors"
	"net"
	"slices"
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
		"four.example", "refused.example", "broken.example", "lame.example", "silent.example", "10s.example",
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
	t.Run("most", func(t *testing.T) {
		probeUntilDeadline(t, p, "600ms.example.:80", time.Second, func(a outcome) bool {
			// On a busy machine even this lookup can take all of the time.
			return a.result == "timeout" && a.Resolution.Took >= 600*time.Millisecond
		})
	})
	t.Run("all", func(t *testing.T) {
		probeUntilDeadline(t, p, "999ms.example.:80", time.Second, func(a outcome) bool {
			// The time that is left may or may not be enough for a SYN.
			if want := []string{"timeout", config.DNSTimeout, tooLate}; !slices.Contains(want, a.result) {
				t.Errorf("Probe(999ms.example) with a timeout of 1 s has the result %s, want one of %q", a.result, want)
			}
			return true
		})
	})
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
