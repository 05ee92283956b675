// Package config holds what a user can configure: who may be probed, and the modules, by
// which a probe says how it is to be done. config.go has what is in force, load.go reads it
// from a file, keys.go says which keys there are, and targets.go decides who may be probed.
package config

import (
	"net/netip"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Config is a configuration in force. It is not changed once it is in use.
type Config struct {
	Targets Targets           `yaml:"targets,omitempty"`
	Modules map[string]Module `yaml:"modules"`
}

// Module is a way to probe. The names are those of blackbox_exporter where it has the same.
type Module struct {
	Prober  string        `yaml:"prober"`  // "tcp"
	Timeout time.Duration `yaml:"timeout"` // upper limit of a probe's timeout
	TCP     TCP           `yaml:"tcp"`
}

// MaxTimeout is the longest timeout of a module. The kernel gives a SYN up by itself after
// about that (tcp_syn_retries in tcp(7)).
const MaxTimeout = 2 * time.Minute

// TCP is how the tcp prober shakes hands.
type TCP struct {
	// PreferredIPProtocol is which addresses of a name are taken, IP4 or IP6.
	PreferredIPProtocol string

	// IPProtocolFallback tells that an address of the other version will do if there is
	// none of the preferred one.
	IPProtocolFallback bool

	// Addresses is how many addresses of a name are probed, First or All.
	Addresses string

	// ValidResults are the results that are success, some of Results.
	ValidResults []string

	// Close is how a handshake ends, Reset or FIN.
	Close string

	// The rest is not set if it is zero.
	SourceIPAddress netip.Addr
	SourcePorts     shaker.PortRange
	Interface       string
	DSCP            uint8
	FWMark          uint32
	TTL             uint8
}

// The values of PreferredIPProtocol.
const (
	IP4 = "ip4"
	IP6 = "ip6"
)

// The values of Addresses.
const (
	First = "first"
	All   = "all"
)

// The values of Close.
const (
	Reset = "reset"
	FIN   = "fin"
)

// The results of a probe whose target has no address. The others are those of
// [shaker.Outcome].
const (
	DNSNotFound = "dns_not_found" // there is no such name, or no address of the wanted family
	DNSTimeout  = "dns_timeout"   // no answer in time
	DNSError    = "dns_error"     // any other answer, such as SERVFAIL
)

// Results are all that the result label can have.
func Results() []string {
	var results []string
	for outcome := shaker.Open; outcome <= shaker.Failed; outcome++ {
		results = append(results, outcome.String())
	}
	return append(results, DNSNotFound, DNSTimeout, DNSError)
}

// DefaultModule is the module of a probe that names none.
const DefaultModule = "tcp_connect"

// Default returns the built-in configuration.
func Default() *Config {
	module := func(protocol string, fallback bool) Module {
		m := newModule()
		m.TCP.PreferredIPProtocol, m.TCP.IPProtocolFallback = protocol, fallback
		return m
	}
	return &Config{Modules: map[string]Module{
		DefaultModule:     module(IP6, true),
		"tcp_connect_ip4": module(IP4, false),
		"tcp_connect_ip6": module(IP6, false),
	}}
}

// newModule returns a module of which nothing is configured.
func newModule() Module {
	return Module{
		Prober:  "tcp",
		Timeout: 5 * time.Second,
		TCP: TCP{
			PreferredIPProtocol: IP6,
			IPProtocolFallback:  true,
			Addresses:           First,
			ValidResults:        []string{shaker.Open.String()},
			Close:               Reset,
		},
	}
}

// Options returns what of the module concerns a handshake, but for the timeout.
func (m *Module) Options() shaker.Options {
	return shaker.Options{
		Source:      m.TCP.SourceIPAddress,
		SourcePorts: m.TCP.SourcePorts,
		Interface:   m.TCP.Interface,
		DSCP:        m.TCP.DSCP,
		Mark:        m.TCP.FWMark,
		TTL:         m.TCP.TTL,
		FIN:         m.TCP.Close == FIN,
	}
}

// Network returns which addresses may be probed: "ip4", "ip6", or "ip" for either.
func (t *TCP) Network() string {
	switch {
	case t.SourceIPAddress.Is4():
		return IP4
	case t.SourceIPAddress.Is6():
		return IP6
	case t.IPProtocolFallback:
		return "ip"
	}
	return t.PreferredIPProtocol
}

// MarshalYAML gives it the form that it has in a file.
func (t TCP) MarshalYAML() (any, error) {
	text := struct {
		PreferredIPProtocol string   `yaml:"preferred_ip_protocol"`
		IPProtocolFallback  bool     `yaml:"ip_protocol_fallback"`
		Addresses           string   `yaml:"addresses"`
		SourceIPAddress     string   `yaml:"source_ip_address,omitempty"`
		SourcePorts         string   `yaml:"source_ports,omitempty"`
		Interface           string   `yaml:"interface,omitempty"`
		DSCP                uint8    `yaml:"dscp"`
		FWMark              uint32   `yaml:"fwmark,omitempty"`
		TTL                 uint8    `yaml:"ttl,omitempty"`
		ValidResults        []string `yaml:"valid_results,flow"`
		Close               string   `yaml:"close"`
	}{
		PreferredIPProtocol: t.PreferredIPProtocol,
		IPProtocolFallback:  t.IPProtocolFallback,
		Addresses:           t.Addresses,
		Interface:           t.Interface,
		DSCP:                t.DSCP,
		FWMark:              t.FWMark,
		TTL:                 t.TTL,
		ValidResults:        t.ValidResults,
		Close:               t.Close,
	}
	if t.SourceIPAddress.IsValid() {
		text.SourceIPAddress = t.SourceIPAddress.String()
	}
	if t.SourcePorts != (shaker.PortRange{}) {
		text.SourcePorts = t.SourcePorts.String()
	}
	return text, nil
}
