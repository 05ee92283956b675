package config

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// key is a key of a mapping that configures a T. A new key needs a row in one of the tables below,
// and a field of the T, with its default. If the key is an option of the handshake, it also
// belongs in Module.Options.
type key[T any] struct {
	name string
	read func(t *T, v value) // sets t to the value in the file, or refuses it

	// show returns the value of t, or nil if it has none. The func itself is nil for keys that only
	// blackbox_exporter has, and for misplaced ones.
	show func(t *T) any
}

var configKeys = []key[Config]{
	{"targets",
		func(c *Config, v value) { readTargets(v, &c.Targets) },
		func(c *Config) any {
			if c.Targets.Allow == nil && c.Targets.Deny == nil {
				return nil
			}
			return c.Targets
		}},
	{"modules",
		func(c *Config, v value) { readModules(v, c) },
		func(c *Config) any {
			all := map[string]any{}
			for name, module := range c.Modules {
				all[name] = module
			}
			for name, module := range c.Foreign {
				all[name] = module
			}
			return all
		}},
}

var targetsKeys = []key[Targets]{
	{"allow",
		func(t *Targets, v value) { readAllow(v, &t.Allow) },
		func(t *Targets) any { return showRanges(t.Allow) }},
	{"deny",
		func(t *Targets, v value) { readRanges(v, &t.Deny) },
		func(t *Targets) any { return showRanges(t.Deny) }},
}

var moduleKeys = slices.Concat([]key[Module]{
	{"prober",
		func(_ *Module, v value) { readProber(v) },
		func(m *Module) any { return m.Prober }},
	{"timeout",
		optional(func(m *Module, v value) { readTimeout(v, &m.Timeout) }),
		func(m *Module) any { return showDuration(m.Timeout) }},
	{"tcp",
		func(m *Module, v value) { readTCP(v, &m.TCP, m.tcpKeys()) },
		func(m *Module) any { return shown[TCP]{&m.TCP, m.tcpKeys()} }},
	{"watch",
		section(tcpProber, func(m *Module, v value) { readWatch(v, &m.Watch) }),
		func(m *Module) any {
			if !m.Watched() {
				return nil
			}
			return shown[Watch]{&m.Watch, watchKeys}
		}},
	{"hold",
		section(holdProber, func(m *Module, v value) { readHold(v, &m.Hold) }),
		func(m *Module) any {
			if !m.Held() {
				return nil
			}
			return shown[Hold]{&m.Hold, holdKeys}
		}},
	{"idle",
		section(idleProber, func(m *Module, v value) { readIdle(v, &m.Idle) }),
		func(m *Module) any {
			if !m.MeasuresIdle() {
				return nil
			}
			return shown[Idle]{&m.Idle, idleKeys}
		}},
}, otherSections(), keysOfSections())

var tcpKeys = append([]key[TCP]{
	{"preferred_ip_protocol",
		optional(func(t *TCP, v value) { readPreferred(v, &t.PreferredIPProtocol) }),
		func(t *TCP) any { return t.PreferredIPProtocol }},
	{"ip_protocol_fallback",
		optional(func(t *TCP, v value) { v.boolean(&t.IPProtocolFallback) }),
		func(t *TCP) any { return t.IPProtocolFallback }},
	{"addresses",
		func(t *TCP, v value) { v.choice(&t.Addresses, First, All) },
		func(t *TCP) any { return t.Addresses }},
	{"dns_server",
		func(t *TCP, v value) { readDNSServer(v, &t.DNSServer) },
		func(t *TCP) any { return unless(netip.AddrPort{}, t.DNSServer) }},
	{"dns_timeout",
		func(t *TCP, v value) { readDNSTimeout(v, &t.DNSTimeout) },
		func(t *TCP) any { return unless(0, t.DNSTimeout) }},
	{"source_ip_address",
		optional(func(t *TCP, v value) { readSource(v, &t.SourceIPAddress) }),
		func(t *TCP) any { return unless(netip.Addr{}, t.SourceIPAddress) }},
	{"source_ports",
		func(t *TCP, v value) { readSourcePorts(v, &t.SourcePorts) },
		func(t *TCP) any {
			if t.SourcePorts == (shaker.PortRange{}) {
				return nil
			}
			return t.SourcePorts.String()
		}},
	{"flows",
		func(t *TCP, v value) { number(v, &t.Flows, 2, MaxFlows) },
		func(t *TCP) any { return unless(0, t.Flows) }},
	{"interface",
		func(t *TCP, v value) { readInterface(v, &t.Interface) },
		func(t *TCP) any { return unless("", t.Interface) }},
	{"dscp",
		func(t *TCP, v value) {
			if number(v, &t.DSCP, 0, 63) {
				v.checkHost(shaker.Options{DSCP: t.DSCP})
			}
		},
		func(t *TCP) any { return t.DSCP }},
	{"fwmark",
		func(t *TCP, v value) {
			if number(v, &t.FWMark, 0, 1<<32-1) {
				v.checkHost(shaker.Options{Mark: t.FWMark})
			}
		},
		func(t *TCP) any { return t.FWMark }},
	{"ttl",
		func(t *TCP, v value) {
			if number(v, &t.TTL, 1, 255) {
				v.checkHost(shaker.Options{TTL: t.TTL})
			}
		},
		func(t *TCP) any { return unless(0, t.TTL) }},
	{"valid_results",
		func(t *TCP, v value) { readResults(v, &t.ValidResults) },
		func(t *TCP) any { return t.ValidResults }},
	{"path",
		func(t *TCP, v value) {
			if v.choice(&t.Path, Never, OnFailure, Always); t.Path != Never {
				v.checkHost(shaker.Options{TTL: 1})
			}
		},
		func(t *TCP) any { return t.Path }},
	{"max_hops",
		func(t *TCP, v value) { number(v, &t.MaxHops, 1, 255) },
		func(t *TCP) any { return t.MaxHops }},
	{"close",
		func(t *TCP, v value) { v.choice(&t.Close, Reset, FIN) },
		func(t *TCP) any { return t.Close }},
	// Keys for what blackbox_exporter does after the handshake.
	{"query_response", optional(func(_ *TCP, v value) { readQueries(v) }), nil},
	{"tls", optional(func(_ *TCP, v value) { readTLS(v) }), nil},
	{"tls_config", optional(func(_ *TCP, v value) { ignoreTLSConfig(v) }), nil},
}, misplaced[TCP]("the module", "timeout", "watch", "hold", "idle")...)

var watchKeys = append([]key[Watch]{
	{"interval",
		func(w *Watch, v value) { v.duration(&w.Interval, 100*time.Millisecond, time.Minute) },
		func(w *Watch) any { return showDuration(w.Interval) }},
	{"expire",
		func(w *Watch, v value) { v.duration(&w.Expire, time.Minute, 24*time.Hour) },
		func(w *Watch) any { return showDuration(w.Expire) }},
	{"resolve",
		func(w *Watch, v value) { v.duration(&w.Resolve, time.Second, time.Hour) },
		func(w *Watch) any { return showDuration(w.Resolve) }},
}, misplaced[Watch]("the module", "timeout")...)

var holdKeys = slices.Concat([]key[Hold]{
	{"keepalive",
		func(h *Hold, v value) { readKeepAlive(v, &h.KeepAlive) },
		func(h *Hold) any {
			if h.KeepAlive == (shaker.KeepAlive{}) {
				return false
			}
			return shown[shaker.KeepAlive]{&h.KeepAlive, keepAliveKeys}
		}},
	{"heartbeat",
		func(h *Hold, v value) { readHeartbeat(v, &h.Heartbeat) },
		func(h *Hold) any {
			if h.Heartbeat.Interval == 0 {
				return nil
			}
			return shown[Heartbeat]{&h.Heartbeat, heartbeatKeys}
		}},
	{"greeting",
		func(h *Hold, v value) { readPattern(v, &h.Greeting) },
		func(h *Hold) any { return showPattern(h.Greeting) }},
	{"reconnect",
		func(h *Hold, v value) { readReconnect(v, &h.Reconnect) },
		func(h *Hold) any { return shown[Backoff]{&h.Reconnect, reconnectKeys} }},
	{"close",
		func(h *Hold, v value) { v.choice(&h.Close, FIN, Reset) },
		func(h *Hold) any { return h.Close }},
	{"expire",
		func(h *Hold, v value) { v.duration(&h.Expire, time.Minute, 24*time.Hour) },
		func(h *Hold) any { return showDuration(h.Expire) }},
	{"resolve",
		func(h *Hold, v value) { v.duration(&h.Resolve, time.Second, time.Hour) },
		func(h *Hold) any { return showDuration(h.Resolve) }},
}, misplaced[Hold]("heartbeat", names(heartbeatKeys)...), misplaced[Hold]("heartbeat.frame", names(frameKeys)...),
	misplaced[Hold]("keepalive", names(keepAliveKeys)...), misplaced[Hold]("reconnect", names(reconnectKeys)...))

var keepAliveKeys = []key[shaker.KeepAlive]{
	{"idle",
		func(k *shaker.KeepAlive, v value) { v.seconds(&k.Idle, time.Second, maxKeepAlive) },
		func(k *shaker.KeepAlive) any { return showDuration(k.Idle) }},
	{"interval",
		func(k *shaker.KeepAlive, v value) { v.seconds(&k.Interval, time.Second, maxKeepAlive) },
		func(k *shaker.KeepAlive) any { return showDuration(k.Interval) }},
	{"count",
		func(k *shaker.KeepAlive, v value) { number(v, &k.Count, 1, maxKeepAliveCount) },
		func(k *shaker.KeepAlive) any { return k.Count }},
}

var heartbeatKeys = append([]key[Heartbeat]{
	{"interval",
		func(h *Heartbeat, v value) { v.duration(&h.Interval, time.Second, 24*time.Hour) },
		func(h *Heartbeat) any { return showDuration(h.Interval) }},
	{"timeout",
		func(h *Heartbeat, v value) { v.duration(&h.Timeout, time.Millisecond, 24*time.Hour) },
		func(h *Heartbeat) any { return showDuration(h.Timeout) }},
	{"send",
		func(h *Heartbeat, v value) { v.bytes(&h.Send, longestSend) },
		func(h *Heartbeat) any { return showBytes(h.Send) }},
	{"expect",
		func(h *Heartbeat, v value) { readPattern(v, &h.Expect) },
		func(h *Heartbeat) any { return showPattern(h.Expect) }},
	{"frame",
		func(h *Heartbeat, v value) { readFrame(v, &h.Framing) },
		func(h *Heartbeat) any {
			if h.Framing.Delimiter == "" && h.Framing.Length == 0 {
				return nil
			}
			return shown[shaker.Framing]{&h.Framing, frameKeys}
		}},
	{"max_frame",
		func(h *Heartbeat, v value) { readMaxFrame(v, &h.Framing.Max) },
		func(h *Heartbeat) any { return showSize(h.Framing.Max) }},
}, misplaced[Heartbeat]("heartbeat.frame", names(frameKeys)...)...)

var frameKeys = append([]key[shaker.Framing]{
	{"delimiter",
		func(f *shaker.Framing, v value) { v.bytes(&f.Delimiter, longestDelimiter) },
		func(f *shaker.Framing) any { return showBytes(f.Delimiter) }},
	{"length",
		func(f *shaker.Framing, v value) { readFrameLength(v, &f.Length) },
		func(f *shaker.Framing) any { return unless(0, f.Length) }},
	{"order",
		func(f *shaker.Framing, v value) { readFrameOrder(v, &f.LittleEndian) },
		func(f *shaker.Framing) any {
			switch {
			case f.Length == 0:
				return nil
			case f.LittleEndian:
				return "little"
			}
			return "big"
		}},
}, misplaced[shaker.Framing]("heartbeat", "max_frame")...)

var reconnectKeys = []key[Backoff]{
	{"min",
		func(b *Backoff, v value) { v.duration(&b.Min, 100*time.Millisecond, 24*time.Hour) },
		func(b *Backoff) any { return showDuration(b.Min) }},
	{"max",
		func(b *Backoff, v value) { v.duration(&b.Max, 100*time.Millisecond, 24*time.Hour) },
		func(b *Backoff) any { return showDuration(b.Max) }},
}

var idleKeys = slices.Concat([]key[Idle]{
	{"steps",
		func(i *Idle, v value) { readSteps(v, &i.Steps) },
		func(i *Idle) any { return showDurations(i.Steps) }},
	{"probe",
		func(i *Idle, v value) { readIdleProbe(v, &i.Probe) },
		func(i *Idle) any { return shown[IdleProbe]{&i.Probe, idleProbeKeys} }},
	{"control",
		func(i *Idle, v value) { readControl(v, &i.Control) },
		func(i *Idle) any { return showDuration(i.Control) }},
	{"expire",
		func(i *Idle, v value) { v.duration(&i.Expire, time.Minute, 24*time.Hour) },
		func(i *Idle) any { return showDuration(i.Expire) }},
}, misplaced[Idle]("the module", "timeout"), misplaced[Idle]("probe", names(idleProbeKeys)...))

var idleProbeKeys = []key[IdleProbe]{
	{"interval",
		func(p *IdleProbe, v value) { v.seconds(&p.Interval, time.Second, maxKeepAlive) },
		func(p *IdleProbe) any { return showDuration(p.Interval) }},
	{"count",
		func(p *IdleProbe, v value) { number(v, &p.Count, 1, maxKeepAliveCount) },
		func(p *IdleProbe) any { return p.Count }},
}

// unless returns the value, or nil if it is the one that stands for no value.
func unless[T comparable](none, value T) any {
	if value == none {
		return nil
	}
	return value
}

// showDuration returns a duration as a person writes it: 5m, where String returns 5m0s.
func showDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func showDurations(durations []time.Duration) []string {
	texts := make([]string, len(durations))
	for i, d := range durations {
		texts[i] = showDuration(d)
	}
	return texts
}

func showRanges(ranges []Range) any {
	if ranges == nil {
		return nil
	}
	texts := make([]string, len(ranges))
	for i, r := range ranges {
		texts[i] = r.String()
	}
	return texts
}

// show returns a mapping of the keys that have a value, in the order of their table.
func show[T any](t *T, keys []key[T]) (any, error) {
	mapping := &yaml.Node{Kind: yaml.MappingNode}
	for _, key := range keys {
		if key.show == nil {
			continue
		}
		shown := key.show(t)
		if shown == nil {
			continue
		}
		var name, value yaml.Node
		name.SetString(key.name)
		if err := value.Encode(shown); err != nil {
			return nil, err
		}
		mapping.Content = append(mapping.Content, &name, &value)
	}
	return mapping, nil
}

// MarshalYAML returns the configuration, including defaults, as a file that means the same.
func (c Config) MarshalYAML() (any, error) { return show(&c, configKeys) }

// MarshalYAML returns the targets as in the configuration file.
func (t Targets) MarshalYAML() (any, error) { return show(&t, targetsKeys) }

// MarshalYAML returns the module, including defaults, as in the configuration file.
func (m Module) MarshalYAML() (any, error) { return show(&m, moduleKeys) }

// shown is a section of a module, which is encoded as in the configuration file.
type shown[T any] struct {
	t    *T
	keys []key[T]
}

func (s shown[T]) MarshalYAML() (any, error) { return show(s.t, s.keys) }
