package exporter

import (
	"regexp"
	"strings"
)

// times matches the times, in text and in JSON.
var times = regexp.MustCompile(
	`[0-9.]+ ms|= [0-9./]+ ms|"(time|duration_seconds|handshake_seconds|rtt_seconds)":[^,}]+`)

// Steady replaces the times in the output of the probe command by T, because they differ from run to run.
func Steady(text string) string {
	return times.ReplaceAllStringFunc(text, func(found string) string {
		switch {
		case strings.HasPrefix(found, `"`):
			name, _, _ := strings.Cut(found, ":")
			return name + ":T"
		case strings.HasPrefix(found, "="):
			return "= T/T/T/T ms"
		}
		return "T ms"
	})
}
