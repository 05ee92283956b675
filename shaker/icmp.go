package shaker

import "net/netip"

// ICMP is an ICMP error that answered a SYN, or an ICMPv6 error if From is an IPv6 address. The
// zero value means that there was none.
type ICMP struct {
	// From is the sender of the error: a router, the target, or this host. It is invalid if
	// there was no ICMP error.
	From netip.Addr

	// Type and Code are the numbers on the wire (RFC 792, RFC 1812, RFC 4443 and their
	// updates).
	Type, Code uint8

	// Own reports whether this host generated the error: neighbour resolution (ARP or
	// neighbour discovery) failed, or a local firewall rejected the packet.
	Own bool
}

// String returns the name of the error, such as "host_unreachable", or "other" for a type and code
// without a name here. It returns "" if there was no error. A host unreachable that this host
// generated is "neighbor_unreachable": the target, or the router on the way to it, did not answer on
// the link.
func (i ICMP) String() string {
	if !i.From.IsValid() {
		return ""
	}
	if i.Own && (i.From.Is4() && i.Type == 3 && i.Code == 1 || i.From.Is6() && i.Type == 1 && i.Code == 3) {
		return "neighbor_unreachable"
	}
	names := icmpNames
	if i.From.Is6() {
		names = icmp6Names
	}
	if name, ok := names[[2]uint8{i.Type, i.Code}]; ok {
		return name
	}
	return "other"
}

// destinationUnreachable reports whether the error is a Destination Unreachable message, whose
// code gives the reason.
func (i ICMP) destinationUnreachable() bool {
	return i.From.Is4() && i.Type == 3 || i.From.Is6() && i.Type == 1
}

// ttlExceeded reports whether a router dropped the packet because its TTL or hop limit had run out.
func (i ICMP) ttlExceeded() bool {
	return i.Code == 0 && (i.From.Is4() && i.Type == 11 || i.From.Is6() && i.Type == 3)
}

// soft reports whether the error may be transient according to RFC 1122, section 4.2.3.9: the
// network or the host is unreachable. That section also lists a TTL exceeded. Here it does not
// count as soft, because it means a routing loop, which a retransmitted SYN would enter as well.
func (i ICMP) soft() bool {
	if i.From.Is6() {
		return i.Type == 1 && (i.Code == 0 || i.Code == 3)
	}
	return i.Type == 3 && (i.Code == 0 || i.Code == 1 || i.Code == 5)
}

// prohibited reports whether a router or a firewall forbids packets to the target, as opposed to
// having no route to it.
func (i ICMP) prohibited() bool {
	if !i.destinationUnreachable() {
		return false
	}
	if i.From.Is6() {
		return i.Code == 1 || i.Code == 5 || i.Code == 6
	}
	return i.Code == 9 || i.Code == 10 || i.Code == 13
}

// The names of the errors by type and code. An error with the same meaning in ICMP and ICMPv6 has
// the same name in both.
var (
	icmpNames = map[[2]uint8]string{
		{3, 0}:  "net_unreachable",
		{3, 1}:  "host_unreachable",
		{3, 2}:  "protocol_unreachable",
		{3, 3}:  "port_unreachable",
		{3, 4}:  "fragmentation_needed",
		{3, 5}:  "source_route_failed",
		{3, 6}:  "net_unknown",
		{3, 7}:  "host_unknown",
		{3, 8}:  "source_isolated",
		{3, 9}:  "net_prohibited",
		{3, 10}: "host_prohibited",
		{3, 11}: "net_unreachable_for_tos",
		{3, 12}: "host_unreachable_for_tos",
		{3, 13}: "admin_prohibited",
		{3, 14}: "precedence_violation",
		{3, 15}: "precedence_cutoff",
		{11, 0}: "ttl_exceeded",
		{11, 1}: "reassembly_timeout",
		{12, 0}: "parameter_problem",
		{12, 1}: "parameter_problem",
		{12, 2}: "parameter_problem",
	}
	icmp6Names = map[[2]uint8]string{
		{1, 0}: "net_unreachable",
		{1, 1}: "admin_prohibited",
		{1, 2}: "beyond_scope",
		{1, 3}: "host_unreachable",
		{1, 4}: "port_unreachable",
		{1, 5}: "policy_failed",
		{1, 6}: "route_rejected",
		{1, 7}: "source_route_failed",
		{1, 8}: "headers_too_long",
		{2, 0}: "packet_too_big",
		{3, 0}: "ttl_exceeded",
		{3, 1}: "reassembly_timeout",
		{4, 0}: "parameter_problem",
		{4, 1}: "parameter_problem",
		{4, 2}: "parameter_problem",
		{4, 3}: "parameter_problem",
	}
)
