// Package registry registers targets on behalf of scrapes, and ends them when no scrape asks for them any more.
//
// The targets are listed in Prometheus only. The first scrape of a target registers it, and from then on something
// runs for it in the background, so that later scrapes are answered from memory. What runs, and what is counted, is
// the business of the package that defines the type of the targets. This package has what all of them need: finding and
// registering targets within limits, expiry (registry.go), reloads of the configuration (reload.go), and lookups of
// names (lookups.go).
//
// A target that expires is stopped. For one minute it is kept, so that its counters continue if it is scraped
// again. Nothing is stored on disk.
//
// Stopping a target may take a moment. It is done for several targets at once, and without the mutex of the Registry,
// so that scrapes of other targets do not wait.
//
// Locks are taken in this order: Registry.ending, Registry.mu, a lock of a target, Registration.mu.
package registry
