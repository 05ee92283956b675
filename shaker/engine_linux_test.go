package shaker

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
