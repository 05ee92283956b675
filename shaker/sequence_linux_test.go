package shaker

import (
	"net/netip"
	"testing"
	"time"
)

func flowTo(target netip.AddrPort, port uint16) *flow {
	peer, _ := newRawAddress(target, 0)
	return &flow{peer: peer, port: port}
}

// The clock's part of no two sequence numbers is the same, even if there are more of them than ticks, and also when the
// numbers begin again at 0.
func TestSequencesAreUnique(t *testing.T) {
	for _, start := range []time.Duration{1, time.Hour, 1<<31*sequenceTick - time.Millisecond,
		1<<32*sequenceTick - time.Millisecond, 24*365*time.Hour - 1} {
		var s sequences
		seen := make(map[uint32]time.Duration)
		for i := range 100_000 {
			now := start + time.Duration(i/100)*5*time.Microsecond // 100 SYNs, and then one tick and a quarter
			number := s.next(now)
			if at, again := seen[number]; again {
				t.Fatalf("the numbers at %v and at %v are both %d", at, now, number)
			}
			seen[number] = now
		}
	}
}

// However long no SYN is sent, the clock of the numbers goes on.
func TestSequencesAfterAPause(t *testing.T) {
	for _, pause := range []time.Duration{time.Second, time.Hour, 3 * time.Hour, 5 * time.Hour, 1000 * time.Hour} {
		s := newSequences()
		s.next(time.Second)
		now := time.Second + pause
		if got, want := s.next(now), uint32(now/sequenceTick); got != want {
			t.Errorf("after a pause of %v the clock is at %d, want %d", pause, got, want)
		}
	}
}

// The numbers of a flow say nothing about those of another flow, or of another Shaker.
func TestSequencesAreUnpredictable(t *testing.T) {
	other := target4.Addr().Next()
	flows := map[string]*flow{
		"flow":                     flowTo(target4, 32768),
		"another port":             flowTo(target4, 32769),
		"another peer":             flowTo(netip.AddrPortFrom(other, target4.Port()), 32768),
		"another port of the peer": flowTo(netip.AddrPortFrom(target4.Addr(), target4.Port()+1), 32768),
		"IPv6":                     flowTo(target6, 32768),
	}
	seen := make(map[uint32]string)
	for _, shaker := range []string{"a Shaker", "another Shaker"} {
		s := newSequences()
		for name, f := range flows {
			sequence, stamp := s.hash(f)
			if again, stampAgain := s.hash(f); again != sequence || stampAgain != stamp {
				t.Errorf("%s of %s has the numbers %d and %d, then %d and %d, want the same",
					name, shaker, sequence, stamp, again, stampAgain)
			}
			for _, n := range []uint32{sequence, stamp} {
				if before, again := seen[n]; again {
					t.Errorf("%s of %s has the number of %s", name, shaker, before)
				}
				seen[n] = name + " of " + shaker
			}
		}
	}
}

// A number is late if a SYN can have had it in the last four minutes. Numbers of another flow, and of the future, are
// not. (Of numbers that are guessed, two of nine look late: the key is fixed, so that the test always says the same.)
func TestIsLate(t *testing.T) {
	s := sequences{key: [2]uint64{3, 4}}
	f, other := flowTo(target4, 32768), flowTo(target4, 32769)
	for _, sent := range []time.Duration{1, time.Hour, 1<<32*sequenceTick - time.Second,
		1<<32*sequenceTick + time.Second} {
		s.last = 0
		offset, _ := s.hash(f)
		tick := s.next(sent)
		for _, c := range []struct {
			name   string
			flow   *flow
			number uint32
			after  time.Duration
			want   bool
		}{
			{name: "at once", flow: f, number: tick, want: true},
			{name: "after a second", flow: f, number: tick, after: time.Second, want: true},
			{name: "after almost four minutes", flow: f, number: tick, after: latest - time.Millisecond, want: true},
			{name: "after four minutes", flow: f, number: tick, after: latest + time.Millisecond},
			{name: "after hours", flow: f, number: tick, after: 2 * time.Hour},
			{name: "of the next SYN", flow: f, number: tick + 1},
			{name: "of a SYN in a second", flow: f, number: tick + uint32(time.Second/sequenceTick)},
			{name: "of another flow", flow: other, number: tick},
			{name: "before the first SYN", flow: f, number: tick - uint32(min(sent, latest)/sequenceTick) - 1},
		} {
			if got := s.isLate(c.flow, offset+c.number, sent+c.after); got != c.want {
				t.Errorf("a SYN at %v, its number %s: isLate = %t, want %t", sent, c.name, got, c.want)
			}
		}
	}
}
