package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// sameSite refuses requests that a page of another site makes in a browser that can reach the exporter. Without it,
// such a page could reload the configuration, and find out by the time of a response which ports are open. Links
// to the exporter work. external is the URL at which the exporter is reachable from outside, empty if it is not
// known.
//
// A page whose own domain name resolves to the exporter (DNS rebinding) is of the same site, and could even read the
// responses. It is recognized by its domain name, if external tells which one is right.
func sameSite(next http.Handler, external *url.URL) http.Handler {
	protection := http.NewCrossOriginProtection()
	if external.Host != "" {
		// An old browser is recognized by its Origin. A proxy may have replaced the Host that Origin is compared with.
		protection.AddTrustedOrigin(external.Scheme + "://" + external.Host)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := protection.Check(r) // of all methods except GET, HEAD and OPTIONS
		if err != nil {
			err = fmt.Errorf("only the exporter's own pages may send a %s request", r.Method)
		}
		if err == nil && loadsFromOtherSite(r.Header) {
			err = errors.New("another site may link to the exporter, but not load it")
		}
		if err == nil && !isOwnHost(r.Host, external.Hostname()) {
			err = fmt.Errorf("the host is %s, want %s (the host of --web.external-url), or an address",
				probe.Quote(r.Host), external.Hostname())
		}
		if err != nil {
			http.Error(w, "cross-site request refused: "+err.Error(), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// loadsFromOtherSite reports whether a page of another site loads a response: as an image, a frame, with a script,
// or in any other way than to show it in place of the page. Browsers send these headers to localhost and over TLS.
func loadsFromOtherSite(h http.Header) bool {
	link := h.Get("Sec-Fetch-Mode") == "navigate" && h.Get("Sec-Fetch-Dest") == "document"
	return h.Get("Sec-Fetch-Site") == "cross-site" && !link
}

// isOwnHost reports whether the Host header of a request may be the exporter's: whether no page of another site can
// have that name. Without an external name, every name may be the exporter's.
func isOwnHost(host, external string) bool {
	name := strings.ToLower(strings.TrimSuffix((&url.URL{Host: host}).Hostname(), "."))
	if external == "" || name == strings.ToLower(strings.TrimSuffix(external, ".")) {
		return true
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return true // an address has no name that could resolve to something else
	}
	top := name[strings.LastIndexByte(name, '.')+1:]
	switch top {
	case name: // without a dot, such as localhost or a container's name: not in the public DNS
		return true
	case "internal", "local", "localhost", "svc": // not in the public DNS either
		return true
	}
	return false
}
