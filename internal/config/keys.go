package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// keepThere is said of what blackbox_exporter can do and this exporter cannot.
const keepThere = "but this exporter only shakes hands over TCP: keep this module in blackbox_exporter"

// otherProbers are those of blackbox_exporter.
var otherProbers = []string{"dns", "grpc", "http", "icmp", "unix"}

func (c *Config) keys(r *reader) section {
	return section{
		"targets": func(v *yaml.Node) error {
			r.section("targets.", r.pairs("targets.", v), c.Targets.keys(r))
			return nil
		},
		"modules": func(v *yaml.Node) error {
			pairs := r.pairs("modules.", v)
			if len(pairs) == 0 && len(r.problems) == 0 {
				return errors.New("is empty, want a module; without the key the built-in ones are in force")
			}
			c.Modules = make(map[string]Module)
			for _, p := range pairs {
				c.Modules[p.key] = r.module(p)
			}
			return nil
		},
	}
}

func (t *Targets) keys(r *reader) section {
	return section{
		"allow": func(v *yaml.Node) error {
			if t.Allow = r.ranges("targets.allow", v); t.Allow == nil {
				return errors.New("is empty, and nobody could be probed: want a range; without the key everyone may be")
			}
			return nil
		},
		"deny": func(v *yaml.Node) error {
			t.Deny = r.ranges("targets.deny", v)
			return nil
		},
	}
}

// ranges reads a list of ranges, nil if it is empty.
func (r *reader) ranges(where string, node *yaml.Node) []Range {
	items := r.list(where, node)
	if len(items) == 0 && node.Kind != yaml.SequenceNode && !isNull(node) {
		return []Range{} // which has been said
	}
	var ranges []Range
	for _, item := range items {
		parsed, err := parseRange(item.Value)
		if err != nil {
			r.wrong(item.Line, "%s %v", where, err)
		}
		ranges = append(ranges, parsed)
	}
	return ranges
}

// list returns the items of a list of words.
func (r *reader) list(where string, node *yaml.Node) []*yaml.Node {
	if isNull(node) {
		return nil
	}
	if node.Kind != yaml.SequenceNode {
		r.wrong(node.Line, "%s is %s, want a list", where, kind(node))
		return nil
	}
	var items []*yaml.Node
	for _, item := range node.Content {
		if item = resolved(item); item.Kind != yaml.ScalarNode {
			r.wrong(item.Line, "%s has %s in it, want words", where, kind(item))
			continue
		}
		items = append(items, item)
	}
	return items
}

// module reads a module.
func (r *reader) module(p pair) Module {
	where := fmt.Sprintf("module %s: ", word(p.key))
	m := newModule()
	pairs := r.pairs(where, p.value)
	i := slices.IndexFunc(pairs, func(p pair) bool { return p.key == "prober" })
	if i < 0 {
		r.wrong(p.line, "%sprober is missing, want tcp", where)
		return m
	}
	if prober := pairs[i].value; prober.Value != "tcp" {
		if slices.Contains(otherProbers, prober.Value) {
			r.wrong(prober.Line, "%sprober is %s, %s", where, prober.Value, keepThere)
		} else {
			r.wrong(prober.Line, "%sprober is %s, want tcp", where, kind(prober))
		}
		return m // its other keys are about something else
	}
	r.section(where, pairs, m.keys(r, where))
	return m
}

func (m *Module) keys(r *reader, where string) section {
	keys := section{
		"prober": func(*yaml.Node) error { return nil }, // has been read
		"timeout": func(v *yaml.Node) (err error) {
			m.Timeout, err = time.ParseDuration(v.Value)
			if err != nil || m.Timeout <= 0 || m.Timeout > MaxTimeout {
				return fmt.Errorf("is %s, want a time up to %v, such as 5s", kind(v), MaxTimeout)
			}
			return nil
		},
		"tcp": func(v *yaml.Node) error {
			where := where + "tcp."
			r.section(where, r.pairs(where, v), m.TCP.keys(r, where))
			if source := m.TCP.SourceIPAddress; source.IsValid() && !m.TCP.IPProtocolFallback && m.TCP.PreferredIPProtocol != m.TCP.Network() {
				r.wrong(v.Line, "%ssource_ip_address is %v, and only %s is to be probed: want a source of that family, or ip_protocol_fallback",
					where, source, m.TCP.PreferredIPProtocol)
			}
			return nil
		},
	}
	for _, other := range otherProbers {
		keys[other] = func(*yaml.Node) error { return errors.New("is for another prober, " + keepThere) }
	}
	return keys
}

func (t *TCP) keys(r *reader, where string) section {
	return section{
		"preferred_ip_protocol": choice(&t.PreferredIPProtocol, IP4, IP6),
		"ip_protocol_fallback": func(v *yaml.Node) error {
			if v.Decode(&t.IPProtocolFallback) != nil || isNull(v) {
				return fmt.Errorf("is %s, want true or false", kind(v))
			}
			return nil
		},
		"addresses": choice(&t.Addresses, First, All),
		"source_ip_address": func(v *yaml.Node) error {
			addr, err := netip.ParseAddr(v.Value)
			addr = addr.Unmap()
			switch {
			case err != nil || addr.IsUnspecified() || addr.IsMulticast() || addr == broadcast:
				return fmt.Errorf("is %s, want an address of this host, such as 192.0.2.7 or 2001:db8::7", kind(v))
			case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
				return fmt.Errorf("is %v, want its zone as well, as in %v%%eth0", addr, addr)
			}
			t.SourceIPAddress = addr
			return r.try(v, where+"source_ip_address", shaker.Options{Source: addr})
		},
		"source_ports": func(v *yaml.Node) error {
			first, last, err := parsePorts(v.Value)
			if err != nil {
				return err
			}
			t.SourcePorts = shaker.PortRange{First: first, Last: last}
			return r.try(v, where+"source_ports", shaker.Options{SourcePorts: t.SourcePorts})
		},
		"interface": func(v *yaml.Node) error {
			const longest = 15 // and a NUL: IFNAMSIZ in netdevice(7)
			if isNull(v) || v.Value == "" || len(v.Value) > longest || strings.ContainsAny(v.Value, "/: \t\n\v\f\r\x00") {
				return fmt.Errorf("is %s, want the name of an interface, such as eth1", kind(v))
			}
			t.Interface = v.Value
			return r.try(v, where+"interface", shaker.Options{Interface: t.Interface})
		},
		"dscp": func(v *yaml.Node) (err error) {
			if t.DSCP, err = number[uint8](v, 0, 63); err != nil {
				return err
			}
			return r.try(v, where+"dscp", shaker.Options{DSCP: t.DSCP})
		},
		"fwmark": func(v *yaml.Node) (err error) {
			if t.FWMark, err = number[uint32](v, 0, math.MaxUint32); err != nil {
				return err
			}
			return r.try(v, where+"fwmark", shaker.Options{Mark: t.FWMark})
		},
		"ttl": func(v *yaml.Node) (err error) {
			if t.TTL, err = number[uint8](v, 1, 255); err != nil {
				return err
			}
			return r.try(v, where+"ttl", shaker.Options{TTL: t.TTL})
		},
		"valid_results": func(v *yaml.Node) error {
			t.ValidResults = nil
			for _, item := range r.list(where+"valid_results", v) {
				switch result := item.Value; {
				case !slices.Contains(Results(), result):
					r.wrong(item.Line, "%svalid_results has %s in it, want %s", where, kind(item), oneOf(likely(result, Results())))
				case slices.Contains(t.ValidResults, result):
					r.wrong(item.Line, "%svalid_results has %s in it twice", where, result)
				default:
					t.ValidResults = append(t.ValidResults, result)
				}
			}
			if isNull(v) || v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
				return fmt.Errorf("is empty, want some of %s", strings.Join(Results(), ", "))
			}
			return nil
		},
		"close": choice(&t.Close, Reset, FIN),

		// What blackbox_exporter has besides.
		"query_response": func(*yaml.Node) error { return errors.New("is a conversation, " + keepThere) },
		"tls_config":     func(*yaml.Node) error { return errors.New("is for TLS, " + keepThere) },
		"tls": func(v *yaml.Node) error {
			tls := false
			if v.Decode(&tls) != nil {
				return fmt.Errorf("is %s, want true or false", kind(v))
			}
			if tls {
				return errors.New("is true, " + keepThere)
			}
			return nil
		},
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// choice reads one of some words.
func choice(to *string, words ...string) func(*yaml.Node) error {
	return func(v *yaml.Node) error {
		if *to = v.Value; !slices.Contains(words, v.Value) {
			return fmt.Errorf("is %s, want %s", kind(v), oneOf(words))
		}
		return nil
	}
}

// number reads a number from low to high.
func number[T uint8 | uint32](v *yaml.Node, low, high T) (n T, err error) {
	if v.Decode(&n) != nil || isNull(v) || n < low || n > high {
		return 0, fmt.Errorf("is %s, want %d to %d", kind(v), low, high)
	}
	return n, nil
}

// try finds out whether this process may use options on this host. What may come later,
// such as an interface, is worth a warning.
func (r *reader) try(v *yaml.Node, key string, options shaker.Options) error {
	err := options.Check()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EADDRNOTAVAIL):
		r.warn(v.Line, "%s is %s, which this host does not have now: until it does, such probes are faults", key, kind(v))
		return nil
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("is %s, which needs a privilege that this process lacks: CAP_NET_RAW or CAP_NET_ADMIN. "+
			"For systemd that is AmbientCapabilities=CAP_NET_RAW, for a container --cap-add=NET_RAW, and for the program setcap cap_net_raw+ep", kind(v))
	case errors.Is(err, syscall.ENOPROTOOPT):
		return fmt.Errorf("is %s, for which this kernel is too old: source_ports needs Linux 6.3", kind(v))
	case errors.Is(err, errors.ErrUnsupported):
		return fmt.Errorf("is %s, which there is only on Linux, not on %s", kind(v), runtime.GOOS)
	}
	return fmt.Errorf("is %s: %w", kind(v), err)
}
