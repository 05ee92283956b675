package registry

import (
	"net/netip"
	"reflect"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// Configure adapts to the configuration that is active in the Prober now. It forgets the targets whose module has
// changed, and those whose address the policy does not permit any more. All others stay as they are. It must be called
// after each change of the Prober's configuration.
func (r *Registry[T]) Configure() {
	r.end(func() (outdated []T) {
		c := r.options.Prober.Config()
		unchanged := make(map[*config.Module]bool) // comparing the modules of all targets takes long
		for _, t := range r.targets {
			own := t.registration()
			same, known := unchanged[own.Module]
			if !known {
				same = hasModule(c, own.Key.Module, own.Module)
				unchanged[own.Module] = same
			}
			if !same || c.Targets.Check(t.Peer()) != nil {
				outdated = append(outdated, t)
			}
		}
		return outdated
	}, r.forget)
}

// forget forgets a target that has been stopped. Its caller holds mu.
func (r *Registry[T]) forget(own *Registration) { delete(r.targets, own.Key) }

// forgetIf forgets one target if it is registered and a condition is true.
func (r *Registry[T]) forgetIf(t T, condition func() bool) {
	r.end(func() []T {
		if r.targets[t.registration().Key] != t || !condition() {
			return nil
		}
		return []T{t}
	}, r.forget)
}

// permits reports whether a configuration has a module as it is, and permits an address.
func permits(c *config.Config, name string, m *config.Module, peer netip.AddrPort) bool {
	return hasModule(c, name, m) && c.Targets.Check(peer) == nil
}

func hasModule(c *config.Config, name string, m *config.Module) bool {
	current, ok := c.Modules[name]
	return ok && reflect.DeepEqual(current, *m)
}
