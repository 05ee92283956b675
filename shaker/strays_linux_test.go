package shaker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// An attack is a kind of packet with which a host that does not see the SYN tries to end the handshake.
type attack struct {
	name    string
	outcome Outcome                                     // of a handshake that believes it
	forge   func(syn simnet.Segment, seq uint32) []byte // seq is the guess of the SYN's sequence number
}

func attacks() []attack {
	return []attack{
		{name: "RST", outcome: Refused, forge: func(syn simnet.Segment, seq uint32) []byte {
			syn.Seq = seq
			return answering(syn, layers.TCP{RST: true, ACK: true}).packet()
		}},
		{name: "SYN-ACK", outcome: Open, forge: func(syn simnet.Segment, seq uint32) []byte {
			syn.Seq = seq
			return answering(syn, layers.TCP{SYN: true, ACK: true}).packet()
		}},
		{name: "ICMP error", outcome: Unreachable, forge: func(syn simnet.Segment, seq uint32) []byte {
			quoted, _ := simnet.Parse(forgery{from: syn.Src, to: syn.Dst, tcp: layers.TCP{SYN: true,
				Seq: seq}}.packet())
			if syn.Src.Addr().Is4() {
				return quoted.ICMPError(netip.MustParseAddr("198.51.100.7"), 3, 1)
			}
			return quoted.ICMPError(netip.MustParseAddr("2001:db8:ffff::7"), 1, 3)
		}},
	}
}

// A trap is a wire on which no target answers by itself, and a Shaker with a single loop.
type trap struct {
	*testing.T
	wire   *simnet.Wire
	syns   chan simnet.Segment
	shaker *Shaker
	loop   *loop
}

func newTrap(t *testing.T) *trap {
	t.Helper()
	trap := &trap{T: t, syns: make(chan simnet.Segment, 100)}
	trap.wire = simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			trap.syns <- s
		}
		return nil
	}, "192.0.2.0/24", "2001:db8::/64")
	trap.shaker, trap.loop = startOneWithoutSockets(t)
	return trap
}

// An ending is how a handshake has ended.
type ending struct {
	Result
	err error
}

// begin starts a handshake from a port, and returns its SYN.
func (t *trap) begin(target netip.AddrPort, port uint16, timeout time.Duration) (simnet.Segment, <-chan ending) {
	t.Helper()
	done := make(chan ending, 1)
	go func() {
		r, err := t.shaker.Shake(context.Background(), target, &Options{Timeout: timeout, SourcePort: port})
		done <- ending{r, err}
	}()
	for {
		select {
		case syn := <-t.syns:
			if syn.Dst == target && syn.Src.Port() == port {
				return syn, done
			}
		case <-time.After(time.Minute):
			t.Fatalf("no SYN to %v within a minute", target)
		}
	}
}

// counted waits until as many strays are counted, and fails the test if they have other reasons, or if the handshake
// ends meanwhile. done may be nil.
func (t *trap) counted(want Strays, done <-chan ending) {
	t.Helper()
	total := func(s Strays) uint64 { return s.Late + s.Forged + s.Foreign + s.Lost }
	var got Strays
	lab.Eventually(t, fmt.Sprintf("%d strays are counted", total(want)), func() bool {
		select {
		case r := <-done:
			t.Fatalf("Shake = %+v after forged answers, want no result", r)
		default:
		}
		got = t.shaker.Strays()
		return total(got) >= total(want)
	})
	if got != want {
		t.Fatalf("strays %+v, want %+v", got, want)
	}
}

// An attacker who knows addresses and ports, but does not see the SYN, guesses its sequence number thousands of times.
// No guess changes the verdict; the genuine answer does. The guesses are counted. Among them are the numbers beside the
// right one, which look like those of other SYNs of the flow, the number of an earlier SYN, and that of another flow.
func TestOffPathAttacker(t *testing.T) {
	const patience = 10 * time.Minute
	for _, target := range []netip.AddrPort{target4, target6} {
		for _, attack := range attacks() {
			t.Run(fmt.Sprintf("%s, %v", attack.name, target), func(t *testing.T) {
				trap := newTrap(t)
				port := trap.shaker.Ports().First

				earlier, done := trap.begin(target, port, patience)
				trap.wire.Send(earlier.SYNACK())
				if r := <-done; r.err != nil || r.Outcome != Open {
					t.Fatalf("Shake(%v) = %+v, want Open", target, r)
				}
				syn, done := trap.begin(target, port, patience)
				// A number that is later than that of the SYN by chance, so that it is not one of an earlier SYN.
				var other simnet.Segment
				for at := target.Addr().Next(); ; at = at.Next() {
					other, _ = trap.begin(netip.AddrPortFrom(at, 80), port, patience)
					if other.Seq-syn.Seq < 1<<31 {
						break
					}
				}
				random := rand.New(rand.NewPCG(1, 2))
				const guesses = 5000
				for range guesses {
					trap.wire.Send(attack.forge(syn, syn.Seq+1<<30+random.Uint32N(1<<31)))
				}
				trap.wire.Send(attack.forge(syn, other.Seq))
				for _, late := range []uint32{earlier.Seq, syn.Seq - 1, syn.Seq + 1} {
					trap.wire.Send(attack.forge(syn, late))
				}
				want := Strays{Forged: guesses + 1, Late: 3}
				trap.counted(want, done)
				trap.wire.Send(attack.forge(syn, syn.Seq))
				r := <-done
				if r.err != nil || r.Outcome != attack.outcome || r.SYNs != 1 {
					t.Errorf("Shake(%v) = %+v after the genuine answer, want %v after one SYN", target, r,
						attack.outcome)
				}
				trap.counted(want, nil)
			})
		}
	}
}

// ACKs that answer no SYN may be those of an earlier connection from the port. However many are forged, the SYN is sent
// once more, and no result changes. After the handshake, they are counted as foreign.
func TestForgedACKs(t *testing.T) {
	for _, target := range []netip.AddrPort{target4, target6} {
		t.Run(target.String(), func(t *testing.T) {
			trap := newTrap(t)
			port := trap.shaker.Ports().First
			syn, done := trap.begin(target, port, 10*time.Minute)
			const forged = 1000
			var again simnet.Segment
			for i := range forged {
				trap.wire.Send(answering(simnet.Segment{Src: syn.Src, Dst: syn.Dst, Seq: syn.Seq + 1 + uint32(i)},
					layers.TCP{ACK: true}).packet())
				if i == 0 {
					again = <-trap.syns
				}
			}
			if again.Seq != syn.Seq || again.Src != syn.Src || again.Dst != syn.Dst {
				t.Errorf("after an ACK, %+v was sent, want the same SYN again: %+v", again, syn)
			}
			trap.wire.Send(syn.SYNACK())
			if r := <-done; r.err != nil || r.Outcome != Open || r.SYNs != 2 {
				t.Errorf("Shake(%v) = %+v, want Open after two SYNs", target, r)
			}
			// While a handshake waits for an answer, strays are received at once.
			trap.begin(netip.AddrPortFrom(target.Addr().Next(), 80), port, 10*time.Minute)
			trap.counted(Strays{}, nil)
			late := answering(syn, layers.TCP{ACK: true})
			late.tcp.Ack += 1 << 30
			trap.wire.Send(late.packet())
			trap.counted(Strays{Foreign: 1}, nil)
		})
	}
}

// Answers that no handshake waits for are counted as late if they answer an earlier SYN, and otherwise as foreign.
// Segments to other ports are not even seen.
func TestStrays(t *testing.T) {
	for _, target := range []netip.AddrPort{target4, target6} {
		for _, attack := range attacks() {
			t.Run(fmt.Sprintf("%s, %v", attack.name, target), func(t *testing.T) {
				trap := newTrap(t)
				ports := trap.shaker.Ports()
				// While a handshake waits for an answer, strays are received at once.
				trap.begin(netip.AddrPortFrom(target.Addr().Next(), 80), ports.Last, 10*time.Minute)
				want := Strays{}

				syn, done := trap.begin(target, ports.First, 100*time.Millisecond)
				if r := <-done; r.Outcome != Timeout && r.err == nil {
					t.Fatalf("Shake(%v) = %+v, want Timeout, or an error because the SYN was late", target, r)
				}
				trap.wire.Send(attack.forge(syn, syn.Seq)) // after the deadline
				want.Late++
				trap.counted(want, nil)

				syn, done = trap.begin(target, ports.First, 10*time.Minute)
				trap.wire.Send(syn.SYNACK())
				if r := <-done; r.err != nil || r.Outcome != Open {
					t.Fatalf("Shake(%v) = %+v, want Open", target, r)
				}
				trap.wire.Send(attack.forge(syn, syn.Seq), attack.forge(syn, syn.Seq)) // a duplicate, or an RST later
				want.Late += 2
				trap.counted(want, nil)

				// Half of the numbers that no SYN had are those of the next nine minutes.
				trap.wire.Send(attack.forge(syn, syn.Seq+1<<30))
				want.Foreign++
				trap.counted(want, nil)

				for _, port := range []uint16{ports.First - 1, ports.Last + 1, 80} {
					syn.Src = netip.AddrPortFrom(syn.Src.Addr(), port)
					trap.wire.Send(attack.forge(syn, syn.Seq))
				}
				syn.Src = netip.AddrPortFrom(syn.Src.Addr(), ports.First) // it arrives after them
				trap.wire.Send(attack.forge(syn, syn.Seq))
				want.Late++
				trap.counted(want, nil)
			})
		}
	}
}
