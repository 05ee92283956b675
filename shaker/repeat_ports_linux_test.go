package shaker

import (
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// portsFor returns n ports for Schedule.SourcePorts.
func portsFor(t *testing.T, s *Shaker, n uint16) PortRange {
	t.Helper()
	if raw := s.Ports(); raw != (PortRange{}) {
		return PortRange{First: raw.First, Last: raw.First + n - 1}
	}
	reserved, err := ReservePorts(int(n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reserved.Close() })
	return reserved.PortRange
}

// A byPort counts the results of a Repetition by their ports.
type byPort struct {
	mu       sync.Mutex
	outcomes map[uint16]map[Outcome]int
	faults   []error
	wrong    []Repeated // whose SYN was sent from another port
}

func (b *byPort) add(r Repeated) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.Err != nil && !errors.Is(r.Err, ErrUnsent): // the machine stood still
		b.faults = append(b.faults, r.Err)
		return
	case r.Err != nil:
		return
	case r.Result.Local.Port() != r.SourcePort:
		b.wrong = append(b.wrong, r)
	}
	if b.outcomes == nil {
		b.outcomes = make(map[uint16]map[Outcome]int)
	}
	if b.outcomes[r.SourcePort] == nil {
		b.outcomes[r.SourcePort] = make(map[Outcome]int)
	}
	b.outcomes[r.SourcePort][r.Result.Outcome]++
}

// least returns the smallest number of results that one of n ports has.
func (b *byPort) least(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.outcomes) < n {
		return 0
	}
	least := 1 << 30
	for _, outcomes := range b.outcomes {
		total := 0
		for _, count := range outcomes {
			total += count
		}
		least = min(least, total)
	}
	return least
}

// The handshakes take the ports in turns, with sockets and without. A port whose SYNs are lost is the only one with
// timeouts.
func TestRepeatTakesPortsInTurns(t *testing.T) {
	for name, config := range map[string]*Config{"sockets": nil, "raw": withoutSockets} {
		t.Run(name, func(t *testing.T) {
			var lossy uint16
			var mu sync.Mutex
			wire := simnet.NewWire(t, func(syn simnet.Segment) [][]byte {
				mu.Lock()
				defer mu.Unlock()
				if syn.Src.Port() == lossy {
					return nil
				}
				return [][]byte{syn.SYNACK()}
			}, "192.0.2.0/24")
			s, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			const n = 5
			ports := portsFor(t, s, n)
			mu.Lock()
			lossy = ports.First + 2
			mu.Unlock()
			var results byPort
			r := mustRepeat(t, s, target4, Schedule{
				Interval: 80 * time.Millisecond, SourcePorts: ports, Options: Options{Timeout: 300 * time.Millisecond},
			}, results.add)
			lab.Eventually(t, "each port has eight results", func() bool { return results.least(n) >= 8 })
			r.Stop()
			if len(results.faults) > 0 || len(results.wrong) > 0 || len(results.outcomes) != n {
				t.Errorf("results by port %v, faults %v, from another port %v; want those of %v, no faults, none",
					results.outcomes, results.faults, results.wrong, ports)
			}
			for port, outcomes := range results.outcomes {
				want := Open
				if port == lossy {
					want = Timeout
				}
				if len(outcomes) != 1 || outcomes[want] == 0 {
					t.Errorf("port %d has the results %v, want only %v: the SYNs of port %d are lost",
						port, outcomes, want, lossy)
				}
			}
			var previous uint16
			odd, sent := 0, 0
			for segment := range wire.Sent() {
				if !segment.SYN {
					continue
				}
				if port := segment.Src.Port(); previous != 0 && (port-ports.First+n-previous+ports.First)%n != 1 {
					odd++
				}
				previous = segment.Src.Port()
				sent++
			}
			skipped := r.Skipped()
			// The next SYN may overtake one that is late: then three have another port than the next one.
			if odd > int(3*skipped.Late) || skipped.Overlapping > 0 {
				t.Errorf("%d of %d SYNs did not have the next port, %+v, want at most three for each late one",
					odd, sent, skipped)
			}
		})
	}
}

// Handshakes from one port do not overlap: a turn is skipped while the previous handshake is running.
func TestRepeatPortsDoNotOverlap(t *testing.T) {
	for name, config := range map[string]*Config{"sockets": nil, "raw": withoutSockets} {
		t.Run(name, func(t *testing.T) {
			simnet.NewWire(t, nil, "192.0.2.0/24")
			s, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var results byPort
			r := mustRepeat(t, s, target4, Schedule{
				Interval: 20 * time.Millisecond, SourcePorts: portsFor(t, s, 2),
				Options: Options{Timeout: 200 * time.Millisecond},
			}, results.add)
			lab.Eventually(t, "each port has three results", func() bool { return results.least(2) >= 3 })
			r.Stop()
			if len(results.faults) > 0 || r.Skipped().Overlapping < 6 {
				t.Errorf("faults %v, %+v, want none, and at least 6 overlapping", results.faults, r.Skipped())
			}
		})
	}
}

// A port that another program has is a local error, and no verdict.
func TestRepeatFromATakenPort(t *testing.T) {
	lab.Need(t)
	s := start(t)
	taken, _ := listen(t, "127.0.0.1:0")
	target, _ := listen(t, "127.0.0.1:0")
	results := make(chan Repeated, 1000)
	mustRepeat(t, s, target, Schedule{
		Interval: 20 * time.Millisecond, SourcePorts: PortRange{First: taken.Port(), Last: taken.Port()},
	}, func(r Repeated) { results <- r })
	for range 3 {
		got := <-results
		if !errors.Is(got.Err, unix.EADDRINUSE) || !errors.Is(got.Err, ErrLocal) || got.SourcePort != taken.Port() {
			t.Errorf("a handshake from port %d, which is taken: %+v, want EADDRINUSE", taken.Port(), got)
		}
	}
}

// Without sockets, a port of the options belongs to one of the loops, which is the one that hears the answers.
func TestRepeatFromEachRawPort(t *testing.T) {
	simnet.NewWire(t, func(syn simnet.Segment) [][]byte { return [][]byte{syn.SYNACK()} }, "192.0.2.0/24")
	s, err := New(withoutSockets)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for port := s.Ports().First; port != 0 && port <= s.Ports().Last; port += portsPerWire / 2 {
		results := make(chan Repeated, 100)
		r := mustRepeat(t, s, netip.AddrPortFrom(target4.Addr(), port), Schedule{
			Interval: 20 * time.Millisecond, Options: Options{SourcePort: port, Timeout: time.Second},
		}, func(r Repeated) { results <- r })
		got := <-results
		for errors.Is(got.Err, unix.EADDRNOTAVAIL) { // on a busy machine, the one before it may still be running
			got = <-results
		}
		if got.Err != nil || got.Result.Outcome != Open || got.Result.Local.Port() != port {
			t.Errorf("the first result from port %d is %+v, want Open from this port", port, got)
		}
		r.Stop()
	}
}
