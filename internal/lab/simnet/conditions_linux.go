package simnet

import (
	"cmp"
	_ "embed"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

//go:embed testdata/conditions.md
var conditionTable string

var updateConditions = flag.Bool("update-conditions", false,
	"rewrite testdata/conditions.md with the results of this run")

// InitialRTO is a lower bound of the time after which the kernel retransmits a SYN. The kernel waits a second
// (RFC 6298 2.1), but counts it in ticks: if a virtual machine delivers ticks late, a second that starts in
// the meantime is shorter.
const InitialRTO = 500 * time.Millisecond

// A Condition is a network condition: something that a network may do to a SYN. Each one is a row of the
// condition matrix, testdata/conditions.md.
type Condition struct {
	Name    string
	RFC     string         // RFC and section that specify it
	Target  netip.AddrPort // address and port to which it applies
	Timeout time.Duration  // timeout for a probe of the target
	Delay   time.Duration  // lower bound of the time from SYN to SYN-ACK
}

// Conditions creates all network conditions of the condition matrix in the network, and returns them in the
// order of the matrix.
func (n *Network) Conditions() []Condition {
	n.seed = 2 // the results must not depend on SHAKER_LAB_SEED
	var conditions []Condition
	for _, version := range []struct {
		target      string // format of the address, with the number of the condition
		router      string // sender of the ICMP errors
		errors      []icmpError
		unreachable icmpError // the error from errors that the combined conditions use
	}{
		{"192.0.2.%d", "198.51.100.7", icmp4Errors, icmp4Errors[1]},
		{"2001:db8::%x", "2001:db8:ffff::7", icmp6Errors, icmp6Errors[3]},
	} {
		next := 0
		add := func(c Condition, answers ...Answer) *Host {
			next++
			addr := fmt.Sprintf(version.target, next)
			c.Target = netip.AddrPortFrom(netip.MustParseAddr(addr), 80)
			if c.Timeout == 0 {
				c.Timeout = 4900 * time.Millisecond
			}
			conditions = append(conditions, c)
			return n.At(addr, answers...)
		}
		const soon, second = 30 * time.Millisecond, 1200 * time.Millisecond
		const timeout = 1500 * time.Millisecond // enough for one SYN retransmission

		add(Condition{Name: "SYN-ACK", RFC: "9293 3.5"}, SYNACK())
		add(Condition{Name: "SYN-ACK after 30 ms", RFC: "9293 3.5", Delay: soon}, SYNACK().After(soon))
		add(Condition{Name: "SYN-ACK after 30 to 90 ms", RFC: "9293 3.5", Delay: soon}, SYNACK().Between(soon, 3*soon))
		add(Condition{Name: "SYN-ACK without options", RFC: "9293 3.7.1"}, SYNACK().WithoutOptions())
		add(Condition{Name: "SYN-ACK with MSS 1220", RFC: "9293 3.7.1"}, SYNACK().MSS(1220))
		for _, bytes := range []uint16{0, 20, 536, 537, 2000} {
			add(Condition{Name: fmt.Sprintf("SYN-ACK with a window of %d bytes", bytes), RFC: "9293 3.8.6"},
				SYNACK().Window(bytes))
		}
		add(Condition{Name: "SYN-ACK with window scale", RFC: "7323 2"}, SYNACK().WindowScale(7))
		add(Condition{Name: "SYN-ACK with timestamps", RFC: "7323 3"}, SYNACK().Timestamps())
		add(Condition{Name: "SYN-ACK with SACK permitted", RFC: "2018"}, SYNACK().SACK())
		add(Condition{Name: "SYN-ACK with ECN", RFC: "3168 6.1.1"}, SYNACK().ECN())
		add(Condition{Name: "SYN-ACK, and a duplicate 100 ms later", RFC: "9293 3.8.1"},
			SYNACK(), SYNACK().After(100*time.Millisecond))
		add(Condition{Name: "SYN-ACK after 1.2 s and a SYN retransmission", RFC: "6298 3", Delay: second},
			SYNACK().After(second))
		add(Condition{Name: "SYN-ACK for the first SYN after the SYN-ACK for the second", RFC: "6298 3",
			Delay: InitialRTO}, SYNACK().After(second)).Then(SYNACK())
		add(Condition{Name: "SYN-ACK after the deadline", RFC: "9293 3.8.3", Timeout: 300 * time.Millisecond},
			SYNACK().After(500*time.Millisecond))
		add(Condition{Name: "RST", RFC: "9293 3.5.2"}, RST())
		add(Condition{Name: "RST after 30 ms", RFC: "9293 3.5.2"}, RST().After(soon))
		add(Condition{Name: "RST overtakes the SYN-ACK", RFC: "9293 3.5.2"}, RST(), SYNACK().After(soon))
		add(Condition{Name: "RST long after the SYN-ACK", RFC: "9293 3.5.3"},
			SYNACK(), RST().After(100*time.Millisecond))
		add(Condition{Name: "silence", RFC: "9293 3.8.3", Timeout: timeout})
		add(Condition{Name: "first SYN lost", RFC: "6298 5", Delay: InitialRTO}, SYNACK()).LosingSYNs(1)
		add(Condition{Name: "first SYN lost, timestamps", RFC: "7323 4.1", Delay: InitialRTO},
			SYNACK().Timestamps()).LosingSYNs(1)
		add(Condition{Name: "first two SYNs lost", RFC: "6298 5", Delay: 2 * InitialRTO},
			SYNACK()).LosingSYNs(2)
		add(Condition{Name: "first SYN lost, then RST", RFC: "9293 3.5.2"}, RST()).LosingSYNs(1)
		add(Condition{Name: "every SYN lost", RFC: "9293 3.8.3", Timeout: timeout}, SYNACK()).Losing(1, 0)
		add(Condition{Name: "every SYN-ACK lost", RFC: "9293 3.8.3", Timeout: timeout}, SYNACK()).Losing(0, 1)
		add(Condition{Name: "a third of the SYNs and a third of the SYN-ACKs lost", RFC: "6298 5"},
			SYNACK()).Losing(1.0/3, 1.0/3)
		add(Condition{Name: "SYN-ACK with a wrong checksum", RFC: "9293 3.1", Timeout: timeout},
			SYNACK().Corrupt())
		add(Condition{Name: "SYN-ACK from another port", RFC: "9293 3.5.2", Timeout: timeout},
			SYNACK().FromPort(1))
		add(Condition{Name: "SYN-ACK with a wrong acknowledgement number", RFC: "9293 3.5.2", Timeout: timeout},
			SYNACK().Acknowledging(1))
		add(Condition{Name: "SYN-ACK with a wrong acknowledgement number, then a right one", RFC: "9293 3.5.1"},
			SYNACK().Acknowledging(1)).Then(SYNACK())
		add(Condition{Name: "RST with a wrong acknowledgement number", RFC: "9293 3.10.7.3", Timeout: timeout},
			RST().Acknowledging(1))
		add(Condition{Name: "SYN", RFC: "9293 3.5", Timeout: timeout}, SYN())
		add(Condition{Name: "SYN and then ACK: a simultaneous open", RFC: "9293 3.5", Delay: soon},
			SYN(), ACK().After(soon))
		for _, e := range version.errors {
			add(Condition{Name: e.String(), RFC: e.rfc, Timeout: timeout},
				ICMP(version.router, e.icmpType, e.code))
		}
		e := version.unreachable
		own := fmt.Sprintf(version.target, next+1)
		add(Condition{Name: e.String() + ", from the target itself", RFC: e.rfc},
			ICMP(own, e.icmpType, e.code))
		unreachable := ICMP(version.router, e.icmpType, e.code)
		add(Condition{Name: e.String() + ", after 30 ms", RFC: e.rfc}, unreachable.After(soon))
		add(Condition{Name: e.String() + ", after the first SYN was lost", RFC: e.rfc}, unreachable).LosingSYNs(1)
		add(Condition{Name: e.String() + ", and then a SYN-ACK", RFC: "5461"}, unreachable, SYNACK().After(soon))
		add(Condition{Name: e.String() + ", quoting a sequence number that was not sent", RFC: "5927 4.1",
			Timeout: timeout}, unreachable.Quoting(1<<31))
		routers := make([]string, 64) // the TTL of a SYN is 64
		routers[63] = version.router
		add(Condition{Name: "a path of 64 routers: the last one drops the SYN", RFC: "1812 5.3.1, 4443 3.3"},
			SYNACK()).Behind(routers...)
	}
	return conditions
}

// An icmpError is an ICMP error, with its name in the RFC.
type icmpError struct {
	icmpType, code uint8
	name, rfc      string
}

func (e icmpError) String() string {
	return fmt.Sprintf("ICMP %d/%d, %s", e.icmpType, e.code, e.name)
}

var (
	icmp4Errors = []icmpError{
		{3, 0, "net unreachable", "792"},
		{3, 1, "host unreachable", "792"},
		{3, 2, "protocol unreachable", "792"},
		{3, 3, "port unreachable", "792"},
		{3, 4, "fragmentation needed", "792"},
		{3, 5, "source route failed", "792"},
		{3, 6, "destination network unknown", "1122 3.2.2.1"},
		{3, 7, "destination host unknown", "1122 3.2.2.1"},
		{3, 8, "source host isolated", "1122 3.2.2.1"},
		{3, 9, "network administratively prohibited", "1122 3.2.2.1"},
		{3, 10, "host administratively prohibited", "1122 3.2.2.1"},
		{3, 11, "network unreachable for type of service", "1122 3.2.2.1"},
		{3, 12, "host unreachable for type of service", "1122 3.2.2.1"},
		{3, 13, "communication administratively prohibited", "1812 5.2.7.1"},
		{3, 14, "host precedence violation", "1812 5.2.7.1"},
		{3, 15, "precedence cutoff", "1812 5.2.7.1"},
		{4, 0, "source quench", "6633"},
		{5, 1, "redirect for the host", "792"},
		{11, 0, "TTL exceeded", "792"},
		{11, 1, "fragment reassembly time exceeded", "792"},
		{12, 0, "parameter problem: pointer", "792"},
		{12, 1, "parameter problem: required option missing", "1122 3.2.2.5"},
		{12, 2, "parameter problem: bad length", "792"},
	}
	icmp6Errors = []icmpError{
		{1, 0, "no route to destination", "4443 3.1"},
		{1, 1, "administratively prohibited", "4443 3.1"},
		{1, 2, "beyond scope of source address", "4443 3.1"},
		{1, 3, "address unreachable", "4443 3.1"},
		{1, 4, "port unreachable", "4443 3.1"},
		{1, 5, "source address failed policy", "4443 3.1"},
		{1, 6, "reject route", "4443 3.1"},
		{1, 7, "error in source routing header", "6554 4.2"},
		{1, 8, "headers too long", "8883 3.1"},
		{2, 0, "packet too big", "4443 3.2"},
		{3, 0, "hop limit exceeded", "4443 3.3"},
		{3, 1, "fragment reassembly time exceeded", "4443 3.3"},
		{4, 0, "parameter problem: erroneous header field", "4443 3.4"},
		{4, 1, "parameter problem: unrecognized next header", "4443 3.4"},
		{4, 2, "parameter problem: unrecognized IPv6 option", "4443 3.4"},
		{4, 3, "parameter problem: incomplete header chain", "7112 5"},
	}
)

// A Finding is the result of a probe under a network condition, in the form of the condition matrix. A field
// is "" if the probe did not measure the value.
type Finding struct {
	Result, Errno  string
	ICMP           string // type/code, name and sender of an ICMP error
	SYNRetransmits string // a number
	Handshake, RTT string // "yes" if the time was measured
	MSS            string // bytes
	ACKSent        string // "yes" or "no"
	TTL            string // of the SYN-ACK or RST
}

// cells are what the condition matrix says of a finding. Each has a column, except for the last one, which no socket
// has.
var cells = []struct {
	title string
	of    func(*Finding) *string
}{
	{"result", func(f *Finding) *string { return &f.Result }},
	{"errno", func(f *Finding) *string { return &f.Errno }},
	{"ICMP error", func(f *Finding) *string { return &f.ICMP }},
	{"SYN retransmits", func(f *Finding) *string { return &f.SYNRetransmits }},
	{"handshake", func(f *Finding) *string { return &f.Handshake }},
	{"RTT", func(f *Finding) *string { return &f.RTT }},
	{"MSS", func(f *Finding) *string { return &f.MSS }},
	{"ACK sent", func(f *Finding) *string { return &f.ACKSent }},
	{"TTL", func(f *Finding) *string { return &f.TTL }},
}

// differences is the cell of a finding without sockets: what differs from the finding with sockets.
func differences(sockets, raw Finding) string {
	var all []string
	for _, c := range cells {
		if value := *c.of(&raw); value != *c.of(&sockets) {
			all = append(all, c.title+" "+cmp.Or(value, "absent"))
		}
	}
	return strings.Join(all, ", ")
}

// CompareConditions compares the findings with the condition matrix, testdata/conditions.md. There is one
// finding for each condition, in the same order. Those of raw are from SYNs without sockets; nil means that they are
// not compared.
func CompareConditions(t testing.TB, conditions []Condition, sockets, raw []Finding) {
	t.Helper()
	got := []string{"| network condition | RFC | IP |", "|---|---|---|"}
	columns := cells[:len(cells)-1]
	for _, c := range columns {
		got[0], got[1] = got[0]+" "+c.title+" |", got[1]+"---|"
	}
	got[0], got[1] = got[0]+" without a socket |", got[1]+"---|"
	for i, condition := range conditions {
		version := "4"
		if condition.Target.Addr().Is6() {
			version = "6"
		}
		row := []string{condition.Name, condition.RFC, version}
		for _, c := range columns {
			row = append(row, *c.of(&sockets[i]))
		}
		if raw != nil {
			row = append(row, differences(sockets[i], raw[i]))
		}
		got = append(got, "| "+strings.Join(row, " | ")+" |")
	}
	text, table, found := strings.Cut(conditionTable, "\n\n| ")
	if !found {
		t.Fatal("testdata/conditions.md has no table after its introduction")
	}
	want := strings.Split(strings.TrimSuffix("| "+table, "\n"), "\n")
	if *updateConditions && raw != nil {
		_, here, _, _ := runtime.Caller(0)
		file := filepath.Join(filepath.Dir(here), "testdata", "conditions.md")
		if err := os.WriteFile(file, []byte(text+"\n\n"+strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if len(want) != len(got) {
		t.Fatalf("testdata/conditions.md has %d lines in its table, want %d "+
			"(run go test ./shaker -run TestNetworkConditions -update-conditions)", len(want), len(got))
	}
	for i := range got {
		if raw == nil { // the table has one more cell
			want[i] = want[i][:strings.LastIndex(strings.TrimSuffix(want[i], "|"), "|")+1]
		}
		if i > 1 && got[i] != want[i] {
			t.Errorf("condition matrix:\n got %s\nwant %s", got[i], want[i])
		}
	}
}
