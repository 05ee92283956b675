package history

import (
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

// Flows are the results of the flows of a probe, of which the record has the worst one. They take 100 bytes or so,
// and 3 kB at most if Each is set.
type Flows struct {
	// first is the lowest port. Bit i of performed and failed stands for port first+i: no module has more than 64
	// flows, and their ports are consecutive.
	first             uint16
	performed, failed uint64

	// Each has the results, in the order of the ports. The history keeps it only for the latest record of a target.
	Each []Flow

	// LeftOut are the ports of the flows that were not performed because other programs have them.
	LeftOut []uint16

	// Traced reports whether the paths of flows that fail and of flows that do not are known. Shared is then the last
	// hop that both kinds pass, and Parted the one at or behind which flows fail. Each is zero if there is none.
	Traced         bool
	Shared, Parted Hop

	// Others says how many flows to other addresses of the name failed, "" if none did, or if there are none.
	Others string
}

// A Flow is the result of one flow.
type Flow struct {
	Port          uint16
	Success       bool
	Result, Errno string
	Latency       time.Duration // 0 if there was no SYN-ACK
}

// A Hop is a router on a path, at a distance.
type Hop struct {
	TTL     int
	Address netip.Addr // invalid if there is no hop
}

// Add adds a flow. Its port is higher than those of the flows before it.
func (f *Flows) Add(flow Flow) {
	if f.performed == 0 {
		f.first = flow.Port
	}
	bit := uint64(1) << (flow.Port - f.first)
	f.performed |= bit
	if !flow.Success {
		f.failed |= bit
	}
	f.Each = append(f.Each, flow)
}

// Len returns the number of flows.
func (f *Flows) Len() int { return bits.OnesCount64(f.performed) }

// Failed returns how many flows failed.
func (f *Flows) Failed() int { return bits.OnesCount64(f.failed) }

// FailedPorts returns the ports of the flows that failed, in their order.
func (f *Flows) FailedPorts() []uint16 { return slices.Collect(f.failedPorts()) }

func (f *Flows) failedPorts() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for rest := f.failed; rest != 0; rest &= rest - 1 {
			if !yield(f.first + uint16(bits.TrailingZeros64(rest))) {
				return
			}
		}
	}
}

// condensed returns the record as the history keeps it after the next one has come.
func (r Record) condensed() Record {
	if r.Flows != nil && r.Flows.Each != nil {
		flows := *r.Flows
		flows.Each = nil
		r.Flows = &flows
	}
	return r
}
