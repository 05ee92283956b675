// Package examples has no code. Its tests prove the files beside it, which users copy: with a
// real Prometheus, Alertmanager and the tools that read such files.
package examples
