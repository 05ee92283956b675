package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The DNS servers may fail for one IP version only. With addresses: first, the probe then uses the addresses of the
// other one, if the module permits it. With addresses: all, the addresses that are known are probed, but the result
// is the failure: half of the name is unknown. Without an address, the failure is the result, too, because the name
// may have an address.
func TestOneIPVersionFails(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	listen(t, "127.0.0.1:7004")
	listen(t, "[::1]:7004")
	both, four, six := []string{"127.0.0.1", "::1"}, []string{"127.0.0.1"}, []string{"::1"}
	names := simnet.Names{}
	for name, addrs := range map[string][]string{
		"both": both, "four": four, "six": six, "none": nil, "denied": {"127.0.0.66"},
	} {
		for _, label := range []string{"ok", "silent4", "silent6", "broken4", "broken6"} {
			names[name+"."+label+".example"] = addrs
		}
	}
	p := newProber(t, Options{
		Config: parse(t, `
targets: {deny: ["127.0.0.66:*"]}
modules:
  first: {prober: tcp, timeout: 1s}
  first4: {prober: tcp, timeout: 1s, tcp: {preferred_ip_protocol: ip4}}
  only6: {prober: tcp, timeout: 1s, tcp: {ip_protocol_fallback: false}}
  all: {prober: tcp, timeout: 1s, tcp: {addresses: all}}
  all4: {prober: tcp, timeout: 1s, tcp: {addresses: all, preferred_ip_protocol: ip4, ip_protocol_fallback: false}}
  all_but_refused: {prober: tcp, timeout: 1s, tcp: {addresses: all, valid_results: [open, dns_error]}}
`),
		DialDNS: simnet.NewDNS(t, names),
	})
	const open, refused = "open", "refused"
	for _, c := range []struct {
		module, name string
		port         int
		result       string
		probed       []string // addresses
	}{
		{module: "first", name: "both.ok", port: 7004, result: open, probed: six},
		{module: "first", name: "both.silent6", port: 7004, result: open, probed: four},
		{module: "first", name: "both.broken6", port: 7004, result: open, probed: four},
		{module: "first", name: "both.silent4", port: 7004, result: open, probed: six},
		{module: "first", name: "both.broken4", port: 7004, result: open, probed: six},
		{module: "first4", name: "both.silent4", port: 7004, result: open, probed: six},
		{module: "first4", name: "both.silent6", port: 7004, result: open, probed: four},
		{module: "first", name: "four.silent6", port: 1, result: refused, probed: four},
		{module: "first", name: "four.silent4", result: config.DNSTimeout},
		{module: "first", name: "four.broken4", result: config.DNSError},
		{module: "first", name: "none.ok", result: config.DNSNotFound},
		{module: "first", name: "none.silent4", result: config.DNSTimeout},
		{module: "first", name: "none.broken6", result: config.DNSError},
		{module: "first", name: "denied.silent6", result: "denied"},
		{module: "only6", name: "both.silent6", result: config.DNSTimeout},
		{module: "only6", name: "both.broken6", result: config.DNSError},
		{module: "only6", name: "both.silent4", port: 7004, result: open, probed: six},

		{module: "all", name: "both.ok", port: 7004, result: open, probed: both},
		{module: "all", name: "four.ok", port: 7004, result: open, probed: four},
		{module: "all", name: "both.silent6", port: 7004, result: config.DNSTimeout, probed: four},
		{module: "all", name: "both.silent4", port: 7004, result: config.DNSTimeout, probed: six},
		{module: "all", name: "both.broken6", port: 7004, result: config.DNSError, probed: four},
		{module: "all", name: "both.broken4", port: 7004, result: config.DNSError, probed: six},
		{module: "all", name: "both.broken6", port: 1, result: refused, probed: four},
		{module: "all", name: "four.broken4", result: config.DNSError},
		{module: "all4", name: "both.broken6", port: 7004, result: open, probed: four},
		{module: "all_but_refused", name: "both.broken6", port: 7004, result: config.DNSError, probed: four},
		{module: "all_but_refused", name: "both.broken6", port: 1, result: refused, probed: four},
	} {
		t.Run(c.module+" "+c.name, func(t *testing.T) {
			target := fmt.Sprintf("%s.example.:%d", c.name, max(1, c.port))
			req := request(t, p, target, c.module)
			report, err := p.Probe(t.Context(), req)
			if errors.Is(err, ErrDenied) {
				report, err = &Report{Request: req, Verdict: Verdict{Result: "denied"}}, nil
			}
			if err != nil {
				t.Fatalf("Probe(%s) with module %s = %v, want a report", target, c.module, err)
			}
			var probed []string
			for _, v := range report.Each() {
				if v.Handshake.Outcome != 0 {
					probed = append(probed, v.Handshake.Peer.Addr().String())
				}
			}
			success := report.Valid(c.result)
			if report.Result != c.result || report.Success() != success || !slices.Equal(probed, c.probed) {
				t.Errorf("Probe(%s) with module %s = %s, success %t, addresses %q, want %s, success %t, addresses %q",
					target, c.module, report.Result, report.Success(), probed, c.result, success, c.probed)
			}
			records := report.Records()
			if !slices.ContainsFunc(records, func(r history.Record) bool { return r.Result == c.result }) {
				t.Errorf("Probe(%s) with module %s has the records %+v, want one with %s",
					target, c.module, records, c.result)
			}
		})
	}
}

// As soon as there is an address of the preferred IP version, the probe waits for nothing else.
func TestPreferredAddressIsEnough(t *testing.T) {
	listen(t, "[::1]:7004")
	p := newProber(t, Options{DialDNS: simnet.NewDNS(t, simnet.Names{"silent4.example": {"127.0.0.1", "::1"}})})
	req := request(t, p, "silent4.example.:7004", config.DefaultModule)
	req.Timeout = config.MaxTimeout
	report, err := p.Probe(t.Context(), req)
	if most := req.Timeout / 16; err != nil || report.Result != "open" || report.Resolution.Took > most {
		t.Errorf("Probe(silent4.example) = %+v, %v, want open after at most %v", report, err, most)
	}
}

// The search list is that of resolv.conf(5), and the whole probe is about one of its names: if db.a.example has only
// an IPv4 address, the IPv6 address of db.b.example is another host's. A name in hosts(5) is not searched.
func TestSearchList(t *testing.T) {
	if again(t, map[string]string{
		"/etc/resolv.conf": "search a.example broken6.example b.example\noptions ndots:2\n",
		"/etc/hosts":       "127.0.0.1 localhost here\n::1 localhost h.example\n127.0.0.2 here\n",
	}) {
		return
	}
	for name, want := range map[string]struct {
		names []string
		addrs string
	}{
		"db":         {names: searched("db", "a.example", "broken6.example", "b.example", "")},
		"db.x":       {names: searched("db.x", "a.example", "broken6.example", "b.example", "")},
		"db.x.y":     {names: searched("db.x.y", "", "a.example", "broken6.example", "b.example")},
		"db.":        {names: []string{"db."}},
		"x.onion":    {names: searched("x.onion", "a.example", "broken6.example", "b.example")},
		"x.onion.":   {},
		"here":       {addrs: "127.0.0.1 127.0.0.2"},
		"localhost":  {addrs: "127.0.0.1 ::1"},
		"h.example.": {addrs: "::1"},
	} {
		p := newPlan(name, true)
		for i := range p.addrs {
			p.addrs[i] = p.addrs[i].Unmap()
		}
		slices.SortFunc(p.addrs, netip.Addr.Compare)
		if got := joined(p.addrs); !slices.Equal(p.names, want.names) || got != want.addrs {
			t.Errorf("newPlan(%s) = %q, %q, want %q, %q", name, p.names, got, want.names, want.addrs)
		}
	}

	listen(t, "127.0.0.2:7005")
	p := newProber(t, Options{
		Config: parse(t, `
modules:
  tcp_connect: {prober: tcp, timeout: 1s}
  all: {prober: tcp, timeout: 1s, tcp: {addresses: all}}
`),
		DialDNS: simnet.NewDNS(t, simnet.Names{
			"db.a.example":     {"127.0.0.1"},
			"db.b.example":     {"127.0.0.2", "::1"},
			"only-b.b.example": {"127.0.0.2"},
		}),
	})
	for _, c := range []struct{ module, target, result, probed string }{
		{module: config.DefaultModule, target: "db:1", result: "refused", probed: "127.0.0.1"},
		{module: "all", target: "db:1", result: "refused", probed: "127.0.0.1"},
		{module: "all", target: "only-b:7005", result: "open", probed: "127.0.0.2"},
		{module: "all", target: "here:1", result: "refused", probed: "127.0.0.1 127.0.0.2"},
		{module: config.DefaultModule, target: "absent:1", result: config.DNSError}, // of absent.broken6.example
		{module: "all", target: "absent.:1", result: config.DNSNotFound},
	} {
		report, err := p.Probe(t.Context(), request(t, p, c.target, c.module))
		if err != nil {
			t.Errorf("Probe(%s) with module %s = %v, want a report", c.target, c.module, err)
			continue
		}
		var probed []netip.Addr
		for _, v := range report.Each() {
			if addr := v.Handshake.Peer.Addr(); addr.IsValid() {
				probed = append(probed, addr)
			}
		}
		if got := joined(probed); report.Result != c.result || got != c.probed {
			t.Errorf("Probe(%s) with module %s = %s, addresses %q, want %s, %q",
				c.target, c.module, report.Result, got, c.result, c.probed)
		}
	}
}

// searched returns the full names of a name with domains, where "" stands for none.
func searched(name string, domains ...string) (names []string) {
	for _, domain := range domains {
		names = append(names, strings.TrimSuffix(name+"."+domain, ".")+".")
	}
	return names
}

// joined returns addresses in one text.
func joined(addrs []netip.Addr) string {
	return strings.Trim(fmt.Sprint(addrs), "[]")
}

// An answer that is still missing is a timeout, whatever the other one was.
func TestMissingAnswer(t *testing.T) {
	l := &lookup{waiting: []string{config.IP4}, failed: &nameError{result: config.DNSError}, found: true}
	if got := l.failure(); got == nil || got.result != config.DNSTimeout || got.err != context.DeadlineExceeded {
		t.Errorf("failure() without the IPv4 answer = %+v, want %s because of %v",
			got, config.DNSTimeout, context.DeadlineExceeded)
	}
}
