package shaker

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// shortestInterval is the lower limit of Schedule.Interval.
	shortestInterval = time.Millisecond

	// maxOverlap limits how many handshakes of a Repetition run at the same time.
	maxOverlap = 64

	// latestStart is how late a handshake of a Repetition may start, if a quarter of the interval is not
	// sooner.
	latestStart = 250 * time.Millisecond

	// offsetStep is the unit of offsets. Handshakes that are due at the same time share the cost of waking a
	// thread: it is a fifth of the CPU time of 10,000 handshakes a second.
	offsetStep = 2 * time.Millisecond

	// unreadResults is for how many results of all Repetitions of a Shaker there is room.
	unreadResults = 1 << 14
)

// A Schedule says when and how a [Repetition] shakes hands.
type Schedule struct {
	// Interval is the time between two handshakes, 1 ms or more.
	Interval time.Duration

	// Offset moves all handshakes within the interval. Repetitions with the same interval and different
	// offsets shake hands at different times, so that their SYNs are spread. 0 means an offset that is derived
	// from the first target.
	Offset time.Duration

	// SourcePorts are the ports to send from in turns: each handshake sends from the next one (see
	// [Options.SourcePort]), so that the handshakes from one port are as many intervals apart as there are ports.
	// A port is skipped as [Skipped.Overlapping] while its previous handshake with the target is running. The zero
	// range leaves the port to Options. On systems other than Linux, any other range is an
	// [errors.ErrUnsupported].
	SourcePorts PortRange

	// Options are those of each handshake. A Timeout of 0 means Interval. A longer Timeout lets handshakes
	// overlap; it is at most 64 intervals. If Timeout is 1 s or less, the kernel sends one SYN per handshake,
	// so that each lost SYN is a [Timeout].
	Options Options
}

// validate returns an error that wraps [os.ErrInvalid] for a schedule that cannot be kept.
func (s *Schedule) validate() error {
	switch {
	case s.Interval < shortestInterval:
		return invalid("interval %v, want %v or more", s.Interval, shortestInterval)
	case s.Offset < 0:
		return invalid("negative offset %v", s.Offset)
	case s.Options.Timeout > maxOverlap*s.Interval:
		return invalid("timeout %v, want %d intervals of %v at most", s.Options.Timeout, maxOverlap, s.Interval)
	case s.SourcePorts == PortRange{}:
	case !s.SourcePorts.isValid():
		return invalid("invalid source port range %v", s.SourcePorts)
	case s.Options.SourcePort != 0 || s.Options.SourcePorts != PortRange{}:
		return invalid("source ports %v of the schedule and source ports of its options, want only one of them",
			s.SourcePorts)
	}
	return s.Options.validate()
}

// A pace is the part of a Schedule that says when handshakes are due.
type pace struct{ interval, offset time.Duration }

// tolerance returns how late a handshake may start.
func (p *pace) tolerance() time.Duration { return min(p.interval/4, latestStart) }

// next returns the first time after now at which a handshake is due, given the time since an arbitrary but fixed
// moment.
func (p *pace) next(now time.Duration) time.Duration {
	since := (now - p.offset) % p.interval
	if since < 0 {
		since += p.interval
	}
	return now - since + p.interval
}

// Repeated is one handshake of a [Repetition]: a verdict, or the reason why there is none.
type Repeated struct {
	// Result is the verdict about the target, as that of [Shaker.Shake]. It is the zero Result if Err is not nil.
	Result Result

	// Err is an error as that of [Shaker.Shake], except that it does not name the target: this host could not
	// measure. The error wraps [ErrLocal].
	Err error

	// Sent is when the SYN was sent, or when sending it failed.
	Sent time.Time

	// Lag is the time from when the handshake was due to Sent.
	Lag time.Duration

	// SourcePort is the port of [Schedule.SourcePorts] whose turn it was, 0 if there are none.
	SourcePort uint16

	repetition *Repetition
}

// Skipped counts handshakes of a [Repetition] that were due and are not reported, by reason. This host is the cause of
// each of them: they say nothing about the target.
type Skipped struct {
	// Late handshakes could not start in time: this host was overloaded, or this process was stopped. They start up
	// to a quarter of the interval late, and at most 250 ms. Later they are skipped, so that SYNs that were held
	// up are not sent in a burst.
	Late uint64

	// Overlapping handshakes did not start because 64 others were still running, or with [Schedule.SourcePorts] the
	// previous one from the same port.
	Overlapping uint64

	// Unread handshakes have been performed, but their results found no room because the function that takes the
	// results was too slow.
	Unread uint64
}

// A Repetition shakes hands with a target again and again, until Stop is called or its Shaker is closed. It is safe for
// concurrent use.
type Repetition struct {
	shaker *Shaker
	each   func(Repeated)
	over   atomic.Bool // Stop was called

	late, overlapping, unread atomic.Uint64 // see Skipped

	repeating
}

// Repeat shakes hands with the target at each interval of the schedule, the first time within one interval from
// now, and calls each with every handshake when it has ended.
//
// One goroutine makes the calls, for all Repetitions of the Shaker. There is room for 16,384 results that it has not
// taken yet; more are counted as [Skipped.Unread]. A function that takes long has to hand the results on. It must not
// call [Shaker.Close].
//
// A Repetition has no goroutine and no timer of its own on Linux, and its handshakes allocate nothing. Handshakes of
// callers that wait in Shake go first: a Repetition starts a handshake when no caller waits for a start.
//
// The error is that of [Shaker.Shake] for a target or options that are invalid. It wraps [os.ErrInvalid] for an invalid
// schedule, and [ErrClosed] if the Shaker is closed.
func (s *Shaker) Repeat(target netip.AddrPort, schedule Schedule, each func(Repeated)) (*Repetition, error) {
	if schedule.Options.Timeout == 0 {
		schedule.Options.Timeout = schedule.Interval
	}
	r := &Repetition{shaker: s, each: each}
	err := schedule.validate()
	if schedule.Offset == 0 {
		schedule.Offset = spread(target)
	}
	schedule.Offset = schedule.Offset.Truncate(offsetStep)
	if err == nil {
		var scope uint32
		if target, scope, err = s.destination(target, &schedule.Options); err == nil {
			err = s.engine.repeat(r, target, scope, schedule)
		}
	}
	if err != nil {
		return nil, newOpError(context.Background(), fmt.Sprintf("repeat shake %v", target), err)
	}
	return r, nil
}

// spread returns an offset for the handshakes with a target.
func spread(target netip.AddrPort) time.Duration {
	h := fnv.New64a()
	text, _ := target.MarshalBinary()
	h.Write(text)
	return time.Duration(h.Sum64() >> 1)
}

// SetTarget lets the following handshakes have another target. Those that are running end as they would have ended. The
// error is that of [Shaker.Shake] for an invalid target: nothing changes then.
func (r *Repetition) SetTarget(target netip.AddrPort) error {
	options := r.options.get()
	target, scope, err := r.shaker.destination(target, &options)
	if err != nil {
		return newOpError(context.Background(), fmt.Sprintf("repeat shake %v", target), err)
	}
	r.setTarget(target, scope)
	return nil
}

// SetInterval lets the following handshakes be due at another interval, the first of them within one such interval. The
// error wraps [os.ErrInvalid] for an interval that is invalid or too short for the timeout: nothing changes then.
func (r *Repetition) SetInterval(interval time.Duration) error {
	schedule := Schedule{Interval: interval, Options: r.options.get()}
	if err := schedule.validate(); err != nil {
		return newOpError(context.Background(), "repeat shake", err)
	}
	r.setInterval(interval)
	return nil
}

// Stop ends the Repetition. When Stop returns, the sockets of its handshakes are closed, and no further result is
// passed on: only a call that is running already may return later. A second Stop does nothing.
func (r *Repetition) Stop() {
	if !r.over.Swap(true) {
		r.stop()
	}
}

// Skipped returns how many handshakes were skipped since Repeat.
func (r *Repetition) Skipped() Skipped {
	return Skipped{Late: r.late.Load(), Overlapping: r.overlapping.Load(), Unread: r.unread.Load()}
}
