package hold

import (
	"fmt"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// connectionsPerProbe is how many held connections need as many descriptors as a probe in flight.
const connectionsPerProbe = 3

// limits are the limits of a Holder, and what the targets need of them. Every target counts as a connection, also while
// it waits for the next one.
type limits struct {
	prober *probe.Prober
	most   int // 0 means no limit
	spare  int // connections that are not taken off the probes in flight
	held   int
}

// Permit implements registry.Limits.
func (l *limits) Permit(*config.Module) error {
	if l.most > 0 && l.held >= l.most {
		return fmt.Errorf("%w: %d are held already (limit: --hold.max-connections)", ErrLimit, l.held)
	}
	if n := reservedProbes(l.held+1-l.spare) - reservedProbes(l.held-l.spare); !l.prober.CanReserve(n) {
		return fmt.Errorf("%w: probes need the other open files (limit: --probe.max-in-flight)", ErrLimit)
	}
	return nil
}

// Count implements registry.Limits.
func (l *limits) Count(_ *config.Module, n int) {
	before := reservedProbes(l.held - l.spare)
	l.held += n
	l.prober.Reserve(reservedProbes(l.held-l.spare) - before)
}

// reservedProbes returns how many probes need as much as n connections.
func reservedProbes(n int) int { return (max(0, n) + connectionsPerProbe - 1) / connectionsPerProbe }
