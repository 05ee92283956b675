package simnet

import (
	"math/rand/v2"
	"net/netip"
)

// A Host answers SYNs. Its methods modify the host and return it.
type Host struct {
	network *Network

	// The mutex of the network guards the fields below.

	// rounds are the answers to the first SYN of a handshake, to the second, and so on. A nil round means
	// that the SYN is lost. The last round is for all further SYNs.
	rounds     [][]Answer
	lossOut    float64            // share of the SYNs that are lost
	lossIn     float64            // share of the answers that are lost
	path       []netip.Addr       // routers before the host; an invalid address is a silent router
	handshakes map[flow]handshake // empty as long as there is only one round

	// member returns the host that answers a SYN in place of this one; nil if there is none.
	member func(syn Segment) *Host
}

// A flow is a source and a destination.
type flow [2]netip.AddrPort

// A handshake counts the SYNs that have the same sequence number.
type handshake struct {
	seq   uint32
	round int // index in Host.rounds for the next SYN
}

// change calls f with the network's mutex held.
func (h *Host) change(f func()) *Host {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	f()
	return h
}

// Then adds a round of answers: the host sends them to the next SYN of a handshake, after the SYNs for
// which there are answers already, and to all later ones.
func (h *Host) Then(answers ...Answer) *Host {
	return h.change(func() { h.rounds = append(h.rounds, append([]Answer{}, answers...)) })
}

// LosingSYNs makes the network lose the first n SYNs of each handshake.
func (h *Host) LosingSYNs(n int) *Host {
	return h.change(func() { h.rounds = append(make([][]Answer, n), h.rounds...) })
}

// Losing makes the network lose a share, from 0 to 1, of the SYNs and of the answers.
func (h *Host) Losing(syns, answers float64) *Host {
	return h.change(func() { h.lossOut, h.lossIn = syns, answers })
}

// Behind puts routers before the host, the nearest first. If the TTL of a SYN ends at a router, the router
// sends an ICMP error "time exceeded" from its address. A router with the address "" is silent.
func (h *Host) Behind(routers ...string) *Host {
	return h.change(func() {
		h.path = nil
		for _, router := range routers {
			addr, _ := netip.ParseAddr(router) // invalid for ""
			h.path = append(h.path, addr)
		}
	})
}

// Distance returns the number of routers before the host.
func (h *Host) Distance() (routers int) {
	h.change(func() { routers = len(h.path) })
	return routers
}

// Over makes another host answer each SYN, under the address of this one: the one that choose returns, such as by the
// source port, as a router chooses one of several paths. The other hosts are those of [Network.Hidden].
func (h *Host) Over(choose func(syn Segment) *Host) *Host {
	return h.change(func() { h.member = choose })
}

// A delivery is an answer to a SYN, and whether the network loses it.
type delivery struct {
	Answer
	lost bool
}

// meet returns the answers to a SYN: nil if the network loses the SYN, and empty if it arrives and nothing
// answers. The caller holds the network's mutex.
func (h *Host) meet(syn Segment, random *rand.Rand) []delivery {
	if h.member != nil {
		return h.member(syn).meet(syn, random)
	}
	if int(syn.TTL) <= len(h.path) {
		return expire(h.path[syn.TTL-1])
	}
	if syn.Damaged() {
		return []delivery{} // the kernel of a host drops it
	}
	round := h.rounds[h.round(syn)]
	if round == nil || random.Float64() < h.lossOut {
		return nil
	}
	answers := make([]delivery, len(round))
	for i, a := range round {
		answers[i] = delivery{a, random.Float64() < h.lossIn}
	}
	return answers
}

// expire returns the answer of a router at which the TTL of a SYN ends. A silent router has none.
func expire(router netip.Addr) []delivery {
	if !router.IsValid() {
		return []delivery{}
	}
	timeExceeded := uint8(11)
	if router.Is6() {
		timeExceeded = 3
	}
	return []delivery{{Answer: Answer{from: router, kind: [2]uint8{timeExceeded, 0}}}}
}

// round returns the index of the round of answers to a SYN, and advances to the next one.
func (h *Host) round(syn Segment) int {
	if len(h.rounds) == 1 {
		return 0
	}
	key := flow{syn.Src, syn.Dst}
	now, known := h.handshakes[key]
	if !known || now.seq != syn.Seq {
		now = handshake{seq: syn.Seq}
	}
	round := now.round
	now.round = min(round+1, len(h.rounds)-1)
	h.handshakes[key] = now
	return round
}
