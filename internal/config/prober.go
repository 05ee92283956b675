package config

import (
	"slices"
	"strings"
)

// The probers of this exporter.
const (
	tcpProber  = "tcp"
	holdProber = "hold"
	idleProber = "idle"
)

var ownProbers = []string{tcpProber, holdProber, idleProber}

func readProber(v value) {
	const want = "tcp, hold or idle"
	if text, ok := v.text(want); ok && !slices.Contains(ownProbers, text) {
		v.refuse("is %s%s, want %s, or a prober of blackbox_exporter: %s", v.quote(),
			Hint(strings.ToLower(text), slices.Concat(otherProbers, ownProbers)), want,
			strings.Join(otherProbers, ", "))
	}
}

// intended returns the prober of a module. If it is missing or wrong, which is refused, a section shows which prober
// is meant.
func intended(prober string, entries []entry) string {
	if slices.Contains(ownProbers, prober) {
		return prober
	}
	for _, e := range entries {
		if e.name == holdProber || e.name == idleProber { // the sections have the names of their probers
			return e.name
		}
	}
	return tcpProber
}

// onlyFor refuses a key because it is for another prober than that of the module.
func (v value) onlyFor(prober string, m *Module) {
	v.refuse("is only for prober %s, but the prober is %s", prober, m.Prober)
}

// section returns a func that reads a section of the modules with a prober. In a module with another prober, the
// section is refused, but read nevertheless, so that all its errors are reported.
func section(prober string, read func(*Module, value)) func(*Module, value) {
	return func(m *Module, v value) {
		if m.Prober == prober {
			read(m, v)
			return
		}
		v.onlyFor(prober, m)
		other := defaultModule(prober)
		read(&other, v)
	}
}

// handshakeKeys are the keys of the section tcp that are about a single handshake and what follows it. A module that
// opens connections does not have them.
var handshakeKeys = []string{
	"flows", "valid_results", "path", "max_hops", "close", "query_response", "tls", "tls_config",
}

// connectionKeys returns the keys of the section tcp of a module with a prober that opens connections. The hints say
// what to use instead of some of the handshakeKeys, or why there is no such thing.
func connectionKeys(prober string, hints map[string]string) []key[TCP] {
	keys := slices.Clone(tcpKeys)
	for i, k := range keys {
		switch {
		case slices.Contains(handshakeKeys, k.name):
			keys[i].show = nil
			keys[i].read = func(_ *TCP, v value) {
				v.refuse("is only for prober tcp, but the prober is %s%s", prober, hints[k.name])
			}
		case k.name == "addresses":
			keys[i].read = func(t *TCP, v value) {
				if k.read(t, v); t.Addresses == All {
					v.refuse("is all, want first: prober %s connects to one address of each name", prober)
				}
			}
		}
	}
	return keys
}

var holdTCPKeys = connectionKeys(holdProber, map[string]string{
	"flows":         ": each target has one connection",
	"close":         ", want hold.close",
	"valid_results": ": a probe succeeds while the connection is established and the peer answers",
	"path":          ": connections are not traced",
	"max_hops":      ": connections are not traced",
})

var idleTCPKeys = connectionKeys(idleProber, map[string]string{
	"flows":    ": each target has the connections of one round",
	"path":     ": connections are not traced",
	"max_hops": ": connections are not traced",
})

// tcpKeys returns the keys of the module's section tcp.
func (m *Module) tcpKeys() []key[TCP] {
	switch m.Prober {
	case holdProber:
		return holdTCPKeys
	case idleProber:
		return idleTCPKeys
	}
	return tcpKeys
}

// sectionsOf are the sections of a module, by prober, with the names of their keys. If several sections have
// a key, such as interval, the one in which it is meant most often comes first.
var sectionsOf = []struct {
	prober, path string
	keys         []string
}{
	{prober: tcpProber, path: "tcp", keys: names(tcpKeys)},
	{prober: tcpProber, path: "watch", keys: names(watchKeys)},
	{prober: holdProber, path: "hold", keys: names(holdKeys)},
	{prober: holdProber, path: "hold.heartbeat", keys: names(heartbeatKeys)},
	{prober: holdProber, path: "hold.heartbeat.frame", keys: names(frameKeys)},
	{prober: holdProber, path: "hold.keepalive", keys: names(keepAliveKeys)},
	{prober: holdProber, path: "hold.reconnect", keys: names(reconnectKeys)},
	{prober: holdProber, path: "tcp", keys: names(holdTCPKeys)},
	{prober: idleProber, path: "idle", keys: names(idleKeys)},
	{prober: idleProber, path: "idle.probe", keys: names(idleProbeKeys)},
	{prober: idleProber, path: "tcp", keys: names(idleTCPKeys)},
}

// keysOfSections returns the keys of all sections, which are misplaced in the module itself.
func keysOfSections() (keys []key[Module]) {
	for _, s := range sectionsOf {
		for _, name := range s.keys {
			refuse := func(m *Module, v value) {
				v.refuse("is misplaced, want it below %s", sectionWith(name, m.Prober))
			}
			keys = append(keys, key[Module]{name, refuse, nil})
		}
	}
	return keys
}

// sectionWith returns a section that has a key, preferably one for that prober.
func sectionWith(name, prober string) (path string) {
	for _, s := range sectionsOf {
		if slices.Contains(s.keys, name) {
			if s.prober == prober {
				return s.path
			}
			if path == "" {
				path = s.path
			}
		}
	}
	return path
}
