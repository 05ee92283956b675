package config

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func readTCP(v value, t *TCP) {
	if isNull(v.Node) { // all its keys are commented out
		return
	}
	given := readMapping(v, t, tcpKeys)
	source := t.SourceIPAddress
	if !source.IsValid() {
		return
	}
	v = given["source_ip_address"]
	if family := t.Network(); !t.IPProtocolFallback && family != t.PreferredIPProtocol {
		v.refuse("is %v, of %s, but the module probes only %s, want an address of that, or ip_protocol_fallback: true",
			source, family, t.PreferredIPProtocol)
	}
	if zone := source.Zone(); zone != "" && t.Interface != "" && zone != t.Interface {
		v.refuse("is %v, but tcp.interface is %s, want %v", source, t.Interface, source.WithZone(t.Interface))
		return
	}
	v.try(sourceOptions(t))
}

// sourceOptions returns the options that say whether the source can be had. An address of a
// VRF is one of this host only with the interface; one that cannot be had has its own remark.
func sourceOptions(t *TCP) shaker.Options {
	options := shaker.Options{Interface: t.Interface}
	if options.Check() != nil {
		options.Interface = ""
	}
	options.Source = t.SourceIPAddress
	return options
}

func readSource(v value, source *netip.Addr) {
	const want = "an address of this host, such as 192.0.2.7 or 2001:db8::7"
	text, ok := v.text(want)
	if !ok || text == "" { // as blackbox_exporter has it by default
		return
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		v.wrong(want)
		return
	}
	zone := addr.Zone()
	addr = addr.Unmap()
	switch linkLocal := addr.Is6() && addr.IsLinkLocalUnicast(); {
	case addr.IsUnspecified():
		v.wrong(want + ", or leave it out for the system's choice")
	case addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		v.wrong(want + ", which is no multicast or broadcast address")
	case linkLocal && zone == "":
		v.wrong("a link-local address with its zone, such as " + text + "%eth0")
	case !linkLocal && zone != "":
		v.wrong(addr.WithZone("").String() + ": only a link-local address has a zone")
	default:
		*source = addr // tried once the interface is known
	}
}

func readSourcePorts(v value, ports *shaker.PortRange) {
	const want = "1 to 65535, or a range such as 40000-40999"
	text, ok := v.text(want)
	if !ok {
		return
	}
	first, last, err := parsePorts(text)
	if err != nil {
		v.wrong(want)
		return
	}
	*ports = shaker.PortRange{First: first, Last: last}
	v.try(shaker.Options{SourcePorts: *ports})
}

func readInterface(v value, name *string) {
	const want = "the name of an interface, of 1 to 15 characters"
	text, ok := v.text(want)
	if !ok {
		return
	}
	impossible := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r) }
	if text == "" || len(text) > 15 || strings.ContainsFunc(text, impossible) {
		v.wrong(want)
		return
	}
	*name = text
	v.try(shaker.Options{Interface: text})
}

func readResults(v value, into *[]string) {
	all := results()
	items, ok := v.items("a list of results, such as [open]")
	if !ok {
		return
	}
	if len(items) == 0 {
		v.refuse("is empty, so that no probe could succeed, want a list of results, such as [open]")
		return
	}
	var valid []string
	for _, item := range items {
		var result string
		switch item.choice(&result, all...); {
		case slices.Contains(valid, result):
			item.path = v.path
			item.refuse("has %s twice, want it once", result)
		case result != "":
			valid = append(valid, result)
		}
	}
	*into = valid
}

func refuseQueries(v value) {
	if empty := v.Kind == yaml.SequenceNode && len(v.Content) == 0; !empty && !isNull(v.Node) {
		v.refuse("is given, %s", keepThere)
	}
}

func refuseTLS(v value) {
	var tls bool
	if v.boolean(&tls); tls {
		v.refuse("is true, %s", keepThere)
	}
}

// ignoreTLSConfig takes any mapping: without tls, which is refused, it means nothing in
// blackbox_exporter either.
func ignoreTLSConfig(v value) {
	if v.Kind != yaml.MappingNode && !isNull(v.Node) {
		v.wrong("a mapping")
	}
}
