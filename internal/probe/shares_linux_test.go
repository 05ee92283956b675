package probe

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

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// queries counts the queries of a resolver by the address of the server.
type queries struct {
	mu  sync.Mutex
	num map[string]int
}

// dial is a dialer that counts.
func (q *queries) dial(ctx context.Context, network, server string) (net.Conn, error) {
	q.mu.Lock()
	if q.num == nil {
		q.num = make(map[string]int)
	}
	q.num[server]++
	q.mu.Unlock()
	return (&net.Dialer{}).DialContext(ctx, network, server)
}

// take returns the number of queries since the last call, to one server.
func (q *queries) take(server string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.num[server]
	q.num = nil
	return n
}

// If the first DNS server is silent, the second one is asked so early that nothing else changes: the preferred IP
// version is probed, and the silence of a target is a verdict about the target.
func TestFirstServerIsSilent(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const silent, works = "192.0.2.53:53", "127.0.0.53:53"
	if again(t, map[string]string{
		"/etc/resolv.conf": "nameserver 192.0.2.53\nnameserver 127.0.0.53\nsearch a.example b.example c.example\n",
	}) {
		return
	}
	simnet.NewWire(t, nil, "192.0.2.0/24")
	listen(t, "[::1]:7004")
	listen(t, "127.0.0.1:7004")
	simnet.ServeDNS(t, works, simnet.Names{
		"both.example":   {"127.0.0.1", "::1"},
		"target.example": {"192.0.2.1"},
		"db.c.example":   {"127.0.0.1"},
		"broken.example": nil,
	})
	var asked queries
	p := newProber(t, Options{DialDNS: asked.dial, Config: parse(t, `
modules:
  tcp_connect: {prober: tcp, timeout: 2s}
  all: {prober: tcp, timeout: 2s, tcp: {addresses: all}}
`)})
	for _, c := range []struct{ module, target, result, addr string }{
		{module: "tcp_connect", target: "both.example.:7004", result: "open", addr: "::1"},
		{module: "all", target: "both.example.:7004", result: "open"},
		{module: "tcp_connect", target: "target.example.:80", result: "timeout", addr: "192.0.2.1"},
		{module: "tcp_connect", target: "absent.example.:80", result: config.DNSNotFound},
		{module: "tcp_connect", target: "broken.example.:80", result: config.DNSError},
		// The server is not asked for each name of the search list.
		{module: "tcp_connect", target: "db:7004", result: "open", addr: "127.0.0.1"},
	} {
		t.Run(c.module+" "+c.target, func(t *testing.T) {
			var got []string
			for range 5 { // on a busy machine even a server that works may reply late
				report, err := p.Probe(t.Context(), request(t, p, c.target, c.module))
				if err != nil {
					t.Fatalf("Probe(%s) with module %s = %v, want a report", c.target, c.module, err)
				}
				// One query for each IP version, and for SERVFAIL another one in the second round.
				rounds, n := 1, asked.take(silent)
				if c.result == config.DNSError {
					rounds = 2
				}
				addr := report.Handshake.Peer.Addr()
				if report.Result == c.result && (c.addr == "" || addr.String() == c.addr) && n == 2*rounds {
					if got := report.Resolution.Silent; !slices.Equal(got, []string{silent}) {
						t.Errorf("Probe(%s) names the silent servers %q, want %s", c.target, got, silent)
					}
					return
				}
				got = append(got, strings.Join([]string{report.Result, addr.String(),
					report.Resolution.Took.String()}, " "))
			}
			t.Errorf("Probe(%s) with module %s, 5 times = %q, want %s %s with one query of the silent server "+
				"for each IP version", c.target, c.module, got, c.result, c.addr)
		})
	}
	t.Run("control", func(t *testing.T) { // without shares, the first server uses up the timeout
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		descriptors := lab.Descriptors(t)
		addrs, err := newResolver((&net.Dialer{}).DialContext, true).LookupNetIP(ctx, "ip", "both.example.")
		if err == nil || ctx.Err() == nil {
			t.Errorf("LookupNetIP(both.example.) without shares = %v, %v, want no answer within a second", addrs, err)
		}
		lab.Eventually(t, "the resolver has closed its sockets",
			func() bool { return lab.Descriptors(t) <= descriptors })
	})
	t.Run("both silent", func(t *testing.T) {
		p := newProber(t, Options{DialDNS: simnet.DialDNS(silent)})
		probeUntilDeadline(t, p, "both.example.:7004", 300*time.Millisecond, func(a outcome) bool {
			if a.result != config.DNSTimeout {
				t.Errorf("Probe without a DNS server that replies = %s, want %s", a.result, config.DNSTimeout)
			}
			return true
		})
	})
}

// The options of resolv.conf(5) apply in addition: a DNS server that does not reply is asked twice, for a second each.
func TestResolverOptions(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	if again(t, map[string]string{"/etc/resolv.conf": "nameserver 192.0.2.53\noptions timeout:1 attempts:2\n"}) {
		return
	}
	simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newProber(t, Options{})
	req := request(t, p, "name.example.:80", config.DefaultModule)
	req.Timeout = config.MaxTimeout
	report, err := p.Probe(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	const least, most = 2 * time.Second, 8 * time.Second // two queries without the options take 10 s
	if took := report.Resolution.Took; report.Result != config.DNSTimeout || took < least || took > most {
		t.Errorf("Probe with options timeout:1 and a silent server = %s after %v, want %s after %v to %v",
			report.Result, took, config.DNSTimeout, least, most)
	}
	if got, want := report.Resolution.Silent, []string{"192.0.2.53:53"}; !slices.Equal(got, want) {
		t.Errorf("Probe with options timeout:1 names the silent servers %q, want %q", got, want)
	}
}

// A query or a reply that is lost costs a share of the timeout, and not all of it.
func TestLostQuery(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	simnet.NewWire(t, nil, "192.0.2.0/24")
	listen(t, "127.0.0.1:7004")
	works := simnet.NewDNS(t, simnet.Names{"four.example": {"127.0.0.1"}})
	lost := simnet.DialDNS("192.0.2.53:53")
	for _, server := range []string{"", "192.0.2.99"} { // the servers of resolv.conf(5), and one of the module
		var mu sync.Mutex
		dials := 0
		conf := config.Default()
		module := conf.Modules["tcp_connect_ip4"]
		if server != "" {
			module.TCP.DNSServer = netip.AddrPortFrom(netip.MustParseAddr(server), 53)
		}
		conf.Modules["tcp_connect_ip4"] = module
		dial := func(ctx context.Context, network, server string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if dials++; dials == 1 {
				return lost(ctx, network, server)
			}
			return works(ctx, network, server)
		}
		p := newProber(t, Options{Config: conf, DialDNS: dial})
		report, err := p.Probe(t.Context(), request(t, p, "four.example.:7004", "tcp_connect_ip4"))
		if err != nil || report.Result != "open" {
			t.Errorf("Probe whose first DNS query is lost, with the DNS server %q = %+v, %v, want open",
				server, report, err)
		}
	}
}

// A module's own DNS server is asked instead of those of the system, with UDP and TCP, and whatever the target policy
// says. Its timeout ends name resolution.
func TestOwnDNSServer(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	listen(t, "127.0.0.1:7004")
	names := simnet.Names{"name.example": {"127.0.0.1"}, "truncated.example": {"127.0.0.1"}, "refused.example": nil}
	simnet.ServeDNS(t, "127.0.0.54:5353", names)
	simnet.ServeDNS(t, "[::1]:53", names)
	simnet.ServeDNS(t, "127.0.0.55:53", simnet.Names{}) // has another view
	p := newProber(t, Options{Config: parse(t, `
targets: {allow: ["127.0.0.1:7004"]}
modules:
  four: {prober: tcp, tcp: {dns_server: "127.0.0.54:5353"}}
  six: {prober: tcp, tcp: {dns_server: "::1"}}
  other: {prober: tcp, tcp: {dns_server: 127.0.0.55}}
  silent: {prober: tcp, timeout: 2m, tcp: {dns_server: 192.0.2.53, dns_timeout: 300ms}}
  silent_all: {prober: tcp, timeout: 2m, tcp: {addresses: all, dns_server: 192.0.2.53, dns_timeout: 300ms}}
  closed: {prober: tcp, tcp: {dns_server: "127.0.0.56:53"}}
`)})
	for _, c := range []struct{ module, target, result, reason string }{
		{module: "four", target: "name.example.:7004", result: "open"},
		{module: "four", target: "truncated.example.:7004", result: "open"},
		{module: "six", target: "name.example.:7004", result: "open"},
		{module: "other", target: "name.example.:7004", result: config.DNSNotFound,
			reason: "on 127.0.0.55:53: no such host"},
		{module: "four", target: "refused.example.:7004", result: config.DNSError,
			reason: "on 127.0.0.54:5353: server misbehaving"},
		{module: "closed", target: "name.example.:7004", result: config.DNSError, reason: "on 127.0.0.56:53: "},
		{module: "silent", target: "name.example.:7004", result: config.DNSTimeout, reason: "deadline exceeded"},
		{module: "silent_all", target: "name.example.:7004", result: config.DNSTimeout, reason: "deadline exceeded"},
	} {
		report, err := p.Probe(t.Context(), request(t, p, c.target, c.module))
		if err != nil {
			t.Errorf("Probe(%s) with module %s = %v, want a report", c.target, c.module, err)
			continue
		}
		reason := ""
		if report.Err != nil {
			reason = report.Err.Error()
		}
		if report.Result != c.result || !strings.Contains(reason, c.reason) || (c.reason == "") != (reason == "") {
			t.Errorf("Probe(%s) with module %s = %s (%s), want %s (%s)",
				c.target, c.module, report.Result, reason, c.result, c.reason)
		}
		if limit := report.Module.TCP.DNSTimeout; limit > 0 && report.Duration < limit {
			t.Errorf("Probe(%s) with module %s ended after %v, want it to wait for %v",
				c.target, c.module, report.Duration, limit)
		}
	}
}

// The shares of the queries add up to the time for the lookup.
func TestShares(t *testing.T) {
	start := time.Now()
	for _, c := range []struct {
		name             string
		servers, queries int
		lookup           time.Duration // of 8 s for lookup and handshakes
		silent           []string
		shares           []time.Duration // of successive queries to the servers "1", "2", …; -1 if there is none
	}{
		{name: "one server", servers: 1, queries: 2, lookup: 8 * time.Second,
			shares: []time.Duration{2 * time.Second, 0}},
		{name: "one server, asked once", servers: 1, queries: 1, lookup: 8 * time.Second,
			shares: []time.Duration{0}},
		{name: "two servers", servers: 2, queries: 4, lookup: 8 * time.Second,
			shares: []time.Duration{time.Second / 2, time.Second / 2, 7 * time.Second / 2, 0}},
		{name: "two servers, asked once", servers: 2, queries: 2, lookup: 8 * time.Second,
			shares: []time.Duration{time.Second / 2, 0}},
		{name: "the first one is silent", servers: 2, queries: 4, lookup: 8 * time.Second, silent: []string{"1"},
			shares: []time.Duration{-1, time.Second, 7 * time.Second / 2, 0}},
		{name: "all are silent", servers: 2, queries: 4, lookup: 8 * time.Second, silent: []string{"1", "2"},
			shares: []time.Duration{-1, -1, 4 * time.Second, 0}},
		{name: "all are silent, asked once", servers: 2, queries: 2, lookup: 8 * time.Second,
			silent: []string{"1", "2"},
			shares: []time.Duration{-1, 0}},
		{name: "a short lookup", servers: 1, queries: 2, lookup: time.Second,
			shares: []time.Duration{time.Second / 2, 0}},
		{name: "a search list that has used up the first round", servers: 1, queries: 2, lookup: -time.Second,
			shares: []time.Duration{1, 0}},
	} {
		s := newShares(plan{servers: c.servers, queries: c.queries}, start, start.Add(c.lookup), 8*time.Second)
		for _, server := range c.silent {
			s.setSilent(server)
		}
		now := start
		for i, want := range c.shares {
			server := string(rune('1' + i%c.servers))
			got, ok := s.of(i+1, server, now)
			if !ok {
				got = -1
			}
			if got != want {
				t.Errorf("%s: the share of query %d, of server %s = %v, want %v", c.name, i+1, server, got, want)
			}
			now = now.Add(max(0, got))
		}
	}
}

// A query that is not sent is no fault of this host.
func TestQueryLeftOutIsNoFault(t *testing.T) {
	if got := faultOf(&net.DNSError{Err: errSilent.Error()}); got != 0 || errors.Is(errSilent, context.Canceled) {
		t.Errorf("faultOf(%v) = %v, want 0", errSilent, got)
	}
}
