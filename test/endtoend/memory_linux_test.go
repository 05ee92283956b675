package endtoend

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Many more targets than the memory is enough for are silent at once. As many probes as the limit says are in flight at
// the same time, and their result is that the target is silent. The other requests get status 503, and the kernel does
// not kill the exporter. In the control case there is enough memory, and all targets are probed.
func TestMemoryLimit(t *testing.T) {
	if lab.Race {
		t.Skip("with the race detector, a program takes several times as much memory")
	}
	const callers = 5000
	lab.NeedDescriptors(t, callers+1000)
	for _, c := range []struct {
		name      string
		megabytes int // the memory limit
		args      []string
		room      int // the limit of probes in flight
	}{
		{name: "64 MB", megabytes: 64, room: 682},
		{name: "64 MB, and more in flight by the flag", megabytes: 64,
			args: []string{"--probe.max-in-flight=5000"}, room: 682},
		{name: "128 MB", megabytes: 128, room: 2048},
		{name: "1 GB, the control", megabytes: 1024, args: []string{"--probe.max-in-flight=5000"}, room: 5000},
	} {
		t.Run(c.name, func(t *testing.T) {
			silent := newSilence(t)
			group, cmd := process.LimitMemory(t, c.megabytes<<20, exporter.Command(t, c.args...))
			p := exporter.Run(t, cmd)
			if got := exporter.Metric(t, "shaker_probes_in_flight_limit"); got != c.room {
				t.Errorf("the limit of probes in flight is %d, want %d", got, c.room)
			}
			for _, asking := range []int{100, callers} {
				got := silent.probe(t, callers, asking)
				timeouts, refused, late := got["timeout"], got["503 "+inFlightText], got["too late"]
				if timeouts+refused+late != callers {
					t.Errorf("%d probes of silent targets gave %v, want only timeouts and 503", callers, got)
				}
				// On a busy machine, some SYNs may be sent too late, so that other probes take their places.
				if asking < callers && late == 0 && timeouts != c.room {
					t.Errorf("%d probes of silent targets gave %v, want %d timeouts", callers, got, c.room)
				}
			}
			if p.Ended() {
				t.Fatalf("the exporter has ended, want it to run")
			}
			p.Stop() // before its group is removed
			// The formula of docs/cost.md.
			if peak, most := group.Peak(), 32<<20+c.room*48<<10; peak > most {
				t.Errorf("with %d probes in flight the peak is %d kB, want at most %d kB", c.room, peak>>10, most>>10)
			} else {
				t.Logf("with %d probes in flight the peak is %d kB", c.room, peak>>10)
			}
		})
	}
}

// A silence is a network in which no target answers.
type silence struct {
	mu    sync.Mutex
	onSYN map[netip.Addr]func() // what to call for the next SYN to a target
}

func newSilence(t *testing.T) *silence {
	t.Helper()
	s := &silence{onSYN: make(map[netip.Addr]func())}
	simnet.NewWire(t, func(segment simnet.Segment) [][]byte {
		s.mu.Lock()
		defer s.mu.Unlock()
		if begun := s.onSYN[segment.Dst.Addr()]; begun != nil {
			begun()
		}
		return nil
	}, "10.0.0.0/8")
	return s
}

// probe probes a number of targets at once and returns how often there was each result. No more than asking callers
// wait at the same time for their probes to begin or to be refused.
func (s *silence) probe(t *testing.T, callers, asking int) map[string]int {
	t.Helper()
	slots := make(chan struct{}, asking)
	results := make(map[string]int)
	var calling sync.WaitGroup
	for i := range callers {
		slots <- struct{}{}
		asked := sync.OnceFunc(func() { <-slots })
		target := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		s.mu.Lock()
		s.onSYN[target] = asked
		s.mu.Unlock()
		calling.Go(func() {
			defer asked()
			a := exporter.Call(t, i).Get(t, fmt.Sprintf("/probe?target=%v:443", target))
			result := fmt.Sprintf("%d %s", a.Status, a.Body)
			switch {
			case a.Status == 200 && strings.Contains(a.Body, `result="timeout",errno="ETIMEDOUT"} 1`):
				result = "timeout"
			case a.Status == 503 && strings.HasSuffix(a.Body, "no SYN was sent in time for the deadline\n"):
				result = "too late"
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			results[result]++
		})
	}
	calling.Wait()
	return results
}
