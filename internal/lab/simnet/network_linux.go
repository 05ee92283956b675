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

// A Network is a [Wire] with every address of both IP versions behind it. A [Host] answers for an address,
// a prefix, or one port of either. An address without a host is silent.
//
// Losses and delays are random, but depend only on a seed: under the same seed, the same happens to the n-th
// SYN to an address and port in every run. SHAKER_LAB_SEED in the environment sets another seed.
type Network struct {
	*Wire
	seed uint64

	mu      sync.Mutex
	hosts   map[endpoint]*Host
	lengths []int                     // lengths of the prefixes in hosts, longest first
	syns    map[netip.AddrPort]uint64 // number of SYNs to each address and port
}

// NewNetwork creates a network that exists until the test ends.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	n := &Network{
		Wire:  newWire(t),
		seed:  seed(t),
		hosts: make(map[endpoint]*Host),
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

// seed returns the seed of the test's network.
func seed(t testing.TB) uint64 {
	t.Helper()
	text := os.Getenv("SHAKER_LAB_SEED")
	if text == "" {
		return 1
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("SHAKER_LAB_SEED is %q, want a number: %v", text, err)
	}
	return seed
}

// Random returns a source of random numbers that depends on the network's seed and on i.
func (n *Network) Random(i uint64) *rand.Rand { return rand.New(rand.NewPCG(n.seed, i)) }

// An endpoint is what a host answers for: the addresses of a prefix, and a port. Port 0 means every port.
type endpoint struct {
	netip.Prefix
	port uint16
}

// parseEndpoint parses an address or a prefix, with or without a port: 192.0.2.1, 192.0.2.0/24:80,
// 2001:db8::/32, [2001:db8::1]:80.
func parseEndpoint(text string) (endpoint, error) {
	var e endpoint
	if host, port, err := net.SplitHostPort(text); err == nil {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return endpoint{}, fmt.Errorf("endpoint %q: port: %w", text, err)
		}
		text, e.port = host, uint16(number)
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		e.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return e, nil
	}
	prefix, err := netip.ParsePrefix(text)
	e.Prefix = prefix.Masked()
	return e, err
}

// At puts a host at an endpoint, such as 192.0.2.1, 192.0.2.0/24:80, 2001:db8::/32 or [2001:db8::1]:80, and
// returns it. The host sends the answers to each SYN that reaches it. If several endpoints match a SYN, the
// longest prefix decides, and after that an endpoint with a port precedes one without. A new host replaces
// an earlier host at the same endpoint.
func (n *Network) At(where string, answers ...Answer) *Host {
	n.t.Helper()
	e, err := parseEndpoint(where)
	if err != nil {
		n.t.Fatal(err)
	}
	h := n.Hidden(answers...)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[e] = h
	if !slices.Contains(n.lengths, e.Bits()) {
		n.lengths = append(n.lengths, e.Bits())
		slices.Sort(n.lengths)
		slices.Reverse(n.lengths)
	}
	return h
}

// Hidden returns a host that has no address of its own, for [Host.Over].
func (n *Network) Hidden(answers ...Answer) *Host {
	h := &Host{network: n, handshakes: make(map[flow]handshake)}
	return h.Then(answers...)
}

// find returns the host that answers for an address and port, nil if there is none.
func (n *Network) find(at netip.AddrPort) *Host {
	for _, length := range n.lengths {
		prefix, err := at.Addr().Prefix(length)
		if err != nil {
			continue // the length exceeds the addresses of this IP version
		}
		for _, port := range []uint16{at.Port(), 0} {
			if host := n.hosts[endpoint{prefix, port}]; host != nil {
				return host
			}
		}
	}
	return nil
}

// Forget empties the record of packets and restarts the random sequence.
func (n *Network) Forget() {
	n.Wire.Forget()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.syns = make(map[netip.AddrPort]uint64)
	for _, h := range n.hosts {
		h.handshakes = make(map[flow]handshake)
	}
}

// handle records a segment that this machine has sent and delivers the answers to it.
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

// meet returns the answers to a SYN, and the source of random numbers for this SYN. The answers are nil if
// the network loses the SYN, and empty if it arrives and nothing answers.
func (n *Network) meet(syn Segment) ([]delivery, *rand.Rand) {
	n.mu.Lock()
	defer n.mu.Unlock()
	random := n.randomFor(syn.Dst)
	h := n.find(syn.Dst)
	if h == nil {
		return []delivery{}, random
	}
	return h.meet(syn, random), random
}

// randomFor returns the source of random numbers for the next SYN to an address and port.
func (n *Network) randomFor(dst netip.AddrPort) *rand.Rand {
	n.syns[dst]++
	hash := fnv.New64a()
	text, _ := dst.AppendBinary(nil)
	hash.Write(text)
	return n.Random(hash.Sum64() + n.syns[dst])
}

// deliver delivers an answer to this machine, or records that it was lost.
func (n *Network) deliver(packet []byte, lost bool) {
	if lost {
		n.record.add(arrivedLost, packet)
		return
	}
	n.Send(packet)
}
