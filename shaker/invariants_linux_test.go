package shaker

import (
	"context"
	"encoding/binary"
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

// The promise: 1,000 handshakes with a server, none of which it can accept. The same with
// the ACK not withheld is the control: the server accepts 1,000.
func TestServerSeesNoConnection(t *testing.T) {
	lab.Need(t)
	for _, c := range []struct {
		name        string
		withholdACK bool
		accepted    int
	}{{"the promise", true, 0}, {"the control", false, 1000}} {
		t.Run(c.name, func(t *testing.T) {
			target, accepted := listen(t, "127.0.0.1:0")
			s := start(t)
			s.engine.withholdACK = c.withholdACK
			before, timeWaits, ackSent := kernel.Counters(t), kernel.TimeWaits(t), 0
			for range 1000 {
				r := mustShake(t, s, target)
				if r.Outcome != Open {
					t.Fatalf("%+v", r)
				}
				if r.ACKSent {
					ackSent++
				}
			}
			after := kernel.Counters(t)
			for counter, want := range map[string]int{
				"TcpActiveOpens":      1000,
				"TcpPassiveOpens":     c.accepted,        // handshakes that the server saw completed
				"TcpExtEmbryonicRsts": 1000 - c.accepted, // half-open ones that an RST ended
				"TcpExtListenDrops":   0,
			} {
				if _, ok := after[counter]; !ok {
					t.Errorf("the kernel does not count %s", counter)
				}
				if got := after[counter] - before[counter]; got != want {
					t.Errorf("%s: %d, want %d", counter, got, want)
				}
			}
			if n := kernel.TimeWaits(t) - timeWaits; c.withholdACK && n > 0 {
				t.Errorf("%d sockets are left in TIME_WAIT", n)
			}
			if ackSent != c.accepted {
				t.Errorf("ACKSent %d times, want %d", ackSent, c.accepted)
			}
			// accept has nothing left to return once another connection came through.
			conn, err := net.Dial("tcp", target.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Read(make([]byte, 1)) // until the server, which has accepted, closes
			if got := int(accepted.Load()) - 1; got != c.accepted {
				t.Errorf("accept returned %d times, want %d", got, c.accepted)
			}
		})
	}
}

// A held-up process does send the ACK, after 200 ms, and the result says so.
func TestACKSentWhenHeldUp(t *testing.T) {
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
		t.Errorf("%+v", r)
	}
}

// flagTask is a task on an eventfd, ready when that was written to.
type flagTask struct {
	slot    *slot
	fd      int
	events  int
	woken   bool
	onReady func(*loop)
}

func newFlagTask(t *testing.T) *flagTask {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	return &flagTask{fd: fd}
}

func (f *flagTask) set() { unix.Write(f.fd, binary.NativeEndian.AppendUint64(nil, 1)) }

func (f *flagTask) end(l *loop) {
	closeDescriptor(f.fd)
	l.finish(f.slot)
	f.slot = nil
}

func (f *flagTask) seat(s *slot)  { f.slot = s }
func (f *flagTask) start(l *loop) { l.watch(f.slot, f.fd, unix.EPOLLIN) }
func (f *flagTask) ready(l *loop, _ uint32) {
	f.events++
	if f.onReady != nil {
		f.onReady(l)
	}
}
func (f *flagTask) expire(*loop) {}
func (f *flagTask) abandon(l *loop, _ error) {
	if f.slot != nil {
		f.end(l)
	}
}
func (f *flagTask) wake(l *loop) { f.woken = true; l.woke() }

// Invariant 1. Two events are collected by one epoll_wait. Handling one ends both tasks, and
// a third task gets the slot of the other one and the number of its descriptor. The other
// event is about neither.
func TestStaleEventIsDropped(t *testing.T) {
	_, l := startOne(t)
	first, second := newFlagTask(t), newFlagTask(t)
	var third *flagTask
	var sameSlot, sameDescriptor bool
	handled := make(chan struct{})
	handle := func(l *loop, one, other *flagTask) {
		index, fd := other.slot.index, other.fd
		one.end(l)
		other.end(l)
		closeDescriptor(third.fd)
		third = newFlagTask(t) // the lowest free numbers are those of the two
		if third.fd != fd {
			other := third
			third = newFlagTask(t)
			defer closeDescriptor(other.fd)
		}
		third.seat(l.slots.take(third))
		third.start(l)
		sameSlot, sameDescriptor = third.slot.index == index, third.fd == fd
		close(handled)
	}
	first.onReady = func(l *loop) { handle(l, first, second) }
	second.onReady = func(l *loop) { handle(l, second, first) }
	third = newFlagTask(t)
	l.submit(first, 0)
	l.submit(second, 0)
	h := hold(l) // by now both are watched
	first.set()
	second.set()
	close(h.release)
	<-handled
	close(hold(l).release) // by now the other event has been handled, too
	if first.events+second.events != 1 || !sameSlot || !sameDescriptor {
		t.Fatalf("nothing was provoked: %d events, same slot %v, same descriptor %v", first.events+second.events, sameSlot, sameDescriptor)
	}
	if third.events != 0 {
		t.Error("a task was given the event of another one that had its slot and descriptor before")
	}
}

// Invariant 1, from outside: sockets come and go by deadline, cancellation and answer,
// so that descriptor numbers are used again all the time. No verdict may be another's.
func TestVerdictsAreNotMixedUp(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	open, _ := listen(t, "127.0.0.1:0")
	s := start(t)
	targets := []struct {
		netip.AddrPort
		want Outcome
	}{{open, Open}, {closedPort(t), Refused}, {netip.MustParseAddrPort("192.0.2.1:80"), Timeout}}
	var group sync.WaitGroup
	var verdicts atomic.Int64
	for range 200 {
		group.Go(func() {
			for range 50 {
				target := targets[rand.IntN(len(targets))]
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
					t.Errorf("%v: %v", target, err)
				case r.Outcome != target.want || r.Peer != target.AddrPort:
					t.Errorf("%v, which is %v: %+v", target, target.want, r)
				default:
					verdicts.Add(1)
				}
			}
		})
	}
	group.Wait()
	if verdicts.Load() < 1000 {
		t.Errorf("only %d verdicts", verdicts.Load())
	}
}

// Invariant 2. When Shake returns, the RST is on the wire: before anything that its caller
// sends next.
func TestRSTBeforeAnythingElse(t *testing.T) {
	capture := capture.Loopback(t)
	listener, _ := listen(t, "0.0.0.0:0")
	s := start(t)
	marker, err := net.ListenPacket("udp4", "127.0.0.1:0") // to which it sends what it sends
	if err != nil {
		t.Fatal(err)
	}
	defer marker.Close()
	const callers, each = 8, 250
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			// An address for each caller: a local port is soon another handshake's.
			target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, byte(i)}), listener.Port())
			for range each {
				r, err := s.Shake(context.Background(), target, nil)
				if err != nil || r.Outcome != Open {
					t.Errorf("%+v, %v", r, err)
					return
				}
				marker.WriteTo(target.Addr().AsSlice(), marker.LocalAddr())
			}
		})
	}
	group.Wait()
	waiting := make(map[netip.Addr]bool) // targets whose SYN-ACK has come and whose RST has not
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
				t.Fatalf("the caller of %v was woken before the RST", target)
			}
		case segment.ACK:
			t.Fatalf("an ACK left: %v", segment)
		}
	}
	if markers != callers*each {
		t.Errorf("%d markers captured, want %d", markers, callers*each)
	}
}

// witness is a handshake that notes, when its waiter is woken, whether the sockets of all
// the handshakes that were settled in the same look are closed.
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

// Invariant 2, from inside: handshakes whose SYN-ACKs are seen in one turn are all closed
// before the first of their waiters is woken.
func TestAllAreClosedBeforeOneIsWoken(t *testing.T) {
	const handshakes = startsPerLook
	shake := func(t *testing.T, l *loop, target netip.AddrPort) {
		var all []*handshake
		for range handshakes {
			h := &handshake{withholdACK: true, done: make(chan struct{}, 1)}
			h.peer, h.family = newRawAddress(target, 0)
			h.result.Peer = target
			all = append(all, h)
		}
		var open atomic.Int64
		held := hold(l)
		for _, h := range all {
			l.submit(witness{h, all, &open}, 0)
		}
		close(held.release)
		for _, h := range all {
			if <-h.done; h.result.Outcome != Open {
				t.Errorf("%+v", h.result)
			}
		}
		if n := open.Load(); n != 0 {
			t.Errorf("%d times a waiter was woken while a socket was open", n)
		}
	}
	t.Run("answered at once", func(t *testing.T) {
		_, l := startOne(t)
		target, _ := listen(t, "127.0.0.1:0")
		shake(t, l, target)
	})
	t.Run("answered later", func(t *testing.T) {
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

// recorder is a task that notes when it is started.
type recorder struct {
	flagTask
	started func()
}

func (r *recorder) start(l *loop) {
	r.started()
	r.end(l)
}

// Invariant 3, from inside: more events than one look returns are all handled, and the
// waiters of what they ended are woken, before anything is started.
func TestAllEventsBeforeStarts(t *testing.T) {
	_, l := startOne(t)
	var flags []*flagTask
	for range 2*eventsPerLook + 10 {
		flag := newFlagTask(t)
		flag.onReady = func(l *loop) { flag.end(l) }
		l.submit(flag, 0)
		flags = append(flags, flag)
	}
	done := make(chan struct{})
	r := &recorder{flagTask: *newFlagTask(t)}
	r.started = func() {
		for i, flag := range flags {
			if flag.events != 1 || !flag.woken {
				t.Errorf("the event of task %d was handled %d times, its waiter woken: %t", i, flag.events, flag.woken)
				break
			}
		}
		close(done)
	}
	for range len(flags)/startsPerLook + 1 {
		close(hold(l).release) // at the end all flags are watched
	}
	h := hold(l)
	for _, flag := range flags {
		flag.set()
	}
	l.submit(r, 0)
	close(h.release)
	<-done
}

// Invariant 3. Callers that come together do not keep SYN-ACKs waiting, nor do callers that
// go together, nor deadlines that pass together: between every few of them the loop looks
// for events.
func TestEventsAmongAll(t *testing.T) {
	for how, perLook := range map[string]int{"start": startsPerLook, "expire": endsPerLook, "abandon": endsPerLook} {
		t.Run(how, func(t *testing.T) {
			_, l := startOne(t)
			tasks := 10 * perLook
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
			l.submit(flag, 0)
			h := hold(l) // by now the flag is watched
			for range tasks {
				ending := &endingTask{ended: func(*loop) { do() }}
				switch how {
				case "start":
					l.submit(&recorder{flagTask{fd: -1}, do}, 0)
				case "expire":
					l.submit(ending, 1)
				case "abandon":
					l.submit(ending, 0)
					l.abandon(ending, context.Canceled)
				}
			}
			close(h.release)
			<-handled
			if doneBefore > 2*perLook {
				t.Errorf("an event waited for %d of %d tasks", doneBefore, tasks)
			}
		})
	}
}

// Invariant 3. A thousand callers arrive at once. On loopback every SYN is answered before
// connect(2) returns, and each SYN-ACK gets its RST before the next SYN is sent.
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
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	for arrived := 0; arrived < callers; { // all are in the loop's hands
		l.mu.Lock()
		arrived = len(l.arrivals)
		l.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
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
		t.Errorf("%d RSTs captured, want %d", resets, callers)
	}
	if most > 1 {
		t.Errorf("up to %d SYN-ACKs waited for their RST", most)
	}
}

// Whoever finds the loop at rest starts a task without anybody else.
func TestCallersTakeTurns(t *testing.T) {
	_, l := startOne(t)
	lab.Eventually(t, "the loop's goroutine sleeps", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !l.driven
	})
	started := false
	l.submit(&recorder{flagTask{fd: -1}, func() { started = true }}, 0)
	if !started {
		t.Error("the task waits for the loop's goroutine")
	}
}

// sleeper is a task whose waiter, once it is woken, does not get to run.
type sleeper struct {
	endingTask
	woken *atomic.Int32
}

func (s *sleeper) wake(*loop) { s.woken.Add(1) }

// Invariant 3. However many handshakes end at once, few of their callers stand in the loop's
// way to a processor. When they have run, the loop is told, and wakes others.
func TestFewAreWokenAhead(t *testing.T) {
	_, l := startOne(t)
	const tasks = 10 * wakesAhead
	var woken atomic.Int32
	for range tasks {
		l.submit(&sleeper{endingTask{ended: func(*loop) {}}, &woken}, 1)
	}
	for ran := range int32(tasks) {
		if ran%(wakesAhead/2) == 0 {
			lab.Eventually(t, "as many are woken as may be", func() bool { return woken.Load() >= min(ran+wakesAhead, tasks) })
		}
		if n := woken.Load(); n > ran+wakesAhead {
			t.Fatalf("%d were woken when %d had run", n, ran)
		}
		l.woke()
	}
	if n := l.ahead.Load(); n != 0 {
		t.Errorf("%d are still ahead", n)
	}
}

// Invariant 4. However a handshake ends, its caller is told once, and told of its own.
func TestEveryWaiterIsCompletedOnce(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	open, _ := listen(t, "0.0.0.0:0")
	descriptors := lab.Descriptors(t)
	s, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	const callers = 500
	var group sync.WaitGroup
	var answers, closed atomic.Int64
	for i := range callers {
		group.Go(func() {
			// Each caller has an address of its own, so that it knows its answer.
			own := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), open.Port())
			silent := netip.MustParseAddrPort("192.0.2.1:80")
			for {
				target := own
				if rand.IntN(2) == 0 {
					target = silent
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(20_000))*time.Microsecond)
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
						t.Error("told of somebody else's cancellation")
					}
				case err != nil:
					t.Error(err)
				case r.Peer != target:
					t.Errorf("asked for %v, told of %v", target, r.Peer)
				case r.Outcome == Timeout && ended == nil && time.Now().Before(deadline):
					t.Errorf("%v timed out before its deadline", target)
				case r.Outcome != Timeout && (r.Outcome != Open || target == silent):
					t.Errorf("%v: %+v", target, r)
				}
				if answers.Add(1) == 20_000 {
					go s.Close()
				}
			}
		})
	}
	group.Wait()
	s.Close()
	if closed.Load() != callers {
		t.Errorf("%d of %d callers were told of the closing", closed.Load(), callers)
	}
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors before, %d after", descriptors, now)
	}
}

// A cancelled handshake has freed its socket when Shake returns.
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
		t.Errorf("%d descriptors before, %d while a handshake is under way", descriptors, now)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors before, %d after", descriptors, now)
	}
	connections, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(connections), "010200C0:0050 02") { // 192.0.2.1:80 SYN_SENT
		t.Errorf("the kernel still sends SYNs:\n%s", connections)
	}
}

// A cancelled handshake that still waits for its turn ends at once, too.
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
	for queued := false; !queued; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		queued = len(l.arrivals) == 1
		l.mu.Unlock()
	}
	cancel()
	for aborted := false; !aborted; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		aborted = len(l.aborts) == 1
		l.mu.Unlock()
	}
	close(h.release)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if sent := kernel.Counters(t)["TcpActiveOpens"] - before["TcpActiveOpens"]; sent != 0 {
		t.Errorf("%d SYNs were sent for nobody", sent)
	}
}

// Close returns when the loop is gone, and not before.
func TestCloseWaitsForTheLoop(t *testing.T) {
	descriptors := lab.Descriptors(t)
	s, l := startOne(t)
	h := hold(l)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.Close()
	}()
	for ended := false; !ended; time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		ended = l.ended != nil
		l.mu.Unlock()
	}
	select {
	case <-closed:
		t.Error("Close returned while the loop was running")
	default:
	}
	close(h.release)
	<-closed
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors before, %d after", descriptors, now)
	}
}

// A loop whose epoll fails ends every handshake and takes no other one, and says why.
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
	h := hold(l)
	if err := unix.Dup3(0, l.epoll, unix.O_CLOEXEC); err != nil { // no epoll any more
		t.Fatal(err)
	}
	close(h.release)
	for _, which := range []string{"the next handshake", "another one"} {
		if _, err := s.Shake(context.Background(), target, nil); !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", which, err)
		}
	}
	if err := <-done; !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrClosed) {
		t.Errorf("the handshake under way: %v", err)
	}
}

// Invariant 5. With one local port to choose from, a probe of that port meets itself.
func TestHandshakeWithOneselfIsRefused(t *testing.T) {
	lab.Need(t)
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	s := start(t)
	for _, address := range []string{"127.0.0.1:40000", "[::1]:40000", "0.0.0.0:40000"} {
		target := netip.MustParseAddrPort(address)
		r := mustShake(t, s, target)
		if r.Local.Port() != 40000 {
			t.Fatalf("%v: nothing was provoked, the local address is %v", target, r.Local)
		}
		if got, want := withoutTimes(r), (Result{Outcome: Refused, Errno: unix.ECONNREFUSED, Peer: target}); got != want || r.Handshake != 0 || r.RTT != 0 {
			t.Errorf("%v:\n got %+v\nwant %+v", target, r, want)
		}
	}
}

// A handshake with another host is one, even if both ends have the same port.
func TestHandshakeBetweenEqualPorts(t *testing.T) {
	simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			return [][]byte{s.SYNACK()}
		}
		return nil
	}, "192.0.2.0/24")
	kernel.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40000")
	r := mustShake(t, start(t), netip.MustParseAddrPort("192.0.2.1:40000"))
	if r.Local.Port() != 40000 || r.Outcome != Open {
		t.Errorf("%+v", r)
	}
}

// endingTask is a task that does nothing but to end, by its deadline or abandoned.
type endingTask struct {
	flagTask
	ended func(*loop)
}

func (e *endingTask) start(*loop) {}
func (e *endingTask) expire(l *loop) {
	e.ended(l)
	l.finish(e.slot)
	e.slot = nil
}
func (e *endingTask) abandon(l *loop, _ error) {
	if e.slot != nil {
		e.expire(l)
	}
}

// Invariant 6. 10,000 deadlines pass in their order and none too early.
func TestDeadlinesPassInOrder(t *testing.T) {
	_, l := startOne(t)
	const tasks = 10_000
	var previous time.Duration
	passed := 0
	done := make(chan struct{})
	h := hold(l)
	for range tasks {
		deadline := l.clock() + time.Duration(rand.IntN(300_000))*time.Microsecond
		l.submit(&endingTask{ended: func(l *loop) {
			if deadline < previous {
				t.Errorf("%v after %v", deadline, previous)
			}
			if now := l.clock(); now < deadline {
				t.Errorf("%v too early", deadline-now)
			}
			previous = deadline
			if passed++; passed == tasks {
				close(done)
			}
		}}, deadline)
	}
	close(h.release)
	<-done
}

// Invariant 6. The loop does not oversleep: the median of its lateness is far from what a
// loop would show that looks only now and then, however busy the machine.
func TestDeadlinesAreKept(t *testing.T) {
	_, l := startOne(t)
	var late []time.Duration
	for range 21 {
		done := make(chan time.Duration)
		deadline := l.clock() + 5*time.Millisecond
		l.submit(&endingTask{ended: func(l *loop) { done <- l.clock() - deadline }}, deadline)
		late = append(late, <-done)
	}
	slices.Sort(late)
	if median := late[len(late)/2]; median > 200*time.Millisecond {
		t.Errorf("deadlines pass %v late", median)
	}
}

// Invariant 6. 10,000 silent targets: each gets its deadline's verdict, none too early.
func TestDeadlinesOfSilentTargets(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	const callers = 10_000
	lab.NeedDescriptors(t, callers+100)
	s := start(t)
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(1+i))
			timeout := time.Second + time.Duration(i)*20*time.Microsecond
			began := time.Now()
			r, err := s.Shake(context.Background(), target, &Options{Timeout: timeout})
			if err != nil || r.Outcome != Timeout || r.Errno != unix.ETIMEDOUT {
				t.Errorf("%v: %+v, %v", target, r, err)
			}
			if took := time.Since(began); took < timeout {
				t.Errorf("%v: gave up after %v of %v", target, took, timeout)
			}
		})
	}
	group.Wait()
}

// Invariant 6. A deadline is gone with its handshake.
func TestDeadlinesLeaveNothingBehind(t *testing.T) {
	s, l := startOne(t)
	target, _ := listen(t, "127.0.0.1:0")
	for range 100 {
		if _, err := s.Shake(context.Background(), target, &Options{Timeout: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	h := hold(l)
	defer close(h.release)
	if n := len(l.deadlines); n != 0 {
		t.Errorf("%d deadlines outlive their handshakes", n)
	}
	if n := l.slots.running(); n != 1 { // the holdUp
		t.Errorf("%d slots are in use, want 1", n)
	}
	if n := len(l.slots.all); n > 3 {
		t.Errorf("100 handshakes, one after the other, took %d slots", n)
	}
}

// Invariant 6. A deadline that passes before the SYN could be sent says nothing about the
// target, and no SYN follows.
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
	for queued := false; !queued; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		queued = len(l.arrivals) == 1
		l.mu.Unlock()
	}
	close(h.release)
	if err := <-done; !errors.Is(err, ErrUnsent) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if sent := kernel.Counters(t)["TcpActiveOpens"] - before["TcpActiveOpens"]; sent != 0 {
		t.Errorf("%d SYNs were sent after the deadline", sent)
	}
}

// Invariant 7. Without a descriptor, and without a local port, there is no verdict; once
// they are there again, there is.
func TestFaultsAreNotVerdicts(t *testing.T) {
	t.Run("EMFILE", func(t *testing.T) {
		target, _ := listen(t, "127.0.0.1:0")
		s := start(t)
		lab.WithDescriptors(t, 0, func() {
			for _, target := range []netip.AddrPort{target, netip.MustParseAddrPort("[fe80::1%lo]:80")} {
				r, err := s.Shake(context.Background(), target, nil)
				if !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrTarget) || r != (Result{}) {
					t.Errorf("%+v, %v", r, err)
				}
			}
		})
		if r := mustShake(t, s, target); r.Outcome != Open {
			t.Errorf("afterwards: %+v", r)
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
		if !errors.Is(err, unix.EADDRNOTAVAIL) || r != (Result{}) {
			t.Errorf("%+v, %v", r, err)
		}
		cancel()
		group.Wait()
		if r, err := s.Shake(context.Background(), target, &Options{Timeout: 20 * time.Millisecond}); err != nil || r.Outcome != Timeout {
			t.Errorf("afterwards: %+v, %v", r, err)
		}
	})
}
