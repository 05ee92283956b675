package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Targets is who may be probed.
type Targets struct {
	Allow []Range `yaml:"allow,omitempty"` // nil: everyone
	Deny  []Range `yaml:"deny,omitempty"`  // wins over Allow
}

// A Range is the addresses of a prefix and some of their ports.
type Range struct {
	prefix      netip.Prefix
	first, last uint16 // ports; 1 and 65535 are all of them
}

// Check returns an error that says why a target may not be probed, nil if it may.
//
// IPv4-mapped IPv6 addresses are IPv4 ones, and zones do not count. The unspecified address,
// which the kernel takes for one of this host's own, is none that a policy permits.
func (t *Targets) Check(target netip.AddrPort) error {
	if t.Allow == nil && t.Deny == nil {
		return nil
	}
	addr, port := target.Addr().Unmap().WithZone(""), target.Port()
	if addr.IsUnspecified() {
		return fmt.Errorf("%v stands for an address of this host, which has to be named", addr)
	}
	for _, r := range t.Deny {
		if r.contains(addr, port) {
			return fmt.Errorf("targets.deny %v forbids it", r)
		}
	}
	for _, r := range t.Allow {
		if r.contains(addr, port) {
			return nil
		}
	}
	if t.Allow == nil {
		return nil
	}
	return errors.New("no rule of targets.allow permits it")
}

func (r Range) contains(addr netip.Addr, port uint16) bool {
	return r.prefix.Contains(addr) && r.first <= port && port <= r.last
}

// String returns the range as it is written in a file.
func (r Range) String() string {
	ports := fmt.Sprintf("%d-%d", r.first, r.last)
	switch {
	case r.first == 1 && r.last == 65535:
		ports = "*"
	case r.first == r.last:
		ports = strconv.Itoa(int(r.first))
	}
	if r.prefix.Addr().Is6() {
		return fmt.Sprintf("[%v]:%s", r.prefix, ports)
	}
	return fmt.Sprintf("%v:%s", r.prefix, ports)
}

// MarshalText returns what String returns.
func (r Range) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// parseRange reads 10.0.0.0/8:443, [2001:db8::/32]:*, or 10.0.0.1:1-1024. Its errors begin
// with what the text is.
func parseRange(text string) (Range, error) {
	const want = `want addresses and ports, as in 10.0.0.0/8:443, 10.0.0.1:1-1024 or [2001:db8::/32]:*`
	wrong := func(what string, args ...any) (Range, error) {
		return Range{}, fmt.Errorf("is %q: %s", text, fmt.Sprintf(what, args...))
	}
	colon := strings.LastIndexByte(text, ':')
	addresses, ports := text, ""
	if colon >= 0 && !strings.HasSuffix(text, "]") {
		addresses, ports = text[:colon], text[colon+1:]
	}
	bare, bracketed := strings.CutPrefix(addresses, "[")
	if bracketed {
		var closed bool
		if bare, closed = strings.CutSuffix(bare, "]"); !closed {
			return wrong(want)
		}
	}
	prefix, err := netip.ParsePrefix(bare)
	if addr, addrErr := netip.ParseAddr(bare); addrErr == nil {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		if addr.Zone() != "" {
			return wrong("a zone cannot be part of it")
		}
	}
	if _, addrErr := netip.ParseAddr(text); err != nil || prefix.Addr().Is4() == bracketed || addrErr == nil && prefix.Addr().Is6() {
		return wrong(want)
	}
	if ports == "" {
		return wrong("no port, want one, or a range of them, or * for all, as in %s:*", addresses)
	}
	first, last, err := parsePorts(ports)
	if ports == "*" {
		first, last, err = 1, 65535, nil
	}
	if err != nil {
		return wrong("port %v", err)
	}
	if prefix != prefix.Masked() {
		return wrong("the address has bits beyond the prefix, want %v", Range{prefix.Masked(), first, last})
	}
	if addr := prefix.Addr(); addr.Is4In6() {
		if prefix.Bits() < 96 {
			return wrong("an IPv4-mapped prefix has 96 bits or more")
		}
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	return Range{prefix, first, last}, nil
}

// parsePorts reads a port or a range of ports. Its errors begin with what the text is.
func parsePorts(text string) (first, last uint16, err error) {
	low, high, isRange := strings.Cut(text, "-")
	if !isRange {
		high = low
	}
	first, lowErr := parsePort(low)
	last, highErr := parsePort(high)
	if lowErr != nil || highErr != nil || first > last {
		return 0, 0, fmt.Errorf("is %q, want a port from 1 to 65535 or a range such as 40000-40999", text)
	}
	return first, last, nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err == nil && port == 0 || strings.HasPrefix(text, "+") {
		err = strconv.ErrRange
	}
	return uint16(port), err
}
