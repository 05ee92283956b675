package idle

import (
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Snapshot is what was measured of the path to a target.
type Snapshot struct {
	Registered time.Time

	Rounds uint64    // that are complete: they have measured something
	Round  time.Time // when the last one ended, zero if there was none

	// The fields below are meaningful only if there was a complete round.

	// Findings are those of the last complete round with the configured steps.
	Findings []Finding

	// Survived and Lost are the bracket of the idle timeout. Lost is 0 if no connection was lost.
	Survived, Lost time.Duration

	// Consistent reports whether, in the last complete round, no connection survived that was idle for longer than one
	// that was lost.
	Consistent bool

	// Told is after what time the first FIN or RST arrived unasked in the last complete round, 0 if none did.
	Told time.Duration

	// Control is what became of the control connection in the last complete round, nil if there is none.
	Control *Control

	// Skipped counts the connections that showed nothing about the idle time, by Reason.
	Skipped [numberReasons]uint64
}

// snapshot returns what was measured. Its caller holds mu.
func (t *target) snapshot() *Snapshot {
	return &Snapshot{
		Registered: t.registered,
		Rounds:     t.rounds,
		Round:      t.completed,
		Findings:   t.findings, // which are never changed
		Survived:   t.bracket.survived,
		Lost:       t.bracket.lost,
		Consistent: t.consistent,
		Told:       t.told,
		Control:    t.control,
		Skipped:    t.skipped,
	}
}

// A Limit says who limits for how long connections to a target may be idle.
type Limit uint8

// Who limits the idle time.
const (
	Unknown     Limit = iota // there was no complete round
	None                     // all connections survived
	Middlebox                // the control connection, which is never idle, lives on
	Application              // the control connection ended, too: an application or a proxy closes connections
	Unclear                  // there is no control connection, or the path to the target was interrupted
)

// Limit returns who limits the idle time.
func (s *Snapshot) Limit() Limit {
	switch c := s.Control; {
	case s.Rounds == 0:
		return Unknown
	case s.Lost == 0:
		return None
	case c == nil:
		return Unclear
	case c.Alive():
		return Middlebox
	case s.Told > 0:
		return Application
	}
	return Unclear
}

// Alive reports whether the control connection was still established at the end of the round.
func (c *Control) Alive() bool { return c.Outcome == shaker.Open }

// A Status is what the status page shows of a target.
type Status struct {
	Target, Module string

	// Last is about the last connects. Its Result is "" if there is none yet, or if no round is complete.
	Last  history.Record
	Since time.Time // when the result of Last was found first
	Fault error     // why this host could not perform the last round, nil if it could
	Stale error     // the error that scrapes get because of Fault, nil if an earlier round answers them

	Snapshot
	Began time.Time       // start of the present round
	Steps []time.Duration // of the present round

	Client           string // the last one that scraped the target
	Scraped, Expires time.Time
}

func (t *target) status() *Status {
	scraped, client := t.meter.registry.LastScrape(t)
	t.mu.Lock()
	defer t.mu.Unlock()
	return &Status{
		Target:   t.Key.Target,
		Module:   t.Key.Module,
		Last:     t.report(t.request()).Record(),
		Since:    t.since,
		Fault:    t.fault,
		Stale:    t.stale(),
		Snapshot: *t.snapshot(),
		Began:    t.attempt,
		Steps:    t.steps,
		Client:   client,
		Scraped:  scraped,
		Expires:  scraped.Add(t.Module.Idle.Expire),
	}
}
