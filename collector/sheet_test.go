package collector

import (
	"net/netip"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// sheetContents are answers of all kinds.
func sheetContents(t *testing.T) map[string]watch.Answer {
	t.Helper()
	addr := netip.MustParseAddr("192.0.2.1")
	open := probe.Verdict{Result: "open", Handshake: shaker.Result{
		Outcome: shaker.Open, Handshake: 2 * time.Millisecond, RTT: time.Millisecond, SYNs: 2, MSS: 1460,
		ACKWithheld: true, Peer: netip.AddrPortFrom(addr, 80),
	}}
	refused := probe.Verdict{Result: "refused", Errno: "ECONNREFUSED"}

	plain, traced, several := reportOf(t, "192.0.2.1:80"), reportOf(t, "192.0.2.1:80"), reportOf(t, "192.0.2.1:80")
	plain.Verdict = open
	traced.Verdict = refused
	traced.Handshake.ICMP = shaker.ICMP{From: addr, Type: 3, Code: 1}
	traced.Path = &shaker.Path{Reached: 30}
	for ttl := 1; ttl <= 30; ttl++ {
		traced.Path.Hops = append(traced.Path.Hops, shaker.Hop{TTL: ttl, From: addr, RTT: time.Millisecond})
	}
	several.Module.TCP.Addresses = config.All
	for range 20 {
		several.Verdicts = append(several.Verdicts, open, refused)
	}
	created := time.Unix(1700000000, 123)
	snapshot := &watch.Snapshot{
		Interval: time.Second, Registered: created, LastHandshake: created.Add(time.Minute),
		Handshakes: []watch.HandshakeCount{{Result: "open", Total: 3}, {Result: "refused", Total: 2}},
		Lookups:    []registry.LookupCount{{Result: "resolved", Total: 4}},
		RTT:        &dto.Histogram{SampleCount: new(uint64(3))},
	}
	return map[string]watch.Answer{
		"a probe of an open port":            {Report: plain},
		"a probe with an ICMP error, a path": {Report: traced},
		"a probe of several addresses":       {Report: several},
		"a scrape of a watched target":       {Report: plain, Watch: snapshot},
	}
}

func (s *sheet) fillWith(answer watch.Answer) {
	s.fill(answer.Report)
	if answer.Watch != nil {
		s.addWatch(answer.Watch)
	}
}

// A sheet that was used for another response has the same metrics as a new one.
func TestSheetIsReusable(t *testing.T) {
	contents := sheetContents(t)
	for before, previous := range contents {
		for name, answer := range contents {
			var used, unused sheet
			used.fillWith(previous)
			used.fillWith(answer)
			unused.fillWith(answer)
			if len(used.families) != len(unused.families) {
				t.Errorf("%s after %s has %d metrics, want %d", name, before, len(used.families), len(unused.families))
				continue
			}
			for i, want := range unused.families {
				if got := used.families[i]; !proto.Equal(got, want) {
					t.Errorf("%s after %s has\n     %v\nwant %v", name, before, got, want)
				}
			}
		}
	}
}

// To fill a sheet again needs no memory for the metrics.
func TestSheetNeedsNoMemory(t *testing.T) {
	answer := sheetContents(t)["a scrape of a watched target"]
	var filled sheet
	filled.fillWith(answer)
	if n := testing.AllocsPerRun(10, func() { filled.fillWith(answer) }); n > 2 { // for the hash of the address
		t.Errorf("to fill a sheet again needs %v allocations, want 2 at most", n)
	}
}

// A metric has its series in the order in which they were added, wherever other metrics were added in between.
func TestSheetKeepsSeriesTogether(t *testing.T) {
	var filled sheet
	filled.fillWith(sheetContents(t)["a probe of several addresses"])
	seen := make(map[string]bool)
	for _, family := range filled.families {
		if seen[family.GetName()] {
			t.Errorf("the sheet has %s twice, want once", family.GetName())
		}
		seen[family.GetName()] = true
		if family.GetName() != probeAddressResultInfo.name {
			continue
		}
		if n := len(family.Metric); n != 40 {
			t.Errorf("%s has %d series, want one for each of the 40 verdicts", family.GetName(), n)
		}
		for i, series := range family.Metric {
			want := []string{"open", "refused"}[i%2]
			if got := series.Label[1].GetValue(); got != want {
				t.Errorf("series %d of %s has the result %s, want %s", i, family.GetName(), got, want)
			}
		}
	}
}
