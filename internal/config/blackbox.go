package config

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A Foreign is a module that asks for more than a TCP handshake, and is left to blackbox_exporter. Only the
// reason is kept of it: one file can then serve both exporters.
type Foreign struct {
	Prober string // "tcp", or the name of a prober that only blackbox_exporter has
	Key    string // of the section tcp, "query_response" or "tls", if the prober is tcp
}

// String returns the reason, such as "its prober is http".
func (f Foreign) String() string {
	if f.Key != "" {
		return "it has tcp." + f.Key
	}
	return "its prober is " + f.Prober
}

// MarshalYAML returns the part of the module that is the reason.
func (f Foreign) MarshalYAML() (any, error) {
	module := struct {
		Prober string
		TCP    map[string]any `yaml:",omitempty"`
	}{Prober: f.Prober}
	switch f.Key {
	case "query_response":
		module.TCP = map[string]any{f.Key: []struct{}{{}}}
	case "tls":
		module.TCP = map[string]any{f.Key: true}
	}
	return module, nil
}

// otherProbers are the probers that only blackbox_exporter has.
var otherProbers = []string{"http", "dns", "icmp", "grpc", "unix", "websocket"}

// otherSections returns the keys of a module that are for another prober. Each has the name of its prober. A tcp
// module may have them: blackbox_exporter does not use them either.
func otherSections() (keys []key[Module]) {
	for _, prober := range otherProbers {
		ignore := func(m *Module, v value) {
			switch {
			case isEmpty(v.Node):
			case m.Prober == tcpProber:
				v.warn("is ignored, because the prober is tcp")
			default: // blackbox_exporter has no such modules
				v.onlyFor(prober, m)
			}
		}
		keys = append(keys, key[Module]{prober, ignore, nil})
	}
	return keys
}

// readQueries makes the module foreign if it has queries.
func readQueries(v value) {
	if empty := v.Kind == yaml.SequenceNode && len(v.Content) == 0; !empty {
		v.file.leaveToBlackbox("query_response")
	}
}

// readTLS makes the module foreign if it uses TLS.
func readTLS(v value) {
	var tls bool
	if v.boolean(&tls); tls {
		v.file.leaveToBlackbox("tls")
	}
}

// ignoreTLSConfig accepts any mapping: without tls, blackbox_exporter does not use it either.
func ignoreTLSConfig(v value) { v.is(yaml.MappingNode, "a mapping") }

// leaveToBlackbox is called with every key by which a tcp module asks for more than a TCP handshake.
func (f *file) leaveToBlackbox(key string) {
	if f.foreign == nil {
		f.foreign = &Foreign{Prober: tcpProber, Key: key}
	}
}

// optional returns a func that reads a key of blackbox_exporter. As there, a key without a value is not set.
func optional[T any](read func(*T, value)) func(*T, value) {
	return func(t *T, v value) {
		if !isNull(v.Node) {
			read(t, v)
		}
	}
}

// readPreferred reads preferred_ip_protocol. blackbox_exporter uses its default for the empty text, and takes every
// text that it does not know for ip4: ipv4, which says so, but also ipv6.
func readPreferred(v value, protocol *string) {
	text, ok := v.text("ip4 or ip6")
	switch {
	case !ok || text == "":
	case text == IP4 || text == IP6:
		*protocol = text
	case strings.EqualFold(text, "ipv4"):
		*protocol = IP4
	default:
		v.wrong("ip4 or ip6: blackbox_exporter takes it for ip4")
	}
}

// What a timeout must be.
const (
	wantDuration = "a duration with a unit, such as 5s or 500ms"
	wantTimeout  = "more than 0s and at most 2m"
)

// readTimeout reads timeout. As in blackbox_exporter, 0s and the empty text mean that the module sets none. Its
// timeouts may be longer than MaxTimeout, but its probes end as early: the kernel gives up.
func readTimeout(v value, timeout *time.Duration) {
	text, ok := v.text(wantDuration)
	if !ok || text == "" {
		return
	}
	duration, err := time.ParseDuration(text)
	switch {
	case err != nil:
		v.wrong(wantDuration)
	case duration < 0:
		v.wrong(wantTimeout)
	case duration > MaxTimeout:
		v.warn("is %s, but the kernel gives up after about 2m: 2m applies", v.quote())
		*timeout = MaxTimeout
	case duration > 0:
		*timeout = duration
	}
}
