package shaker

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A handshake that is used again has nothing of its previous target.
func TestHandshakesAreReused(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	s := start(t)
	previous := Result{Outcome: Open, Peer: target6, RTT: time.Hour, SYNs: 7}
	icmp := ICMP{From: netip.MustParseAddr("198.51.100.7"), Type: 3, Code: 1}
	var all []*handshake
	for range 100 { // the pool may drop some
		h := newHandshake()
		h.result, h.err = previous, ErrClosed
		h.soft = conclusion{soft: true, errno: unix.EHOSTUNREACH, icmp: icmp}
		s.engine.idle.Put(h)
		all = append(all, h)
	}
	r, err := inTime(func() (Result, error) {
		return s.Shake(t.Context(), target4, &Options{Timeout: 50 * time.Millisecond})
	})
	if !slices.ContainsFunc(all, func(h *handshake) bool { return h.result.Peer != target6 }) {
		t.Fatal("the test did not provoke its case: no handshake was used again")
	}
	want := Result{Outcome: Timeout, Errno: unix.ETIMEDOUT, SYNs: 1, Peer: target4}
	if err != nil || withoutTimes(r) != want || r.RTT != 0 {
		t.Errorf("Shake(%v) =\n     %+v, error %v\nwant %+v", target4, r, err, want)
	}
}

// A caller gets a loop that it can drive itself, if there is one, and otherwise all loops in turns.
func TestFreeLoop(t *testing.T) {
	e, err := newEngineOf(2, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	uses := func() (first, second int) {
		for range 10 {
			if e.freeLoop(false) == e.loops[0] {
				first++
			} else {
				second++
			}
		}
		return first, second
	}
	for _, l := range e.loops {
		lab.Eventually(t, "the loop sleeps", l.isFree)
	}
	if first, second := uses(); first != 5 || second != 5 {
		t.Errorf("both are free: of 10 callers, %d and %d got the loops, want 5 and 5", first, second)
	}
	h := hold(e.loops[0])
	if first, second := uses(); first != 0 || second != 10 {
		t.Errorf("the first is driven: of 10 callers, %d and %d got the loops, want 0 and 10", first, second)
	}
	g := hold(e.loops[1])
	if first, second := uses(); first != 5 || second != 5 {
		t.Errorf("both are driven: of 10 callers, %d and %d got the loops, want 5 and 5", first, second)
	}
	close(h.release)
	close(g.release)
}
