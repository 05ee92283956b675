package probe

import (
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// A third of the timeout is reserved for the path, at most 2 s.
func TestTraceTime(t *testing.T) {
	for _, c := range []struct {
		path          string
		timeout, want time.Duration
	}{
		{path: config.Never, timeout: 6 * time.Second, want: 0},
		{path: config.OnFailure, timeout: 3 * time.Second, want: time.Second},
		{path: config.Always, timeout: 6 * time.Second, want: 2 * time.Second},
		{path: config.Always, timeout: time.Minute, want: 2 * time.Second},
	} {
		r := Request{Timeout: c.timeout}
		r.Module.TCP.Path = c.path
		if got := r.traceTime(); got != c.want {
			t.Errorf("traceTime() with path %s and timeout %v = %v, want %v", c.path, c.timeout, got, c.want)
		}
	}
}
