package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// In a million probes, no verdict is wrong and no ACK is sent.
func TestMillion(t *testing.T) {
	verdicts := int64(500_000)
	if lab.Race || testing.Short() {
		verdicts /= 20
	}
	for _, c := range []struct {
		callers int
		rtt     time.Duration
	}{
		{callers: manyCallers(1000), rtt: 60 * time.Millisecond},
		{callers: manyCallers(10_000), rtt: 500 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%d callers", c.callers), func(t *testing.T) {
			lab.NeedDescriptors(t, c.callers+100)
			crowd := newCrowd(t, c.rtt)
			if wrong := crowd.run(c.callers, verdicts); wrong != nil {
				t.Error(wrong)
			}
			t.Logf("%d probes, %d verdicts, %d of them open",
				crowd.probes.Load(), crowd.verdicts.Load(), crowd.open.Load())
			assertNoACK(t, crowd.network.Wire)
		})
	}
}

// No verdict is wrong and no ACK is sent on a machine whose processors other programs keep busy.
func TestNoACKOnABusyMachine(t *testing.T) {
	callers := manyCallers(10_000)
	lab.NeedDescriptors(t, callers+100)
	crowd := newCrowd(t, 500*time.Millisecond)
	lab.Program(t, "sh", "dash") // for KeepBusy
	process.KeepBusy(t)
	if wrong := crowd.run(callers, 50_000); wrong != nil {
		t.Error(wrong)
	}
	assertNoACK(t, crowd.network.Wire)
}

// The control for assertNoACK: ACKs are found if the engine does not withhold them.
func TestACKsAreSeen(t *testing.T) {
	crowd := newCrowd(t, time.Millisecond)
	s := start(t)
	s.engine.withholdACK = false
	crowd.shake = s.Shake
	if wrong := crowd.run(100, 1000); wrong != nil {
		t.Error(wrong)
	}
	// WatchStalls may ignore some of them, because the machine stood still when they were sent.
	if open, acks := int(crowd.open.Load()), len(crowd.network.ACKs()); open == 0 || acks < open/2 {
		t.Errorf("%d ACKs were found for %d open handshakes, want half as many or more", acks, open)
	}
}

// The control for the verdicts: an engine that is keyed by descriptor number reports a silent target
// as open.
func TestKeyedByDescriptor(t *testing.T) {
	lab.NeedDescriptors(t, 1100)
	crowd := newCrowd(t, 10*time.Millisecond)
	crowd.kinds = slices.DeleteFunc(crowd.kinds, func(k kind) bool { // other kinds would only make that rarer
		return k.lossy || k.outcome != Open && k.outcome != Timeout
	})
	crowd.shake = startKeyed(t).shake
	for began := time.Now(); time.Since(began) < 2*time.Minute; {
		wrong := crowd.run(1000, 500_000)
		if wrong == nil {
			break
		}
		if wrong.want == Timeout && wrong.err == nil && wrong.result.Outcome == Open {
			t.Logf("after %d verdicts: %v", crowd.verdicts.Load(), wrong)
			return
		}
	}
	t.Errorf("%d verdicts, none of which is Open for a silent target, want one", crowd.verdicts.Load())
}

// Callers that are busy with their results do not delay the loop: thousands of them end at the same
// time, and the SYN-ACKs of other handshakes still get their RST in time.
func TestBusyCallers(t *testing.T) {
	const callers = 5000
	lab.NeedDescriptors(t, callers+100)
	network := simnet.NewNetwork(t)
	network.WatchStalls()
	process.Prefer(t)
	network.At("10.0.0.0/16", simnet.SYNACK().After(5*time.Millisecond))
	s := start(t)
	var silent, live sync.WaitGroup
	for i := range callers {
		silent.Go(func() {
			target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80)
			r, err := s.Shake(context.Background(), target, &Options{Timeout: time.Second})
			if (err != nil || r.Outcome != Timeout) && !errors.Is(err, ErrUnsent) {
				t.Errorf("Shake(%v) = %+v, error %v, want Timeout or %v", target, r, err, ErrUnsent)
			}
			for until := time.Now().Add(500 * time.Microsecond); time.Now().Before(until); {
			}
		})
	}
	var over atomic.Bool
	for i := range 20 {
		live.Go(func() {
			for port := uint16(1); !over.Load(); port++ {
				target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), port)
				r, err := s.Shake(context.Background(), target, &Options{Timeout: time.Minute})
				if err != nil || r.Outcome != Open {
					t.Errorf("Shake(%v) = %+v, error %v, want Open", target, r, err)
				}
			}
		})
	}
	silent.Wait()
	over.Store(true)
	live.Wait()
	assertNoACK(t, network.Wire)
}
