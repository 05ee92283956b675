package config

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func readTCP(v value, t *TCP, keys []key[TCP]) {
	if isNull(v.Node) { // all its keys are commented out
		return
	}
	v.file.tcp = readMapping(v, t, keys)
	if t.SourceIPAddress.IsValid() {
		t.checkSource(v.file.tcp["source_ip_address"])
	}
	if t.SourcePorts != (shaker.PortRange{}) {
		t.checkSourcePorts(v.file.tcp["source_ports"])
	}
}

// checkSourcePorts checks the source ports together with the key flows. Without flows, the kernel chooses from the
// range; with flows, each handshake has a port of its own.
func (t *TCP) checkSourcePorts(v value) {
	if t.Flows == 0 {
		v.checkHost(shaker.Options{SourcePorts: t.SourcePorts})
		return
	}
	if have := int(t.SourcePorts.Last) - int(t.SourcePorts.First) + 1; have < int(t.Flows) {
		v.refuse("is %s, want at least %d ports, one for each of tcp.flows", v.quote(), t.Flows)
		return
	}
	used := t.ownFlowPorts()
	if all, given := used.Ephemeral(); given {
		v.warn("is %s, and the kernel gives the ports %v to connections (net.ipv4.ip_local_port_range): probes leave "+
			"a flow out while its port is in use. Want other ports, or %v in net.ipv4.ip_local_reserved_ports",
			v.quote(), all, used)
	}
	var taken []string
	for i := range uint16(t.Flows) {
		port := t.SourcePorts.First + i
		switch err := (&shaker.Options{SourcePort: port}).Check(); {
		case errors.Is(err, syscall.EADDRINUSE):
			taken = append(taken, strconv.Itoa(int(port)))
		case errors.Is(err, syscall.EACCES):
			v.refuse("is %s, but this process may not send from port %d: ports below "+
				"net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE, want other ports", v.quote(), port)
			return
		case err != nil:
			v.judge(err)
			return
		}
	}
	if taken != nil {
		v.warn("is %s, but these ports are in use: %s. Until they are free, probes leave their flows out",
			v.quote(), strings.Join(taken, ", "))
	}
}

// ownFlowPorts returns those of the source ports that the flows use.
func (t *TCP) ownFlowPorts() shaker.PortRange {
	return shaker.PortRange{First: t.SourcePorts.First, Last: t.SourcePorts.First + uint16(t.Flows) - 1}
}

// sendsElsewhere reports whether the two send from different addresses or interfaces, so that both can use a port.
func (t *TCP) sendsElsewhere(other *TCP) bool {
	a, b := t.SourceIPAddress, other.SourceIPAddress
	return a.IsValid() && b.IsValid() && a != b ||
		t.Interface != "" && other.Interface != "" && t.Interface != other.Interface
}

// checkSource checks the source address together with the other keys of the section tcp.
func (t *TCP) checkSource(v value) {
	source, zone := t.SourceIPAddress, t.SourceIPAddress.Zone()
	if family := t.Network(); !t.IPProtocolFallback && family != t.PreferredIPProtocol {
		preferred := t.PreferredIPProtocol
		v.refuse("is %v, an %s address, but the module probes only %s, "+
			"want an %s address or ip_protocol_fallback: true", source, family, preferred, preferred)
	}
	if zone != "" && t.Interface != "" && zone != t.Interface {
		v.refuse("is %v, but tcp.interface is %s, want %v", source, t.Interface, source.WithZone(t.Interface))
		return
	}
	v.checkHost(sourceOptions(t))
}

func readSource(v value, source *netip.Addr) {
	const want = "an address of this host, such as 192.0.2.7 or 2001:db8::7"
	text, ok := v.text(want)
	if !ok || text == "" { // the default of blackbox_exporter
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
	case addr.IsUnspecified() && zone == "": // any address
	case addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		v.wrong(want + ", not a multicast or broadcast address")
	case linkLocal && zone == "":
		v.wrong("a link-local address with its zone, such as " + text + "%eth0")
	case !linkLocal && zone != "":
		v.wrong(addr.WithZone("").String() + ": only a link-local address has a zone")
	default:
		*source = addr // checkSource checks it once the interface is known
	}
}

func readDNSServer(v value, server *netip.AddrPort) {
	const want = "the address of a DNS server, such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53"
	text, ok := v.text(want)
	if !ok {
		return
	}
	const port = 53
	parsed, err := netip.ParseAddrPort(text)
	if addr, notAddr := netip.ParseAddr(text); notAddr == nil {
		parsed, err = netip.AddrPortFrom(addr, port), nil
	}
	addr := parsed.Addr().Unmap()
	switch {
	case err != nil || parsed.Port() == 0 || addr.IsUnspecified() || addr.IsMulticast():
		v.wrong(want)
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
		v.wrong("a link-local address with its zone, such as " + addr.String() + "%eth0")
	case !addr.IsLinkLocalUnicast() && addr.Zone() != "":
		v.wrong(addr.WithZone("").String() + ": only a link-local address has a zone")
	default:
		*server = netip.AddrPortFrom(addr, parsed.Port())
	}
}

// readDNSTimeout reads dns_timeout. Unlike timeout, it is not a key of blackbox_exporter, and has none of its rules.
func readDNSTimeout(v value, timeout *time.Duration) {
	text, ok := v.text(wantDuration)
	if !ok {
		return
	}
	duration, err := time.ParseDuration(text)
	switch {
	case err != nil:
		v.wrong(wantDuration)
	case duration <= 0 || duration > MaxTimeout:
		v.wrong(wantTimeout)
	default:
		*timeout = duration
	}
}

func readSourcePorts(v value, ports *shaker.PortRange) {
	const want = "1 to 65535, or a range such as 40000-40999"
	text, ok := v.text(want)
	if !ok {
		return
	}
	parsed, ok := ParsePorts(text)
	if !ok {
		v.wrong(want)
		return
	}
	*ports = parsed // readTCP checks them once flows is known
}

func readInterface(v value, name *string) {
	const want = "the name of an interface, of 1 to 15 characters"
	text, ok := v.text(want)
	if !ok {
		return
	}
	invalid := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r) }
	if text == "" || len(text) > 15 || strings.ContainsFunc(text, invalid) {
		v.wrong(want)
		return
	}
	*name = text
	v.checkHost(shaker.Options{Interface: text})
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
			item.refuse("contains %s twice, want it once", result)
		case result != "":
			valid = append(valid, result)
		}
	}
	*into = valid
}
