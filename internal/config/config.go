package config

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Config is a configuration. It must not be changed once it is in use.
type Config struct {
	Targets Targets
	Modules map[string]Module
	Foreign map[string]Foreign // modules of the file that are left to blackbox_exporter
}

// Names returns the sorted names of modules, in quotes where they would be unclear without.
func Names[M any](modules map[string]M) []string {
	names := slices.Sorted(maps.Keys(modules))
	for i, name := range names {
		names[i] = Name(name)
	}
	return names
}

// Name returns the name of a module, in quotes if it would be unclear without.
func Name(name string) string { return quote(name) }

// Module describes how to probe. Keys shared with blackbox_exporter have the same names.
type Module struct {
	Prober  string        // "tcp", "hold" or "idle"
	Timeout time.Duration // upper limit of a probe's timeout, at most MaxTimeout
	TCP     TCP
	Watch   Watch // the zero value: only scrapes probe the targets
	Hold    Hold  // the zero value unless Held
	Idle    Idle  // the zero value unless MeasuresIdle
}

// Held reports whether the prober is hold: it opens a connection to each target, and keeps it.
func (m Module) Held() bool { return m.Prober == holdProber }

// MeasuresIdle reports whether the prober is idle: it measures for how long a connection to a target may be idle.
func (m Module) MeasuresIdle() bool { return m.Prober == idleProber }

// Watched reports whether the module's targets are also probed between scrapes.
func (m Module) Watched() bool { return m.Watch.Interval > 0 }

// TCP describes how to connect. With the probers hold and idle, Addresses is First, and ValidResults, Path, MaxHops and
// Close have their defaults, because they are only about a handshake.
type TCP struct {
	// PreferredIPProtocol is the IP version of the addresses to use, IP4 or IP6.
	PreferredIPProtocol string

	// IPProtocolFallback reports whether addresses of the other version are used if a name has
	// none of the preferred one.
	IPProtocolFallback bool

	// Addresses selects which addresses of a name are probed, First or All.
	Addresses string

	// DNSServer is the DNS server that names are looked up with, never at an IPv4-mapped address; invalid for
	// the servers of the system.
	DNSServer netip.AddrPort

	// DNSTimeout limits how long name resolution may take, in addition to the timeout of the probe; 0 for no
	// such limit.
	DNSTimeout time.Duration

	// SourceIPAddress is the address of this host to send from, never an IPv4-mapped one. If
	// it is valid, only addresses of its family are probed.
	SourceIPAddress netip.Addr

	SourcePorts shaker.PortRange // zero: chosen by the system

	// Flows is how many handshakes with each address a probe performs at the same time, each from a port of its
	// own, which is the same in each probe: the first ones of SourcePorts, if they are set. 0 means one handshake
	// from any port; otherwise it is 2 to MaxFlows. The handshakes with a watched target take these ports in turns.
	Flows uint8

	// FlowsBefore is the place of the first port of the flows among the ports that the exporter reserves, if
	// SourcePorts are not set: modules have ports of their own, in the order of their names.
	FlowsBefore int

	Interface string // "": chosen by the routing table
	DSCP      uint8  // 0 to 63
	FWMark    uint32
	TTL       uint8 // 0: the system's default

	// ValidResults are the results with which a probe succeeds, at least one.
	ValidResults []string

	// Path selects when the path to the target is traced: Never, OnFailure or Always.
	Path string

	// MaxHops limits how many hops of the path are probed, 1 to 255.
	MaxHops uint8

	// Close is how a handshake ends, Reset or FIN.
	Close string
}

// Watch describes how targets are probed between scrapes.
type Watch struct {
	Interval time.Duration // between two handshakes with a target, 100 ms to 1 min
	Expire   time.Duration // a target that is not scraped for this long is forgotten, 1 min to 24 h
	Resolve  time.Duration // between two lookups of a name, 1 s to 1 h
}

// MaxFlows is the maximum of TCP.Flows.
const MaxFlows = 64

// Values of PreferredIPProtocol.
const (
	IP4 = "ip4"
	IP6 = "ip6"
)

// Values of Addresses.
const (
	First = "first"
	All   = "all"
)

// Values of Path.
const (
	Never     = "never"
	OnFailure = "on_failure" // if the result is not one of ValidResults
	Always    = "always"
)

// Values of Close.
const (
	Reset = "reset" // the target's application never sees the handshake
	FIN   = "fin"   // the handshake is completed, for targets that mishandle an RST
)

// Results of a probe that has no address to connect to. Every other result is the name of a
// [shaker.Outcome].
const (
	DNSNotFound = "dns_not_found" // the name does not exist, or has no address of the wanted family
	DNSTimeout  = "dns_timeout"   // no answer in time
	DNSError    = "dns_error"     // any other answer, such as SERVFAIL
)

// results returns all results that a probe with prober tcp can have.
func results() []string {
	var all []string
	for outcome := shaker.Open; outcome <= shaker.Failed; outcome++ {
		all = append(all, outcome.String())
	}
	return append(all, DNSNotFound, DNSTimeout, DNSError)
}

// MaxTimeout is the longest timeout of a module. The kernel gives up on a SYN after about that time.
const MaxTimeout = 2 * time.Minute

// Timeouts of modules that set none.
const (
	defaultTimeout        = 5 * time.Second
	defaultWatchedTimeout = firstRetransmission
)

// DefaultModule is the module of a probe that does not name one.
const DefaultModule = "tcp_connect"

// Default returns the built-in configuration.
func Default() *Config {
	only := func(protocol string) Module {
		module := defaultModule(tcpProber)
		module.TCP.PreferredIPProtocol, module.TCP.IPProtocolFallback = protocol, false
		return module
	}
	return &Config{Modules: map[string]Module{
		DefaultModule:     defaultModule(tcpProber),
		"tcp_connect_ip4": only(IP4),
		"tcp_connect_ip6": only(IP6),
	}}
}

// DefaultHold returns the module of which a file says nothing but prober: hold.
func DefaultHold() Module { return defaultModule(holdProber) }

// defaultModule returns the values of the keys that a module with that prober leaves out.
func defaultModule(prober string) Module {
	module := Module{
		Prober:  prober,
		Timeout: defaultTimeout,
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
	switch prober {
	case holdProber:
		module.Hold = defaultHold()
	case idleProber:
		module.Idle = defaultIdle()
	}
	return module
}

// defaultWatch returns the values of the keys that a section watch leaves out.
func defaultWatch() Watch {
	return Watch{Interval: time.Second, Expire: 5 * time.Minute, Resolve: time.Minute}
}

// Options returns the module's options for one handshake, without Timeout and, with flows, SourcePort.
func (m *Module) Options() shaker.Options {
	ports := m.TCP.SourcePorts
	if m.TCP.Flows > 0 {
		ports = shaker.PortRange{} // they are for SourcePort
	}
	return shaker.Options{
		Source:      m.TCP.SourceIPAddress,
		SourcePorts: ports,
		Interface:   m.TCP.Interface,
		DSCP:        m.TCP.DSCP,
		Mark:        m.TCP.FWMark,
		TTL:         m.TCP.TTL,
		FIN:         m.TCP.Close == FIN,
	}
}

// HoldOptions returns the options of a connection that a module with prober hold holds. The greeting may take as long
// as the connect.
func (m *Module) HoldOptions() shaker.HoldOptions {
	options := shaker.HoldOptions{
		Options:   m.Options(),
		KeepAlive: m.Hold.KeepAlive,
		Framing:   m.Hold.Heartbeat.Framing,
		Heartbeat: m.Hold.Heartbeat.Options(),
	}
	options.Options.Timeout = m.Timeout
	options.Options.FIN = m.Hold.Close == FIN
	if m.Hold.Greeting != nil {
		options.Greeting = m.Timeout
	}
	return options
}

// Options returns what is sent, and when.
func (h *Heartbeat) Options() shaker.Heartbeat {
	return shaker.Heartbeat{Interval: h.Interval, Timeout: h.Timeout, Send: []byte(h.Send)}
}

// Network returns the network to resolve names in, as package net names it: "ip4", "ip6", or
// "ip" for both. A source address limits it to its own family.
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
