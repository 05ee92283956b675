// Package benchmarks compares the exporter with blackbox_exporter and with bare system calls. It also measures how
// many targets one exporter can probe.
package benchmarks
