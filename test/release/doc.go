// Package release tests `make release`: what the archives of a release contain, and that they are reproducible.
package release
