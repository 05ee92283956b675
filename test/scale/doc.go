// Package scale tests the files in examples/scale with several exporters and several Prometheus servers.
package scale
