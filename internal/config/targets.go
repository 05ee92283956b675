package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Targets is the policy for targets: which of them may be probed. Its zero value allows all.
type Targets struct {
	Allow []Range // nil: all targets
	Deny  []Range // takes precedence over Allow
}

// Range is a set of targets: every address of a prefix, with every port of a range.
type Range struct {
	prefix netip.Prefix // without host bits; an IPv4-mapped prefix becomes an IPv4 prefix
	ports  shaker.PortRange
}

// Check returns nil if the target may be probed, and otherwise an error that names the rule.
//
// An IPv4-mapped target is checked as its IPv4 address, and a target with a zone without the zone. A rule that denies
// an IPv4 address also denies the IPv6 addresses that contain it, such as those of NAT64. A rule that allows an IPv4
// address does not allow them: where packets to them arrive depends on the network.
// No policy permits the unspecified addresses 0.0.0.0 and ::, with which the kernel connects to
// this host: to the loopback address, or to the source address of the module if it has one.
func (t *Targets) Check(target netip.AddrPort) error {
	if t.Allow == nil && t.Deny == nil {
		return nil
	}
	addr := target.Addr().Unmap().WithZone("")
	if addr.IsUnspecified() {
		return fmt.Errorf("%v stands for an address of this host, want that address", addr)
	}
	if i := index(t.Deny, addr, target.Port()); i >= 0 {
		return fmt.Errorf("targets.deny %v forbids it", t.Deny[i])
	}
	if addr.Is6() && len(t.Deny) > 0 {
		for _, four := range embeddedIn(addr) {
			if i := index(t.Deny, four.Addr, target.Port()); i >= 0 {
				return fmt.Errorf("it contains %v (%s), which targets.deny %v forbids", four, four.by, t.Deny[i])
			}
		}
	}
	if t.Allow != nil && index(t.Allow, addr, target.Port()) < 0 {
		return errors.New("no rule of targets.allow permits it")
	}
	return nil
}

// index returns the index of the first range that contains a port of an address, or -1.
func index(ranges []Range, addr netip.Addr, port uint16) int {
	return slices.IndexFunc(ranges, func(r Range) bool {
		return r.prefix.Contains(addr) && r.ports.First <= port && port <= r.ports.Last
	})
}

// anyPort is how the file writes all ports. They include port 0, which 1-65535 does not.
const anyPort = "*"

var allPorts = shaker.PortRange{First: 0, Last: 65535}

// String returns the range as in the configuration file, always with a prefix length:
// 10.0.0.0/8:443, [2001:db8::1/128]:1-1024 or 192.0.2.1/32:*.
func (r Range) String() string {
	var ports string
	switch {
	case r.ports == allPorts:
		ports = anyPort
	case r.ports.First == r.ports.Last:
		ports = strconv.Itoa(int(r.ports.First))
	default:
		ports = r.ports.String()
	}
	return net.JoinHostPort(r.prefix.String(), ports)
}

func readTargets(v value, targets *Targets) {
	if isEmpty(v.Node) {
		v.refuse("is empty, want allow or deny")
		return
	}
	readMapping(v, targets, targetsKeys)
}

func readAllow(v value, allow *[]Range) {
	if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		v.refuse("is empty, so that no target could be probed: remove the key to allow all targets")
		return
	}
	readRanges(v, allow)
}

func readRanges(v value, ranges *[]Range) {
	const want = `a list such as ["10.0.0.0/8:443", "[2001:db8::/32]:*"]`
	items, _ := v.items(want)
	for _, item := range items {
		text, ok := item.text(`a quoted string such as "10.0.0.0/8:443" or "[2001:db8::/32]:*"`)
		if !ok {
			continue
		}
		r, err := parseRange(text)
		if err != nil {
			item.path = v.path + ": " + item.quote()
			item.refuse("%v", err)
			continue
		}
		*ranges = append(*ranges, r)
	}
}

// parseRange parses prefix:ports. An address without a prefix length has all its bits.
func parseRange(text string) (Range, error) {
	host, ports, err := net.SplitHostPort(text)
	if err != nil {
		return Range{}, explainSplit(text)
	}
	r := Range{ports: allPorts}
	if ports != anyPort {
		var ok bool
		if r.ports, ok = ParsePorts(ports); !ok {
			return Range{}, fmt.Errorf("has port %q, want 1 to 65535, a range such as 1-1024, or %s", ports, anyPort)
		}
	}
	if r.prefix, err = parsePrefix(host); err != nil {
		return Range{}, err
	}
	if r.prefix.Addr().Is4() == strings.HasPrefix(text, "[") {
		return Range{}, fmt.Errorf("has brackets, which are only for IPv6, want %s:%s", host, ports)
	}
	if masked := r.prefix.Masked(); masked != r.prefix {
		r.prefix = masked
		return Range{}, fmt.Errorf("has bits set beyond its prefix length, want %v", r)
	}
	if addr := r.prefix.Addr(); addr.Is4In6() {
		r.prefix = netip.PrefixFrom(addr.Unmap(), r.prefix.Bits()-96)
	}
	return r, nil
}

// explainSplit returns why a text is not host:port, with the Range that may be meant.
func explainSplit(text string) error {
	host := strings.Trim(text, "[]")
	if _, err := parsePrefix(host); err == nil {
		return fmt.Errorf("has no port, want %s or %s", net.JoinHostPort(host, "443"), net.JoinHostPort(host, anyPort))
	}
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		if _, err := parsePrefix(text[:i]); err == nil {
			return fmt.Errorf("has no brackets, want %s", net.JoinHostPort(text[:i], text[i+1:]))
		}
	}
	return errors.New("is not an address range with ports, want one such as 10.0.0.0/8:443 or [2001:db8::/32]:*")
}

func parsePrefix(text string) (netip.Prefix, error) {
	if before, zone, found := strings.Cut(text, "%"); found {
		if _, bits, found := strings.Cut(zone, "/"); found {
			before += "/" + bits
		}
		return netip.Prefix{}, fmt.Errorf("has a zone, want %s: a rule applies to every interface", before)
	}
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix, nil
	}
	host, bits, hasBits := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("has no IP address, want one such as 10.0.0.0/8 or 192.0.2.1: " +
			"rules match resolved addresses, not names")
	case hasBits:
		return netip.Prefix{}, fmt.Errorf("has prefix length %s, want 0 to %d", quote(bits), addr.BitLen())
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

// ParsePorts parses a port, or two ports with a dash between them.
func ParsePorts(text string) (ports shaker.PortRange, ok bool) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	ok = err == nil && err2 == nil && 0 < first && first <= last
	return shaker.PortRange{First: uint16(first), Last: uint16(last)}, ok
}
