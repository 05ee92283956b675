package watch

import (
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The error of a limit is a sentence, also if there is only one of what it counts.
func TestErrorsOfLimits(t *testing.T) {
	prober := probe.New(probe.Options{Shaker: &shaker.Shaker{}, Config: config.Default()})
	m := &config.Module{Timeout: time.Second, Watch: config.Watch{Interval: time.Second}}
	for _, c := range []struct {
		limits limits
		want   string
	}{
		{
			limits: limits{maxTargets: 1, watched: 1},
			want:   "target not watched: 1 target is watched already (limit: --watch.max-targets)",
		},
		{
			limits: limits{maxTargets: 2, watched: 2},
			want:   "target not watched: 2 targets are watched already (limit: --watch.max-targets)",
		},
		{
			limits: limits{maxRate: 0.5},
			want:   "target not watched: 1 per second would be too many handshakes (limit: --watch.max-rate)",
		},
		{
			limits: limits{maxRate: 1, rate: 1},
			want:   "target not watched: 2 per second would be too many handshakes (limit: --watch.max-rate)",
		},
	} {
		c.limits.prober = prober
		if err := c.limits.Permit(m); err == nil || err.Error() != c.want {
			t.Errorf("Permit with %+v = %v, want %s", c.limits, err, c.want)
		}
	}
}
