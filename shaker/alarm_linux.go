package shaker

import "sync"

// wakesAhead bounds how many callers are woken and have not run yet.
const wakesAhead = 32

// An alarm wakes the callers of handshakes that have ended, a few at a time: each of them
// wakes the next one. If thousands were woken at once, the loop might have to wait for its
// next turn on a processor until they have all had theirs, while SYN-ACKs wait for it. The
// zero value is ready.
type alarm struct {
	mu          sync.Mutex
	woken       int        // callers that were woken and have not run yet
	first, last *handshake // of those whose callers are still to be woken
}

// wake wakes the caller of h, now or when others have run.
func (a *alarm) wake(h *handshake) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.woken < wakesAhead:
		a.woken++
		h.done <- struct{}{}
	case a.first == nil:
		a.first, a.last = h, h
	default:
		a.last.next, a.last = h, h
	}
}

// awake is what a caller that was woken calls first.
func (a *alarm) awake() {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.first
	if h == nil {
		a.woken--
		return
	}
	a.first, h.next = h.next, nil
	h.done <- struct{}{}
}
