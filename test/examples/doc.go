// Package examples tests the files in examples, which users copy, with a real Prometheus, a real Alertmanager and the
// tools that read such files.
package examples
