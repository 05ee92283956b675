package probe

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Request describes a probe: the target and how to probe it. It keeps the configuration that was
// active when it was created.
type Request struct {
	Target
	ModuleName string
	Module     config.Module
	Timeout    time.Duration // of the whole probe, including name resolution; the module's unless changed

	targets *config.Targets
	onHop   func(shaker.Hop)      // may be nil
	onFlow  func(traced, all int) // nil if not all flows are traced; see TraceFlows
	sent    *atomic.Int64         // may be nil
	partial func(*Report)         // may be nil; see ReportPart
	known   KnownFlows            // may be nil
}

// KnownFlows returns the last results of all flows to an address except those that are left out, nil if one of them is
// not known. With an error, the probe ends without a verdict.
type KnownFlows func(peer netip.AddrPort) ([]Flow, error)

// ReuseFlows makes the probe use results of flows that are known, instead of handshakes from the same ports.
func (r *Request) ReuseFlows(known KnownFlows) { r.known = known }

// CountSent makes the probe add to n the number of its handshakes whose SYN leaves this host, as soon as it does.
// Retransmissions are not counted.
func (r *Request) CountSent(n *atomic.Int64) { r.sent = n }

// ReportPart makes the probe call part if it ends without a verdict although some flows have a result: with a report
// about an address, and only these flows. There may be several calls at the same time, if there are several addresses.
func (r *Request) ReportPart(part func(*Report)) { r.partial = part }

// A Target is what to probe: a port of Addr if it is valid, otherwise of Name.
type Target struct {
	Text string // as the caller wrote it, decoded once more if it was encoded twice
	Name string // in ASCII
	Addr netip.Addr
	Port uint16
}

// Mistakes of a caller: every error of [NewRequest] is one of them, in addition to its own text.
var (
	ErrTarget = errors.New("not a target that can be probed")
	ErrModule = errors.New("not a module that this exporter can probe with")
)

// A mistake is an error whose kind is not part of its text.
type mistake struct {
	error
	kind error
}

func (m mistake) Is(target error) bool { return target == m.kind }

// NewRequest returns a request to probe a target, host:port, with a module of the configuration and the
// module's timeout. Without the name of a module, it is [config.DefaultModule]. An error is a mistake of the caller,
// [ErrTarget] or [ErrModule].
func NewRequest(c *config.Config, target, module string) (*Request, error) {
	t, err := decodeTarget(target)
	if err != nil {
		return nil, mistake{error: err, kind: ErrTarget}
	}
	name := cmp.Or(module, config.DefaultModule)
	data, ok := c.Modules[name]
	if !ok {
		return nil, mistake{error: noModule(c, module), kind: ErrModule}
	}
	req := &Request{Target: t, ModuleName: name, Module: data, targets: &c.Targets, Timeout: data.Timeout}
	if err := req.checkFamily(); err != nil {
		return nil, mistake{error: err, kind: ErrTarget}
	}
	return req, nil
}

// maxTarget is the number of characters of the longest target that can be probed. A longer one would only occupy
// memory, in the history and in logs.
const maxTarget = maxName + len(":65535")

// noModule returns why the configuration has no module of a name, which is "" if the caller named none.
func noModule(c *config.Config, module string) error {
	what := "unknown module " + Quote(module)
	foreign, isForeign := c.Foreign[cmp.Or(module, config.DefaultModule)]
	switch {
	case module == "" && isForeign:
		what = fmt.Sprintf("no module given, and the default module %s is left to blackbox_exporter, because %v",
			config.DefaultModule, foreign)
	case module == "":
		what = fmt.Sprintf("no module given, and the configuration lacks the default module %s", config.DefaultModule)
	case isForeign:
		return fmt.Errorf("module %s is left to blackbox_exporter, because %v: "+
			"this exporter performs only TCP handshakes", Quote(module), foreign)
	}
	const most = 20
	names := config.Names(c.Modules)
	if more := len(names) - most; more > 0 {
		names = append(names[:most], fmt.Sprintf("and %d more", more))
	}
	if len(names) == 0 {
		return fmt.Errorf("%s, and the configuration has no modules", what)
	}
	return fmt.Errorf("%s, the modules are %s", what, strings.Join(names, ", "))
}

// decodeTarget parses a target, which may have been encoded twice: some clients encode it, and Prometheus encodes the
// result. The colon before the port is then %3A. This does not occur in a valid target, except in a zone: a target
// that is valid as it is stays as it is.
func decodeTarget(text string) (Target, error) {
	t, err := parseTarget(text)
	if err != nil && strings.Contains(strings.ToUpper(text), "%3A") {
		if decoded, invalid := url.QueryUnescape(text); invalid == nil {
			return parseTarget(decoded)
		}
	}
	return t, err
}

// parseTarget parses host:port. The host is a name, an IPv4 address, or an IPv6 address in brackets. A
// link-local address needs its zone.
func parseTarget(text string) (Target, error) {
	const want = "want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443"
	if text == "" {
		return Target{}, errors.New("missing target, " + want)
	}
	wrong := func(what string) (Target, error) { return Target{}, fmt.Errorf("target %s: %s", Quote(text), what) }
	if strings.Contains(text, "://") {
		return wrong("has a scheme, want host:port, as in example.com:443")
	}
	if n := utf8.RuneCountInString(text); n > maxTarget {
		return wrong(fmt.Sprintf("%d characters, want at most %d", n, maxTarget))
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return wrong(want)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return wrong(fmt.Sprintf("port %s, want a number from 1 to 65535", Quote(port)))
	}
	if port[0] == '0' { // otherwise, one target would have any number of names
		return wrong(fmt.Sprintf("port %s has leading zeros, want %d", Quote(port), number))
	}
	if host == "" {
		return Target{}, fmt.Errorf("target %s has no host, %s", Quote(text), want)
	}
	t := Target{Text: text, Port: uint16(number)}
	addr, err := netip.ParseAddr(host)
	if strings.HasPrefix(text, "[") && !addr.Is6() {
		return wrong("brackets must contain an IPv6 address")
	}
	if err == nil {
		invalid := func(c rune) bool { return c <= ' ' || c > '~' }
		if zone := addr.Zone(); len(zone) > 15 || strings.ContainsFunc(zone, invalid) {
			return wrong("the zone is not an interface name")
		}
		if err := checkAddr(addr.Unmap()); err != nil {
			return wrong(err.Error())
		}
		t.Addr = addr.Unmap()
		return t, nil
	}
	name, err := asciiName(host)
	if err != nil {
		return wrong(err.Error())
	}
	if endsInNumber(name) {
		return wrong(fmt.Sprintf("host %s is not a valid IPv4 address, "+
			"want four decimal numbers from 0 to 255, as in 192.0.2.1", Quote(host)))
	}
	t.Name = name
	return t, nil
}

// lookupProfile converts internationalized names for a lookup, as browsers do (UTS 46), except that it permits
// underscores: checkName decides about ASCII characters.
var lookupProfile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false))

// asciiName returns the form of a host name that is looked up: an internationalized name has labels such as
// xn--bcher-kva. A name in ASCII remains as it is.
func asciiName(host string) (string, error) {
	if !strings.ContainsFunc(host, func(c rune) bool { return c > unicode.MaxASCII }) {
		return host, checkName(host)
	}
	if utf8.RuneCountInString(host) > maxName { // converting a long name would take long
		return "", errLongName
	}
	name, err := lookupProfile.ToASCII(host)
	if err != nil || strings.ContainsRune(host, utf8.RuneError) {
		return "", fmt.Errorf("host %s is not a valid internationalized name", Quote(host))
	}
	return name, checkName(name)
}

const maxName = 254 // 253 characters and the final dot

var errLongName = errors.New("the host name is longer than 253 characters")

// checkName returns what is wrong with a host name by RFC 1123. It permits underscores, which are common.
func checkName(name string) error {
	if len(name) > maxName {
		return errLongName
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" {
			return fmt.Errorf("host %s has an empty label", Quote(name))
		}
		if len(label) > 63 {
			return fmt.Errorf("label %s of the host name is longer than 63 characters", Quote(label))
		}
		if label[0] == '-' || label[len(label)-1] == '-' { // Go's resolver would not look it up
			return fmt.Errorf("label %s of the host name begins or ends with a hyphen", Quote(label))
		}
		for _, c := range label {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return fmt.Errorf("host %s: invalid character %q", Quote(name), c)
			}
		}
	}
	return nil
}

// endsInNumber reports whether the last label of a host name is a number, decimal or hexadecimal. Such a name is
// not a name but a mistyped IPv4 address, because the last label of a name is not a number (RFC 1123, section 2.1,
// and the URL Standard, "ends in a number"). Without this check, the target would seem to be a name that does not
// exist, or the resolver would add a search domain and find another host.
func endsInNumber(host string) bool {
	host = strings.TrimSuffix(host, ".")
	last := strings.ToLower(host[strings.LastIndexByte(host, '.')+1:])
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		last, digits = hex, digits+"abcdef"
	}
	return strings.Trim(last, digits) == ""
}

// checkAddr returns an error if a SYN to the address would not reach one particular host. The address of a target
// is then a mistake, and the address of a name is not probed.
func checkAddr(addr netip.Addr) error {
	switch {
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
		return fmt.Errorf("the link-local address %v needs a zone, as in %v%%eth0", addr, addr)
	case addr.WithZone("").IsUnspecified(): // connect(2) on Linux would reach the prober itself
		return fmt.Errorf("%v stands for this host, want an address such as 127.0.0.1 or ::1", addr)
	}
	return nil
}

// checkFamily rejects an address that the module does not probe.
func (r *Request) checkFamily() error {
	network := r.Module.TCP.Network()
	if !r.Addr.IsValid() || network == "ip" || network == protocol(r.Addr) {
		return nil
	}
	return fmt.Errorf("target %s is %s, module %s probes only %s",
		Quote(r.Text), protocol(r.Addr), config.Name(r.ModuleName), network)
}

// protocol returns the IP protocol of an address as the configuration names it.
func protocol(addr netip.Addr) string {
	if addr.Is4() || addr.Is4In6() {
		return config.IP4
	}
	return config.IP6
}

// Check returns an error that wraps [ErrDenied] if the policy does not permit probes of an address.
func (r *Request) Check(addr netip.Addr) error {
	target := netip.AddrPortFrom(addr, r.Port)
	if err := r.targets.Check(target); err != nil {
		return fmt.Errorf("target %v %w: %w", target, ErrDenied, err)
	}
	return nil
}

// Valid reports whether a result is one of the module's valid results.
func (r *Request) Valid(result string) bool {
	return slices.Contains(r.Module.TCP.ValidResults, result)
}
