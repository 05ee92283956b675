// Package endtoend tests the exporter as a black box: a program of its own, asked over HTTP, in a network of
// the tests.
package endtoend
