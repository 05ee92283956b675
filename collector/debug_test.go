package collector

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// reportOf returns a report about a target with a built-in module.
func reportOf(t *testing.T, target string) *probe.Report {
	t.Helper()
	req, err := probe.NewRequest(config.Default(), target, config.DefaultModule)
	if err != nil {
		t.Fatal(err)
	}
	return &probe.Report{Request: req}
}

// The log of a held target says what its connection is like now. The time of the last connect does not describe it.
func TestDebugOfHeld(t *testing.T) {
	r := reportOf(t, "192.0.2.1:6379")
	r.Result, r.Duration = "silent", 175*time.Microsecond
	since := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var got strings.Builder
	writeDebug(&got, answer{Answer: watch.Answer{Report: r}, hold: &hold.Snapshot{
		Registered:  since,
		Established: since.Add(time.Second),
		Failed:      time.Now().Add(-time.Hour),
		Reason:      "no answer to a heartbeat",
		Heartbeat:   &hold.HeartbeatSnapshot{Last: shaker.Silent},
	}})
	for _, want := range []string{
		"# Held since 2026-03-01T12:00:00.000Z. The present connection was established at 2026-03-01T12:00:01.000Z.\n",
		"# The last heartbeat failed: silent.\n",
		" ago: no answer to a heartbeat.\n",
		"# failure: the result is silent now.\n",
	} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, &got)
		}
	}
	if unwanted := "175µs  failure"; strings.Contains(got.String(), unwanted) {
		t.Errorf("the log has %q, want no result at the time of the last connect:\n%s", unwanted, &got)
	}
}

// The log of a probe has a line for each thing that happened, and none for what was not measured.
func TestDebugLog(t *testing.T) {
	local, peer := netip.MustParseAddrPort("198.51.100.9:40000"), netip.MustParseAddrPort("192.0.2.1:80")
	open := shaker.Result{
		Outcome:   shaker.Open,
		Handshake: 20 * time.Millisecond,
		RTT:       19 * time.Millisecond,
		SYNs:      1,
		MSS:       1460,
		ResetLag:  time.Millisecond,
		Local:     local,
		Peer:      peer,
	}
	withheld, sent := open, open
	withheld.ACKWithheld, sent.ACKSent = true, true
	silent := shaker.Result{
		Outcome: shaker.Timeout,
		SYNs:    3,
		Local:   local,
		Peer:    netip.MustParseAddrPort("192.0.2.2:80"),
	}
	for _, c := range []struct {
		name, target string
		report       func(*probe.Report)
		want         string // the log after its first line
	}{
		{
			name:   "open",
			target: "192.0.2.1:80",
			report: func(r *probe.Report) {
				r.Verdict = probe.Verdict{Result: "open", Handshake: withheld, At: 23 * time.Millisecond}
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.1:80
        20ms  SYN-ACK from 192.0.2.1:80 after 20ms (kernel: 19ms), MSS 1460 bytes
        21ms  RST, final ACK sent: false
          1s  success: the result is open; valid results: open
`,
		},
		{
			name:   "the kernel tells little",
			target: "192.0.2.1:80",
			report: func(r *probe.Report) {
				h := open
				h.SYNs, h.RTT, h.MSS = 0, 0, 0
				r.Verdict = probe.Verdict{Result: "open", Handshake: h, At: 23 * time.Millisecond}
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.1:80
        20ms  SYN-ACK from 192.0.2.1:80 after 20ms
        21ms  RST, final ACK sent: unknown
          1s  success: the result is open; valid results: open
`,
		},
		{
			name:   "FIN",
			target: "192.0.2.1:80",
			report: func(r *probe.Report) {
				r.Module.TCP.Close = config.FIN
				h := sent
				h.ResetLag = 0
				r.Verdict = probe.Verdict{Result: "open", Handshake: h, At: 23 * time.Millisecond}
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.1:80
        20ms  SYN-ACK from 192.0.2.1:80 after 20ms (kernel: 19ms), MSS 1460 bytes
        20ms  FIN, final ACK sent: true
          1s  success: the result is open; valid results: open
`,
		},
		{
			name:   "all addresses",
			target: "name.example:80",
			report: func(r *probe.Report) {
				r.Resolution = probe.Resolution{
					Addrs:  []netip.Addr{peer.Addr(), silent.Peer.Addr()},
					Took:   100 * time.Millisecond,
					Silent: []string{"192.0.2.53:53"},
				}
				r.Verdicts = []probe.Verdict{
					{Result: "open", Handshake: withheld, At: 123 * time.Millisecond},
					{Result: "timeout", Errno: "ETIMEDOUT", Handshake: silent, At: 900 * time.Millisecond},
				}
				r.Verdict = r.Verdicts[1]
			},
			want: `       100ms  DNS server 192.0.2.53:53 did not reply in its share of the time
       100ms  name.example resolves to 192.0.2.1, 192.0.2.2; probing 2 of them
       100ms  SYN from 198.51.100.9:40000 to 192.0.2.1:80
       120ms  SYN-ACK from 192.0.2.1:80 after 20ms (kernel: 19ms), MSS 1460 bytes
       121ms  RST, final ACK sent: false
       100ms  SYN from 198.51.100.9:40000 to 192.0.2.2:80
       900ms  SYN retransmissions so far: 2
       900ms  shake 192.0.2.2:80: timeout
          1s  failure: the result is timeout ETIMEDOUT, the worst of 2 addresses; valid results: open
`,
		},
		{
			name:   "one of all addresses",
			target: "192.0.2.2:80",
			report: func(r *probe.Report) {
				r.Verdicts = []probe.Verdict{{Result: "timeout", Handshake: silent, At: 900 * time.Millisecond}}
				r.Verdict = r.Verdicts[0]
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.2:80
       900ms  SYN retransmissions so far: 2
       900ms  shake 192.0.2.2:80: timeout
          1s  failure: the result is timeout; valid results: open
`,
		},
		{
			name:   "no address",
			target: "name.example:80",
			report: func(r *probe.Report) {
				r.Verdict = probe.Verdict{Result: config.DNSNotFound, Err: errors.New("no such host"), At: time.Second}
			},
			want: `          1s  name.example: no such host
          1s  failure: the result is dns_not_found; valid results: open
`,
		},
		{
			name:   "no usable address",
			target: "name.example:80",
			report: func(r *probe.Report) {
				r.Resolution = probe.Resolution{
					Addrs:   []netip.Addr{netip.IPv6Unspecified()},
					Took:    100 * time.Millisecond,
					LeftOut: []error{errors.New(":: stands for this host")},
				}
				r.Verdict = probe.Verdict{Result: config.DNSError, Err: errors.New("no usable one"), At: time.Second}
			},
			want: `       100ms  name.example resolves to ::; probing none
       100ms  left out: :: stands for this host
          1s  name.example: no usable one
          1s  failure: the result is dns_error; valid results: open
`,
		},
		{
			// No SYN could be sent: the log says that, and nothing about the target.
			name:   "slow lookup",
			target: "name.example:80",
			report: func(r *probe.Report) {
				r.Resolution = probe.Resolution{Addrs: []netip.Addr{peer.Addr()}, Took: 999 * time.Millisecond}
				r.Verdict = probe.Verdict{
					Result:    config.DNSTimeout,
					Err:       errors.New("name resolution took 999ms"),
					Handshake: shaker.Result{Peer: peer},
					At:        time.Second,
				}
			},
			want: `       999ms  name.example resolves to 192.0.2.1; probing 192.0.2.1
       999ms  no SYN could be sent to 192.0.2.1:80
          1s  name.example: name resolution took 999ms
          1s  failure: the result is dns_timeout; valid results: open
`,
		},
		{
			name:   "path to the target",
			target: "192.0.2.2:80",
			report: func(r *probe.Report) {
				r.Verdict = probe.Verdict{Result: "timeout", Handshake: silent, At: 900 * time.Millisecond}
				r.Path = &shaker.Path{Reached: 1, SameFlow: true, Hops: []shaker.Hop{
					{TTL: 1, From: silent.Peer.Addr(), Outcome: shaker.Refused, RTT: time.Millisecond},
				}}
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.2:80
       900ms  SYN retransmissions so far: 2
       900ms  shake 192.0.2.2:80: timeout
          1s  path:  1  192.0.2.2  1.00 ms  refused
          1s  failure: the result is timeout; valid results: open
`,
		},
		{
			name:   "flows",
			target: "192.0.2.2:80",
			report: func(r *probe.Report) {
				r.Module.TCP.Flows = 4
				timeout := probe.Verdict{
					Result: "timeout", Errno: "ETIMEDOUT", Handshake: silent, At: 900 * time.Millisecond,
				}
				good := probe.Flow{Port: 40001, Verdict: probe.Verdict{
					Result: "open", Handshake: withheld, At: 23 * time.Millisecond,
				}}
				r.Verdict = timeout
				r.Flows = []probe.Flow{{Port: 40000, Verdict: timeout}, good, {Port: 40002, Verdict: timeout}}
				r.LeftOut = []uint16{40003}
				hop := shaker.Hop{TTL: 1, From: netip.MustParseAddr("192.0.2.7"), RTT: time.Millisecond}
				hop.ICMP = shaker.ICMP{From: hop.From, Type: 11}
				other := hop
				other.TTL, other.From = 2, netip.MustParseAddr("192.0.2.9")
				r.Path = &shaker.Path{SameFlow: true, Hops: []shaker.Hop{hop, other}}
				r.Parting = &probe.Parting{
					Ports: []uint16{40000, 40002}, Shared: hop, Failed: other,
					Paths: []probe.FlowPath{
						{Flow: r.Flows[0], Hops: []shaker.Hop{hop, other}},
						{Flow: good, Hops: []shaker.Hop{hop}},
						{Flow: r.Flows[2]},
					},
				}
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.2:80
        23ms  flow from port 40001: open, RTT 19ms
       900ms  SYN retransmissions so far: 2
       900ms  shake 192.0.2.2:80: timeout
       900ms  flow from port 40000: timeout ETIMEDOUT, SYN retransmissions: 2
       900ms  flow from port 40002: timeout ETIMEDOUT, SYN retransmissions: 2
       900ms  2 of 3 flows failed: ports 40000, 40002; 1 left out, because another program has its port: 40003
          1s  path:  1  192.0.2.7  1.00 ms
          1s  path:  2  192.0.2.9  1.00 ms
          1s  path: no reply from here on
          1s  path of port 40000, timeout: 1 192.0.2.7, 2 192.0.2.9
          1s  path of port 40001, open: 1 192.0.2.7
          1s  path of port 40002, timeout: no hop has answered
          1s  ports 40000, 40002: paths part after 192.0.2.7 (hop 1): flows fail at or behind 192.0.2.9 (hop 2)
          1s  failure: the result is timeout ETIMEDOUT, the worst of 3 flows; valid results: open
`,
		},
		{
			name:   "path of a flow, known in part",
			target: "192.0.2.2:80",
			report: func(r *probe.Report) {
				r.Verdict = probe.Verdict{Result: "timeout", Handshake: silent, At: 900 * time.Millisecond}
				r.Flows = []probe.Flow{{Port: 40000, Verdict: r.Verdict}}
				r.Path = &shaker.Path{Hops: []shaker.Hop{{TTL: 1, From: netip.MustParseAddr("192.0.2.7"),
					ICMP: shaker.ICMP{From: netip.MustParseAddr("192.0.2.7"), Type: 11}, RTT: time.Millisecond}}}
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.2:80
       900ms  SYN retransmissions so far: 2
       900ms  shake 192.0.2.2:80: timeout
       900ms  flow from port 40000: timeout, SYN retransmissions: 2
       900ms  the only flow failed
          1s  path:  1  192.0.2.7  1.00 ms
          1s  path: the hops behind were traced from other ports, and are left out
          1s  failure: the result is timeout, the worst of 1 flows; valid results: open
`,
		},
		{
			name:   "path of other flows that does not reach the target",
			target: "192.0.2.2:80",
			report: func(r *probe.Report) {
				r.Verdict = probe.Verdict{Result: "timeout", Handshake: silent, At: 900 * time.Millisecond}
				r.Path = &shaker.Path{}
			},
			want: `          0s  SYN from 198.51.100.9:40000 to 192.0.2.2:80
       900ms  SYN retransmissions so far: 2
       900ms  shake 192.0.2.2:80: timeout
          1s  path: no reply from here on
          1s  path: not all SYNs had the source port of the handshake; ` +
				`routers that balance load may have sent them along another path
          1s  failure: the result is timeout; valid results: open
`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := reportOf(t, c.target)
			r.Duration = time.Second
			c.report(r)
			var log strings.Builder
			writeDebug(&log, answer{Answer: watch.Answer{Report: r, Probed: true}})
			want := "# Log\n\n          0s  probe of " + c.target + " with module tcp_connect, timeout 5s\n" +
				c.want + "\n# Module tcp_connect\n"
			if !strings.HasPrefix(log.String(), want) {
				t.Errorf("the log of %+v is\n%s\nwant the prefix\n%s", r.Verdict, &log, want)
			}
		})
	}
}

// The name of a module cannot look like anything else in the log.
func TestDebugLogQuotesModules(t *testing.T) {
	r := reportOf(t, "192.0.2.1:80")
	r.ModuleName = "a\n\x1b[31m"
	var log strings.Builder
	writeDebug(&log, answer{Answer: watch.Answer{Report: r, Probed: true}})
	for _, want := range []string{` with module "a\n\x1b[31m", timeout`, "\n# Module \"a\\n\\x1b[31m\"\n"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log of module %q is\n%s\nwant %s in it", r.ModuleName, &log, want)
		}
	}
}
