// Package collector exports handshakes as Prometheus metrics.
//
// A [Handler] serves /probe: it parses the request (request.go), lets package internal/probe make the
// probe, and responds with the metrics of that probe (exposition.go), or with a log of it in addition
// (debug.go). It also collects the exporter's own metrics about probes (metrics.go).
//
// A response never mixes three things. A verdict, whether the target is open or not, is 200 with
// metrics. A fault, which means that this host could not measure, is 503: Prometheus sees up 0, and no
// alert claims that the target is down. A mistake in the request is 400.
//
// The package is part of the exporter. Other programs cannot use it, because its [Options] need types of
// internal packages; they use package shaker.
package collector
