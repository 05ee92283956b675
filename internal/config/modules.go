package config

import (
	"cmp"
	"maps"
	"slices"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// readModules reads the modules, which replace the built-in ones.
func readModules(v value, c *Config) {
	c.Modules = map[string]Module{}
	if isEmpty(v.Node) {
		v.refuse("is empty, want modules: remove the key to keep the built-in modules")
		return
	}
	v.prefix = "module "
	sourcePorts := make(map[string]value)
	entries, _ := v.entries("a mapping of names to modules")
	for _, e := range entries {
		if e.name == "" {
			e.value.file.refuse(e.line, "%s has an empty name, want a name such as %s", e.value.path, DefaultModule)
			continue
		}
		e.value.prefix = e.value.path + ": "
		module, foreign := readModule(e.value)
		if foreign == nil {
			c.Modules[e.name] = module
			if ports := module.TCP.SourcePorts; module.TCP.Flows > 0 && ports != (shaker.PortRange{}) {
				sourcePorts[e.name] = v.file.tcp["source_ports"]
			}
			continue
		}
		if c.Foreign == nil {
			c.Foreign = map[string]Foreign{}
		}
		c.Foreign[e.name] = *foreign
	}
	c.placeFlows()
	c.checkSharedPorts(sourcePorts)
	if len(c.Modules) == 0 {
		v.path = "modules"
		v.warn("are all left to blackbox_exporter, so that no target can be probed: add a module with prober: tcp")
	}
}

// checkSharedPorts warns if two modules send flows from the same ports. Its argument is the source ports of the modules
// with flows.
func (c *Config) checkSharedPorts(sourcePorts map[string]value) {
	names := slices.Sorted(maps.Keys(sourcePorts))
	for i, name := range names {
		tcp := c.Modules[name].TCP
		own := tcp.ownFlowPorts()
		for _, before := range names[:i] {
			other := c.Modules[before].TCP
			ports := other.ownFlowPorts()
			if own.First > ports.Last || ports.First > own.Last || tcp.sendsElsewhere(&other) {
				continue
			}
			v := sourcePorts[name]
			v.warn("is %s, and the flows of module %s have some of these ports: while one of the modules probes an "+
				"address, probes of this address with the other one are answered with 503. Want ports of its own",
				v.quote(), Name(before))
			break
		}
	}
}

// FlowsFrom returns the modules that have a port among the tcp.source_ports of their flows, in the order of their
// names.
func (c *Config) FlowsFrom(port uint16) (modules []string) {
	for _, name := range slices.Sorted(maps.Keys(c.Modules)) {
		tcp := c.Modules[name].TCP
		if tcp.Flows == 0 || tcp.SourcePorts == (shaker.PortRange{}) {
			continue
		}
		if own := tcp.ownFlowPorts(); own.First <= port && port <= own.Last {
			modules = append(modules, name)
		}
	}
	return modules
}

// placeFlows gives each module with flows and without source ports a place for its ports among those that the exporter
// reserves. They are reserved in blocks, and a module has ports in a row.
func (c *Config) placeFlows() {
	next := 0
	for _, name := range slices.Sorted(maps.Keys(c.Modules)) {
		module := c.Modules[name]
		flows := int(module.TCP.Flows)
		if flows == 0 || module.TCP.SourcePorts != (shaker.PortRange{}) {
			continue
		}
		if left := MaxFlows - next%MaxFlows; left < flows {
			next += left
		}
		module.TCP.FlowsBefore = next
		next += flows
		c.Modules[name] = module
	}
}

// readModule reads a module. If it turns out to be foreign, its content is not validated: the problems that were found
// until then are forgotten.
func readModule(v value) (module Module, foreign *Foreign) {
	module = defaultModule(tcpProber)
	if isEmpty(v.Node) {
		v.refuse("is empty, want prober: tcp")
		return module, nil
	}
	errors, warnings := len(v.file.errors), len(v.file.warnings)
	entries, ok := v.entries(wantKeys(moduleKeys))
	if !ok {
		return module, nil
	}
	v.file.foreign = nil
	prober := ""
	if i := slices.IndexFunc(entries, func(e entry) bool { return e.name == "prober" }); i >= 0 {
		prober = entries[i].value.Value
	} else {
		v.refuse("has no prober, want prober: %s", intended(prober, entries))
	}
	if slices.Contains(otherProbers, prober) {
		v.file.foreign = &Foreign{Prober: prober}
	} else {
		module = defaultModule(intended(prober, entries))
		module.Timeout = 0 // until it is known whether the module is watched
		given := readEntries(entries, &module, moduleKeys)
		switch {
		case module.Watched():
			module.Timeout = cmp.Or(module.Timeout, defaultWatchedTimeout)
			module.checkWatch(given, v.file.tcp)
		case module.MeasuresIdle():
			module.checkIdle(v.file.tcp)
		}
		module.Timeout = cmp.Or(module.Timeout, defaultTimeout)
	}
	if foreign = v.file.foreign; foreign == nil || foreign.Prober != prober { // tls does not excuse a wrong prober
		return module, nil
	}
	v.file.errors, v.file.warnings = v.file.errors[:errors], v.file.warnings[:warnings]
	return module, foreign
}
