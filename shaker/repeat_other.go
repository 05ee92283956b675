//go:build !linux

package shaker

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// repeating is the part of a Repetition that its goroutine drives.
type repeating struct {
	options sharedOptions // never changes
	engine  *engine
	began   time.Time     // zero of the schedule's clock
	changed chan struct{} // has room for one value, which means that the interval has changed
	cancel  context.CancelFunc

	mu      sync.Mutex
	target  netip.AddrPort
	pace    pace
	running int
}

// repeat starts the goroutine of a Repetition.
func (e *engine) repeat(r *Repetition, target netip.AddrPort, _ uint32, schedule Schedule) error {
	options := schedule.Options
	if schedule.SourcePorts != (PortRange{}) {
		options.SourcePort = schedule.SourcePorts.First
	}
	if err := options.supported(); err != nil {
		return err
	}
	if err := e.begin(); err != nil {
		return err
	}
	var ctx context.Context
	r.options, r.engine, r.target = schedule.Options.share(), e, target
	r.pace = pace{interval: schedule.Interval, offset: schedule.Offset}
	r.began, r.changed = time.Now(), make(chan struct{}, 1)
	ctx, r.cancel = context.WithCancel(e.closing)
	go func() {
		defer e.running.Done()
		r.run(ctx)
	}()
	return nil
}

func (r *Repetition) setTarget(target netip.AddrPort, _ uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
}

func (r *Repetition) setInterval(interval time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace.interval = interval
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *Repetition) stop() { r.cancel() }

// run starts a handshake whenever one is due.
func (r *Repetition) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		r.mu.Lock()
		pace := r.pace
		r.mu.Unlock()
		now := time.Since(r.began)
		due := pace.next(now)
		timer.Reset(due - now)
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
			continue
		case <-timer.C:
		}
		lateness := time.Since(r.began) - due
		missed := lateness / pace.interval
		r.late.Add(uint64(missed))
		due += missed * pace.interval
		r.mu.Lock()
		target, running := r.target, r.running
		r.mu.Unlock()
		switch {
		case time.Since(r.began)-due > pace.tolerance():
			r.late.Add(1)
		case running >= maxOverlap:
			r.overlapping.Add(1)
		default:
			r.shake(ctx, target, r.began.Add(due))
		}
	}
}

// shake starts one handshake and passes its result on.
func (r *Repetition) shake(ctx context.Context, target netip.AddrPort, due time.Time) {
	if r.engine.begin() != nil {
		return
	}
	r.count(1)
	go func() {
		defer r.engine.running.Done()
		defer r.count(-1)
		sent := time.Now()
		options := r.options.get()
		result, err := r.engine.dial(ctx, target, &options, sent, sent.Add(options.Timeout))
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			result, err = Result{}, &opError{what: "repeat", err: err, local: true}
		}
		r.engine.calling.Lock()
		defer r.engine.calling.Unlock()
		if !r.over.Load() {
			r.each(Repeated{Result: result, Err: err, Sent: sent, Lag: sent.Sub(due), repetition: r})
		}
	}()
}

func (r *Repetition) count(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running += n
}
