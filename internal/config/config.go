// Package config holds what a user can configure: the modules, by which a probe says how
// it is to be done.
package config

import "time"

// Config is a configuration in force. It is not changed once it is in use.
type Config struct {
	Modules map[string]Module
}

// Module is a way to probe. The names are those of blackbox_exporter where it has the same.
type Module struct {
	Prober  string        `yaml:"prober"`  // "tcp"
	Timeout time.Duration `yaml:"timeout"` // upper limit of a probe's timeout
	TCP     TCP           `yaml:"tcp"`
}

// TCP is how the tcp prober shakes hands.
type TCP struct {
	// PreferredIPProtocol is which addresses of a name are taken, IP4 or IP6.
	PreferredIPProtocol string `yaml:"preferred_ip_protocol"`

	// IPProtocolFallback tells that an address of the other version will do if there is
	// none of the preferred one.
	IPProtocolFallback bool `yaml:"ip_protocol_fallback"`
}

// The values of PreferredIPProtocol.
const (
	IP4 = "ip4"
	IP6 = "ip6"
)

// DefaultModule is the module of a probe that names none.
const DefaultModule = "tcp_connect"

// Default returns the built-in configuration.
func Default() *Config {
	module := func(protocol string, fallback bool) Module {
		return Module{
			Prober:  "tcp",
			Timeout: 5 * time.Second,
			TCP:     TCP{PreferredIPProtocol: protocol, IPProtocolFallback: fallback},
		}
	}
	return &Config{Modules: map[string]Module{
		DefaultModule:     module(IP6, true),
		"tcp_connect_ip4": module(IP4, false),
		"tcp_connect_ip6": module(IP6, false),
	}}
}
