// Package watched tests that Prometheus gets everything that happens to watched targets between its scrapes.
package watched
