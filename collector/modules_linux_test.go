package collector

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// parse returns a configuration.
func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	conf, _, err := config.Parse("test.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// The policy is about addresses, so that no name for one and no way to write it gets around it.
func TestTargetPolicy(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("0.0.0.0/0", simnet.SYNACK())
	network.At("::/0", simnet.SYNACK())
	p := newHandler(t, settings{
		config: parse(t, `
targets:
  allow: ["192.0.2.0/24:80-90", "[2001:db8::/32]:*", "127.0.0.0/8:*", "[::1]:*"]
  deny: ["192.0.2.66:*", "[2001:db8:6::/48]:443", "127.0.0.1:*"]
modules:
  tcp_connect: {prober: tcp}
  all: {prober: tcp, tcp: {addresses: all}}
  ip4: {prober: tcp, tcp: {preferred_ip_protocol: ip4, ip_protocol_fallback: false}}
`),
		dialDNS: simnet.NewDNS(t, simnet.Names{
			"mixed.example":   {"2001:db8:6::1", "192.0.2.66", "192.0.2.1"},
			"denied.example":  {"2001:db8:6::1", "192.0.2.66"},
			"outside.example": {"198.51.100.1"},
		}),
	})
	for _, c := range []struct {
		query string
		want  string   // of the body, if it is refused
		to    []string // what is probed
	}{
		{query: "192.0.2.1:80", to: []string{"192.0.2.1:80"}},
		{query: "192.0.2.1:90", to: []string{"192.0.2.1:90"}},
		{query: "192.0.2.1:91", want: "target 192.0.2.1:91 may not be probed: no rule of targets.allow permits it\n"},
		{query: "198.51.100.1:80", want: "target 198.51.100.1:80 may not be probed: no rule of targets.allow permits it\n"},
		{query: "192.0.2.66:80", want: "target 192.0.2.66:80 may not be probed: targets.deny 192.0.2.66/32:* forbids it\n"},
		{query: "[::ffff:192.0.2.66]:80", want: "target 192.0.2.66:80 may not be probed: targets.deny 192.0.2.66/32:* forbids it\n"},
		{query: "0.0.0.0:80", want: "target 0.0.0.0:80 may not be probed: 0.0.0.0 stands for an address of this host, want that address\n"},
		{query: "[2001:db8:6::1]:80", to: []string{"[2001:db8:6::1]:80"}},
		{query: "[2001:db8:6::1]:443", want: "target [2001:db8:6::1]:443 may not be probed: targets.deny [2001:db8:6::/48]:443 forbids it\n"},
		{query: "denied.example:443", want: "target [2001:db8:6::1]:443 may not be probed: targets.deny [2001:db8:6::/48]:443 forbids it\n"},
		{query: "outside.example:80", want: "target 198.51.100.1:80 may not be probed: no rule of targets.allow permits it\n"},
		{query: "mixed.example:80", to: []string{"[2001:db8:6::1]:80"}},
		{query: "mixed.example:80&module=ip4", to: []string{"192.0.2.1:80"}},
		{query: "mixed.example:80&module=all", to: []string{"192.0.2.1:80", "[2001:db8:6::1]:80"}},
		{query: "denied.example:80&module=ip4", want: "target 192.0.2.66:80 may not be probed: targets.deny 192.0.2.66/32:* forbids it\n"},
	} {
		network.Forget()
		before := testutil.ToFloat64(p.metrics.rejected.WithLabelValues(denied))
		w := get(p, "/probe?target="+c.query)
		refused := testutil.ToFloat64(p.metrics.rejected.WithLabelValues(denied)) - before
		if c.want != "" && (w.Code != 403 || w.Body.String() != c.want || refused != 1) ||
			c.want == "" && (w.Code != 200 || refused != 0) {
			t.Errorf("%s: %d %s counted %v times", c.query, w.Code, w.Body, refused)
		}
		var probed []netip.AddrPort
		for s := range network.Sent() {
			if s.SYN {
				probed = append(probed, s.Dst)
			}
		}
		slices.SortFunc(probed, netip.AddrPort.Compare)
		if got := fmt.Sprint(probed); got != "["+strings.Join(c.to, " ")+"]" {
			t.Errorf("%s: probed %v, want %v", c.query, got, c.to)
		}
	}
}

// With addresses: all, each address has its verdict, and the name that of the worst.
func TestAllAddresses(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3", simnet.ICMP("198.51.100.7", 3, 13))
	network.At("192.0.2.4", simnet.SYNACK().After(30*time.Millisecond))
	network.At("2001:db8::1", simnet.SYNACK())
	p := newHandler(t, settings{
		config: parse(t, `
modules:
  all: {prober: tcp, timeout: 500ms, tcp: {addresses: all}}
  all4: {prober: tcp, timeout: 500ms, tcp: {addresses: all, preferred_ip_protocol: ip4, ip_protocol_fallback: false}}
  closed: {prober: tcp, timeout: 500ms, tcp: {addresses: all, valid_results: [refused, timeout]}}
`),
		dialDNS: simnet.NewDNS(t, simnet.Names{
			"open.example":   {"192.0.2.4", "192.0.2.1", "192.0.2.1", "2001:db8::1"},
			"partly.example": {"192.0.2.1", "192.0.2.3", "192.0.2.2", "192.0.2.9", "2001:db8::1"},
			"closed.example": {"192.0.2.2", "192.0.2.9"},
			"opened.example": {"192.0.2.3", "192.0.2.1", "192.0.2.2"},
			"link.example":   {"fe80::1", "192.0.2.1"},
			"local.example":  {"fe80::1"},
			"many.example":   manyAddresses(probe.MaxAddresses + 1),
		}),
	})
	for _, c := range []struct{ golden, query string }{
		{"all_open", "target=open.example:80&module=all"},
		{"all_open_ip4", "target=open.example:80&module=all4"},
		{"all_some_down", "target=partly.example:80&module=all"},
		{"all_closed_as_wanted", "target=closed.example:80&module=closed"},
		{"all_one_open_unwanted", "target=opened.example:80&module=closed"},
		{"all_one_address", "target=192.0.2.2:80&module=all"},
		{"all_no_address", "target=absent.example:80&module=all"},
		{"all_but_link_local", "target=link.example:80&module=all"},
		{"only_link_local", "target=local.example:80&module=all"},
		{"all_too_many", "target=many.example:80&module=all4"},
	} {
		t.Run(c.golden, func(t *testing.T) {
			w := get(p, "/probe?"+c.query)
			if w.Code != 200 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			golden(t, c.golden, w.Body.String())
			if c.golden == "all_open" && values(t, w)("probe_tcp_handshake_seconds") < 0.03 {
				t.Errorf("the slowest address does not count")
			}
		})
	}
}

// manyAddresses returns different addresses.
func manyAddresses(n int) []string {
	addrs := make([]string, n)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{192, 0, byte(2 + i/256), byte(i)}).String()
	}
	return addrs
}

// All addresses of a name are in flight at once, and count as such.
func TestAllAddressesAtOnce(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{
		maxInFlight: 4,
		config:      parse(t, `modules: {all: {prober: tcp, tcp: {addresses: all}}}`),
		dialDNS: simnet.NewDNS(t, simnet.Names{
			"three.example": manyAddresses(3),
			"five.example":  manyAddresses(5),
		}),
	})
	if w := get(p, "/probe?module=all&target=five.example:80"); w.Code != 503 || w.Body.String() != probe.ErrInFlight.Error()+"\n" {
		t.Errorf("five at once, where four may be: %d %s", w.Code, w.Body)
	}
	end := probeInBackground(p, "three.example:80&module=all")
	wire.Await(3)
	if w := get(p, "/probe?module=all&target=three.example:80"); w.Code != 503 {
		t.Errorf("three and three at once, where four may be: %d %s", w.Code, w.Body)
	}
	if n := p.prober.InFlight(); n != 3 {
		t.Errorf("%d are in flight, want 3", n)
	}
	end()
	if n := p.prober.InFlight(); n != 0 {
		t.Errorf("%d are in flight at the end", n)
	}
}

// If one address cannot be probed for want of something on this host, there is no verdict
// about the name.
func TestAllAddressesFault(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{
		config:  parse(t, `modules: {tcp_connect: {prober: tcp, tcp: &port {source_ports: 40000}}, all: {prober: tcp, tcp: {<<: *port, addresses: all}}}`),
		dialDNS: simnet.NewDNS(t, simnet.Names{"two.example": {"192.0.2.1", "192.0.2.2"}}),
	})
	end := probeInBackground(p, "192.0.2.2:80")
	defer end()
	wire.Await(1)
	w := get(p, "/probe?module=all&target=two.example:80")
	const want = "probe not performed, target state unknown: shake 192.0.2.2:80: connect: cannot assign requested address\n"
	if w.Code != 503 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if n := p.prober.InFlight(); n != 1 {
		t.Errorf("%d are in flight, want only the one in the background", n)
	}
}

// What the module wants is success, and counts as such.
func TestValidResults(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{
		config:  parse(t, `modules: {closed: {prober: tcp, timeout: 200ms, tcp: {valid_results: [refused, timeout, dns_not_found]}}}`),
		dialDNS: simnet.NewDNS(t, nil),
	})
	for target, want := range map[string]float64{
		listen(t, "127.0.0.1:0"): 0,
		"127.0.0.1:1":            1,
		"192.0.2.1:80":           1,
		"absent.example:80":      1,
		"203.0.113.1:80":         0, // no route
	} {
		w := get(p, "/probe?module=closed&target="+target)
		if got := values(t, w)("probe_success"); got != want {
			t.Errorf("%s: probe_success %v, want %v", target, got, want)
		}
	}
	for labels, want := range map[[3]string]float64{
		{"closed", "open", ""}:                   1,
		{"closed", "unreachable", "ENETUNREACH"}: 1,
		{"closed", "refused", "ECONNREFUSED"}:    0,
		{"closed", "timeout", "ETIMEDOUT"}:       0,
		{"closed", "dns_not_found", ""}:          0,
	} {
		if got := testutil.ToFloat64(p.metrics.failures.WithLabelValues(labels[:]...)); got != want {
			t.Errorf("failures %v: %v, want %v", labels, got, want)
		}
	}
}

// A module's socket options reach the wire.
func TestModuleOptions(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.RST())
	p := newHandler(t, settings{config: parse(t, `
modules: {marked: {prober: tcp, tcp: {source_ports: 40000-40003}}}`)})
	w := get(p, "/probe?module=marked&target=192.0.2.1:80")
	for syn := range network.Sent() {
		if port := syn.Src.Port(); w.Code != 200 || port < 40000 || port > 40003 {
			t.Errorf("%d %s; SYN from %v", w.Code, w.Body, syn.Src)
		}
	}
}

// With close: fin the application sees a connection, which the metrics say and the alarm for
// ACKs that were not meant to leave does not.
func TestCloseFIN(t *testing.T) {
	p := newHandler(t, settings{config: parse(t, `modules: {tcp_connect: {prober: tcp, tcp: {close: fin}}}`)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := get(p, "/probe?target="+l.Addr().String())
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the application read %d bytes, %v; want EOF", n, err)
	}
	if values(t, w)("probe_tcp_ack_sent") != 1 || testutil.ToFloat64(p.metrics.acksSent) != 0 {
		t.Errorf("%s; %v ACKs sent that were not meant to", w.Body, testutil.ToFloat64(p.metrics.acksSent))
	}
}

// A new configuration is for the probes to come.
func TestConfigure(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{config: parse(t, `modules: {old: {prober: tcp, timeout: 300ms}, both: {prober: tcp}}`)})
	answer := make(chan *httptest.ResponseRecorder)
	go func() { answer <- get(p, "/probe?module=old&target=192.0.2.1:80") }()
	wire.Await(1)
	p.prober.Configure(parse(t, `modules: {new: {prober: tcp}, both: {prober: tcp}}`))
	if w := get(p, "/probe?module=old&target=127.0.0.1:1"); w.Code != 400 || w.Body.String() != "unknown module \"old\", the modules are both, new\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := get(p, "/probe?module=new&target=127.0.0.1:1"); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := <-answer; w.Code != 200 || !strings.Contains(w.Body.String(), "probe_timeout_seconds 0.3\n") {
		t.Errorf("the running probe: %d %s", w.Code, w.Body)
	}
	if n := testutil.CollectAndCount(p, "shaker_probes_total"); n != 3 {
		t.Errorf("shaker_probes_total has %d series, want 3: old, new and both", n)
	}
}

// A failed probe is logged at the level for them, a successful one never.
func TestFailureLevel(t *testing.T) {
	open := listen(t, "127.0.0.1:0")
	simnet.NewNetwork(t).At("192.0.2.1", simnet.ICMP("198.51.100.7", 3, 13))
	for level, want := range map[slog.Level]string{
		slog.LevelInfo: `level=INFO msg="Probe failed" target=127.0.0.1:1 module=tcp_connect result=refused errno=ECONNREFUSED duration_seconds=D address=127.0.0.1` + "\n" +
			`level=INFO msg="Probe failed" target=192.0.2.1:1 module=tcp_connect result=prohibited errno=EHOSTUNREACH duration_seconds=D address=192.0.2.1 icmp=admin_prohibited icmp_from=198.51.100.7` + "\n",
		slog.LevelDebug: "",
	} {
		var log bytes.Buffer
		p := newHandler(t, settings{Options: Options{FailureLevel: level, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				switch a.Key {
				case slog.TimeKey:
					return slog.Attr{}
				case "duration_seconds":
					return slog.String(a.Key, "D")
				}
				return a
			}}))}})
		for _, target := range []string{open, "127.0.0.1:1", "192.0.2.1:1"} {
			get(p, "/probe?target="+target)
		}
		if log.String() != want {
			t.Errorf("%v: logged\n%swant\n%s", level, &log, want)
		}
	}
}

// A probe may take longer than the server's own limit for answers.
func TestProbeLongerThanTheServersLimit(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newHandler(t, settings{config: parse(t, `modules: {tcp_connect: {prober: tcp, timeout: 300ms}}`)})
	server := httptest.NewUnstartedServer(p)
	server.Config.WriteTimeout = 50 * time.Millisecond
	server.Start()
	defer server.Close()
	response, err := server.Client().Get(server.URL + "/probe?target=192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 200 || !strings.Contains(string(body), `result="timeout"`) {
		t.Errorf("%s %v %s", response.Status, err, body)
	}
}

// What /probe found out is remembered; what it did not is not.
func TestProbesAreRemembered(t *testing.T) {
	results := history.New(100)
	p := newHandler(t, settings{Options: Options{History: results}})
	target := listen(t, "127.0.0.1:0")
	began := time.Now()
	get(p, "/probe?target="+target)
	get(p, "/probe?target="+target+"&module=tcp_connect_ip4")
	get(p, "/probe?target=127.0.0.1:1")
	get(p, "/probe?target=nonsense")
	get(p, "/probe?target=[fe80::1%25nowhere]:1")
	if n := len(results.Tracks("", "")); n != 3 {
		t.Errorf("%d tracks, want 3", n)
	}
	r := results.Tracks(target, "tcp_connect")[0].Last()
	if !r.Success || r.Result != "open" || r.Errno != "" || r.Handshake <= 0 || r.RTT <= 0 || r.Duration < r.Handshake ||
		r.Address.String() != "127.0.0.1" || r.Time.Before(began) || r.Time.After(time.Now()) {
		t.Errorf("%+v", r)
	}
	r = results.Tracks("127.0.0.1:1", "")[0].Last()
	if r.Success || r.Result != "refused" || r.Errno != "ECONNREFUSED" || r.Latency() != 0 {
		t.Errorf("%+v", r)
	}
}
