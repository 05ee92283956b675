package collector

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// timeoutHeader is what Prometheus tells of its scrape_timeout, in seconds.
const timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// A Request is a probe that is wanted, by the configuration that was in force then.
type Request struct {
	target
	module     string
	moduleData config.Module
	targets    *config.Targets
	timeout    time.Duration
	debug      bool
	onHop      func(shaker.Hop) // nil if nobody wants to be told
}

// target is what is to be probed: a name, or an address if that is valid, and a port.
type target struct {
	text string // as the caller wrote it
	name string
	addr netip.Addr
	port uint16
}

// parseRequest reads a request of /probe. Its errors are the caller's mistakes.
func parseRequest(r *http.Request, c *config.Config, timeoutOffset time.Duration) (*Request, error) {
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	for _, name := range []string{"target", "module", "debug"} {
		if n := len(params[name]); n > 1 {
			return nil, fmt.Errorf("%s is given %d times, want it once", name, n)
		}
	}
	req, err := newRequest(c, params.Get("target"), cmp.Or(params.Get("module"), config.DefaultModule))
	if err != nil {
		return nil, err
	}
	if debug := params.Get("debug"); debug != "" {
		if req.debug, err = strconv.ParseBool(debug); err != nil {
			return nil, fmt.Errorf("debug is %q, want true or false", debug)
		}
	}
	req.timeout, err = parseTimeout(r.Header.Get(timeoutHeader), timeoutOffset, req.timeout)
	return req, err
}

// newRequest returns a request with the module's timeout.
func newRequest(c *config.Config, target, module string) (*Request, error) {
	t, err := parseTarget(target)
	if err != nil {
		return nil, err
	}
	data, ok := c.Modules[module]
	if !ok {
		return nil, fmt.Errorf("module %q is unknown, there are %s",
			module, strings.Join(slices.Sorted(maps.Keys(c.Modules)), ", "))
	}
	req := &Request{target: t, module: module, moduleData: data, targets: &c.Targets, timeout: data.Timeout}
	return req, req.checkFamily()
}

// SetTimeout sets how long the probe may take, in place of the module's timeout.
func (r *Request) SetTimeout(timeout time.Duration) { r.timeout = timeout }

// parseTarget reads host:port, where the host is a name, an IPv4 address, or an IPv6
// address in brackets, with its zone if it is a link-local one.
func parseTarget(text string) (target, error) {
	const want = "want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443"
	if text == "" {
		return target{}, errors.New("target is missing, " + want)
	}
	wrong := func(what string) (target, error) {
		return target{}, fmt.Errorf("target %q: %s", text, what)
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return wrong(want)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 || port[0] == '+' {
		return wrong(fmt.Sprintf("port %q, want a number from 1 to 65535", port))
	}
	t := target{text: text, port: uint16(number)}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Is4() == strings.HasPrefix(text, "[") {
			return wrong(want)
		}
		if addr.IsLinkLocalUnicast() && addr.Is6() && !addr.Is4In6() && addr.Zone() == "" {
			return wrong(fmt.Sprintf("a link-local address wants its zone, as in [%v%%eth0]:%d", addr, number))
		}
		if strings.ContainsFunc(addr.Zone(), func(c rune) bool { return c <= ' ' || c > '~' }) {
			return wrong("the zone is no name of an interface")
		}
		t.addr = addr.Unmap()
		return t, nil
	}
	if strings.HasPrefix(text, "[") {
		return wrong("what is in brackets is no IPv6 address")
	}
	if err := checkName(host); err != nil {
		return wrong(err.Error())
	}
	t.name = host
	return t, nil
}

// checkName tells what keeps a name from being a host name, by RFC 1123 and with the
// underscores that are in use.
func checkName(name string) error {
	if len(name) > 254 { // 253 and the final dot
		return errors.New("the host name is longer than 253 characters")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" {
			return fmt.Errorf("host %q has an empty label", name)
		}
		if len(label) > 63 {
			return fmt.Errorf("label %q of the host name is longer than 63 characters", label)
		}
		for _, c := range label {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return fmt.Errorf("host %q: %q cannot be in a host name", name, c)
			}
		}
	}
	return nil
}

// checkFamily refuses an address that the module does not probe.
func (r *Request) checkFamily() error {
	network := r.moduleData.TCP.Network()
	if !r.addr.IsValid() || network == "ip" || network == protocol(r.addr) {
		return nil
	}
	return fmt.Errorf("target %q is %s, module %s probes only %s", r.text, protocol(r.addr), r.module, network)
}

// protocol returns the IP protocol of an address as modules have it.
func protocol(addr netip.Addr) string {
	if addr.Is4() || addr.Is4In6() {
		return config.IP4
	}
	return config.IP6
}

// parseTimeout returns how long a probe may take: what the header says, less the offset
// that the answer needs for its way back to Prometheus, and never more than the module
// allows. A header that is not above the offset keeps half of itself. Without a header
// it is the module's timeout.
func parseTimeout(header string, offset, module time.Duration) (time.Duration, error) {
	if header == "" {
		return module, nil
	}
	seconds, err := strconv.ParseFloat(header, 64)
	if err != nil || math.IsInf(seconds, 0) || !(seconds > 0) {
		return 0, fmt.Errorf("%s is %q, want a positive number of seconds", timeoutHeader, header)
	}
	if left := seconds - offset.Seconds(); left > 0 {
		seconds = left
	} else {
		seconds /= 2
	}
	if seconds >= module.Seconds() { // also what is too large for a Duration
		return module, nil
	}
	return max(1, time.Duration(seconds*float64(time.Second))), nil
}
