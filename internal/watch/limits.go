package watch

import (
	"fmt"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// A probe in flight counts as so many units, and handshakes in the background as fewer.
const (
	unitsPerProbe = 48

	// unitsPerSocket is for a handshake through a socket, which needs one descriptor. A probe needs three of them, with
	// those of its HTTP connection and of its DNS queries.
	unitsPerSocket = unitsPerProbe / 3

	// unitsWithoutSocket is for a handshake that needs no descriptor, but less than 1 KiB of memory. A probe needs 48.
	unitsWithoutSocket = 1
)

// limits are the limits of a Watcher, and what the watched targets need of them.
type limits struct {
	prober     *probe.Prober
	maxTargets int     // 0 means no limit
	maxRate    float64 // 0 means no limit

	watched  int     // targets
	rate     float64 // handshakes with them in a second
	reserved int     // units of the handshakes with them that may be running at once
}

// Permit implements registry.Limits.
func (l *limits) Permit(m *config.Module) error {
	most := unitsPerProbe * l.prober.MaxInFlight() / 2
	each := l.each(m)
	switch rate, reserved := l.rate+perSecond(m), l.reserved+each*atOnce(m); {
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
			"(limit: %d, %v times --probe.max-in-flight)", ErrLimit, (reserved+each-1)/each, most/each,
			unitsPerProbe/2/float64(each))
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
	l.reserved += n * l.each(m) * atOnce(m)
	l.prober.Reserve(l.reservedProbes() - before)
}

// reservedProbes returns how many probes need as much as the handshakes that are reserved.
func (l *limits) reservedProbes() int { return probesFor(l.reserved) }

// probesFor returns for how many probes in flight so many units count.
func probesFor(units int) int { return (units + unitsPerProbe - 1) / unitsPerProbe }

// each returns for how many units a handshake with a target of the module counts.
func (l *limits) each(m *config.Module) int {
	if l.prober.IsRawFor(m) {
		return unitsWithoutSocket
	}
	return unitsPerSocket
}

// perSecond returns how many handshakes with a target of the module there are in a second.
func perSecond(m *config.Module) float64 { return 1 / m.Watch.Interval.Seconds() }

// atOnce returns how many handshakes with a target of the module are in flight if the target is silent: with flows, one
// of each at most.
func atOnce(m *config.Module) int {
	n := int((m.Timeout + m.Watch.Interval - 1) / m.Watch.Interval)
	if m.TCP.Flows > 0 {
		n = min(n, int(m.TCP.Flows))
	}
	return n
}
