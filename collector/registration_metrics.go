package collector

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
)

// registrationMetrics are the exporter's own metrics about all targets that a scrape registers: those that are watched
// or held, and those whose idle timeout is measured.
type registrationMetrics struct{ registrations, expirations *prometheus.Desc }

func newRegistrationMetrics() *registrationMetrics {
	return &registrationMetrics{
		registrations: prometheus.NewDesc("shaker_registrations_total",
			"Total number of targets that began to be watched, held or measured because of a scrape.",
			[]string{"module"}, nil),
		expirations: prometheus.NewDesc("shaker_expirations_total",
			"Total number of watched, held or measured targets that expired because they were not scraped.",
			[]string{"module"}, nil),
	}
}

func (m *registrationMetrics) describe(ch chan<- *prometheus.Desc) {
	ch <- m.registrations
	ch <- m.expirations
}

// collect collects the metrics. A module whose prober has changed since the start may be given more than once.
func (m *registrationMetrics) collect(ch chan<- prometheus.Metric, modules []registry.Module) {
	totals := make(map[string]registry.Module)
	for _, module := range modules {
		sum := totals[module.Name]
		sum.Registrations += module.Registrations
		sum.Expirations += module.Expirations
		totals[module.Name] = sum
	}
	for name, sum := range totals {
		ch <- prometheus.MustNewConstMetric(m.registrations, prometheus.CounterValue, float64(sum.Registrations), name)
		ch <- prometheus.MustNewConstMetric(m.expirations, prometheus.CounterValue, float64(sum.Expirations), name)
	}
}

// withConfigured adds those of the configured modules for which is returns true, so that their series exist from the
// start.
func withConfigured(modules []registry.Module, c *config.Config, is func(config.Module) bool) []registry.Module {
	for name, module := range c.Modules {
		known := slices.ContainsFunc(modules, func(m registry.Module) bool { return m.Name == name })
		if is(module) && !known {
			modules = append(modules, registry.Module{Name: name})
		}
	}
	return modules
}
