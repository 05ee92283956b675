package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Targets is the policy: which targets may be probed. Its zero value allows everyone.
type Targets struct {
	Allow []Range // nil: everyone
	Deny  []Range // wins over Allow
}

// Range is a set of targets: the addresses of a prefix, with the ports of a range.
type Range struct {
	prefix      netip.Prefix // of IPv4 where it was an IPv4-mapped one; without host bits
	first, last uint16
}

// Check returns nil if the target may be probed, and otherwise the rule that forbids it.
//
// An IPv4-mapped target is its IPv4 address, and one with a zone is matched without it. No
// policy permits the unspecified addresses 0.0.0.0 and ::, with which the kernel connects to
// this host: to the loopback address, or to the source address where a module has one.
func (t *Targets) Check(target netip.AddrPort) error {
	if t.Allow == nil && t.Deny == nil {
		return nil
	}
	addr := target.Addr().Unmap().WithZone("")
	if addr.IsUnspecified() {
		return fmt.Errorf("%v stands for an address of this host, which has to be named", addr)
	}
	matches := func(r Range) bool {
		return r.prefix.Contains(addr) && r.first <= target.Port() && target.Port() <= r.last
	}
	if i := slices.IndexFunc(t.Deny, matches); i >= 0 {
		return fmt.Errorf("targets.deny %v forbids it", t.Deny[i])
	}
	if t.Allow != nil && !slices.ContainsFunc(t.Allow, matches) {
		return errors.New("no rule of targets.allow permits it")
	}
	return nil
}

// anyPort is how a Range is written that has all ports.
const anyPort = "*"

// String returns the range as the configuration file has it, with the length of its prefix
// in any case: 10.0.0.0/8:443, [2001:db8::1/128]:1-1024 or 192.0.2.1/32:*.
func (r Range) String() string {
	var ports string
	switch {
	case r.first == 0:
		ports = anyPort
	case r.first == r.last:
		ports = strconv.Itoa(int(r.first))
	default:
		ports = fmt.Sprintf("%d-%d", r.first, r.last)
	}
	return net.JoinHostPort(r.prefix.String(), ports)
}

// parseRange reads prefix:ports. A bare address is a prefix of all its bits.
func parseRange(text string) (Range, error) {
	host, ports, err := net.SplitHostPort(text)
	if err != nil {
		return Range{}, explainSplit(text)
	}
	r := Range{first: 0, last: 65535}
	if ports != anyPort {
		if r.first, r.last, err = parsePorts(ports); err != nil {
			return Range{}, fmt.Errorf("has the port %s, want 1 to 65535, a range such as 1-1024, or %s", strconv.Quote(ports), anyPort)
		}
	}
	if r.prefix, err = parsePrefix(host); err != nil {
		return Range{}, err
	}
	if r.prefix.Addr().Is4() == strings.HasPrefix(text, "[") {
		return Range{}, fmt.Errorf("has brackets, which are for IPv6, want %s:%s", host, ports)
	}
	if masked := r.prefix.Masked(); masked != r.prefix {
		r.prefix = masked
		return Range{}, fmt.Errorf("has bits set beyond its prefix, want %v", r)
	}
	if addr := r.prefix.Addr(); addr.Is4In6() {
		r.prefix = netip.PrefixFrom(addr.Unmap(), r.prefix.Bits()-96)
	}
	return r, nil
}

// explainSplit returns what keeps a text from being host:port, by the wants of a Range.
func explainSplit(text string) error {
	if _, err := parsePrefix(strings.Trim(text, "[]")); err == nil {
		host := strings.Trim(text, "[]")
		return fmt.Errorf("has no port, want %s or %s", net.JoinHostPort(host, "443"), net.JoinHostPort(host, anyPort))
	}
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		if _, err := parsePrefix(text[:i]); err == nil {
			return fmt.Errorf("has no brackets, want %s", net.JoinHostPort(text[:i], text[i+1:]))
		}
	}
	return errors.New("is no range of addresses and ports, want one such as 10.0.0.0/8:443 or [2001:db8::/32]:*")
}

func parsePrefix(text string) (netip.Prefix, error) {
	if before, zone, found := strings.Cut(text, "%"); found {
		if _, bits, found := strings.Cut(zone, "/"); found {
			before += "/" + bits
		}
		return netip.Prefix{}, fmt.Errorf("has a zone, want %s: it is matched on every interface", before)
	}
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix, nil
	}
	host, bits, hasBits := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("has no address, want one such as 10.0.0.0/8 or 192.0.2.1: names are checked once they are resolved")
	case hasBits:
		return netip.Prefix{}, fmt.Errorf("has the prefix length %s, want 0 to %d", quote(bits), addr.BitLen())
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

// parsePorts reads a port or two with a dash between them.
func parsePorts(text string) (first, last uint16, err error) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	if first, err = parsePort(from); err != nil {
		return 0, 0, err
	}
	if last, err = parsePort(to); err != nil {
		return 0, 0, err
	}
	if first > last {
		return 0, 0, errors.New("the first port is above the last")
	}
	return first, last, nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("a port is 1 to 65535")
	}
	return uint16(port), nil
}
