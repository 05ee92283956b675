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
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// parse parses a configuration.
func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	conf, _, err := config.Parse("test.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// The policy applies to addresses. A name for an address, or another notation of it, does not evade the policy.
func TestTargetPolicy(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("0.0.0.0/0", simnet.SYNACK())
	network.At("::/0", simnet.SYNACK())
	h := newHandler(t, settings{
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
		want  string   // body of the response if the policy rejects the target
		to    []string // probed addresses and ports
	}{
		{query: "192.0.2.1:80", to: []string{"192.0.2.1:80"}},
		{query: "192.0.2.1:90", to: []string{"192.0.2.1:90"}},
		{query: "192.0.2.1:91",
			want: "target 192.0.2.1:91 may not be probed: no rule of targets.allow permits it\n"},
		{query: "198.51.100.1:80",
			want: "target 198.51.100.1:80 may not be probed: no rule of targets.allow permits it\n"},
		{query: "192.0.2.66:80",
			want: "target 192.0.2.66:80 may not be probed: targets.deny 192.0.2.66/32:* forbids it\n"},
		{query: "[::ffff:192.0.2.66]:80",
			want: "target 192.0.2.66:80 may not be probed: targets.deny 192.0.2.66/32:* forbids it\n"},
		{query: "[2001:db8:6::1]:80", to: []string{"[2001:db8:6::1]:80"}},
		{query: "[2001:db8:6::1]:443", want: "target [2001:db8:6::1]:443 may not be probed: " +
			"targets.deny [2001:db8:6::/48]:443 forbids it\n"},
		{query: "denied.example:443", want: "target [2001:db8:6::1]:443 may not be probed: " +
			"targets.deny [2001:db8:6::/48]:443 forbids it\n"},
		{query: "outside.example:80",
			want: "target 198.51.100.1:80 may not be probed: no rule of targets.allow permits it\n"},
		{query: "mixed.example:80", to: []string{"[2001:db8:6::1]:80"}},
		{query: "mixed.example:80&module=ip4", to: []string{"192.0.2.1:80"}},
		{query: "mixed.example:80&module=all", to: []string{"192.0.2.1:80", "[2001:db8:6::1]:80"}},
		{query: "denied.example:80&module=ip4",
			want: "target 192.0.2.66:80 may not be probed: targets.deny 192.0.2.66/32:* forbids it\n"},
	} {
		network.Forget()
		path := "/probe?target=" + c.query
		rejected := h.metrics.rejected.WithLabelValues(denied)
		before := testutil.ToFloat64(rejected)
		if w := get(h, path); c.want == "" {
			checkStatus(t, path, w, 200)
			checkValue(t, "after GET "+path+", rejected by denied", rejected, before)
		} else {
			checkResponse(t, path, w, 403, c.want)
			checkValue(t, "after GET "+path+", rejected by denied", rejected, before+1)
		}
		var probed []netip.AddrPort
		for s := range network.Sent() {
			if s.SYN {
				probed = append(probed, s.Dst)
			}
		}
		slices.SortFunc(probed, netip.AddrPort.Compare)
		if got := fmt.Sprint(probed); got != "["+strings.Join(c.to, " ")+"]" {
			t.Errorf("GET %s sent SYNs to %s, want %v", path, got, c.to)
		}
	}
}

// With addresses: all, there is a verdict for each address, and the verdict for the name is the worst of them.
func TestAllAddresses(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3", simnet.ICMP("198.51.100.7", 3, 13))
	network.At("192.0.2.4", simnet.SYNACK().After(30*time.Millisecond))
	network.At("2001:db8::1", simnet.SYNACK())
	h := newHandler(t, settings{
		config: parse(t, `
modules:
  all: {prober: tcp, timeout: 500ms, tcp: {addresses: all}}
  patient: {prober: tcp, timeout: 2s, tcp: {addresses: all}}
  all4: {prober: tcp, timeout: 500ms, tcp: {addresses: all, preferred_ip_protocol: ip4, ip_protocol_fallback: false}}
  closed: {prober: tcp, timeout: 500ms, tcp: {addresses: all, valid_results: [refused, timeout]}}
`),
		dialDNS: simnet.NewDNS(t, simnet.Names{
			"open.example":        {"192.0.2.4", "192.0.2.1", "192.0.2.1", "2001:db8::1"},
			"partly.example":      {"192.0.2.1", "192.0.2.3", "192.0.2.2", "192.0.2.9", "2001:db8::1"},
			"closed.example":      {"192.0.2.2", "192.0.2.9"},
			"opened.example":      {"192.0.2.3", "192.0.2.1", "192.0.2.2"},
			"link.example":        {"fe80::1", "192.0.2.1"},
			"local.example":       {"fe80::1"},
			"this.example":        {"0.0.0.0", "::"},
			"unspecified.example": {"192.0.2.1", "::", "0.0.0.0"},
			"broken6.example":     {"192.0.2.1", "2001:db8::1"},
			"silent4.example":     {"192.0.2.2", "2001:db8::1"},
		}),
	})
	for _, c := range []struct{ golden, query string }{
		{golden: "all_open", query: "target=open.example:80&module=all"},
		{golden: "all_open_ip4", query: "target=open.example:80&module=all4"},
		{golden: "all_some_down", query: "target=partly.example:80&module=all"},
		{golden: "all_closed_as_wanted", query: "target=closed.example:80&module=closed"},
		{golden: "all_one_open_unwanted", query: "target=opened.example:80&module=closed"},
		{golden: "all_one_address", query: "target=192.0.2.2:80&module=all"},
		{golden: "all_no_address", query: "target=absent.example:80&module=all"},
		{golden: "all_but_unusable", query: "target=link.example:80&module=all"},
		{golden: "all_but_unusable", query: "target=unspecified.example:80&module=all"},
		{golden: "only_unusable", query: "target=local.example:80&module=all"},
		{golden: "only_unusable", query: "target=this.example:80&module=all"},
		{golden: "all_half_dns_error", query: "target=broken6.example:80&module=all"},
		{golden: "all_half_dns_timeout", query: "target=silent4.example.:80&module=patient"},
	} {
		t.Run(c.golden, func(t *testing.T) {
			path := "/probe?" + c.query
			w := get(h, path)
			if w.Code != 200 {
				t.Fatalf("GET %s = %d %s, want 200", path, w.Code, w.Body)
			}
			golden(t, c.golden, w.Body.String())
			if c.golden != "all_open" {
				return
			}
			if got := values(t, w)("probe_tcp_handshake_seconds"); got < 0.03 {
				t.Errorf("GET %s has probe_tcp_handshake_seconds %v, want the 0.03 or more of the slowest address",
					path, got)
			}
		})
	}
}

// A name with more addresses than can ever be probed at once is a fault, which says which limit it is. A later probe
// would have the same result, so there is no Retry-After. A name with as many addresses as permitted is probed.
func TestTooManyAddresses(t *testing.T) {
	simnet.NewNetwork(t).At("192.0.0.0/16", simnet.SYNACK())
	names := simnet.Names{}
	for _, n := range []int{5, 6, probe.MaxAddresses, probe.MaxAddresses + 1} {
		names[fmt.Sprintf("n%d.example", n)] = manyAddresses(n)
	}
	config := parse(t, `modules: {all: {prober: tcp, tcp: {addresses: all}}, first: {prober: tcp}}`)
	const many = "too many addresses to probe at once: "
	for _, c := range []struct {
		maxInFlight  int
		module, name string
		want         string // body of the response; "" if the name is probed
	}{
		{module: "all", name: "n64"},
		{module: "all", name: "n65",
			want: many + "n65.example has 65, the limit is 64 (the maximum for addresses: all)\n"},
		{module: "first", name: "n65"},
		{maxInFlight: 1000, module: "all", name: "n65",
			want: many + "n65.example has 65, the limit is 64 (the maximum for addresses: all)\n"},
		{maxInFlight: 5, module: "all", name: "n5"},
		{maxInFlight: 5, module: "all", name: "n6",
			want: many + "n6.example has 6, the limit is 5 (--probe.max-in-flight)\n"},
		{maxInFlight: 5, module: "first", name: "n6"},
	} {
		h := newHandler(t, settings{config: config, dialDNS: simnet.NewDNS(t, names), maxInFlight: c.maxInFlight})
		path := fmt.Sprintf("/probe?module=%s&target=%s.example:80", c.module, c.name)
		w := get(h, path)
		rejected := h.metrics.rejected.WithLabelValues(tooManyAddrs)
		if c.want == "" {
			if got := values(t, w)("probe_success"); w.Code != 200 || got != 1 {
				t.Errorf("GET %s with a limit of %d = %d, probe_success %v, want 200, 1",
					path, c.maxInFlight, w.Code, got)
			}
			checkValue(t, "rejected by addresses", rejected, 0)
			continue
		}
		checkResponse(t, path, w, 503, c.want)
		if got := w.Header().Get("Retry-After"); got != "" {
			t.Errorf("GET %s has Retry-After %q, want none", path, got)
		}
		checkValue(t, "rejected by addresses", rejected, 1)
		checkInFlight(t, h, "after a rejected probe", 0)
	}
}

// manyAddresses returns n different addresses.
func manyAddresses(n int) []string {
	addrs := make([]string, n)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{192, 0, byte(2 + i/256), byte(i)}).String()
	}
	return addrs
}

// A probe succeeds if its result is one of the module's valid_results. Other results count as failures.
func TestValidResults(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	h := newHandler(t, settings{
		config: parse(t, `
modules:
  closed: {prober: tcp, timeout: 200ms, tcp: {valid_results: [refused, timeout, dns_not_found]}}
`),
		dialDNS: simnet.NewDNS(t, nil),
	})
	for target, want := range map[string]float64{
		listen(t, "127.0.0.1:0"): 0,
		"127.0.0.1:1":            1,
		"192.0.2.1:80":           1,
		"absent.example:80":      1,
		"203.0.113.1:80":         0, // no route
	} {
		w := get(h, "/probe?module=closed&target="+target)
		if got := values(t, w)("probe_success"); got != want {
			t.Errorf("GET /probe?module=closed&target=%s has probe_success %v, want %v", target, got, want)
		}
	}
	for labels, want := range map[[3]string]float64{
		{"closed", "open", ""}:                   1,
		{"closed", "unreachable", "ENETUNREACH"}: 1,
		{"closed", "refused", "ECONNREFUSED"}:    0,
		{"closed", "timeout", "ETIMEDOUT"}:       0,
		{"closed", "dns_not_found", ""}:          0,
	} {
		checkValue(t, fmt.Sprintf("shaker_probe_failures_total%q", labels),
			h.metrics.failures.WithLabelValues(labels[:]...), want)
	}
}

// With close: fin, the application sees a connection that ends with EOF. The metrics of the probe report the
// ACK. The exporter's own counter, which is for ACKs that were to be withheld, does not count it.
func TestCloseFIN(t *testing.T) {
	h := newHandler(t, settings{config: parse(t, `modules: {tcp_connect: {prober: tcp, tcp: {close: fin}}}`)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := get(h, "/probe?target="+l.Addr().String())
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the application read %d bytes, %v, want 0, EOF", n, err)
	}
	if got := values(t, w)("probe_tcp_ack_sent"); got != 1 {
		t.Errorf("probe_tcp_ack_sent is %v, want 1", got)
	}
	checkValue(t, "shaker_acks_sent_total", h.metrics.acksSent, 0)
}

// A new configuration applies to later probes, not to a probe that is running.
func TestConfigure(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	h := newHandler(t, settings{config: parse(t, `
modules:
  old: {prober: tcp, timeout: 300ms}
  both: {prober: tcp}
`)})
	answer := make(chan *httptest.ResponseRecorder)
	go func() { answer <- get(h, "/probe?module=old&target=192.0.2.1:80") }()
	wire.Await(1)
	h.prober.Configure(parse(t, `modules: {new: {prober: tcp}, both: {prober: tcp}}`))
	path := "/probe?module=old&target=127.0.0.1:1"
	checkResponse(t, path, get(h, path), 400, "unknown module \"old\", the modules are both, new\n")
	path = "/probe?module=new&target=127.0.0.1:1"
	checkStatus(t, path, get(h, path), 200)
	const want = "probe_timeout_seconds 0.3\n"
	if w := <-answer; w.Code != 200 || !strings.Contains(w.Body.String(), want) {
		t.Errorf("the running probe got %d %s, want 200 with %q", w.Code, w.Body, want)
	}
	if n := testutil.CollectAndCount(h, "shaker_probes_total"); n != 3 {
		t.Errorf("shaker_probes_total has %d series, want 3: old, new and both", n)
	}
}

// A failed probe is logged at the configured level, a successful probe never.
func TestFailureLevel(t *testing.T) {
	open := listen(t, "127.0.0.1:0")
	simnet.NewNetwork(t).At("192.0.2.1", simnet.ICMP("198.51.100.7", 3, 13))
	for level, want := range map[slog.Level]string{
		slog.LevelInfo: `level=INFO msg="Probe failed" target=127.0.0.1:1 module=tcp_connect ` +
			"result=refused errno=ECONNREFUSED duration_seconds=D address=127.0.0.1\n" +
			`level=INFO msg="Probe failed" target=192.0.2.1:1 module=tcp_connect ` +
			"result=prohibited errno=EHOSTUNREACH duration_seconds=D address=192.0.2.1 " +
			"icmp=admin_prohibited icmp_from=198.51.100.7\n" +
			`level=INFO msg="Probe failed" target=absent.example:1 module=tcp_connect ` +
			"result=dns_not_found errno=\"\" duration_seconds=D err=E\n",
		slog.LevelDebug: "",
	} {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				switch a.Key {
				case slog.TimeKey:
					return slog.Attr{}
				case "duration_seconds":
					return slog.String(a.Key, "D")
				case "err": // names the DNS server
					return slog.String(a.Key, "E")
				}
				return a
			},
		}))
		h := newHandler(t, settings{
			Options: Options{FailureLevel: level, Logger: logger},
			dialDNS: simnet.NewDNS(t, nil),
		})
		for _, target := range []string{open, "127.0.0.1:1", "192.0.2.1:1", "absent.example:1"} {
			get(h, "/probe?target="+target)
		}
		if log.String() != want {
			t.Errorf("with FailureLevel %v, the log is\n%s\nwant\n%s", level, &log, want)
		}
	}
}

// The log line of a failed probe says which flows failed, and at which hops their paths part.
func TestFailureOfFlows(t *testing.T) {
	timeout := probe.Verdict{Result: "timeout", Errno: "ETIMEDOUT"}
	for _, c := range []struct {
		name   string
		report func(*probe.Report)
		want   string // the end of the line
	}{
		{
			name:   "no flows",
			report: func(r *probe.Report) { r.Verdict = timeout },
			want:   "errno=ETIMEDOUT duration_seconds=0\n",
		},
		{
			name: "one of two",
			report: func(r *probe.Report) {
				r.Verdict = timeout
				r.Flows = []probe.Flow{{Port: 1, Verdict: timeout}, {Port: 2, Verdict: probe.Verdict{Result: "open"}}}
			},
			want: " flows=2 flows_failed=1 failed_source_ports=[1]\n",
		},
		{
			name: "one of two, traced",
			report: func(r *probe.Report) {
				r.Verdict = timeout
				r.Flows = []probe.Flow{{Port: 1, Verdict: timeout}, {Port: 2, Verdict: probe.Verdict{Result: "open"}}}
				r.Parting = &probe.Parting{
					Shared: shaker.Hop{TTL: 1, From: netip.MustParseAddr("192.0.2.7")},
					Failed: shaker.Hop{TTL: 2, From: netip.MustParseAddr("192.0.2.9")},
				}
			},
			want: " flows=2 flows_failed=1 flow_path_shared_hop=192.0.2.7 flow_path_failed_hop=192.0.2.9 " +
				"failed_source_ports=[1]\n",
		},
	} {
		var log bytes.Buffer
		h := newHandler(t, settings{Options: Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}})
		r := reportOf(t, "192.0.2.1:80")
		c.report(r)
		h.logFailure(t.Context(), r)
		if !strings.HasSuffix(log.String(), c.want) {
			t.Errorf("%s: the log line is %swant the end %s", c.name, &log, c.want)
		}
	}
}

// A probe may take longer than the server's own timeout for responses.
func TestProbeLongerThanWriteTimeout(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	h := newHandler(t, settings{config: parse(t, `modules: {tcp_connect: {prober: tcp, timeout: 300ms}}`)})
	server := httptest.NewUnstartedServer(h)
	server.Config.WriteTimeout = 50 * time.Millisecond
	server.Start()
	defer server.Close()
	response, err := server.Client().Get(server.URL + "/probe?target=192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if want := `result="timeout"`; err != nil || response.StatusCode != 200 || !strings.Contains(string(body), want) {
		t.Errorf("a probe of 300 ms with a WriteTimeout of 50 ms = %s, %v, %s, want 200 with %s",
			response.Status, err, body, want)
	}
}

// The history gets the result of each probe with a verdict, and nothing for other requests.
func TestHistory(t *testing.T) {
	results := history.New(100)
	h := newHandler(t, settings{Options: Options{History: results}})
	target := listen(t, "127.0.0.1:0")
	began := time.Now()
	get(h, "/probe?target="+target)
	get(h, "/probe?target="+target+"&module=tcp_connect_ip4")
	get(h, "/probe?target=127.0.0.1:1")
	get(h, "/probe?target=nonsense")
	get(h, "/probe?target=[fe80::1%25nowhere]:1")
	if n := len(results.Tracks("", "")); n != 3 {
		t.Fatalf("the history has %d tracks, want 3", n)
	}
	r := results.Tracks(target, "tcp_connect")[0].Last()
	if !r.Success || r.Result != "open" || r.Errno != "" ||
		r.Handshake <= 0 || r.RTT <= 0 || r.Duration < r.Handshake ||
		r.Address.String() != "127.0.0.1" || r.Time.Before(began) || r.Time.After(time.Now()) {
		t.Errorf("the record of %s is %+v, want an open result with times and address 127.0.0.1", target, r)
	}
	r = results.Tracks("127.0.0.1:1", "")[0].Last()
	if r.Success || r.Result != "refused" || r.Errno != "ECONNREFUSED" || r.Latency() != 0 {
		t.Errorf("the record of 127.0.0.1:1 is %+v, want refused, ECONNREFUSED and no latency", r)
	}
}
