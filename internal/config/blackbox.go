package config

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// isOtherProber reports whether only blackbox_exporter has a prober of that name.
func isOtherProber(name string) bool {
	return slices.ContainsFunc(moduleKeys, func(k key[Module]) bool { return k.show == nil && k.name == name })
}

// refuseSection refuses the section of a module for another prober.
func refuseSection(_ *Module, v value) { v.leaveToBlackbox("set") }

func refuseQueries(v value) {
	if empty := v.Kind == yaml.SequenceNode && len(v.Content) == 0; !empty && !isNull(v.Node) {
		v.leaveToBlackbox("set")
	}
}

func refuseTLS(v value) {
	var tls bool
	if v.boolean(&tls); tls {
		v.leaveToBlackbox("true")
	}
}

// ignoreTLSConfig accepts any mapping: without tls, blackbox_exporter does not use it either.
func ignoreTLSConfig(v value) {
	if !isNull(v.Node) {
		v.is(yaml.MappingNode, "a mapping")
	}
}

const keepInBlackbox = "but this exporter performs only TCP handshakes: keep this module in blackbox_exporter"

// leaveToBlackbox is called with every value by which a module asks for more than a TCP handshake.
func (v value) leaveToBlackbox(is string) { v.refuse("is %s, %s", is, keepInBlackbox) }
