// Package collector turns handshakes into Prometheus metrics.
//
// A [Prober] is the handler of /probe: it reads the request (request.go), resolves the
// name (resolve.go), has package shaker shake hands, and answers with the metrics of that
// one probe (exposition.go), or with their story if asked for (debug.go). It is also the
// collector of the exporter's own metrics (metrics.go).
//
// Its answers never mix three things. A verdict, the target open or not, is 200 with
// metrics. A fault, this host could not measure, is 503, so that Prometheus sees up 0 and
// nobody is told that the target is down. A mistake in the request is 400.
package collector
