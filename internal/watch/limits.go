package watch

import (
	"fmt"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// handshakesPerProbe is how many handshakes in the background count as one probe in flight. A probe needs three
// descriptors, with those of its HTTP connection and of its DNS queries, and a handshake in the background one.
const handshakesPerProbe = 3

// limits are the limits of a Watcher, and what the watched targets need of them.
type limits struct {
	prober     *probe.Prober
	maxTargets int     // 0 means no limit
	maxRate    float64 // 0 means no limit

	watched  int     // targets
	rate     float64 // handshakes with them in a second
	reserved int     // handshakes with them that may be running at once
}

// Permit implements registry.Limits.
func (l *limits) Permit(m *config.Module) error {
	most := handshakesPerProbe * l.prober.MaxInFlight() / 2
	switch rate, reserved := l.rate+perSecond(m), l.reserved+atOnce(m); {
	case l.maxTargets > 0 && l.watched >= l.maxTargets:
		are := "targets are"
		if l.watched == 1 {
			are = "target is"
		}
		return fmt.Errorf("%w: %d %s watched already (limit: --watch.max-targets)", ErrLimit, l.watched, are)
	case l.maxRate > 0 && rate > l.maxRate:
		return fmt.Errorf("%w: %.6g per second would be too many handshakes (limit: --watch.max-rate)", ErrLimit, rate)
	case most > 0 && reserved > most:
		return fmt.Errorf("%w: watched targets that are silent could have %d handshakes in flight "+
			"(limit: %d, 1.5 times --probe.max-in-flight)", ErrLimit, reserved, most)
	case !l.prober.CanReserve(probesFor(reserved) - l.reservedProbes()):
		return fmt.Errorf("%w: held connections and probes need the other open files (limit: --probe.max-in-flight)",
			ErrLimit)
	}
	return nil
}

// Count implements registry.Limits.
func (l *limits) Count(m *config.Module, n int) {
	l.watched += n
	l.rate += float64(n) * perSecond(m)
	before := l.reservedProbes()
	l.reserved += n * atOnce(m)
	l.prober.Reserve(l.reservedProbes() - before)
}

// reservedProbes returns how many probes need as much as the handshakes that are reserved.
func (l *limits) reservedProbes() int { return probesFor(l.reserved) }

// probesFor returns how many probes need as much as n handshakes.
func probesFor(n int) int { return (n + handshakesPerProbe - 1) / handshakesPerProbe }

// perSecond returns how many handshakes with a target of the module there are in a second.
func perSecond(m *config.Module) float64 { return 1 / m.Watch.Interval.Seconds() }

// atOnce returns how many handshakes with a target of the module are in flight if the target is silent.
func atOnce(m *config.Module) int { return int((m.Timeout + m.Watch.Interval - 1) / m.Watch.Interval) }
