package lab

import (
	"regexp"
	"time"

	"github.com/prometheus/common/model"
)

var duration = regexp.MustCompile(`\b(?:\d+[smhd])+\b`)

// Faster divides all durations in a configuration or a file of rules, by 60 for a test that waits for seconds
// instead of minutes.
func Faster(text string, times int) string {
	return duration.ReplaceAllStringFunc(text, func(text string) string {
		d, err := model.ParseDuration(text)
		if err != nil {
			return text
		}
		return (model.Duration(time.Duration(d) / time.Duration(times))).String()
	})
}
