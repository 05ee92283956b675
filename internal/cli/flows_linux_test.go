package cli

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// --flows has the first of the reserved ports, whatever place the configuration gives to the flows of the module:
// behind that place, too few ports may be left.
func TestFlowPortsOfAFlag(t *testing.T) {
	lab.Need(t)
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	conf, _, err := config.Parse("test.yml", []byte(`
modules:
  a: {prober: tcp, tcp: {flows: 62}}
  b: {prober: tcp, tcp: {flows: 2}}
`))
	if err != nil {
		t.Fatal(err)
	}
	prober := probe.New(probe.Options{Shaker: engine, Config: conf})
	first := conf.Modules["a"]
	reserved, err := prober.FlowPorts(&first)
	if err != nil {
		t.Fatal(err)
	}
	flags := probeFlags{flows: 16}
	request, err := flags.request(conf, "192.0.2.1:443", "b")
	if err != nil {
		t.Fatal(err)
	}
	ports, err := prober.FlowPorts(&request.Module)
	if want := (shaker.PortRange{First: reserved.First, Last: reserved.First + 15}); err != nil || ports != want {
		t.Errorf("16 flows of a module with 2, behind one with 62, have the ports %v, error %v, want %v", ports, err,
			want)
	}
}

// One member of eight drops what it should forward. The command says which flows fail, and that only they pass that
// member, and counts the loss of each flow.
func TestFlowsOfBrokenMember(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	fan := kernel.NewFan(t, 8)
	fan.Listen(80)
	const member = 1
	fan.Run(member, nft, "table inet broken {\nchain forward {\ntype filter hook forward priority 0\ndrop\n}\n}")
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	conf := config.Default()
	prober := probe.New(probe.Options{Shaker: engine, Config: conf})
	for _, v6 := range []bool{false, true} {
		text := netip.AddrPortFrom(fan.Host(v6), 80).String()
		request, err := probe.NewRequest(conf, text, config.DefaultModule)
		if err != nil {
			t.Fatal(err)
		}
		request.Timeout = time.Second
		request.Module.TCP.Flows = 64
		file, err := os.Create(t.TempDir() + "/out")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		command := &ProbeCommand{flags: probeFlags{output: "text", count: 2}}
		target := &target{ProbeCommand: command, text: text, request: request}
		request.CountSent(&target.tally.sent)
		var traced []int // guarded by the probe
		request.TraceFlows(func(n, all int) {
			traced = append(traced, n)
			target.tracing(n, all)
		})
		target.run(t.Context(), prober, newTerminal(file, true))
		printed, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		if second := slices.Index(traced[1:], 0) + 1; second < 65 || !slices.IsSorted(traced[:second]) ||
			!slices.IsSorted(traced[second:]) || len(traced)-second < 65 {
			t.Errorf("while 64 flows are traced twice, these numbers of traces are shown: %v, "+
				"want each time 0 to 64 or more", traced)
		}
		checkBrokenMember(t, target, string(printed), fan.Entry(v6), fan.Member(v6, member))
	}
}

func checkBrokenMember(t *testing.T, target *target, printed string, entry, member netip.Addr) {
	t.Helper()
	failed := regexp.MustCompile(`(?m), (\d+) of 64 flows failed$`).FindAllStringSubmatch(printed, -1)
	if len(failed) != 2 || failed[0][1] != failed[1][1] {
		t.Fatalf("the command does not say twice that the same number of 64 flows failed:\n%s", printed)
	}
	n, err := strconv.Atoi(failed[0][1])
	if err != nil {
		t.Fatal(err)
	}
	label := len(target.request.Addr.String() + "  open")
	for _, want := range []string{
		fmt.Sprintf("\n 2  %-*v  %-7sx\n", label, member, fmt.Sprintf("%d/%d", n, n)),
		fmt.Sprintf(": %s: paths part after %v (hop 1): flows fail at or behind %v (hop 2)\n",
			probe.ListPorts(target.report.HistoryFlows(&target.report.Verdict).FailedPorts()), entry, member),
		"timeout ETIMEDOUT  ports ",
	} {
		if got := strings.Count(printed, want); got != 2 {
			t.Errorf("%d flows over %v fail; the command prints %q %d times, want 2:\n%s",
				n, member, want, got, printed)
		}
	}
	// Hops on the way of all flows have some failing flows, and hops of the other members have none.
	rows := regexp.MustCompile(`(?m)^ [23]  (\S+) +([1-9]\d*)/`).FindAllStringSubmatch(printed, -1)
	for _, row := range rows {
		if row[1] != member.String() && row[1] != "*" {
			t.Errorf("%s failing flows pass %s, want only %v:\n%s", row[2], row[1], member, printed)
		}
	}
	// JSON has the same.
	report := target.report
	record := report.Record()
	line := newJSONLine(target, 2, report, &record, &report.Verdict)
	p := line.Parting
	if p == nil || p.Shared.Address != entry.String() || p.Failed.Address != member.String() ||
		len(p.SourcePorts) != n || len(line.Flows) != 64 {
		t.Errorf("JSON has the parting %+v and %d flows, want the hops %v and %v, %d ports, and 64 flows",
			p, len(line.Flows), entry, member, n)
	}
	over := 0
	for _, f := range line.Flows {
		passes := slices.ContainsFunc(f.Path, func(h jsonHop) bool { return h.Address == member.String() })
		if passes == f.Success || f.Success != (f.Result == "open") {
			t.Errorf("in JSON, the flow of port %d is %s, and its path is %+v, want %v on it only if it fails",
				f.SourcePort, f.Result, f.Path, member)
		}
		if passes {
			over++
		}
		if last := f.Path[len(f.Path)-1]; last.Probes == 0 || (*last.Answers == 0) != passes {
			t.Errorf("in JSON, the path of port %d ends with %+v, want probes, and no answers behind %v",
				f.SourcePort, last, member)
		}
	}
	if over != n {
		t.Errorf("in JSON, %d flows pass %v, want %d", over, member, n)
	}
	want := fmt.Sprintf("128 sent, %d open, %d lost; ", 128-2*n, 2*n)
	if got := target.tally.String(); !strings.HasPrefix(got, want) || target.tally.valid() {
		t.Errorf("%d of 64 flows failed twice; the summary is %q with valid() = %t, want %q and false",
			n, got, target.tally.valid(), want)
	}
	loss := target.tally.lossByFlow()
	rest := fmt.Sprintf("the other %d flows: 0 of %d failed\n", 64-n, 2*(64-n))
	if strings.Count(loss, ": 2 of 2 failed, 100 %\n") != n || !strings.HasSuffix(loss, rest) {
		t.Errorf("%d of 64 flows failed twice; the loss by flow is\n%swant %d lines with 100 %% and %s",
			n, loss, n, rest)
	}
}

// If a probe ends without a verdict, because of an interruption or a fault of this host, the results of the flows that
// have one are printed and counted.
func TestPartOfTheFlows(t *testing.T) {
	const silent = 20002
	network := simnet.NewNetwork(t)
	open, hole := network.Hidden(simnet.SYNACK()), network.Hidden()
	conf, _, err := config.Parse("shaker.yml", []byte(
		"modules: {tcp_connect: {prober: tcp, timeout: 10s, tcp: {flows: 4, source_ports: 20000-20003}}}"))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	prober := probe.New(probe.Options{Shaker: engine, Config: conf})
	for _, c := range []struct {
		name      string
		interrupt bool
		text      string
		json      string
		summary   string
	}{
		{
			name: "an interruption", interrupt: true,
			text:    "192.0.2.1:80: seq=1 3 of 4 flows have a result: all 3 flows succeeded\n",
			json:    `"error":"interrupted"`,
			summary: "4 sent, 3 open, 0 lost, 1 not answered yet; ",
		},
		{
			name:    "a fault",
			text:    "192.0.2.1:80: seq=1 3 of 4 flows have a result: all 3 flows succeeded\n",
			json:    `"error":"flow from port 20002: `,
			summary: "3 sent, 3 open, 0 lost, 1 not probed; ",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			network.At("192.0.2.1").Over(func(syn simnet.Segment) *simnet.Host {
				if syn.Src.Port() == silent {
					return hole
				}
				return open
			})
			if !c.interrupt {
				kernel.DropFrom(t, silent)
			}
			for _, output := range []string{"text", "json"} {
				request, err := probe.NewRequest(conf, "192.0.2.1:80", config.DefaultModule)
				if err != nil {
					t.Fatal(err)
				}
				if !c.interrupt {
					request.Timeout = 1500 * time.Millisecond
				}
				file, err := os.Create(t.TempDir() + "/out")
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				command := &ProbeCommand{flags: probeFlags{output: output, count: 1}}
				target := &target{ProbeCommand: command, text: "192.0.2.1:80", request: request}
				request.CountSent(&target.tally.sent)
				request.ReportPart(target.keep)
				ctx, cancel := context.WithCancel(ctx)
				if c.interrupt {
					time.AfterFunc(2*time.Second, cancel)
				}
				target.run(ctx, prober, newTerminal(file, true))
				cancel()
				printed, err := os.ReadFile(file.Name())
				if err != nil {
					t.Fatal(err)
				}
				if output == "text" && (!strings.Contains(string(printed), c.text) ||
					!strings.HasPrefix(string(printed), "192.0.2.1:80: 4 flows from ports 20000-20003\n")) {
					t.Errorf("after %s, the command prints\n%swant the ports, and\n%s", c.name, printed, c.text)
				}
				if output == "json" && (strings.Count(string(printed), "\n") != 1 ||
					strings.Count(string(printed), `,"success":true,"result":"open"`) != 3 ||
					!strings.Contains(string(printed), c.json)) {
					t.Errorf("after %s, the command prints\n%swant one line with three flows and %s",
						c.name, printed, c.json)
				}
				if got := target.tally.String(); !strings.HasPrefix(got, c.summary) || target.report != nil {
					t.Errorf("after %s, the summary is %q, the report %+v, want %q and none",
						c.name, got, target.report, c.summary)
				}
			}
		})
	}
}

// One member of four loses every second packet. The table says how many probes of the hops behind it got no answer, and
// JSON says so for each flow.
func TestFlowsOfLossyMember(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	fan := kernel.NewFan(t, 4)
	fan.Listen(80)
	const member = 1
	fan.Run(member, nft,
		"table inet broken {\nchain forward {\ntype filter hook forward priority 0\nnumgen random mod 2 0 drop\n}\n}")
	for _, c := range []struct {
		name   string
		config shaker.Config
	}{
		{name: "sockets"},
		{name: "raw", config: shaker.Config{Raw: &shaker.Raw{}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			engine, err := shaker.New(&c.config)
			if err != nil {
				t.Fatal(err)
			}
			defer engine.Close()
			conf := config.Default()
			text := netip.AddrPortFrom(fan.Host(false), 80).String()
			request, err := probe.NewRequest(conf, text, config.DefaultModule)
			if err != nil {
				t.Fatal(err)
			}
			request.Timeout, request.Module.TCP.Flows = time.Second, 64
			request.TraceFlows(func(int, int) {})
			report, err := probe.New(probe.Options{Shaker: engine, Config: conf}).Probe(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			var table strings.Builder
			newFlowTable(report).write(&table, 200, false)
			if !regexp.MustCompile(`(?m)  no answer: \d+/\d+ at hop 3`).MatchString(table.String()) {
				t.Errorf("the table does not say how many probes of hop 3 got no answer:\n%s", &table)
			}
			lost, elsewhere := 0, 0
			for _, f := range newJSONFlows(report, &report.Verdict) {
				over := slices.ContainsFunc(f.Path, func(h jsonHop) bool {
					return h.Address == fan.Member(false, member).String()
				})
				for _, h := range f.Path {
					switch missing := h.Probes - *h.Answers; {
					case over && h.Hop > 2:
						lost += missing
					default:
						elsewhere += missing
					}
				}
			}
			if lost == 0 || elsewhere > lost {
				t.Errorf("%d probes of the hops behind %v got no answer, and %d others, want some, and fewer:\n%s",
					lost, fan.Member(false, member), elsewhere, &table)
			}
		})
	}
}

// The command prints the ports of flows before the probe, and that they have sockets although the engine is raw.
func TestPortsOfFlows(t *testing.T) {
	lab.Need(t)
	for want, engine := range map[string]*shaker.Config{
		"a:1: 2 flows from ports 20000-20001\n": nil,
		"a:1: 2 flows from ports 20000-20001, with sockets, because the raw engine has other ports\n": {
			Raw: &shaker.Raw{},
		},
	} {
		s, err := shaker.New(engine)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		request := &probe.Request{Module: config.Module{TCP: config.TCP{
			Flows: 2, SourcePorts: shaker.PortRange{First: 20000, Last: 20001},
		}}}
		file, err := os.Create(t.TempDir() + "/out")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		target := &target{ProbeCommand: &ProbeCommand{flags: probeFlags{output: "text"}}, text: "a:1", request: request}
		target.printPorts(newTerminal(file, true), probe.New(probe.Options{Shaker: s}))
		if printed, err := os.ReadFile(file.Name()); string(printed) != want || err != nil {
			t.Errorf("with the engine %+v, the command prints %q, error %v, want %q", engine, printed, err, want)
		}
	}
}
