// Package config holds what a user can configure: who may be probed, and the modules, by
// which a probe says how it is to be done.
package config

import (
	"net/netip"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Config is a configuration in force. It is not changed once it is in use.
type Config struct {
	Targets Targets
	Modules map[string]Module
}

// Module is a way to probe. The names are those of blackbox_exporter where it has the same.
type Module struct {
	Prober  string        // "tcp"
	Timeout time.Duration // upper limit of a probe's timeout
	TCP     TCP
}

// TCP is how the tcp prober shakes hands.
type TCP struct {
	// PreferredIPProtocol is which addresses of a name are taken, IP4 or IP6.
	PreferredIPProtocol string

	// IPProtocolFallback tells that an address of the other version will do if there is
	// none of the preferred one.
	IPProtocolFallback bool

	// Addresses is how many addresses of a name are probed, First or All.
	Addresses string

	// SourceIPAddress is the address of this host to send from, no IPv4-mapped one. If it
	// is valid, only addresses of its family are probed.
	SourceIPAddress netip.Addr

	SourcePorts shaker.PortRange // zero: the system's
	Interface   string           // "": as the routes say
	DSCP        uint8            // 0 to 63
	FWMark      uint32
	TTL         uint8 // 0: the system's

	// ValidResults are the results with which a probe succeeds. There is at least one.
	ValidResults []string

	// Path is when the way to the target is traced: Never, OnFailure or Always.
	Path string

	// MaxHops is how many hops of it are looked at, 1 to 255.
	MaxHops uint8

	// Close is how a handshake ends, Reset or FIN.
	Close string
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

// The values of Path.
const (
	Never     = "never"
	OnFailure = "on_failure" // if the result is none of ValidResults
	Always    = "always"
)

// The values of Close.
const (
	Reset = "reset" // the application never sees the handshake
	FIN   = "fin"   // the handshake is completed, for a target that takes offence at an RST
)

// The results of a probe whose target has no address to shake hands with. All others are a
// [shaker.Outcome].
const (
	DNSNotFound = "dns_not_found" // there is no such name, or no address of the wanted family
	DNSTimeout  = "dns_timeout"   // no answer in time
	DNSError    = "dns_error"     // any other answer, such as SERVFAIL
)

// results returns all results that there are.
func results() []string {
	var all []string
	for outcome := shaker.Open; outcome <= shaker.Failed; outcome++ {
		all = append(all, outcome.String())
	}
	return append(all, DNSNotFound, DNSTimeout, DNSError)
}

// DefaultModule is the module of a probe that names none.
const DefaultModule = "tcp_connect"

// Default returns the built-in configuration.
func Default() *Config {
	only := func(protocol string) Module {
		module := defaultModule()
		module.TCP.PreferredIPProtocol, module.TCP.IPProtocolFallback = protocol, false
		return module
	}
	return &Config{Modules: map[string]Module{
		DefaultModule:     defaultModule(),
		"tcp_connect_ip4": only(IP4),
		"tcp_connect_ip6": only(IP6),
	}}
}

// defaultModule returns a module of which nothing but the prober is configured.
func defaultModule() Module {
	return Module{
		Prober:  "tcp",
		Timeout: 5 * time.Second,
		TCP: TCP{
			PreferredIPProtocol: IP6,
			IPProtocolFallback:  true,
			Addresses:           First,
			ValidResults:        []string{shaker.Open.String()},
			Path:                Never,
			MaxHops:             30,
			Close:               Reset,
		},
	}
}

// Options returns what the module asks of the engine for one handshake, without Timeout.
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

// Network returns which addresses are probed, as package net has it: "ip4", "ip6", or "ip"
// for both. A source can reach only its own family.
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
