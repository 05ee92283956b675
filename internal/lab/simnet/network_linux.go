package simnet

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// A Network is a Wire with every address of both IP versions behind it. A Host answers for
// an address, a prefix, or a port of them; where there is none, there is silence.
//
// What is left to chance is drawn from a seed: the n-th SYN to an address and port meets
// the same fate every time. SHAKER_LAB_SEED in the environment sets another seed.
type Network struct {
	*Wire
	seed uint64

	mu      sync.Mutex
	hosts   map[place]*Host
	lengths []int                     // of the prefixes in hosts, longest first
	syns    map[netip.AddrPort]uint64 // how many each address and port was sent
}

// NewNetwork lays a network for the rest of the test.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	n := &Network{
		Wire:  newWire(t),
		seed:  seed(t),
		hosts: make(map[place]*Host),
		syns:  make(map[netip.AddrPort]uint64),
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SHAKER_LAB_SEED=%d", n.seed)
		}
	})
	n.lay(n.handle, "0.0.0.0/0", "::/0")
	return n
}

func seed(t testing.TB) uint64 {
	t.Helper()
	text := os.Getenv("SHAKER_LAB_SEED")
	if text == "" {
		return 1
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("SHAKER_LAB_SEED: %v", err)
	}
	return seed
}

// Random returns a source of random numbers that depends on the network's seed and on i.
func (n *Network) Random(i uint64) *rand.Rand { return rand.New(rand.NewPCG(n.seed, i)) }

// A place is where a host is. Port 0 is every port.
type place struct {
	netip.Prefix
	port uint16
}

// parsePlace reads an address or a prefix, with a port or without: 192.0.2.1,
// 192.0.2.0/24:80, 2001:db8::/32, [2001:db8::1]:80.
func parsePlace(text string) (place, error) {
	var p place
	if host, port, err := net.SplitHostPort(text); err == nil {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return place{}, fmt.Errorf("place %q: port: %w", text, err)
		}
		text, p.port = host, uint16(number)
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		p.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return p, nil
	}
	prefix, err := netip.ParsePrefix(text)
	p.Prefix = prefix.Masked()
	return p, err
}

// At puts a host at a place, such as 192.0.2.1, 192.0.2.0/24:80, 2001:db8::/32 or
// [2001:db8::1]:80, and returns it. Each SYN that gets there brings these answers. The
// most specific place counts, a port more than none. A host that was there is replaced.
func (n *Network) At(where string, answers ...Answer) *Host {
	n.t.Helper()
	p, err := parsePlace(where)
	if err != nil {
		n.t.Fatal(err)
	}
	h := &Host{network: n, handshakes: make(map[flow]handshake)}
	h.Then(answers...)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[p] = h
	if !slices.Contains(n.lengths, p.Bits()) {
		n.lengths = append(n.lengths, p.Bits())
		slices.Sort(n.lengths)
		slices.Reverse(n.lengths)
	}
	return h
}

// find returns the host at an address and port, nil if there is none.
func (n *Network) find(at netip.AddrPort) *Host {
	for _, length := range n.lengths {
		prefix, err := at.Addr().Prefix(length)
		if err != nil {
			continue // of the other IP version
		}
		for _, port := range []uint16{at.Port(), 0} {
			if host := n.hosts[place{prefix, port}]; host != nil {
				return host
			}
		}
	}
	return nil
}

// A Host answers SYNs. Its methods change it and return it.
type Host struct {
	network *Network

	// What follows is guarded by the network's mu.
	rounds     [][]Answer // to each SYN of a handshake in turn, nil if it is lost; the last goes on
	lossOut    float64
	lossIn     float64
	path       []netip.Addr
	handshakes map[flow]handshake // that more than one round is for
}

// A flow is a source and a destination.
type flow [2]netip.AddrPort

// A handshake is how many SYNs with one sequence number have come.
type handshake struct {
	seq   uint32
	round int
}

func (h *Host) change(f func()) *Host {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	f()
	return h
}

// Then changes the answers for those SYNs of a handshake that come after the ones whose
// answers were said so far.
func (h *Host) Then(answers ...Answer) *Host {
	return h.change(func() { h.rounds = append(h.rounds, append([]Answer{}, answers...)) })
}

// LosingSYNs loses the first n SYNs of each handshake.
func (h *Host) LosingSYNs(n int) *Host {
	return h.change(func() { h.rounds = append(make([][]Answer, n), h.rounds...) })
}

// Losing loses a share, from 0 to 1, of the SYNs and of the answers.
func (h *Host) Losing(syns, answers float64) *Host {
	return h.change(func() { h.lossOut, h.lossIn = syns, answers })
}

// Behind puts routers before the host, the nearest first. A SYN whose TTL ends at one of
// them brings a "time exceeded" from its address, or nothing if that is "".
func (h *Host) Behind(routers ...string) *Host {
	return h.change(func() {
		h.path = nil
		for _, router := range routers {
			addr, _ := netip.ParseAddr(router) // invalid for ""
			h.path = append(h.path, addr)
		}
	})
}

// Distance returns how many routers are before the host.
func (h *Host) Distance() (routers int) {
	h.change(func() { routers = len(h.path) })
	return routers
}

// Forget empties the record of packets, and lets chance begin anew.
func (n *Network) Forget() {
	n.Wire.Forget()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.syns = make(map[netip.AddrPort]uint64)
	for _, h := range n.hosts {
		h.handshakes = make(map[flow]handshake)
	}
}

// handle records a segment that this host has sent and decides what it brings.
func (n *Network) handle(s Segment) {
	if !s.SYN || s.ACK || s.UDP {
		n.record.add(sent, s.raw)
		return
	}
	answers, random := n.meet(s)
	if answers == nil {
		n.record.add(sentLost, s.raw)
		return
	}
	n.record.add(sent, s.raw)
	for _, a := range answers {
		packet := a.packet(s)
		if delay := a.delay(random); delay > 0 {
			time.AfterFunc(delay, func() { n.deliver(packet, a.lost) })
		} else {
			n.deliver(packet, a.lost)
		}
	}
}

// fatedAnswer is an answer that may be lost on its way.
type fatedAnswer struct {
	Answer
	lost bool
}

// meet returns what a SYN brings, nil if it is lost, and the source of what is left to
// chance about it.
func (n *Network) meet(syn Segment) ([]fatedAnswer, *rand.Rand) {
	n.mu.Lock()
	defer n.mu.Unlock()
	random := n.chance(syn.Dst)
	h := n.find(syn.Dst)
	if h == nil {
		return []fatedAnswer{}, random
	}
	if int(syn.TTL) <= len(h.path) {
		answers := []fatedAnswer{}
		if router := h.path[syn.TTL-1]; router.IsValid() {
			timeExceeded := uint8(11)
			if router.Is6() {
				timeExceeded = 3
			}
			answers = append(answers, fatedAnswer{Answer: Answer{from: router, kind: [2]uint8{timeExceeded, 0}}})
		}
		return answers, random
	}
	round := h.rounds[h.round(syn)]
	if round == nil || random.Float64() < h.lossOut {
		return nil, random
	}
	answers := make([]fatedAnswer, len(round))
	for i, a := range round {
		answers[i] = fatedAnswer{a, random.Float64() < h.lossIn}
	}
	return answers, random
}

// round returns which round of answers a SYN brings.
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

// chance returns the source of what is left to chance about the next SYN to an address
// and port.
func (n *Network) chance(dst netip.AddrPort) *rand.Rand {
	n.syns[dst]++
	hash := fnv.New64a()
	text, _ := dst.AppendBinary(nil)
	hash.Write(text)
	return n.Random(hash.Sum64() + n.syns[dst])
}

// deliver lets an answer come in, or records that it was lost.
func (n *Network) deliver(packet []byte, lost bool) {
	if lost {
		n.record.add(arrivedLost, packet)
		return
	}
	n.Send(packet)
}
