package hold

import (
	"fmt"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// limits are the limits of the targets: each counts as a connection, also while it waits for the next one.
type limits struct{ connections *probe.Connections }

// Permit implements registry.Limits.
func (l limits) Permit(*config.Module) error {
	if err := l.connections.Permit(1); err != nil {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	return nil
}

// Count implements registry.Limits.
func (l limits) Count(_ *config.Module, n int) { l.connections.Count(n) }
