// Package alerts tests what a person is notified of: a real Prometheus, or VictoriaMetrics, evaluates the rules in
// examples while targets and exporters have trouble, and a real Alertmanager sends notifications.
package alerts
