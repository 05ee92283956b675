package exporter

import (
	"regexp"
	"strings"
)

// times matches what differs from run to run, in text and in JSON: times, and local ports.
var times = regexp.MustCompile(
	`[0-9.]+ ms|= [0-9./]+ ms|"(time|[a-z0-9_]+_seconds|local_port)":[^,}]+|` +
		`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}|local port \d+|\b(\d+h)?(\d+m)?[0-9.]+m?s\b`)

// Steady replaces the times and local ports in the output of a command by T, because they differ from run to run.
func Steady(text string) string {
	return times.ReplaceAllStringFunc(text, func(found string) string {
		switch {
		case strings.HasPrefix(found, `"`):
			name, _, _ := strings.Cut(found, ":")
			return name + ":T"
		case strings.HasPrefix(found, "="):
			return "= T/T/T/T ms"
		case strings.HasPrefix(found, "local port "):
			return "local port T"
		case strings.HasSuffix(found, " ms"):
			return "T ms"
		}
		return "T"
	})
}
