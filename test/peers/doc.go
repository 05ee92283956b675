// Package peers tests the exporter together with real programs: Prometheus, which scrapes it, servers, which it
// probes, and blackbox_exporter, which it replaces.
package peers
