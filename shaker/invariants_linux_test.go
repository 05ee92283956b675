package shaker

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/capture"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The invariants of the engine. Each has tests that fail without it.
//
//  1. A loop owns its descriptors: no other code uses them, and an event that outlives its handshake
//     is dropped.
//  2. When the loop sees a SYN-ACK, it sends the RST before it wakes any caller.
//  3. SYN-ACKs are answered before other work: however many handshakes begin or end at the same
//     time, the loop soon looks for events again.
//  4. Every caller is woken exactly once.
//  5. A self-connect is not an open port.
//  6. Deadlines are kept: none passes early, none passes unnoticed, and none outlives its handshake.
//  7. A local error is not a verdict.
//  8. All handshakes take place in the network namespace of the thread that called New: see
//     netns_linux_test.go.
//  9. A delay of this host is not a verdict: see late_linux_test.go.
//  10. What the kernel does not report is not a verdict and not a zero: see kernels_linux_test.go.

// The guarantee: a server cannot accept any of 1,000 handshakes. In the control case the ACK is not
// withheld, and the server accepts all 1,000.
func TestServerSeesNoConnection(t *testing.T) {
	lab.Need(t)
	for _, c := range []struct {
		name        string
		withholdACK bool
		accepted    int
	}{
		{name: "the guarantee", withholdACK: true, accepted: 0},
		{name: "the control", withholdACK: false, accepted: 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			target, accepted := listen(t, "127.0.0.1:0")
			s := start(t)
			s.engine.withholdACK = c.withholdACK
			before, timeWaits, ackSent := kernel.Counters(t), kernel.TimeWaits(t), 0
			for range 1000 {
				r := mustShake(t, s, target)
				if r.Outcome != Open {
					t.Fatalf("Shake(%v) = %+v, want Open", target, r)
				}
				if r.ACKSent {
					ackSent++
				}
			}
			after := kernel.Counters(t)
			for counter, want := range map[string]int{
				"TcpActiveOpens":      1000,
				"TcpPassiveOpens":     c.accepted,        // handshakes that were completed
				"TcpExtEmbryonicRsts": 1000 - c.accepted, // half-open connections that an RST ended
				"TcpExtListenDrops":   0,
			} {
				if _, ok := after[counter]; !ok {
					t.Errorf("the kernel has no counter %s, want one", counter)
				}
				if got := after[counter] - before[counter]; got != want {
					t.Errorf("%s has grown by %d in 1,000 handshakes, want %d", counter, got, want)
				}
			}
			if n := kernel.TimeWaits(t) - timeWaits; c.withholdACK && n > 0 {
				t.Errorf("1,000 handshakes left %d sockets in TIME_WAIT, want 0", n)
			}
			if ackSent != c.accepted {
				t.Errorf("ACKSent is true for %d of 1,000 handshakes, want %d", ackSent, c.accepted)
			}
			// Once the server has accepted another connection, it has accepted all that it can.
			conn, err := net.Dial("tcp", target.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Read(make([]byte, 1)) // until the server has accepted the connection and closed it
			if got := int(accepted.Load()) - 1; got != c.accepted {
				t.Errorf("accept returned for %d of 1,000 handshakes, want %d", got, c.accepted)
			}
		})
	}
}

// If the process is delayed for 200 ms, the kernel sends the ACK, and the result reports it.
func TestACKSentWhenDelayed(t *testing.T) {
	s, l := startOne(t)
	var ack atomic.Bool
	acked := make(chan struct{})
	var wire *simnet.Wire
	wire = simnet.NewWire(t, func(segment simnet.Segment) [][]byte {
		switch {
		case segment.SYN:
			h := hold(l)
			wire.Send(segment.SYNACK())
			go func() {
				<-acked
				close(h.release)
			}()
		case segment.ACK && !segment.RST && !ack.Swap(true):
			close(acked)
		}
		return nil
	}, "192.0.2.0/24")
	r := mustShake(t, s, netip.MustParseAddrPort("192.0.2.1:80"))
	if r.Outcome != Open || !r.ACKSent {
		t.Errorf("Shake = %+v, want Open with ACKSent: an ACK was on the wire", r)
	}
}

// Invariant 1. One epoll_wait collects two events. The handler of the first event ends both tasks,
// and starts a third task with the slot and the descriptor number of the second one. The third task
// must not get the second event.
func TestStaleEventIsDropped(t *testing.T) {
	_, l := startOne(t)
	first, second := newFlagTask(t), newFlagTask(t)
	var third *flagTask
	var sameSlot, sameDescriptor bool
	handled := make(chan struct{})
	handle := func(l *loop, one, other *flagTask) {
		index, fd := other.own.index, other.fd
		one.end(l)
		other.end(l)
		closeDescriptor(third.fd)
		third = newFlagTask(t) // gets the lowest free number, one of the two
		if third.fd != fd {
			other := third
			third = newFlagTask(t)
			defer closeDescriptor(other.fd)
		}
		own := l.freed[len(l.freed)-1] // of the other one
		l.slots.seat(own, third)
		third.handle(l, own, event{kind: eventStart})
		sameSlot, sameDescriptor = own.index == index, third.fd == fd
		close(handled)
	}
	first.onReady = func(l *loop) { handle(l, first, second) }
	second.onReady = func(l *loop) { handle(l, second, first) }
	third = newFlagTask(t)
	l.submit(first, interactive, 0)
	l.submit(second, interactive, 0)
	h := hold(l) // when it returns, both are watched
	first.set()
	second.set()
	close(h.release)
	<-handled
	close(hold(l).release) // when it returns, the second event has been handled or dropped
	if n := first.events + second.events; n != 1 || !sameSlot || !sameDescriptor {
		t.Fatalf("the test did not provoke its case: %d events, same slot %t, same descriptor %t, want 1, true, true",
			n, sameSlot, sameDescriptor)
	}
	if third.events != 0 {
		t.Errorf("the third task got %d events, want 0: the second event was for an earlier task", third.events)
	}
}

// Invariant 1, from outside. Sockets are closed by deadlines, cancellations and replies, so that
// descriptor numbers are reused all the time. No caller may get the verdict of another target.
func TestVerdictsAreNotMixedUp(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	open, _ := listen(t, "127.0.0.1:0")
	s := start(t)
	targets := []struct {
		netip.AddrPort
		want Outcome
	}{
		{AddrPort: open, want: Open},
		{AddrPort: closedPort(t), want: Refused},
		{AddrPort: netip.MustParseAddrPort("192.0.2.1:80"), want: Timeout},
	}
	var group sync.WaitGroup
	var verdicts atomic.Int64
	for i := range 200 {
		group.Go(func() {
			for range 50 {
				target := targets[rand.IntN(len(targets))]
				if target.want == Timeout { // one for each caller: more than RawPorts may wait at the same time
					target.AddrPort = netip.AddrPortFrom(target.Addr(), uint16(1+i))
				}
				ctx, cancel := context.WithCancel(context.Background())
				if rand.IntN(4) == 0 {
					time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, cancel)
				}
				timeout := 5 * time.Second
				if target.want == Timeout {
					timeout = time.Duration(1+rand.IntN(5000)) * time.Microsecond
				}
				r, err := s.Shake(ctx, target.AddrPort, &Options{Timeout: timeout})
				cancel()
				switch {
				case errors.Is(err, context.Canceled), target.want == Timeout && errors.Is(err, ErrUnsent):
				case err != nil:
					t.Errorf("Shake(%v): error %v, want %v", target.AddrPort, err, target.want)
				case r.Outcome != target.want || r.Peer != target.AddrPort:
					t.Errorf("Shake(%v) = %+v, want %v", target.AddrPort, r, target.want)
				default:
					verdicts.Add(1)
				}
			}
		})
	}
	group.Wait()
	if n := verdicts.Load(); n < 1000 {
		t.Errorf("%d verdicts, want 1,000 or more", n)
	}
}

// Invariant 2. When Shake returns, the RST is on the wire: before anything that the caller sends next.
func TestRSTBeforeShakeReturns(t *testing.T) {
	capture := capture.Loopback(t)
	listener, _ := listen(t, "0.0.0.0:0")
	s := start(t)
	marker, err := net.ListenPacket("udp4", "127.0.0.1:0") // sends to itself
	if err != nil {
		t.Fatal(err)
	}
	defer marker.Close()
	const callers, each = 8, 250
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			// Each caller has its own target address, because local ports are soon reused.
			target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, byte(i)}), listener.Port())
			for range each {
				r, err := s.Shake(context.Background(), target, nil)
				if err != nil || r.Outcome != Open {
					t.Errorf("Shake(%v) = %+v, error %v, want Open", target, r, err)
					return
				}
				marker.WriteTo(target.Addr().AsSlice(), marker.LocalAddr())
			}
		})
	}
	group.Wait()
	waiting := make(map[netip.Addr]bool) // targets that have sent a SYN-ACK and not yet got an RST
	markers := 0
	for _, segment := range capture.Segments() {
		switch {
		case segment.SYN && segment.ACK:
			waiting[segment.Src.Addr()] = true
		case segment.RST:
			delete(waiting, segment.Dst.Addr())
		case segment.UDP:
			markers++
			if target, _ := netip.AddrFromSlice(segment.Data); waiting[target] {
				t.Fatalf("Shake(%v) returned before the RST was sent, want it after", target)
			}
		case segment.ACK:
			t.Fatalf("%v was sent, want no ACK", segment)
		}
	}
	if markers != callers*each {
		t.Errorf("%d markers were captured, want %d", markers, callers*each)
	}
}

// A witness waits for a handshake. It counts, when it is woken, which sockets of a group of handshakes
// are still open.
type witness struct {
	*handshake
	all  []*handshake
	open *atomic.Int64
}

func (w witness) wake(l *loop) {
	for _, h := range w.all {
		if h.fd >= 0 {
			w.open.Add(1)
		}
	}
	w.handshake.wake(l)
	l.woke()
}

// Invariant 2, from inside. If the loop sees several SYN-ACKs in one turn, it closes all of their
// sockets before it wakes the first waiter.
func TestSocketsAreClosedBeforeWaking(t *testing.T) {
	const handshakes = startsPerTurn // all start in one turn
	shake := func(t *testing.T, l *loop, target netip.AddrPort) {
		var all []*handshake
		for range handshakes {
			h := newHandshake()
			h.aim(target, 0)
			all = append(all, h)
		}
		var open atomic.Int64
		held := hold(l)
		for _, h := range all {
			h.ended = func(l *loop) { l.finish(h.own, witness{handshake: h, all: all, open: &open}) }
			l.submit(h, interactive, 0)
		}
		close(held.release)
		for _, h := range all {
			if <-h.done; h.result.Outcome != Open {
				t.Errorf("the handshake with %v has the result %+v, error %v, want Open", target, h.result, h.err)
			}
		}
		if n := open.Load(); n != 0 {
			t.Errorf("the waiters found %d open sockets when they were woken, want 0", n)
		}
	}
	t.Run("immediate replies", func(t *testing.T) {
		_, l := startOne(t)
		target, _ := listen(t, "127.0.0.1:0")
		shake(t, l, target)
	})
	t.Run("later replies", func(t *testing.T) {
		_, l := startOne(t)
		var answers [][]byte
		var wire *simnet.Wire
		wire = simnet.NewWire(t, func(segment simnet.Segment) [][]byte {
			if segment.SYN {
				answers = append(answers, segment.SYNACK())
			}
			if len(answers) == handshakes {
				held := hold(l)
				wire.Send(answers...)
				close(held.release)
				answers = nil
			}
			return nil
		}, "192.0.2.0/24")
		shake(t, l, netip.MustParseAddrPort("192.0.2.1:80"))
	})
}

// Invariant 3, from inside. There are more events than one epoll_wait returns. The loop handles all
// of them, and wakes the waiters of the ended tasks, before it starts a task.
func TestAllEventsBeforeStarts(t *testing.T) {
	_, l := startOne(t)
	var flags []*flagTask
	for range 2*eventsPerTurn + 10 {
		flag := newFlagTask(t)
		flag.onReady = func(l *loop) { flag.end(l) }
		l.submit(flag, interactive, 0)
		flags = append(flags, flag)
	}
	done := make(chan struct{})
	next := startTask(func() {
		for i, flag := range flags {
			if flag.events != 1 || !flag.woken {
				t.Errorf("before the start, task %d has handled %d events, woken %t; want 1, true",
					i, flag.events, flag.woken)
				break
			}
		}
		close(done)
	})
	for range len(flags)/startsPerTurn + 1 {
		close(hold(l).release) // after the last one, all flags are watched
	}
	h := hold(l)
	for _, flag := range flags {
		flag.set()
	}
	l.submit(next, interactive, 0)
	close(h.release)
	<-done
}

// Invariant 3. SYN-ACKs do not have to wait if many callers arrive at the same time, many give up, or
// many deadlines pass: after every few of them the loop looks for events.
func TestEventsAreNotStarved(t *testing.T) {
	for how, perTurn := range map[string]int{"start": startsPerTurn, "due": duePerTurn, "told": toldPerTurn} {
		t.Run(how, func(t *testing.T) {
			_, l := startOne(t)
			tasks := 10 * perTurn
			var done, doneBefore int
			flag := newFlagTask(t)
			do := func() {
				if done++; done == 1 {
					flag.set()
				}
			}
			handled := make(chan struct{})
			flag.onReady = func(l *loop) {
				doneBefore = done
				flag.end(l)
				close(handled)
			}
			l.submit(flag, interactive, 0)
			h := hold(l) // when it returns, the flag is watched
			for range tasks {
				ending := &endingTask{ended: do}
				switch how {
				case "start":
					l.submit(startTask(do), interactive, 0)
				case "due":
					l.submit(ending, interactive, 1)
				case "told":
					own, _ := l.submit(ending, interactive, 0)
					l.tell(own, nil)
				}
			}
			close(h.release)
			<-handled
			if doneBefore > 2*perTurn {
				t.Errorf("an event waited for %d of %d tasks, want %d at most", doneBefore, tasks, 2*perTurn)
			}
		})
	}
}

// Invariant 3. Starts take long: the kernel searches for a free local port. After each of them the loop
// looks for events, so that a SYN-ACK does not have to wait for all that may start in a turn.
func TestSlowStartsAreFewPerTurn(t *testing.T) {
	_, l := startOne(t)
	var started, startedBefore int
	flag := newFlagTask(t)
	handled := make(chan struct{})
	flag.onReady = func(l *loop) {
		startedBefore = started
		flag.end(l)
		close(handled)
	}
	l.submit(flag, interactive, 0)
	h := hold(l) // when it returns, the flag is watched
	for range startsPerTurn {
		l.submit(startTask(func() {
			if started++; started == 1 {
				flag.set()
			}
			for until := l.clock() + startingPerTurn; l.clock() < until; {
			}
		}), interactive, 0)
	}
	close(h.release)
	<-handled
	if startedBefore != 1 {
		t.Errorf("an event waited for %d starts of %v each, want 1", startedBefore, startingPerTurn)
	}
}

// Invariant 3. A thousand callers arrive at the same time. On loopback every SYN is answered before
// connect(2) returns, so the loop sends the RST for it before the next SYN.
func TestRSTBeforeTheNextSYN(t *testing.T) {
	capture := capture.Loopback(t)
	target, _ := listen(t, "127.0.0.1:0")
	s, l := startOne(t)
	h := hold(l)
	const callers = 1000
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			if r, err := s.Shake(context.Background(), target, nil); err != nil || r.Outcome != Open {
				t.Errorf("Shake(%v) = %+v, error %v, want Open", target, r, err)
			}
		})
	}
	awaitLoop(t, l, "all handshakes are queued", func() bool { return len(l.arrivals) == callers })
	close(h.release)
	group.Wait()
	waiting, most, resets := 0, 0, 0
	for _, segment := range capture.Segments() {
		switch {
		case segment.Src == target && segment.SYN && segment.ACK:
			waiting++
			most = max(most, waiting)
		case segment.Dst == target && segment.RST:
			waiting--
			resets++
		}
	}
	if resets != callers {
		t.Errorf("%d RSTs were captured, want %d", resets, callers)
	}
	if most > 1 {
		t.Errorf("up to %d SYN-ACKs waited for their RST at the same time, want 1 at most", most)
	}
}

// A caller that finds the loop undriven starts its task itself.
func TestCallersTakeTurns(t *testing.T) {
	_, l := startOne(t)
	awaitLoop(t, l, "the loop's goroutine sleeps", func() bool { return !l.driven })
	started := false
	l.submit(startTask(func() { started = true }), interactive, 0)
	if !started {
		t.Error("submit returned before the task was started, want it started by the caller")
	}
}

// Invariant 3. However many handshakes end at the same time, only a few of their callers compete with
// the loop for a processor. When those have run, the loop wakes more.
func TestWakesAreLimited(t *testing.T) {
	_, l := startOne(t)
	const tasks = 10 * wakesAhead
	var woken atomic.Int32
	for range tasks {
		l.submit(&endingTask{ended: func() {}, waiter: sleeper{&woken}}, interactive, 1)
	}
	for ran := range int32(tasks) {
		if ran%(wakesAhead/2) == 0 {
			lab.Eventually(t, "the loop wakes as many as it may", func() bool {
				return woken.Load() >= min(ran+wakesAhead, tasks)
			})
		}
		if n := woken.Load(); n > ran+wakesAhead {
			t.Fatalf("%d waiters are woken when %d have run, want %d at most", n, ran, ran+wakesAhead)
		}
		l.woke()
	}
	if n := l.ahead.Load(); n != 0 {
		t.Errorf("%d woken waiters have not run, want 0", n)
	}
}

// Invariant 4. However a handshake ends, its caller is woken once, with the caller's own result.
func TestEveryWaiterIsCompletedOnce(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	open, _ := listen(t, "0.0.0.0:0")
	descriptors := lab.Descriptors(t)
	s, err := New(startConfig)
	if err != nil {
		t.Fatal(err)
	}
	const callers = 500
	var group sync.WaitGroup
	var answers, closed atomic.Int64
	for i := range callers {
		group.Go(func() {
			// Each caller has its own target address, to recognize its own result.
			own := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), open.Port())
			silent := netip.AddrPortFrom(target4.Addr(), uint16(1+i))
			for {
				target := own
				if rand.IntN(2) == 0 {
					target = silent
				}
				timeout := time.Duration(rand.IntN(20_000)) * time.Microsecond
				ctx, cancel := context.WithTimeout(context.Background(), timeout)
				if rand.IntN(2) == 0 {
					time.AfterFunc(time.Duration(rand.IntN(10_000))*time.Microsecond, cancel)
				}
				deadline, _ := ctx.Deadline()
				r, err := s.Shake(ctx, target, nil)
				ended := ctx.Err()
				cancel()
				switch {
				case errors.Is(err, ErrClosed):
					closed.Add(1)
					return
				case errors.Is(err, ErrUnsent):
				case errors.Is(err, context.Canceled):
					if ended == nil {
						t.Errorf("Shake(%v): error %v, want none: its own context has not ended", target, err)
					}
				case err != nil:
					t.Errorf("Shake(%v): error %v, want a verdict", target, err)
				case r.Peer != target:
					t.Errorf("Shake(%v) = %+v, want this target as Peer", target, r)
				case r.Outcome == Timeout && ended == nil && time.Now().Before(deadline):
					t.Errorf("Shake(%v) = %+v before the deadline, want Timeout only after it", target, r)
				case r.Outcome != Timeout && (r.Outcome != Open || target == silent):
					t.Errorf("Shake(%v) = %+v, want Timeout, or Open unless the target is %v", target, r, silent)
				}
				if answers.Add(1) == 20_000 {
					go s.Close()
				}
			}
		})
	}
	group.Wait()
	s.Close()
	if n := closed.Load(); n != callers {
		t.Errorf("%d callers got %v, want all %d", n, ErrClosed, callers)
	}
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors afterwards, want %d as before", now, descriptors)
	}
}

// When Shake returns because of a cancellation, the socket is closed.
func TestCancellationFreesTheSocket(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	s := start(t)
	descriptors := lab.Descriptors(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := s.Shake(ctx, netip.MustParseAddrPort("192.0.2.1:80"), nil)
		done <- err
	}()
	wire.Await(1)
	if now := lab.Descriptors(t); now != descriptors+1 {
		t.Errorf("%d descriptors during a handshake, want %d", now, descriptors+1)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Shake: error %v, want %v", err, context.Canceled)
	}
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors afterwards, want %d as before", now, descriptors)
	}
	connections, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(connections), "010200C0:0050 02") { // 192.0.2.1:80 SYN_SENT
		t.Errorf("the kernel has a socket in SYN_SENT, want none:\n%s", connections)
	}
}

// A cancelled handshake that has not been started ends without a SYN.
func TestCancellationWhileQueued(t *testing.T) {
	lab.Need(t)
	s, l := startOne(t)
	target, _ := listen(t, "127.0.0.1:0")
	h := hold(l)
	ctx, cancel := context.WithCancel(context.Background())
	before := kernel.Counters(t)
	done := make(chan error)
	go func() {
		_, err := s.Shake(ctx, target, nil)
		done <- err
	}()
	awaitLoop(t, l, "the handshake is queued", func() bool { return len(l.arrivals) == 1 })
	cancel()
	awaitLoop(t, l, "the loop is told", func() bool { return len(l.messages) == 1 })
	close(h.release)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Shake: error %v, want %v", err, context.Canceled)
	}
	if sent := kernel.Counters(t)["TcpActiveOpens"] - before["TcpActiveOpens"]; sent != 0 {
		t.Errorf("%d SYNs were sent, want 0: the caller has given up", sent)
	}
}

// Close returns when the loop has ended, and not before.
func TestCloseWaitsForTheLoop(t *testing.T) {
	descriptors := lab.Descriptors(t)
	s, l := startOne(t)
	h := hold(l)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.Close()
	}()
	awaitLoop(t, l, "the loop is asked to end", func() bool { return l.ended != nil })
	select {
	case <-closed:
		t.Error("Close returned while the loop was running, want it to wait")
	default:
	}
	close(h.release)
	<-closed
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors afterwards, want %d as before", now, descriptors)
	}
}

// If epoll fails, the loop ends every handshake with that error, and takes no new one. It can be closed as usual.
func TestBrokenLoop(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	s, l := startOne(t)
	target := netip.MustParseAddrPort("192.0.2.1:80")
	done := make(chan error)
	go func() {
		_, err := s.Shake(context.Background(), target, nil)
		done <- err
	}()
	wire.Await(1)
	if err := s.Err(); err != nil {
		t.Errorf("Err of a working Shaker: %v, want nil", err)
	}
	h := hold(l)
	if err := unix.Dup3(0, l.epoll, unix.O_CLOEXEC); err != nil { // the descriptor is not an epoll any more
		t.Fatal(err)
	}
	close(h.release)
	for _, which := range []string{"the next handshake", "another one"} {
		_, err := s.Shake(context.Background(), target, nil)
		if !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrClosed) {
			t.Errorf("Shake, %s: error %v, want %v", which, err, unix.EINVAL)
		}
	}
	if err := <-done; !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrClosed) {
		t.Errorf("Shake, the running handshake: error %v, want %v", err, unix.EINVAL)
	}
	if err := s.Err(); !errors.Is(err, unix.EINVAL) || !errors.Is(err, ErrLocal) || errors.Is(err, ErrClosed) {
		t.Errorf("Err after epoll failed: %v, want %v and %v", err, unix.EINVAL, ErrLocal)
	}
	s.Close()
	if _, err := s.Shake(context.Background(), target, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Shake after Close: error %v, want %v", err, ErrClosed)
	}
}

// Invariant 5. The kernel has only one local port to choose, and the target is that port of this host:
// the socket is connected to itself.
func TestSelfConnectIsRefused(t *testing.T) {
	lab.Need(t)
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	s := start(t)
	for _, address := range []string{"127.0.0.1:40000", "[::1]:40000", "0.0.0.0:40000"} {
		target := netip.MustParseAddrPort(address)
		r := mustShake(t, s, target)
		if r.Local.Port() != 40000 {
			t.Fatalf("the test did not provoke its case: Shake(%v) has Local %v, want port 40000", target, r.Local)
		}
		want := Result{Outcome: Refused, Errno: unix.ECONNREFUSED, SYNs: 1, Peer: target}
		if withoutTimes(r) != want || r.Handshake != 0 || r.RTT != 0 {
			t.Errorf("Shake(%v) =\n     %+v\nwant %+v with that Local", target, r, want)
		}
	}
}

// A handshake with another host is not a self-connect, even if both ends have the same port.
func TestEqualPortsAreNotASelfConnect(t *testing.T) {
	simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			return [][]byte{s.SYNACK()}
		}
		return nil
	}, "192.0.2.0/24")
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	r := mustShake(t, start(t), netip.MustParseAddrPort("192.0.2.1:40000"))
	if r.Local.Port() != 40000 || r.Outcome != Open {
		t.Errorf("Shake(192.0.2.1:40000) = %+v, want Open from port 40000", r)
	}
}

// Invariant 6. 10,000 deadlines pass in order, and none passes early.
func TestDeadlinesPassInOrder(t *testing.T) {
	_, l := startOne(t)
	const tasks = 10_000
	var previous time.Duration
	passed := 0
	done := make(chan struct{})
	h := hold(l)
	for range tasks {
		deadline := l.clock() + time.Duration(rand.IntN(300_000))*time.Microsecond
		l.submit(&endingTask{ended: func() {
			if deadline < previous {
				t.Errorf("the deadline %v passed after the deadline %v, want it before", deadline, previous)
			}
			if now := l.clock(); now < deadline {
				t.Errorf("the deadline %v passed at %v, want it later", deadline, now)
			}
			previous = deadline
			if passed++; passed == tasks {
				close(done)
			}
		}}, interactive, deadline)
	}
	close(h.release)
	<-done
}

// Invariant 6. The loop does not oversleep. The limit for the median lateness allows for a busy
// machine, and is far below the lateness of a loop that checks deadlines only now and then.
func TestDeadlinesAreKept(t *testing.T) {
	_, l := startOne(t)
	var late []time.Duration
	for range 21 {
		done := make(chan time.Duration)
		deadline := l.clock() + 5*time.Millisecond
		l.submit(&endingTask{ended: func() { done <- l.clock() - deadline }}, interactive, deadline)
		late = append(late, <-done)
	}
	slices.Sort(late)
	if median := late[len(late)/2]; median > 200*time.Millisecond {
		t.Errorf("deadlines pass %v late in the median of %d, want 200 ms at most", median, len(late))
	}
}

// Invariant 6. Each of 10,000 silent targets gets the verdict Timeout, and none before its deadline.
func TestDeadlinesOfSilentTargets(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	callers := manyCallers(10_000)
	lab.NeedDescriptors(t, callers+100)
	s := start(t)
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(1+i))
			timeout := 4*time.Second + time.Duration(i)*20*time.Microsecond
			began := time.Now()
			r, err := s.Shake(context.Background(), target, &Options{Timeout: timeout})
			if err != nil || r.Outcome != Timeout || r.Errno != unix.ETIMEDOUT {
				t.Errorf("Shake(%v) = %+v, error %v, want Timeout with ETIMEDOUT", target, r, err)
			}
			if took := time.Since(began); took < timeout {
				t.Errorf("Shake(%v) returned after %v, want %v or more", target, took, timeout)
			}
		})
	}
	group.Wait()
}

// Invariant 6. A deadline does not outlive its handshake.
func TestDeadlinesLeaveNothingBehind(t *testing.T) {
	s, l := startOne(t)
	target, _ := listen(t, "127.0.0.1:0")
	for range 100 {
		if _, err := s.Shake(context.Background(), target, &Options{Timeout: time.Hour}); err != nil {
			t.Fatalf("Shake(%v): error %v, want a verdict", target, err)
		}
	}
	h := hold(l)
	defer close(h.release)
	if n := len(l.deadlines); n != 0 {
		t.Errorf("%d deadlines are left after the last handshake, want 0", n)
	}
	if n := running(l); n != 1 { // of the holdUp
		t.Errorf("%d slots are in use after the last handshake, want 1", n)
	}
	if n := len(l.slots); n > 3 {
		t.Errorf("100 handshakes, one after the other, took %d slots, want 3 at most", n)
	}
}

// Invariant 6. A deadline that passes before the SYN is sent is not a verdict, and no SYN follows.
func TestDeadlineBeforeSYN(t *testing.T) {
	s, l := startOne(t)
	target, _ := listen(t, "127.0.0.1:0")
	before := kernel.Counters(t)
	h := hold(l)
	done := make(chan error)
	go func() {
		_, err := s.Shake(context.Background(), target, &Options{Timeout: time.Microsecond})
		done <- err
	}()
	awaitLoop(t, l, "the handshake is queued", func() bool { return len(l.arrivals) == 1 })
	close(h.release)
	if err := <-done; !errors.Is(err, ErrUnsent) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Shake: error %v, want %v", err, ErrUnsent)
	}
	if sent := kernel.Counters(t)["TcpActiveOpens"] - before["TcpActiveOpens"]; sent != 0 {
		t.Errorf("%d SYNs were sent after the deadline, want 0", sent)
	}
}

// Invariant 7. Without a free descriptor or local port there is an error instead of a verdict. Once one
// is free again, there is a verdict.
func TestLocalErrorsAreNotVerdicts(t *testing.T) {
	t.Run("EMFILE", func(t *testing.T) {
		target, _ := listen(t, "127.0.0.1:0")
		s := start(t)
		lab.WithDescriptors(t, 0, func() {
			for _, target := range []netip.AddrPort{target, netip.MustParseAddrPort("[fe80::1%lo]:80")} {
				r, err := s.Shake(context.Background(), target, nil)
				if !errors.Is(err, unix.EMFILE) || !errors.Is(err, ErrLocal) || errors.Is(err, ErrTarget) ||
					r != (Result{}) {
					t.Errorf("Shake(%v) without descriptors = %+v, error %v, want EMFILE", target, r, err)
				}
			}
		})
		if r := mustShake(t, s, target); r.Outcome != Open {
			t.Errorf("Shake(%v) afterwards = %+v, want Open", target, r)
		}
	})
	t.Run("EADDRNOTAVAIL", func(t *testing.T) {
		wire := simnet.NewWire(t, nil, "192.0.2.0/24")
		kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
		target := netip.MustParseAddrPort("192.0.2.1:80")
		s := start(t)
		ctx, cancel := context.WithCancel(context.Background())
		var group sync.WaitGroup
		group.Go(func() { s.Shake(ctx, target, nil) })
		wire.Await(1) // the only port is taken
		r, err := s.Shake(context.Background(), target, &Options{Timeout: 5 * time.Second})
		if !errors.Is(err, unix.EADDRNOTAVAIL) || !errors.Is(err, ErrLocal) || r != (Result{}) {
			t.Errorf("Shake(%v) without a free port = %+v, error %v, want EADDRNOTAVAIL", target, r, err)
		}
		cancel()
		group.Wait()
		r, err = inTime(func() (Result, error) {
			return s.Shake(context.Background(), target, &Options{Timeout: 20 * time.Millisecond})
		})
		if err != nil || r.Outcome != Timeout {
			t.Errorf("Shake(%v) afterwards = %+v, error %v, want Timeout", target, r, err)
		}
	})
}
