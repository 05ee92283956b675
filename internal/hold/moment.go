package hold

import "time"

// A moment is a time on a clock that cannot be set: the time since [New]. It takes a third of the memory of a
// time.Time. 0 means never.
type moment time.Duration

// at returns the moment of a time that has a reading of the monotonic clock.
func (h *Holder) at(t time.Time) moment {
	if t.IsZero() {
		return 0
	}
	return moment(t.Sub(h.started)) | 1 // not 0
}

func (h *Holder) now() moment { return h.at(time.Now()) }

// wall returns a moment as the wall clock shows it now, which may have been set since. It returns the zero time for 0.
func (h *Holder) wall(m moment) time.Time {
	if m == 0 {
		return time.Time{}
	}
	now := time.Now()
	return now.Add(time.Duration(m) - now.Sub(h.started))
}

// sub returns how long after another moment this one is.
func (m moment) sub(other moment) time.Duration { return time.Duration(m - other) }
