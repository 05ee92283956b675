package collector

import (
	"context"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Whatever a DNS server does, the result is the right one, the probe ends by its deadline,
// and its sockets are closed. Nearly all names have the address of an open port, which a
// resolver that took a wrong answer for a right one would find.
func TestDNS(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	listen(t, "127.0.0.1:7004")
	names := simnet.Names{"empty.example": nil}
	for _, name := range []string{"four.example", "refused.example", "broken.example", "lame.example", "silent.example",
		"10s.example", "garbage.silent.example", "stray.silent.example", "other.silent.example", "garbage.stray.other.example",
		"truncated.example", "truncated.silent.example", "truncated.refused.example", "truncated.garbage.example",
		"truncated.stray.example", "truncated.other.example"} {
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
		dial       dialer
		result     string // dns_timeout: the probe lasts until its deadline
	}{
		{"answers", "four.example", server, "open"},
		{"refuses", "refused.example", server, config.DNSError},
		{"has no such name", "absent.example", server, config.DNSNotFound},
		{"has no address", "empty.example", server, config.DNSNotFound},
		{"fails", "broken.example", server, config.DNSError},
		{"is lame", "lame.example", server, config.DNSError},
		{"is silent", "silent.example", server, config.DNSTimeout},
		{"is late", "10s.example", server, config.DNSTimeout},
		{"sends garbage", "garbage.silent.example", server, config.DNSTimeout},
		{"answers with a wrong ID", "stray.silent.example", server, config.DNSTimeout},
		{"answers another question", "other.silent.example", server, config.DNSTimeout},
		{"answers after all that", "garbage.stray.other.example", server, "open"},
		{"truncates", "truncated.example", server, "open"},
		{"truncates, is silent on TCP", "truncated.silent.example", server, config.DNSTimeout},
		{"truncates, refuses on TCP", "truncated.refused.example", server, config.DNSError},
		{"truncates, sends garbage on TCP", "truncated.garbage.example", server, config.DNSError},
		{"truncates, answers with a wrong ID on TCP", "truncated.stray.example", server, config.DNSError},
		{"truncates, answers another question on TCP", "truncated.other.example", server, config.DNSError},
		{"truncates, TCP is closed", "truncated.example", onlyUDP(down), config.DNSError},
		{"truncates, TCP is filtered", "truncated.example", onlyUDP(filtered), config.DNSTimeout},
		{"is down", "four.example", down, config.DNSError},
		{"is filtered", "four.example", filtered, config.DNSTimeout},
		{"is not asked (RFC 7686)", "hidden.onion", server, config.DNSNotFound},
	} {
		t.Run(c.test, func(t *testing.T) {
			p := newHandler(t, settings{dialDNS: c.dial})
			check := func(a answer) {
				if a.result != c.result || (a.value("probe_success") == 1) != (c.result == "open") {
					t.Errorf("%s, probe_success %v, want %s", a.result, a.value("probe_success"), c.result)
				}
				lookup, duration := a.value("probe_dns_lookup_time_seconds"), a.value("probe_duration_seconds")
				if !(0 < lookup && lookup <= duration && duration <= a.took.Seconds()) {
					t.Errorf("lookup %v, probe %v, request %v", lookup, duration, a.took)
				}
			}
			target := c.name + ".:7004" // the final dot keeps this machine's search domains out of it
			if c.result == config.DNSTimeout {
				probeUntilDeadline(t, p, target, 200*time.Millisecond, func(a answer) bool { check(a); return true })
				return
			}
			check(probeName(t, p, target, 0)) // to wait for the 5 s of the module would be a dns_timeout
		})
	}
}

// The deadline is that of the whole probe: what the lookup took, the handshake has not.
func TestDeadlineSpansLookupAndHandshake(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{dialDNS: simnet.NewDNS(t, simnet.Names{
		"600ms.example": {"192.0.2.1"},
		"999ms.example": {"192.0.2.1"},
	})})
	t.Run("most", func(t *testing.T) {
		probeUntilDeadline(t, p, "600ms.example.:80", time.Second, func(a answer) bool {
			// On a busy machine even this lookup can take all of the time.
			return a.result == "timeout" && a.value("probe_dns_lookup_time_seconds") >= 0.6
		})
	})
	t.Run("all", func(t *testing.T) {
		probeUntilDeadline(t, p, "999ms.example.:80", time.Second, func(a answer) bool {
			// What is left, if anything, is enough for a SYN or not.
			if !slices.Contains([]string{"timeout", config.DNSTimeout, tooLate}, a.result) {
				t.Errorf("%s", a.result)
			}
			return true
		})
	})
}

// answer is what /probe says about a name.
type answer struct {
	result string // tooLate if there is no verdict for want of time
	value  func(name string) float64
	took   time.Duration // of the request
}

// A dialer opens connections to DNS servers, as net.Dialer.DialContext does.
type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

var resultLabel = regexp.MustCompile(`probe_result_info\{result="(\w+)",errno="\w*"\} 1\n`)

// probeName probes a target by name, 0 being the module's timeout, and checks that its
// sockets are closed afterwards, not after the 5 s for which the resolver would keep them.
func probeName(t *testing.T, p *handler, target string, timeout time.Duration) answer {
	t.Helper()
	var header string
	if timeout > 0 {
		header = strconv.FormatFloat(timeout.Seconds(), 'f', -1, 64)
	}
	descriptors := lab.Descriptors(t)
	began := time.Now()
	w := get(p, "/probe?target="+target, timeoutHeader, header)
	ended := time.Now()
	lab.Eventually(t, "the sockets are closed", func() bool { return lab.Descriptors(t) == descriptors })
	if took := time.Since(ended); took > 4*time.Second {
		t.Errorf("sockets were open for another %v", took)
	}
	a := answer{took: ended.Sub(began)}
	switch match := resultLabel.FindStringSubmatch(w.Body.String()); {
	case w.Code == 200 && match != nil:
		a.result = match[1]
	case w.Code == 503 && strings.HasSuffix(w.Body.String(), ": the deadline passed before a SYN was sent\n"):
		a.result = tooLate
	default:
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	a.value = values(t, w)
	return a
}

// probeUntilDeadline makes probes that have to wait for their deadline. None may end before
// it, and the best of five must not end 50 ms after it: that is for a busy machine, as a
// deadline that is not kept is missed by all. An answer that is not ok is not in time.
func probeUntilDeadline(t *testing.T, p *handler, target string, timeout time.Duration, ok func(answer) bool) {
	t.Helper()
	var took []time.Duration
	for range 5 {
		a := probeName(t, p, target, timeout)
		if a.result != tooLate && a.value("probe_duration_seconds") < timeout.Seconds() {
			t.Errorf("ended after %v with %s, want %v", a.value("probe_duration_seconds"), a.result, timeout)
		}
		if ok(a) && a.took < timeout+50*time.Millisecond {
			return
		}
		took = append(took, a.took)
	}
	t.Errorf("took %v, want %v", took, timeout)
}
