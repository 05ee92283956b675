package hold

import (
	"context"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// causesAtOnce limits how many handshakes look for causes concurrently. A target that waits longer than its timeout for
// its turn has no cause but silence.
const causesAtOnce = 256

// A death is the end of an established connection.
type death struct {
	outcome shaker.Outcome
	errno   shaker.Errno
	at      time.Time
	age     time.Duration
}

// what describes the end.
func (d *death) what() string { return "connection ended after " + round(d.age).String() }

// isUnexplained reports whether the kernel does not know why the peer was not reached: it only knows that the peer has
// not acknowledged anything, also if this host has lost its route, or it has had an ICMP error, of which it keeps
// neither the type nor the sender.
func (d *death) isUnexplained() bool {
	switch d.outcome {
	case shaker.Timeout, shaker.Unreachable, shaker.Prohibited, shaker.Refused:
		return true
	}
	return false
}

// causes are the targets whose silence has to be explained.
type causes struct {
	mu      sync.Mutex
	waiting []*target
	workers int
}

// examine looks for the cause of an end with one handshake, and lets the target bury its connection. Its
// caller holds the target's mu.
func (h *Holder) examine(t *target) {
	c := &h.causes
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, t)
	if c.workers < causesAtOnce {
		c.workers++
		h.registry.Go(h.examineAll)
	}
}

// examineAll examines targets until none is waiting.
func (h *Holder) examineAll(ctx context.Context) {
	c := &h.causes
	for {
		c.mu.Lock()
		if len(c.waiting) == 0 {
			c.workers--
			c.waiting = nil
			c.mu.Unlock()
			return
		}
		t := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.mu.Unlock()
		t.examine(ctx)
	}
}

// examine performs the handshake.
func (t *target) examine(ctx context.Context) {
	t.mu.Lock()
	d, peer := t.death, t.peer
	t.mu.Unlock()
	if d == nil { // it was stopped
		return
	}
	outcome, errno, icmp := d.outcome, d.errno, shaker.ICMP{}
	if time.Since(d.at) < t.Module.Timeout {
		options := t.holder.optionsOf(t.Module).Options
		options.FIN = false // the application sees nothing
		result, err := t.holder.options.Shaker.Shake(ctx, peer, &options)
		// A target that answers now has forgotten the connection, or was unreachable for a while: it was silent.
		if err == nil && (result.Outcome == shaker.Unreachable || result.Outcome == shaker.Prohibited ||
			result.ICMP.From.IsValid()) {
			outcome, errno, icmp = result.Outcome, result.Errno, result.ICMP
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.death == d {
		t.buried(outcome, errno, icmp)
		t.retry()
	}
}
