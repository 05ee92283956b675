package config

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestNetwork(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	for _, test := range []struct {
		tcp  TCP
		want string
	}{
		{tcp: TCP{PreferredIPProtocol: IP6, IPProtocolFallback: true}, want: "ip"},
		{tcp: TCP{PreferredIPProtocol: IP4, IPProtocolFallback: true}, want: "ip"},
		{tcp: TCP{PreferredIPProtocol: IP6}, want: "ip6"},
		{tcp: TCP{PreferredIPProtocol: IP4}, want: "ip4"},
		{tcp: TCP{PreferredIPProtocol: IP6, IPProtocolFallback: true, SourceIPAddress: four}, want: "ip4"},
		{tcp: TCP{PreferredIPProtocol: IP4, IPProtocolFallback: true, SourceIPAddress: six}, want: "ip6"},
		{tcp: TCP{PreferredIPProtocol: IP4, SourceIPAddress: four}, want: "ip4"},
	} {
		if got := test.tcp.Network(); got != test.want {
			t.Errorf("Network() of %+v = %s, want %s", test.tcp, got, test.want)
		}
	}
}

// Every option of the engine except the timeout comes from the module.
func TestOptions(t *testing.T) {
	module := Module{Prober: "tcp", Timeout: 1, TCP: TCP{
		SourceIPAddress: netip.MustParseAddr("192.0.2.7"),
		SourcePorts:     shaker.PortRange{First: 2, Last: 3},
		Interface:       "eth0",
		DSCP:            4,
		FWMark:          5,
		TTL:             6,
		Close:           FIN,
	}}
	want := shaker.Options{
		Source:      netip.MustParseAddr("192.0.2.7"),
		SourcePorts: shaker.PortRange{First: 2, Last: 3},
		Interface:   "eth0",
		DSCP:        4,
		Mark:        5,
		TTL:         6,
		FIN:         true,
	}
	got := module.Options()
	if got != want {
		t.Errorf("Options() of %+v = %+v, want %+v", module, got, want)
	}
	options := reflect.ValueOf(got)
	for i := range options.NumField() {
		field := options.Type().Field(i)
		perHandshake := field.Name == "Timeout" || field.Name == "SourcePort"
		if field.IsExported() && options.Field(i).IsZero() != perHandshake {
			t.Errorf("Options() of %+v: %s is %v, want only Timeout and SourcePort to be zero",
				module, field.Name, options.Field(i))
		}
	}
	module.TCP.Flows = 2
	if got := module.Options().SourcePorts; got != (shaker.PortRange{}) {
		t.Errorf("Options().SourcePorts of a module with flows is %v, want none: each flow has a SourcePort", got)
	}
	for name, module := range Default().Modules {
		if got := module.Options(); got != (shaker.Options{}) {
			t.Errorf("Options() of the built-in module %s = %+v, want none", name, got)
		}
	}
}

func TestResults(t *testing.T) {
	want := []string{"open", "refused", "reset", "timeout", "unreachable", "prohibited", "error",
		"dns_not_found", "dns_timeout", "dns_error"}
	if got := results(); !slices.Equal(got, want) {
		t.Errorf("results() = %q, want %q", got, want)
	}
}

// A DNS server is an address, with a port or not.
func TestDNSServer(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.53":           "192.0.2.53:53",
		"192.0.2.53:5353":      "192.0.2.53:5353",
		"2001:db8::53":         "[2001:db8::53]:53",
		"[2001:db8::53]:5353":  "[2001:db8::53]:5353",
		"[::ffff:192.0.2.1]:5": "192.0.2.1:5",
		"fe80::53%eth0":        "[fe80::53%eth0]:53",
		"127.0.0.53":           "127.0.0.53:53",
	} {
		c, _, err := Parse("test.yml", []byte("modules: {m: {prober: tcp, tcp: {dns_server: '"+text+"'}}}"))
		if err != nil {
			t.Errorf("Parse with dns_server: %s = %v, want %s", text, err, want)
		} else if got := c.Modules["m"].TCP.DNSServer.String(); got != want {
			t.Errorf("Parse with dns_server: %s has %s, want %s", text, got, want)
		}
	}
}

// Modules with flows have ports of their own, whatever their order in the file is. The ports of a module are in one
// block. Modules without flows, or with source ports, need none.
func TestPlacesOfFlows(t *testing.T) {
	c, _, err := Parse("test.yml", []byte(`
modules:
  d: {prober: tcp, tcp: {flows: 64}}
  c: {prober: tcp, tcp: {flows: 24}}
  b: {prober: tcp, tcp: {flows: 50}}
  plain: {prober: tcp}
  given: {prober: tcp, tcp: {flows: 2, source_ports: 20000-20001}}
  a: {prober: tcp, tcp: {flows: 14}, watch: {}}
  foreign: {prober: http}
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"a": 0, "b": 14, "c": 64, "d": 128, "plain": 0, "given": 0} {
		if got := c.Modules[name].TCP.FlowsBefore; got != want {
			t.Errorf("the flows of module %s begin at port %d of those that are reserved, want %d", name, got, want)
		}
	}
}

// Two modules whose flows have the same ports are a warning, unless they send from different addresses or interfaces.
func TestSharedFlowPorts(t *testing.T) {
	const shared = "test.yml:4: module b: tcp.source_ports is 20002-20005, and the flows of module a have some of " +
		"these ports: while one of the modules probes an address, probes of this address with the other one are " +
		"answered with 503. Want ports of its own"
	for _, c := range []struct {
		a, b string
		want []string
	}{
		{a: "flows: 4, source_ports: 20000-20003", b: "flows: 2, source_ports: 20002-20005", want: []string{shared}},
		{a: "flows: 2, source_ports: 20000-20003", b: "flows: 2, source_ports: 20002-20005"},
		{a: "flows: 4", b: "flows: 2, source_ports: 20002-20005"},
		{
			a: "flows: 4, source_ports: 20000-20003, source_ip_address: 127.0.0.1",
			b: "flows: 2, source_ports: 20002-20005, source_ip_address: 127.0.0.2",
		},
	} {
		text := "modules:\n  a:\n    {prober: tcp, tcp: {" + c.a + "}}\n  b: {prober: tcp, tcp: {" + c.b + "}}\n"
		if _, warnings, err := Parse("test.yml", []byte(text)); err != nil || !slices.Equal(warnings, c.want) {
			t.Errorf("Parse(%s):\n got %q, error %v\nwant %q", text, warnings, err, c.want)
		}
	}
}
