package config

import (
	"slices"
	"time"
)

// readModules reads the modules, which replace the built-in ones.
func readModules(v value) map[string]Module {
	modules := map[string]Module{}
	if isEmpty(v.Node) {
		v.refuse("is empty, want modules: remove the key to keep the built-in modules")
		return modules
	}
	v.prefix = "module "
	entries, _ := v.entries("a mapping of names to modules")
	for _, e := range entries {
		if e.name == "" {
			e.value.file.refuse(e.line, "%s has an empty name, want a name such as %s", e.value.path, DefaultModule)
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
		v.refuse("is empty, want prober: tcp")
		return module
	}
	entries, ok := v.entries(wantKeys(moduleKeys))
	if !ok {
		return module
	}
	i := slices.IndexFunc(entries, func(e entry) bool { return e.name == "prober" })
	if i < 0 {
		v.refuse("has no prober, want prober: tcp")
	} else if prober := entries[i].value; isOtherProber(prober.Value) {
		prober.leaveToBlackbox(prober.Value)
		return module // its other keys are for that prober
	}
	readEntries(entries, &module, moduleKeys)
	return module
}

func readProber(v value, prober *string) {
	if text, ok := v.text("tcp"); ok && text != *prober {
		v.wrong("tcp")
	}
}

func readTimeout(v value, timeout *time.Duration) {
	const want = "a duration with a unit, such as 5s or 500ms"
	text, ok := v.text(want)
	if !ok {
		return
	}
	duration, err := time.ParseDuration(text)
	switch {
	case err != nil:
		v.wrong(want)
	case duration <= 0 || duration > MaxTimeout:
		v.wrong("more than 0s and at most 2m")
	default:
		*timeout = duration
	}
}
