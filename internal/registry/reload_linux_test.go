package registry

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What a reload may do to a target.
var reloads = map[string]struct {
	config string
	kept   bool
}{
	"another module changed": {config: strings.Replace(testConfig, "  two:", "  three:", 1), kept: true},
	"module changed":         {config: strings.Replace(testConfig, "ip4", "ip6", 1)},
	"module removed":         {config: strings.Replace(testConfig, "  one:", "  three:", 1)},
	"address denied":         {config: `targets: {deny: ["10.0.0.1/32:*"]}` + testConfig},
	"another denied":         {config: `targets: {deny: ["10.0.0.2/32:*"]}` + testConfig, kept: true},
}

// A reload forgets targets whose module has changed or gone, and those that the policy denies, even if they have
// expired. It keeps all others as they are.
func TestReload(t *testing.T) {
	for name, c := range reloads {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			expired := b.scrape("host.example:80", "one") // which is 10.0.0.1
			b.expire(time.Hour)
			target := b.scrape(first, "one")
			b.reload(c.config)
			if kept := slices.Contains(b.keys(), "one "+first); kept != c.kept || target.isRunning() != c.kept {
				t.Errorf("the target is kept: %t, runs: %t, want %t", kept, target.isRunning(), c.kept)
			}
			if kept := b.targets[expired.Key] == expired; kept != c.kept {
				t.Errorf("the expired target is kept: %t, want %t", kept, c.kept)
			}
			if want := len(b.keys()); b.limits.targets != want || b.Modules()[0].Registered != want {
				t.Errorf("%d targets count, Modules = %+v, want %d", b.limits.targets, b.Modules(), want)
			}
		})
	}
}

// A reload during the first scrape of a target: if the reload would have forgotten the target, it is not registered.
func TestReloadDuringFirstScrape(t *testing.T) {
	for name, c := range reloads {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			req := b.request(first, "one")
			b.reload(c.config)
			got, err := b.register(req)
			if err != nil || (got != nil) != c.kept {
				t.Errorf("Register = %v, error %v, want a target: %t", got, err, c.kept)
			}
		})
	}
}
