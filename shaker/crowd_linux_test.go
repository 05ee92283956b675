package shaker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A crowd is many callers that probe targets with known behaviour. The deadlines are close to the
// times at which the targets answer, where it is hardest to be right.
type crowd struct {
	network *simnet.Network
	rtt     time.Duration // to every target that answers
	kinds   []kind
	shaker  *Shaker
	shake   func(context.Context, netip.AddrPort, *Options) (Result, error) // of the shaker, or of a control

	probes   atomic.Uint64
	verdicts atomic.Int64
	open     atomic.Int64 // verdicts that are Open
	wrong    atomic.Pointer[wrongError]
}

// A wrongError is a result that does not match the target.
type wrongError struct {
	target        netip.AddrPort
	want          Outcome
	soonest       time.Duration // the target does not answer before
	took, timeout time.Duration
	result        Result
	err           error
	network       *simnet.Network
}

func (w *wrongError) Error() string {
	return fmt.Sprintf("Shake(%v, timeout %v) = %+v, error %v after %v, want %v after %v or more, or Timeout\n%s",
		w.target, w.timeout, w.result, w.err, w.took, w.want, w.soonest, w.network.Trace(w.target.Addr()))
}

// A kind is 65,536 targets that behave alike.
type kind struct {
	first   netip.Addr
	outcome Outcome       // Timeout if the targets are silent
	answer  time.Duration // time from a SYN to its answer
	lossy   bool          // the first SYN is lost
}

// after returns how long a handshake takes until the answer if the kernel retransmits a SYN after rto.
func (k kind) after(rto time.Duration) time.Duration {
	if k.lossy {
		return rto + k.answer
	}
	return k.answer
}

// manyCallers returns n, the number of callers that keep two cores busy, but not so busy that most
// deadlines pass before a SYN is sent. With the race detector, which multiplies the CPU time, it
// returns a tenth of n.
func manyCallers(n int) int {
	if lab.Race {
		n /= 10
	}
	return n
}

// newCrowd creates a network with open, refusing, unreachable, silent and lossy targets.
func newCrowd(t *testing.T, rtt time.Duration) *crowd {
	t.Helper()
	c := &crowd{network: simnet.NewNetwork(t), rtt: rtt, shaker: start(t)}
	c.shake = c.shaker.Shake
	c.network.WatchStalls()
	process.Prefer(t)
	for _, version := range []struct {
		prefix      string // with the number of a kind
		unreachable simnet.Answer
	}{
		{"10.%d.0.0/16", simnet.ICMP("198.51.100.7", 3, 1)},
		{"2001:db8:%d::/112", simnet.ICMP("2001:db8:ffff::7", 1, 3)},
	} {
		lay := func(k kind, answers ...simnet.Answer) *simnet.Host {
			prefix := netip.MustParsePrefix(fmt.Sprintf(version.prefix, len(c.kinds)))
			k.first = prefix.Addr()
			c.kinds = append(c.kinds, k)
			return c.network.At(prefix.String(), answers...)
		}
		lay(kind{outcome: Open, answer: rtt}, simnet.SYNACK().After(rtt))
		lay(kind{outcome: Refused, answer: rtt}, simnet.RST().After(rtt))
		lay(kind{outcome: Unreachable, answer: rtt}, version.unreachable.After(rtt))
		lay(kind{outcome: Timeout})
		lay(kind{outcome: Open, answer: rtt, lossy: true}, simnet.SYNACK().After(rtt)).LosingSYNs(1)
	}
	return c
}

// run lets callers probe until the crowd has the given number of verdicts. It stops at a wrong result
// and returns it.
func (c *crowd) run(callers int, verdicts int64) *wrongError {
	c.wrong.Store(nil)
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for c.verdicts.Load() < verdicts && c.wrong.Load() == nil {
				if wrong := c.probe(); wrong != nil {
					c.wrong.Store(wrong)
				}
			}
		})
	}
	group.Wait()
	return c.wrong.Load()
}

// probe makes a random probe. It returns nil if the result matches the target.
func (c *crowd) probe() *wrongError {
	random := c.network.Random(c.probes.Add(1))
	k := c.kinds[random.IntN(len(c.kinds))]
	for k.lossy && random.IntN(10) > 0 { // fewer of these, because they take long
		k = c.kinds[random.IntN(len(c.kinds))]
	}
	target := k.target(random)
	timeout, mustAnswer := c.timeout(k, random)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cancelled := random.IntN(10) == 0
	if cancelled {
		defer time.AfterFunc(time.Duration(random.Int64N(int64(2*c.rtt))), cancel).Stop()
	}

	began := time.Now()
	r, err := c.shake(ctx, target, &Options{Timeout: timeout})
	took := time.Since(began)
	soonest := k.after(simnet.InitialRTO)

	switch {
	case cancelled && errors.Is(err, context.Canceled), !mustAnswer && errors.Is(err, ErrUnsent):
		return nil
	case err != nil,
		r.Peer != target,
		r.Outcome == Timeout && (mustAnswer || took < timeout || r.Errno != unix.ETIMEDOUT),
		r.Outcome != Timeout && (r.Outcome != k.outcome || took < soonest),
		r.Outcome == Unreachable && r.ICMP.String() != "host_unreachable",
		r.Outcome == Open && (r.Errno != 0 || r.Handshake < soonest || r.RTT > r.Handshake),
		r.Outcome == Open && k.lossy && r.SYNs < 2:
		return &wrongError{
			target:  target,
			want:    k.outcome,
			soonest: soonest,
			took:    took,
			timeout: timeout,
			result:  r,
			err:     err,
			network: c.network,
		}
	}
	if r.Outcome == Open {
		c.open.Add(1)
	}
	c.verdicts.Add(1)
	return nil
}

// target returns a random target of the kind.
func (k kind) target(random *rand.Rand) netip.AddrPort {
	addr := k.first.AsSlice()
	binary.BigEndian.PutUint16(addr[len(addr)-2:], uint16(random.Uint32()))
	target, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(target, 80)
}

// timeout returns a random timeout for a probe: about the time of the answer, or about the time of the
// kernel's retransmission, or so long that the answer must arrive.
func (c *crowd) timeout(k kind, random *rand.Rand) (timeout time.Duration, mustAnswer bool) {
	about := func(d time.Duration) time.Duration {
		return max(1, d+time.Duration(random.IntN(4000)-2000)*time.Microsecond)
	}
	switch choice := random.IntN(4); {
	case k.outcome == Timeout:
		return about(c.rtt), false
	case choice == 0:
		return time.Minute, true
	case choice == 1 && k.lossy:
		return about(time.Second), false
	default:
		return about(k.after(time.Second)), false
	}
}
