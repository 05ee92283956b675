// Package idle measures for how long connections may be idle until a router, firewall or load balancer on the path
// forgets them, or the server closes them.
//
// The targets are listed in Prometheus only: the first scrape of a target registers it (meter.go), and from then on one
// round of measurements follows the other (target.go), until no scrape asks for it any more. Scrapes are answered from
// memory and send no packet.
//
// A round opens a connection for each step, leaves it idle for as long as the step says, and then checks it with
// keepalives, which the application does not see (round.go). The first round is the fan: the configured steps. The
// next ones refine the bracket between the longest time that a connection survived and the shortest one at which a
// connection was lost, until it is narrow (bracket.go). Then it is the turn of the fan again, because paths change.
//
// A control connection is busy with keepalives meanwhile. If it ends, too, the idle time is not the reason: an
// application that hears nothing closes it like the others, and so does a proxy that limits how long connections live.
// If it does not answer while another connection is checked, the path is interrupted, and nothing is measured.
//
// Idle time is measured, not assumed. If this host was suspended or the process was stopped, so that a connection was
// idle for longer than its step, or if the peer has sent something, a lost connection says nothing about the step: it
// is skipped and counted.
package idle
