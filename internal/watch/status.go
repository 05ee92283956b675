package watch

import (
	"iter"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Status is what the status page shows of a watched target.
type Status struct {
	Target, Module string

	Last      history.Record // the last handshake, or that the name has no address
	Since     time.Time      // start of the first one with this result in a row, or of the first failure in a row
	Changed   bool           // whether there was another result before Since
	NoAddress bool           // whether there are no handshakes, because the name has no address any more
	Stale     error          // why there is no recent handshake because of this host, nil if there is one
	Path      *shaker.Path   // at the begin of the present failure, nil if there is none
	Failure   string         // the result of the last failure, "" if there was none
	FailureAt time.Time      // its start

	Registered time.Time
	All        Tally // since Registered
	LastMinute Tally // and up to five seconds more
	Slots      []Slot
	SlotLength time.Duration
	P50, P99   time.Duration // of the RTTs since Registered, 0 if there are none

	Client           string // the last one that scraped the target
	Scraped, Expires time.Time
}

// Unstable reports whether handshakes in the last minute failed or lost a SYN.
func (s *Status) Unstable() bool { return s.LastMinute.Failed > 0 || s.LastMinute.Lost > 0 }

// Targets returns the statuses of all watched targets, in no particular order. Each of them is computed when it is its
// turn, so that neither the Watcher nor any target waits for the caller.
func (w *Watcher) Targets() iter.Seq[*Status] {
	return func(yield func(*Status) bool) {
		for t := range w.registry.Targets() {
			if !yield(t.status()) {
				return
			}
		}
	}
}

// status returns the status of the target.
func (t *target) status() *Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noteSkipped()
	recent := t.recent.read(t.watcher.now())
	skipped := t.allSkipped()
	report := t.report(t.request())
	scraped, client := t.watcher.registry.LastScrape(t)
	s := &Status{
		Target:     t.Key.Target,
		Module:     t.Key.Module,
		Last:       report.Record(),
		Since:      t.watcher.onWallClock(t.since),
		Changed:    t.changed,
		Path:       report.Path,
		Registered: time.Unix(0, t.registered),
		All:        Tally{Lost: t.lost, Skipped: skipped.total()},
		LastMinute: TallyOf(recent[slots-lastMinute:]),
		Slots:      recent[:],
		SlotLength: slotLength,
		P50:        t.rtt.Quantile(0.5),
		P99:        t.rtt.Quantile(0.99),
		Client:     client,
		Scraped:    scraped,
	}
	if t.failure != nil {
		s.Failure, s.FailureAt = t.failure.result, t.failure.at
	}
	s.Expires = s.Scraped.Add(t.Module.Watch.Expire)
	for _, c := range t.counts {
		s.All.Completed += c.n
		if !t.accepts(c.outcome) {
			s.All.Failed += c.n
		}
	}
	if t.gone() == nil {
		s.Stale = t.stale()
	} else {
		s.NoAddress = true
		s.Last.Time = t.name.goneAt // by the last lookup
	}
	return s
}

// request returns a request for the target.
func (t *target) request() *probe.Request {
	return &probe.Request{Target: probe.Target{Text: t.Key.Target}, ModuleName: t.Key.Module, Module: *t.Module}
}

// noteSkipped counts the handshakes that were skipped since the last call in the present slot. Its caller holds mu.
func (t *target) noteSkipped() {
	skipped := t.allSkipped()
	if total := skipped.total(); total > 0 {
		s := t.haveSkips()
		t.recent.add(t.watcher.now(), Tally{Skipped: total - s.noted})
		s.noted = total
	}
}

func (s *Skipped) total() uint64 { return s.Late + s.Overlapping + s.Unread + s.Fault }
