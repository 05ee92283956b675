// Package endtoend tests the exporter as its users run it: as a program, over HTTP and on the command line, in
// a simulated network.
package endtoend
