// Package peers runs the exporter together with real programs: Prometheus that scrapes it, servers that it
// probes, and blackbox_exporter that it replaces.
package peers
