package pages

import (
	"errors"
	"net/netip"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// findings returns those of a round whose idle timeout is between two of its steps.
func findings(timeout time.Duration, kind idle.Kind, steps ...time.Duration) []idle.Finding {
	var all []idle.Finding
	for _, step := range steps {
		f := idle.Finding{Step: step, Idle: step, Kind: idle.Survived, Outcome: shaker.Open}
		if step >= timeout {
			f.Kind, f.Outcome = kind, shaker.Timeout
			if kind == idle.Told {
				f.Idle, f.Outcome = timeout, shaker.Closed
			}
		}
		all = append(all, f)
	}
	return all
}

// idleFleet returns many kinds of targets whose idle timeout is measured.
func idleFleet(now time.Time) []*idle.Status {
	const s = time.Second
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	steps := []time.Duration{50 * s, 100 * s, 220 * s, 330 * s, 500 * s, 1000 * s, 1700 * s, 3400 * s}
	open := history.Record{Result: "open", Success: true, RTT: 9 * time.Millisecond}
	all := []*idle.Status{
		{
			Target: "api.eu-central-1.example:443", Last: open, Since: ago(30 * time.Hour),
			Snapshot: idle.Snapshot{
				Rounds: 31, Round: ago(12 * time.Minute), Consistent: true, Survived: 348 * s, Lost: 352 * s,
				Findings: findings(350*s, idle.Lost, steps...),
				Control:  &idle.Control{Outcome: shaker.Open, Age: 3402 * s},
				Skipped:  [5]uint64{2, 0, 0, 1, 0},
			},
			Began: ago(400 * s), Steps: steps,
		},
		{
			Target: "www.example:80", Last: open, Since: ago(30 * time.Hour),
			Snapshot: idle.Snapshot{
				Rounds: 1, Round: ago(2 * time.Minute), Survived: 50 * s, Lost: 60060 * time.Millisecond,
				Told: 60060 * time.Millisecond, Findings: findings(60*s, idle.Told, steps...),
				Control: &idle.Control{Outcome: shaker.Closed, Age: 60040 * time.Millisecond},
			},
			Began: ago(3400 * s), Steps: steps,
		},
		{
			Target: "10.4.12.10:5432", Last: open, Since: ago(30 * time.Hour),
			Snapshot: idle.Snapshot{
				Rounds: 4, Round: ago(2 * time.Hour), Consistent: true, Survived: 3400 * s,
				Findings: findings(9000*s, idle.Lost, steps...),
				Control:  &idle.Control{Outcome: shaker.Open, Age: 3402 * s},
			},
			Began: ago(3399 * s), Steps: steps,
			Fault: errors.New("hold 10.4.12.10:5432: socket: too many open files"),
		},
		{Target: "fresh.prod.example:443", Began: ago(90 * s), Steps: steps},
	}
	for _, status := range all {
		status.Module, status.Registered, status.Client = "path_idle", ago(31*time.Hour), "10.1.0.90"
		status.Last.Address, status.Last.SYNRetransmits = netip.MustParseAddr("203.0.113.30"), 0
		status.Scraped, status.Expires = ago(8*s), now.Add(1792*s)
	}
	return all
}
