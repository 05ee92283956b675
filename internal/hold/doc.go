// Package hold holds a connection to each of its targets, and answers scrapes from memory: whether the connection is
// alive, how long connections live, and what ends them.
//
// The first scrape of a target registers it (holder.go) in a registry, as far as the limits permit it (limits.go), and
// waits until the connection is established and the target has sent what it has to, or has failed to. From then on the
// target counts what happens to its connection (target.go, heartbeat.go). A connection that has ended is opened again
// after a delay (reconnect.go). If the peer has fallen silent, a handshake finds out whether this host or the network
// is the cause (cause.go). Package registry lets targets expire that are not scraped for some time, and resolves names
// again now and then: a connection stays although its name has other addresses, and the next one uses them (adapt.go).
//
// Later scrapes read what is known (snapshot.go). The status page reads the status of each target (status.go).
//
// An error of this host is never a result: a scrape that finds no connection because of it is an error.
package hold
