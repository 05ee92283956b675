// Package examples tests the files in examples, which users copy, with a real Prometheus and the tools that read such
// files. The packages alerts, watched and scale test some of these files together with the exporter.
package examples
