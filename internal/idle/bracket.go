package idle

import (
	"time"
)

// A bracket has the idle timeout of a path: a connection that was idle for survived is usable, and one that was idle
// for lost is not.
type bracket struct {
	survived time.Duration // 0 if no connection survived
	lost     time.Duration // 0 if no connection was lost
	told     bool          // lost is exact: a FIN or RST arrived at that time
}

// bracketOf returns the bracket that findings show. ok is false if they show nothing. consistent reports whether no
// connection survived for longer than another one that was lost: otherwise it depends on more than the idle time, such
// as which of several middleboxes the packets pass. The bracket then is about the shortest time at which one was lost,
// because nobody can rely on a longer one.
func bracketOf(findings []Finding) (b bracket, consistent, ok bool) {
	for _, f := range findings {
		if f.lost() && (b.lost == 0 || f.Idle < b.lost) {
			b.lost, b.told = f.Idle, f.Kind == Told
		}
	}
	consistent = true
	for _, f := range findings {
		switch {
		case f.Kind != Survived:
		case b.lost > 0 && f.Idle >= b.lost:
			consistent = false
		default:
			b.survived = max(b.survived, f.Idle)
		}
	}
	return b, consistent, b != bracket{}
}

// isNarrow reports whether there is nothing to refine: no connection was lost, or the bracket is no wider than a second
// or a tenth.
func (b bracket) isNarrow() bool {
	return b.lost == 0 || b.told || b.lost-b.survived <= max(shortestIdle, b.lost/10)
}

// inside returns up to n steps that divide the bracket into equal parts.
func (b bracket) inside(n int) (steps []time.Duration) {
	width := b.lost - b.survived
	for i := 1; i <= n; i++ {
		step := b.survived + width*time.Duration(i)/time.Duration(n+1)
		if step >= shortestIdle {
			steps = append(steps, step)
		}
	}
	return steps
}

// narrowedBy returns the bracket that a newer one leaves of this one. If they contradict each other, the path has
// changed: it is the newer one.
func (b bracket) narrowedBy(newer bracket) bracket {
	if newer.lost > 0 && newer.lost <= b.survived || b.lost > 0 && b.lost <= newer.survived {
		return newer
	}
	narrowed := newer
	narrowed.survived = max(b.survived, newer.survived)
	if b.lost > 0 && (newer.lost == 0 || b.lost < newer.lost) {
		narrowed.lost, narrowed.told = b.lost, b.told
	}
	return narrowed
}

// An inquiry decides what the next round measures.
type inquiry struct {
	fan     []time.Duration // the configured steps
	found   bracket         // since the last fan
	started bool            // there was a fan
	settled bracket         // of the inquiry before, while found is not narrow
}

// next returns the steps of the next round. isFan reports whether they are the configured ones.
func (i *inquiry) next() (steps []time.Duration, isFan bool) {
	if i.started && !i.found.isNarrow() {
		if steps = i.found.inside(len(i.fan)); len(steps) > 0 {
			return steps, false
		}
	}
	return i.fan, true
}

// take takes the bracket of a round.
func (i *inquiry) take(b bracket, isFan bool) {
	if isFan {
		if i.started {
			i.settled = i.report()
		}
		i.found, i.started = b, true
	} else {
		i.found = i.found.narrowedBy(b)
	}
	if i.found.isNarrow() {
		i.settled = i.found
	}
}

// report returns the bracket to report: what was found since the last fan, narrowed by what was found before it, as
// long as that is not refuted.
func (i *inquiry) report() bracket {
	if i.settled == (bracket{}) {
		return i.found
	}
	return i.settled.narrowedBy(i.found)
}
