// Package watch probes targets continuously in the background, and answers scrapes from memory.
//
// The targets are listed in Prometheus only. The first scrape of a target with a watched module performs an
// ordinary probe and registers the target (watcher.go) in a registry, as far as the limits permit it (limits.go).
// From then on the engine shakes hands with the target at each interval of the module, and the target counts the
// results (target.go). Targets of a module with flows share the handshakes with an address (streams.go). Later scrapes
// read the results and send no packet. Package registry lets targets expire that are not scraped for some time, and
// resolves names again now and then, to which the targets adapt (adapt.go).
//
// The status page reads the status of each target (status.go), which includes the last minutes (strip.go).
//
// A handshake that this host could not perform is counted as skipped, by reason. It never counts as lost.
package watch
