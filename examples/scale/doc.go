// Package scale has no code. Its tests prove the files beside it, which users copy: with several
// exporters, and several Prometheus servers.
package scale
