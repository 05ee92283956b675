package shaker

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/capture"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Another process shakes hands with live targets, and is held up for longer than the kernel withholds a final ACK.
// With sockets, the kernel sends ACKs then. Without sockets it sends none, and no verdict is wrong either.
func TestNoACKOfAHeldUpProcess(t *testing.T) {
	const targets, stops = 300, 3
	for _, c := range []struct {
		name  string
		burst burst // of the socket engine: the control
		raw   burst // without sockets, if another one
		heldUp
	}{
		{
			name:  "stopped for 500 ms, three times",
			burst: burst{Targets: targets, Rounds: stops, Timeout: 5 * time.Second},
			heldUp: heldUp{during: func(wire *simnet.Wire, child *process.Process) {
				for round := range stops {
					wire.Await(round*2*targets + targets/3) // a SYN and an RST for each target of the earlier rounds
					child.Signal(syscall.SIGSTOP)
					time.Sleep(500 * time.Millisecond)
					child.Signal(syscall.SIGCONT)
				}
			}},
		},
		{
			name:   "2 % of a processor",
			burst:  burst{Targets: 1000, Rounds: 3, Timeout: 500 * time.Millisecond},
			heldUp: heldUp{before: func(_ *testing.T, child *process.Process) { child.LimitCPU(2) }},
		},
		{
			name:   "busy processors",
			burst:  burst{Targets: 300, Rounds: 4, Timeout: 2 * time.Second},
			raw:    burst{Targets: manyCallers(10_000), Rounds: 1, Timeout: 2 * time.Second},
			heldUp: heldUp{before: func(t *testing.T, _ *process.Process) { process.KeepBusy(t) }},
		},
	} {
		t.Run(c.name+", raw", func(t *testing.T) {
			b := c.burst
			if c.raw.Targets > 0 {
				b = c.raw
			}
			b.Raw = true
			if acks := c.acks(t, b); acks > 0 {
				t.Errorf("%d segments with an ACK were sent, want 0", acks)
			}
		})
		t.Run(c.name+", socket", func(t *testing.T) {
			// Whether a process that is not stopped is held up for long enough depends on the scheduler.
			const most = 10
			for range most {
				done, acks := false, 0
				t.Run("try", func(t *testing.T) {
					acks = c.acks(t, c.burst)
					done = true
				})
				if !done || acks > 0 {
					return
				}
			}
			t.Errorf("no ACK was sent in %d tries: the test does not provoke its case", most)
		})
	}
}

// heldUp is how a process is held up.
type heldUp struct {
	before func(t *testing.T, child *process.Process)      // before the handshakes, nil for nothing
	during func(wire *simnet.Wire, child *process.Process) // while they run, nil for nothing
}

// acks returns how many segments with an ACK a process sends that is held up during a burst. It checks the verdicts.
func (u *heldUp) acks(t *testing.T, b burst) (acks int) {
	t.Helper()
	lab.NeedDescriptors(t, b.Targets+100)
	process.Prefer(t)
	network := simnet.NewNetwork(t)
	network.At("10.0.0.0/8", simnet.SYNACK().After(50*time.Millisecond))
	packets := capture.Interface(t, network.Interface(), netip.MustParseAddr("10.255.0.1"))
	verdicts := b.run(t, lab.Program(t, "nice", "coreutils"), func(child *process.Process) {
		if u.before != nil {
			u.before(t, child)
		}
	}, func(child *process.Process) {
		if u.during != nil {
			u.during(network.Wire, child)
		}
	})
	for segment := range network.Sent() {
		if segment.ACK && (b.Raw || !segment.RST) { // the RST of the kernel has no ACK either
			acks++
		}
	}
	t.Logf("%d ACKs", acks)
	b.check(t, verdicts, answerTimes(packets))
	return acks
}

// The process is stopped while the SYN-ACK arrives, until the deadline has passed. The target is open, and its latency
// does not include the time for which the process was stopped.
func TestLatencyOfAStoppedProcess(t *testing.T) {
	const insideEnv = "SHAKER_TEST_STOPPED_RAW"
	const stopped, timeout = 500 * time.Millisecond, 300 * time.Millisecond
	if target, err := netip.ParseAddrPort(os.Getenv(insideEnv)); err == nil {
		s := startWithoutSockets(t)
		began := time.Now()
		r, err := s.Shake(context.Background(), target, &Options{Timeout: timeout})
		fmt.Printf("result %v %d %d %d %v\n", r.Outcome, r.Handshake, r.RTT, time.Since(began), err)
		return
	}
	needTimestamps(t)
	for _, target := range []netip.AddrPort{target4, target6} {
		t.Run(target.String(), func(t *testing.T) {
			result, trace := resultOfStopped(t, stopped, 0, insideEnv+"="+target.String())
			var outcome string
			var handshake, rtt, took time.Duration
			fmt.Sscan(result, &outcome, (*int64)(&handshake), (*int64)(&rtt), (*int64)(&took))
			if outcome != Open.String() || handshake == 0 || handshake > took-stopped || rtt != handshake {
				t.Errorf("Shake(%v, timeout %v) of a process that was stopped for %v after the SYN-ACK = %s, "+
					"want %v, and a handshake and RTT of %v at most:\n%s", target, timeout, stopped,
					strings.TrimSpace(result),
					Open, took-stopped, trace())
			}
		})
	}
}
