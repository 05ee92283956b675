package shaker

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/dchest/siphash"
)

// Sequence numbers of SYNs without a socket are those of RFC 6528: a clock plus a keyed hash of the flow, which is
// different for each flow and cannot be guessed. So an answer shows whether it belongs to a SYN, to which one, and how
// long ago it was sent.

const (
	// sequenceTick is shorter than the 4 µs of the RFC. If an RST is lost, the target still waits for the ACK, and
	// takes a SYN from the same port whose number is within its receive window, of 65,535 bytes at most, for an
	// error: it sends an RST. After 17 ms, the number is beyond the window.
	sequenceTick = 250 * time.Nanosecond

	// latest is how long an answer may be late: longer than a target repeats a SYN-ACK.
	latest = 4 * time.Minute
)

// sequences makes sequence numbers.
type sequences struct {
	key  [2]uint64
	last uint64 // the last number of ticks, of which a sequence number has the lower 32 bits
}

func newSequences() (s sequences) {
	var random [16]byte
	rand.Read(random[:])
	s.key = [2]uint64{binary.NativeEndian.Uint64(random[:]), binary.NativeEndian.Uint64(random[8:])}
	return s
}

// hash returns a keyed hash of a flow: the offset of its sequence numbers, and that of its TCP timestamps.
func (s *sequences) hash(f *flow) (sequence, stamp uint32) {
	var b [len(f.peer) + 2]byte
	copy(b[:], f.peer[:])
	binary.NativeEndian.PutUint16(b[len(f.peer):], f.port)
	h := siphash.Hash(s.key[0], s.key[1], b[:])
	return uint32(h), uint32(h >> 32)
}

// next returns the clock's part of a sequence number. No two are the same within 17 minutes.
func (s *sequences) next(now time.Duration) uint32 {
	s.last = max(uint64(now/sequenceTick), s.last+1)
	return uint32(s.last)
}

// isLate reports whether a sequence number is one that a SYN of the flow can have had a while ago.
func (s *sequences) isLate(f *flow, sequence uint32, now time.Duration) bool {
	offset, _ := s.hash(f)
	tick := max(uint64(now/sequenceTick), s.last)
	age := uint64(uint32(tick) - (sequence - offset))
	return age < uint64(latest/sequenceTick) && age < tick // the first tick is 1
}
