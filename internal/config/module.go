package config

import (
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// keepThere ends what is said of a module that does more than a handshake.
const keepThere = "but this exporter only shakes hands over TCP: keep that module in blackbox_exporter"

// MaxTimeout is the longest timeout of a module, about when the kernel gives up a SYN by itself.
const MaxTimeout = 2 * time.Minute

// readModules reads the modules, which replace the built-in ones.
func readModules(v value) map[string]Module {
	modules := map[string]Module{}
	if isEmpty(v.Node) {
		v.refuse("has nothing in it, want modules: leave it out to keep the built-in ones")
		return modules
	}
	v.prefix = "module "
	entries, _ := v.entries("modules by their names")
	for _, e := range entries {
		if e.name == "" {
			v.file.refuse(e.line, "a module has no name")
			continue
		}
		e.value.prefix = e.value.path + ": "
		modules[e.name] = readModule(e.value)
	}
	return modules
}

func readModule(v value) Module {
	module := defaultModule()
	if isEmpty(v.Node) {
		v.refuse("has nothing in it, want prober: tcp")
		return module
	}
	entries, ok := v.entries(wantKeys(moduleKeys))
	if !ok {
		return module
	}
	i := slices.IndexFunc(entries, func(e entry) bool { return e.name == "prober" })
	if i < 0 {
		v.refuse("has no prober, want prober: tcp")
	} else if prober := entries[i].value; slices.ContainsFunc(moduleKeys, func(k key[Module]) bool {
		return k.show == nil && k.name == prober.Value // a prober's section has its name
	}) {
		prober.refuse("is %s, %s", prober.Value, keepThere)
		return module // its other keys are right where it belongs
	}
	readEntries(entries, &module, moduleKeys)
	return module
}

// refuseKey refuses a key that asks for more than a handshake.
func refuseKey[T any](_ *T, v value) { v.refuse("is given, %s", keepThere) }

func readProber(v value, prober *string) {
	if text, ok := v.text("tcp"); ok && text != *prober {
		v.wrong("tcp")
	}
}

func readTimeout(v value, timeout *time.Duration) {
	const want = "a duration with its unit, such as 5s or 500ms"
	text, ok := v.text(want)
	if !ok {
		return
	}
	duration, err := time.ParseDuration(text)
	switch {
	case err != nil:
		v.wrong(want)
	case duration <= 0 || duration > MaxTimeout:
		v.wrong("more than 0 and at most 2m")
	default:
		*timeout = duration
	}
}

func readTargets(v value, targets *Targets) {
	if isEmpty(v.Node) {
		v.refuse("has nothing in it, want allow or deny")
		return
	}
	readMapping(v, targets, targetsKeys)
}

func readAllow(v value, allow *[]Range) {
	if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		v.refuse("is empty, so that nobody could be probed: leave it out to allow everyone")
		return
	}
	readRanges(v, allow)
}

func readRanges(v value, ranges *[]Range) {
	const want = `a list such as ["10.0.0.0/8:443", "[2001:db8::/32]:*"]`
	items, _ := v.items(want)
	for _, item := range items {
		text, ok := item.text(`a text such as "10.0.0.0/8:443" or "[2001:db8::/32]:*", in quotes`)
		if !ok {
			continue
		}
		r, err := parseRange(text)
		if err != nil {
			item.path = strings.TrimSuffix(item.path, "an entry") + item.quote()
			item.refuse("%v", err)
			continue
		}
		*ranges = append(*ranges, r)
	}
}
