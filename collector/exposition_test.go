package collector

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A metric that was not measured is absent, and one that was measured is there, even if its value is the least one.
func TestUnmeasuredIsAbsent(t *testing.T) {
	always := []string{"probe_success", "probe_result_info", "probe_duration_seconds", "probe_timeout_seconds",
		"probe_dns_lookup_time_seconds", "probe_ip_protocol", "probe_ip_addr_hash"}
	peer := netip.MustParseAddrPort("192.0.2.1:80")
	for _, c := range []struct {
		name   string
		result shaker.Result
		path   *shaker.Path
		want   []string // the metrics besides those that are always there
	}{
		{
			name:   "a kernel that reports nothing",
			result: shaker.Result{Outcome: shaker.Open, Handshake: time.Second},
			want:   []string{"probe_tcp_handshake_seconds"},
		},
		{
			name:   "all measurements",
			result: shaker.Result{Outcome: shaker.Open, Handshake: 1, RTT: 1, SYNs: 1, MSS: 1, ACKWithheld: true},
			want: []string{"probe_tcp_handshake_seconds", "probe_tcp_rtt_seconds", "probe_tcp_syn_retransmits",
				"probe_tcp_mss_bytes", "probe_tcp_ack_sent"},
		},
		{
			name:   "an RST after the SYN-ACK, and after the ACK",
			result: shaker.Result{Outcome: shaker.Reset, ACKSent: true},
			want:   []string{"probe_tcp_ack_sent"},
		},
		{
			name:   "a path without a reply",
			result: shaker.Result{Outcome: shaker.Timeout},
			path:   &shaker.Path{},
		},
		{
			name:   "a target behind no router",
			result: shaker.Result{Outcome: shaker.Timeout},
			path:   &shaker.Path{Reached: 1, Hops: []shaker.Hop{{TTL: 1, From: peer.Addr()}}},
			want: []string{"probe_path_hop_info", "probe_path_hop_rtt_seconds", "probe_path_last_hop",
				"probe_path_hops"},
		},
	} {
		r := reportOf(t, "192.0.2.1:80")
		r.Result, r.Handshake, r.Path = c.result.Outcome.String(), c.result, c.path
		r.Handshake.Peer = peer
		var got []string
		var filled sheet
		filled.fill(r)
		for _, family := range filled.families {
			got = append(got, family.GetName())
		}
		if want := slices.Concat(always, c.want); !slices.Equal(got, want) {
			t.Errorf("%s: %+v has the metrics\n     %v\nwant %v", c.name, c.result, got, want)
		}
	}
}

// In the metrics of several probes, each metric is there once, with the series of all probes.
func TestWriteOpenMetrics(t *testing.T) {
	open, refused := reportOf(t, "192.0.2.1:80"), reportOf(t, "192.0.2.2:443")
	open.Verdict = probe.Verdict{Result: "open", Handshake: shaker.Result{MSS: 1460}}
	refused.Verdict = probe.Verdict{Result: "refused", Errno: "ECONNREFUSED"}
	var got strings.Builder
	if err := WriteOpenMetrics(&got, []*probe.Report{open, refused}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(got.String()) {
		if !strings.HasPrefix(line, "# HELP") && !strings.HasPrefix(line, "# TYPE") {
			lines = append(lines, line)
		}
	}
	const want = `probe_success{target="192.0.2.1:80",module="tcp_connect"} 1.0
probe_success{target="192.0.2.2:443",module="tcp_connect"} 0.0
probe_result_info{target="192.0.2.1:80",module="tcp_connect",result="open",errno=""} 1.0
probe_result_info{target="192.0.2.2:443",module="tcp_connect",result="refused",errno="ECONNREFUSED"} 1.0
probe_duration_seconds{target="192.0.2.1:80",module="tcp_connect"} 0.0
probe_duration_seconds{target="192.0.2.2:443",module="tcp_connect"} 0.0
probe_timeout_seconds{target="192.0.2.1:80",module="tcp_connect"} 5.0
probe_timeout_seconds{target="192.0.2.2:443",module="tcp_connect"} 5.0
probe_dns_lookup_time_seconds{target="192.0.2.1:80",module="tcp_connect"} 0.0
probe_dns_lookup_time_seconds{target="192.0.2.2:443",module="tcp_connect"} 0.0
probe_ip_protocol{target="192.0.2.1:80",module="tcp_connect"} 0.0
probe_ip_protocol{target="192.0.2.2:443",module="tcp_connect"} 0.0
probe_tcp_mss_bytes{target="192.0.2.1:80",module="tcp_connect"} 1460.0
# EOF
`
	if series := strings.Join(lines, ""); series != want {
		t.Errorf("the series of two probes are\n%s\nwant\n%s", series, want)
	}
	if n := strings.Count(got.String(), "# TYPE probe_success "); n != 1 {
		t.Errorf("the metrics of two probes have the type of probe_success %d times, want once:\n%s", n, &got)
	}
}

// A brokenWriter fails from the given write on.
type brokenWriter struct{ writes int }

var errBroken = errors.New("the writer is broken")

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.writes--; b.writes < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

// The error of the writer is returned, whatever the format, and nothing is written after it.
func TestWriteError(t *testing.T) {
	var filled sheet
	filled.fill(reportOf(t, "192.0.2.1:80"))
	for _, format := range []expfmt.Format{
		expfmt.NewFormat(expfmt.TypeTextPlain),
		expfmt.NewFormat(expfmt.TypeOpenMetrics),
		expfmt.NewFormat(expfmt.TypeProtoDelim),
	} {
		broken := &brokenWriter{}
		err := (&exposition{format: format, kind: format.FormatType()}).write(broken, filled.families)
		if !errors.Is(err, errBroken) || broken.writes != -1 {
			t.Errorf("%s: the error is %v after %d failed writes, want %v after 1",
				format, err, -broken.writes, errBroken)
		}
	}
}
