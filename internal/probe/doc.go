// Package probe carries out a probe, from a request to a report: it checks the target against the
// policy, resolves its name, performs the handshakes with package shaker, and traces the path.
//
// A probe ends in one of two ways. A [Report] is a verdict about the target: open, or the reason why not. An
// error means that there is no verdict: the policy does not permit the target, a limit is reached, or
// this host could not measure. A probe never returns both.
//
// The package knows neither HTTP nor Prometheus. Package collector exports its reports as metrics, and
// package cli prints them.
package probe
