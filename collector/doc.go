// Package collector exports handshakes as Prometheus metrics.
//
// A [Handler] serves /probe: it parses the request (request.go), performs the probe with package
// internal/probe, and responds with the metrics of the probe (probe_metrics.go) in the format
// that the caller prefers (exposition.go), preceded by the log of the probe if the request asks for it (debug.go).
// It also collects the exporter's own metrics about probes (exporter_metrics.go).
//
// Every response is exactly one of the following four. A verdict, whether the target is open or not, is status 200
// with metrics. A fault, which means that this host could not measure, is status 503: Prometheus sets up to 0, and
// no alert claims that the target is down. A mistake in the request is status 400. A target that the policy does not
// permit is status 403.
//
// The package is part of the exporter. Other programs cannot use it, because its [Options] need types of
// internal packages; they can use package shaker.
package collector
