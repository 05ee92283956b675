package simnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// A fate says who sent a packet on a wire, and whether the packet was lost.
type fate byte

const (
	sent        fate = iota // this machine sent it
	sentLost                // this machine sent it, and the network lost it
	arrived                 // it arrived at this machine
	arrivedLost             // it was on its way to this machine, and the network lost it
)

func (f fate) String() string { return [...]string{"", " (lost)", "", " (lost)"}[f] }

// A record keeps the packets on a wire in their order. There may be millions of them, so they share large
// chunks of memory instead of being separate objects for the garbage collector.
type record struct {
	began time.Time

	mu     sync.Mutex
	sent   int       // number of packets that this machine sent
	more   sync.Cond // with mu: signals that sent has increased
	chunks [][]byte  // entries: 8 bytes for the time, 1 for the fate, 2 for the length, and the packet
}

const (
	chunkSize   = 1 << 20
	entryHeader = 11
)

func newRecord() *record {
	r := &record{began: time.Now()}
	r.more.L = &r.mu
	return r
}

// add adds a copy of a packet to the record.
func (r *record) add(f fate, packet []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := len(r.chunks) - 1
	if last < 0 || len(r.chunks[last])+entryHeader+len(packet) > chunkSize {
		r.chunks = append(r.chunks, make([]byte, 0, chunkSize))
		last++
	}
	chunk := binary.NativeEndian.AppendUint64(r.chunks[last], uint64(time.Since(r.began)))
	chunk = binary.NativeEndian.AppendUint16(append(chunk, byte(f)), uint16(len(packet)))
	r.chunks[last] = append(chunk, packet...)
	if f == sent || f == sentLost {
		r.sent++
		r.more.Broadcast()
	}
}

// An entry is a packet in a record.
type entry struct {
	at time.Duration // time since the record began
	fate
	packet []byte
}

// all returns the packets in the record, in their order.
func (r *record) all() iter.Seq[entry] {
	r.mu.Lock()
	chunks := append([][]byte(nil), r.chunks...)
	r.mu.Unlock()
	return func(yield func(entry) bool) {
		for _, rest := range chunks {
			for len(rest) > 0 {
				e := entry{at: time.Duration(binary.NativeEndian.Uint64(rest)), fate: fate(rest[8])}
				end := entryHeader + int(binary.NativeEndian.Uint16(rest[9:]))
				e.packet, rest = rest[entryHeader:end:end], rest[end:]
				if !yield(e) {
					return
				}
			}
		}
	}
}

// awaitSent waits until this machine has sent n packets. ok is false if that takes more than a minute.
func (r *record) awaitSent(n int) (ok bool) {
	deadline := time.Now().Add(time.Minute)
	defer time.AfterFunc(time.Minute, r.more.Broadcast).Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.sent < n && time.Now().Before(deadline) {
		r.more.Wait()
	}
	return r.sent >= n
}

// forget empties the record.
func (r *record) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chunks, r.sent = nil, 0
}

// trace describes the packets to, from and about an address, one per line.
func (r *record) trace(addr netip.Addr) string {
	const most = 100 // lines
	var lines []string
	for e := range r.all() {
		if bytes.Contains(e.packet, addr.AsSlice()) { // in the IP header, or quoted by an ICMP error
			lines = append(lines, fmt.Sprintf("%12.3f ms  %s%v\n", e.at.Seconds()*1000, describe(e.packet), e.fate))
		}
	}
	if skipped := len(lines) - most; skipped > 0 {
		lines = append([]string{fmt.Sprintf("%d earlier packets\n", skipped)}, lines[skipped:]...)
	}
	return strings.Join(lines, "")
}
