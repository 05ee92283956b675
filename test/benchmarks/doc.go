// Package benchmarks measures the exporter beside blackbox_exporter and beside the bare system calls.
package benchmarks
