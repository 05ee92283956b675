package probe

import (
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// Held connections take descriptors off the probes, three for each, beyond those that are spare. Some probes are always
// left.
func TestConnections(t *testing.T) {
	p := New(Options{Config: config.Default(), MaxInFlight: 64})
	c := NewConnections(p, 0, 10)
	for _, step := range []struct{ count, reserved int64 }{
		{count: 10, reserved: 0}, {count: 1, reserved: 1}, {count: 2, reserved: 1}, {count: 1, reserved: 2},
		{count: -4, reserved: 0}, {count: -10, reserved: 0}, {count: 10 + 3*62, reserved: 62},
	} {
		if err := c.Permit(int(step.count)); err != nil {
			t.Errorf("Permit(%d) = %v, want nil", step.count, err)
		}
		c.Count(int(step.count))
		if got := p.InFlight(); got != step.reserved {
			t.Errorf("after %+d connections, %d probes are reserved, want %d", step.count, got, step.reserved)
		}
	}
	const want = "196 connections are reserved already, and probes need the other open files " +
		"(limit: --probe.max-in-flight)"
	if err := c.Permit(1); err == nil || err.Error() != want {
		t.Errorf("Permit of a connection that takes one of the last 2 probes = %v, want %s", err, want)
	}
}
