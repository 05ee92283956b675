package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// A holdTally summarizes the connections to a target. Its size does not depend on their number. It is safe for use by
// any number of goroutines.
type holdTally struct {
	mu       sync.Mutex
	connects int
	since    time.Time      // when the current connection was established; zero if there is none
	closed   time.Duration  // age of the last connection when the command closed it; 0 if it did not
	deaths   map[string]int // connections that have ended, by reason; nil if there are none
	failures map[string]int // connections that could not be opened, by reason; nil if there are none
	ages     ages
	unwell   bool // the connection, if there is one, is not as it should be

	heartbeats            bool // whether any are sent
	answered, late, wrong int  // heartbeats that were answered, and those of them too late or not as expected
	unanswered            int  // heartbeats without an answer
	latencies             latencies

	silence time.Duration // the longest one of the peer's kernel; 0 if it is not known
	dropped uint64        // events that the output was too slow for
}

// ages summarizes the ages at which connections ended.
type ages struct {
	n             int
	sum, min, max time.Duration
}

func (a *ages) add(age time.Duration) {
	if a.n == 0 {
		a.min = age
	}
	a.n++
	a.sum += age
	a.min, a.max = min(a.min, age), max(a.max, age)
}

// update changes the tally.
func (t *holdTally) update(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

// isWell reports whether there was a connection at the end, and nothing was missing or wrong.
func (t *holdTally) isWell() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return (!t.since.IsZero() || t.closed > 0) && !t.unwell
}

// String formats the tally in one line.
func (t *holdTally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines(), "; ")
}

// lines formats the tally. The caller holds mu.
func (t *holdTally) lines() []string {
	first := plural(t.connects, "connect")
	switch {
	case !t.since.IsZero():
		first += ", connected for " + showAge(time.Since(t.since))
	case t.closed > 0:
		first += ", 1 closed by this command after " + showAge(t.closed)
	}
	for _, reason := range slices.Sorted(maps.Keys(t.deaths)) {
		first += fmt.Sprintf(", %d ended: %s", t.deaths[reason], reason)
	}
	for _, reason := range slices.Sorted(maps.Keys(t.failures)) {
		first += fmt.Sprintf(", %d failed: %s", t.failures[reason], reason)
	}
	all := []string{first}
	if a := &t.ages; a.n > 0 {
		all = append(all, fmt.Sprintf("age at the end min/avg/max = %s/%s/%s",
			showAge(a.min), showAge(a.sum/time.Duration(a.n)), showAge(a.max)))
	}
	if t.heartbeats {
		text := fmt.Sprintf("%s, %d answered, %d unanswered", plural(t.answered+t.unanswered, "heartbeat"),
			t.answered, t.unanswered)
		if t.late > 0 {
			text += fmt.Sprintf(", %d late", t.late)
		}
		if t.wrong > 0 {
			text += fmt.Sprintf(", %d mismatch", t.wrong)
		}
		if l := &t.latencies; l.n > 0 {
			text += fmt.Sprintf("; min/p50/p99/max = %s/%s/%s/%s ms", probe.Milliseconds(l.min),
				probe.Milliseconds(l.percentile(50)), probe.Milliseconds(l.percentile(99)), probe.Milliseconds(l.max))
		}
		all = append(all, text)
	}
	if t.silence > 0 {
		all = append(all, "longest silence "+showAge(t.silence))
	}
	if t.dropped > 0 {
		all = append(all, plural(int(t.dropped), "event")+" not shown, because the output was too slow")
	}
	return all
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// showAge formats an age with as many digits as are of interest.
func showAge(age time.Duration) string {
	switch {
	case age < 10*time.Second:
		return age.Round(time.Millisecond).String()
	case age < time.Minute:
		return age.Round(100 * time.Millisecond).String()
	}
	return age.Round(time.Second).String()
}
