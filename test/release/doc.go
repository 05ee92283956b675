// Package release tests what scripts/release.sh makes.
package release
