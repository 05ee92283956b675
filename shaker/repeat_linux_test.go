package shaker

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// mustRepeat starts a Repetition. It fails the test on an error.
func mustRepeat(t testing.TB, s *Shaker, target netip.AddrPort, schedule Schedule, each func(Repeated)) *Repetition {
	t.Helper()
	r, err := s.Repeat(target, schedule, each)
	if err != nil {
		t.Fatalf("Repeat(%v, %+v): error %v, want none", target, schedule, err)
	}
	return r
}

// A ledger counts the results of many Repetitions.
type ledger struct {
	mu      sync.Mutex
	results map[netip.AddrPort]map[Outcome]int
	faults  []error
}

func (l *ledger) add(r Repeated) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Err != nil {
		l.faults = append(l.faults, r.Err)
		return
	}
	if l.results == nil {
		l.results = make(map[netip.AddrPort]map[Outcome]int)
	}
	if l.results[r.Result.Peer] == nil {
		l.results[r.Result.Peer] = make(map[Outcome]int)
	}
	l.results[r.Result.Peer][r.Result.Outcome]++
}

func (l *ledger) total() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, outcomes := range l.results {
		for _, count := range outcomes {
			n += count
		}
	}
	return n
}

// The results are those that the wire shows, for every target: one SYN each, answered or lost.
func TestRepeatCountsWhatTheWireShows(t *testing.T) {
	const targets, rounds = 200, 15
	network := simnet.NewNetwork(t)
	network.WatchStalls()
	process.Prefer(t)
	network.At("10.0.0.0/24", simnet.SYNACK().Between(time.Millisecond, 40*time.Millisecond)).Losing(0.05, 0)
	network.At("10.0.1.0/24", simnet.RST().After(5*time.Millisecond))
	s := start(t)
	var book ledger
	for i := range targets {
		target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i % 2), byte(i)}), 80)
		schedule := Schedule{Interval: 100 * time.Millisecond, Options: Options{Timeout: 300 * time.Millisecond}}
		mustRepeat(t, s, target, schedule, book.add)
	}
	lab.Eventually(t, "there are enough results", func() bool { return book.total() >= targets*rounds })
	// A handshake has sent a SYN, and its result is not known or not passed on yet, when the loops are stopped.
	pending := make(map[netip.AddrPort]int)
	for _, l := range s.engine.loops {
		h := hold(l)
		defer close(h.release)
		for _, slot := range l.slots {
			if tick, ok := slot.task.(*tick); ok && tick.connecting {
				pending[tick.result.Peer]++
			}
		}
		for _, result := range l.outbox {
			pending[result.Result.Peer]++
		}
	}
	syns := make(map[netip.AddrPort]int)
	for segment := range network.Sent() {
		if segment.SYN {
			syns[segment.Dst]++
		}
	}
	var wrong string
	defer func() {
		if wrong != "" {
			t.Log(wrong)
		}
	}()
	lab.Eventually(t, "the results that were passed on are those that the wire shows", func() bool {
		book.mu.Lock()
		defer book.mu.Unlock()
		for target, syns := range syns {
			outcomes := book.results[target]
			if outcomes[Open]+outcomes[Refused]+outcomes[Timeout]+pending[target] != syns {
				wrong = fmt.Sprintf("%v: %v and %d pending, want as many as SYNs: %d",
					target, outcomes, pending[target], syns)
				return false
			}
		}
		wrong = ""
		return true
	})
	book.mu.Lock()
	defer book.mu.Unlock()
	lost := 0
	for target, outcomes := range book.results {
		lost += outcomes[Timeout]
		if odd := target.Addr().As4()[2] == 1; odd && outcomes[Open] > 0 || !odd && outcomes[Refused] > 0 {
			t.Errorf("%v: %v, want refused: %t", target, outcomes, odd)
		}
	}
	if len(book.results) != targets || lost == 0 || len(book.faults) > 0 {
		t.Errorf("%d targets, %d lost handshakes, faults %v; want %d, some, none",
			len(book.results), lost, book.faults, targets)
	}
	assertNoACK(t, network.Wire)
}

// The handshakes with a target are an interval apart. Those with many targets are spread over the interval.
func TestRepeatIsSpread(t *testing.T) {
	pace := pace{interval: time.Second, offset: 300 * time.Millisecond}
	for now, want := range map[time.Duration]time.Duration{0: 300, 299: 300, 300: 1300, 1299: 1300, 5301: 6300} {
		if got := pace.next(now * time.Millisecond); got != want*time.Millisecond {
			t.Errorf("next(%d ms) = %v with the offset %v, want %d ms", now, got, pace.offset, want)
		}
	}
	const targets, tenths = 10_000, 10
	var in [tenths]int
	for i := range targets {
		target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
		pace.offset = spread(target)
		in[pace.next(0)*tenths/(time.Second+1)]++
	}
	for i, n := range in {
		if n < targets/tenths*8/10 || n > targets/tenths*12/10 {
			t.Errorf("%d of %d targets are due in tenth %d of the interval, want %d, give or take a fifth",
				n, targets, i, targets/tenths)
		}
	}
}

// Handshakes with the same offset are due at different times on different loops, a part of offsetStep apart.
func TestLoopsAreDueAtDifferentTimes(t *testing.T) {
	const loops = 4
	e, err := newEngineOf(loops, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	each := pace{interval: time.Second}
	due := func(l *loop) time.Time { return l.epoch.Add(each.next(0)) }
	for i, l := range e.loops {
		want := time.Duration(i) * offsetStep / loops
		if got := due(e.loops[0]).Sub(due(l)); got != want {
			t.Errorf("the handshakes of loop %d are due %v before those of loop 0, want %v", i, got, want)
		}
	}
}

// The process stands still for many intervals. The handshakes that were due meanwhile are skipped and counted, and are
// not made up for.
func TestRepeatAfterAPause(t *testing.T) {
	const interval, paused = 20 * time.Millisecond, 30
	wire := simnet.NewWire(t, func(syn simnet.Segment) [][]byte { return [][]byte{syn.SYNACK()} }, "192.0.2.0/24")
	s, l := startOne(t)
	var results atomic.Int64
	began := l.clock()
	r := mustRepeat(t, s, target4, Schedule{Interval: interval}, func(Repeated) { results.Add(1) })
	lab.Eventually(t, "there is a result", func() bool { return results.Load() > 0 })
	h := hold(l)
	before := results.Load()
	for until := l.clock() + paused*interval; l.clock() < until; {
		time.Sleep(time.Millisecond)
	}
	close(h.release)
	lab.Eventually(t, "there are further results", func() bool { return results.Load() > before+3 })
	h = hold(l)
	running, last := len(r.running), r.due
	close(h.release)
	r.Stop()
	sent := 0
	for segment := range wire.Sent() {
		if segment.SYN {
			sent++
		}
	}
	skipped := r.Skipped()
	if skipped.Late < paused-1 {
		t.Errorf("%+v after a pause of %d intervals, want as many late ones or one less", skipped, paused)
	}
	due := int((last-began)/interval) + 1 // up to the next one, which was due after the last look
	if n := sent + int(skipped.Late) + running; n < due-2 || n > due+2 {
		t.Errorf("%d SYNs, %d running, %+v: want %d in total, give or take two", sent, running, skipped, due)
	}
}

// Of the handshakes that were due, only the last one starts, and only if it is not too late and not too many are
// running.
func TestRepeatSkips(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name     string
		interval time.Duration
		late     time.Duration // when the loop sees that the time has come
		running  int
		starts   bool
		want     Skipped
	}{
		{name: "in time", interval: time.Second, starts: true},
		{name: "a quarter late", interval: 100 * ms, late: 25 * ms, starts: true},
		{name: "more than a quarter late", interval: 100 * ms, late: 26 * ms, want: Skipped{Late: 1}},
		{name: "250 ms late", interval: 10 * time.Second, late: 250 * ms, starts: true},
		{name: "more than 250 ms late", interval: 10 * time.Second, late: 251 * ms, want: Skipped{Late: 1}},
		{name: "three intervals late", interval: 100 * ms, late: 310 * ms, starts: true, want: Skipped{Late: 3}},
		{name: "three and a half intervals late", interval: 100 * ms, late: 350 * ms, want: Skipped{Late: 4}},
		{name: "as many as possible", interval: time.Second, running: maxOverlap - 1, starts: true},
		{name: "one more", interval: time.Second, running: maxOverlap, want: Skipped{Overlapping: 1}},
	} {
		s, l := startOne(t)
		h := hold(l)
		l.now = time.Hour
		r := &Repetition{shaker: s}
		r.target, r.due, r.running = target4, l.now-c.late, make([]ticket, c.running)
		r.pace.interval = c.interval
		r.tick(l)
		starts := len(r.running) > c.running
		if got := r.Skipped(); got != c.want || starts != c.starts {
			t.Errorf("%s: %+v, starts: %t, want %+v, %t", c.name, got, starts, c.want, c.starts)
		}
		if starts {
			// It had to wait in the queue for too long.
			s := l.slots.find(r.running[c.running])
			s.task.(*tick).due = l.clock() - r.pace.tolerance() - ms
			l.call(s.ticket, event{kind: eventStart})
			c.want.Late++
			if got := r.Skipped(); got != c.want || len(r.running) != c.running {
				t.Errorf("%s, and started too late: %+v, %d running, want %+v, %d",
					c.name, got, len(r.running), c.want, c.running)
			}
		}
		close(h.release)
	}
}

// A Repetition that is stopped sends no further SYN, and closes its sockets.
func TestRepeatStop(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	s := start(t)
	descriptors := lab.Descriptors(t)
	var results atomic.Int64
	schedule := Schedule{Interval: 10 * time.Millisecond, Options: Options{Timeout: 300 * time.Millisecond}}
	r := mustRepeat(t, s, target4, schedule, func(Repeated) { results.Add(1) })
	wire.Await(5)
	r.Stop()
	sent := 0
	for range wire.Sent() {
		sent++
	}
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors after Stop, want %d as before", now, descriptors)
	}
	after := results.Load()
	r.Stop()
	other := netip.MustParseAddrPort("192.0.2.99:80")
	_, err := s.Shake(t.Context(), other, &Options{Timeout: 100 * time.Millisecond})
	if err != nil && !errors.Is(err, ErrUnsent) {
		t.Fatal(err)
	}
	later := 0
	for segment := range wire.Sent() {
		if segment.Dst == target4 {
			later++
		}
	}
	if later != sent || results.Load() != after {
		t.Errorf("%d SYNs and %d results after Stop, want none", later-sent, results.Load()-after)
	}
}

// Results that have not been passed on when a Repetition is stopped are not passed on later.
func TestRepeatStopWithUnreadResults(t *testing.T) {
	lab.Need(t)
	s := start(t)
	target, _ := listen(t, "127.0.0.1:0")
	var calls atomic.Int64
	release := make(chan struct{})
	r := mustRepeat(t, s, target, Schedule{Interval: 5 * time.Millisecond}, func(Repeated) {
		if calls.Add(1) == 1 {
			<-release
		}
	})
	lab.Eventually(t, "there are unread results", func() bool {
		s.engine.results.mu.Lock()
		defer s.engine.results.mu.Unlock()
		return len(s.engine.results.items) > 0
	})
	r.Stop()
	close(release)
	s.Close() // the reader has ended
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls of the function, want one: the first, which was running when Stop was called", n)
	}
}

// The target and the interval can be changed.
func TestRepeatChange(t *testing.T) {
	wire := simnet.NewWire(t, func(syn simnet.Segment) [][]byte { return [][]byte{syn.SYNACK()} }, "192.0.2.0/24")
	s := start(t)
	results := make(chan Repeated, 1000)
	r := mustRepeat(t, s, target4, Schedule{Interval: time.Minute, Options: Options{Timeout: time.Second}},
		func(r Repeated) { results <- r })
	if err := r.SetInterval(20 * time.Millisecond); err != nil {
		t.Fatalf("SetInterval: error %v, want none", err)
	}
	got := <-results
	if got.Err != nil || got.Result.Peer != target4 || got.Result.Outcome != Open || got.Sent.IsZero() {
		t.Errorf("the first result is %+v, want Open for %v", got, target4)
	}
	other := netip.MustParseAddrPort("192.0.2.99:443")
	if err := r.SetTarget(other); err != nil {
		t.Fatalf("SetTarget(%v): error %v, want none", other, err)
	}
	for (<-results).Result.Peer != other {
	}
	for range 10 {
		if got := <-results; got.Result.Peer != other {
			t.Errorf("a result is of %v after one of %v, want no further one of %v", got.Result.Peer, other, target4)
		}
	}
	for name, err := range map[string]error{
		"SetTarget without a port":    r.SetTarget(netip.AddrPortFrom(other.Addr(), 0)),
		"SetInterval(0)":              r.SetInterval(0),
		"SetInterval for the timeout": r.SetInterval(10 * time.Millisecond),
	} {
		if !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%s: error %v, want %v", name, err, os.ErrInvalid)
		}
	}
	if (<-results).Result.Peer != other {
		t.Errorf("an invalid target was taken over, want %v as before", other)
	}
	wire.Forget()
}

// A schedule or a target that is invalid is an error, and so is a closed Shaker.
func TestRepeatErrors(t *testing.T) {
	s := start(t)
	second := Schedule{Interval: time.Second}
	for _, c := range []struct {
		name     string
		target   netip.AddrPort
		schedule Schedule
		want     error
	}{
		{name: "no target", schedule: second, want: ErrTarget},
		{name: "no interval", target: target4, want: os.ErrInvalid},
		{name: "negative offset", target: target4, schedule: Schedule{Interval: time.Second, Offset: -1},
			want: os.ErrInvalid},
		{name: "too many at once", target: target4, want: os.ErrInvalid,
			schedule: Schedule{Interval: time.Second, Options: Options{Timeout: 65 * time.Second}}},
		{name: "invalid options", target: target4, want: os.ErrInvalid,
			schedule: Schedule{Interval: time.Second, Options: Options{DSCP: 64}}},
		{name: "ports in the wrong order", target: target4, want: os.ErrInvalid,
			schedule: Schedule{Interval: time.Second, SourcePorts: PortRange{First: 2, Last: 1}}},
		{name: "port 0", target: target4, want: os.ErrInvalid,
			schedule: Schedule{Interval: time.Second, SourcePorts: PortRange{Last: 1}}},
		{name: "ports twice", target: target4, want: os.ErrInvalid, schedule: Schedule{Interval: time.Second,
			SourcePorts: PortRange{First: 1, Last: 2}, Options: Options{SourcePort: 1}}},
	} {
		r, err := s.Repeat(c.target, c.schedule, nil)
		if r != nil || !errors.Is(err, c.want) || errors.Is(err, ErrLocal) {
			t.Errorf("%s: Repeat = %v, error %v, want %v", c.name, r, err, c.want)
		}
	}
	s.Close()
	for name, s := range map[string]*Shaker{"closed": s, "zero": {}} {
		if _, err := s.Repeat(target4, second, nil); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrLocal) {
			t.Errorf("%s Shaker: error %v, want %v", name, err, ErrClosed)
		}
	}
}

// What this host cannot do is an error, and no verdict.
func TestRepeatWithoutDescriptors(t *testing.T) {
	lab.Need(t)
	s := start(t)
	results := make(chan Repeated, 1000)
	target, _ := listen(t, "127.0.0.1:0")
	r := mustRepeat(t, s, target, Schedule{Interval: 20 * time.Millisecond}, func(r Repeated) { results <- r })
	if got := <-results; got.Err != nil || got.Result.Outcome != Open {
		t.Errorf("the first result is %+v, want Open", got)
	}
	lab.WithDescriptors(t, 0, func() {
		for range 1000 {
			if got := <-results; got.Err != nil {
				if !errors.Is(got.Err, unix.EMFILE) || !errors.Is(got.Err, ErrLocal) || got.Result != (Result{}) {
					t.Errorf("a result without descriptors is %+v, want EMFILE", got)
				}
				return
			}
		}
		t.Error("no result is an error, want EMFILE")
	})
	r.Stop()
}

// Results that the function does not take are counted. When it goes on, no result was lost uncounted.
func TestRepeatUnread(t *testing.T) {
	lab.Need(t)
	s, l := startOne(t)
	s.engine.results.room = 10
	target, _ := listen(t, "127.0.0.1:0")
	var results, first atomic.Int64
	release := make(chan struct{})
	r := mustRepeat(t, s, target, Schedule{Interval: 5 * time.Millisecond}, func(Repeated) {
		if first.Add(1) == 1 {
			<-release
		}
		results.Add(1)
	})
	lab.Eventually(t, "results are lost", func() bool { return r.Skipped().Unread > 5 })
	h := hold(l)
	due := r.due
	unread := r.Skipped().Unread
	close(h.release)
	close(release)
	lab.Eventually(t, "the reader has caught up", func() bool { return results.Load() > 20 })
	if now := r.Skipped().Unread; now < unread || due == 0 {
		t.Errorf("%d unread results, want %d or more", now, unread)
	}
}

// A handshake of a Repetition allocates nothing, on average, also with ports to send from in turns.
func TestRepeatAllocatesNothing(t *testing.T) {
	lab.Need(t)
	if lab.Race {
		t.Skip("needs a program without the race detector, which allocates")
	}
	t.Run("any port", func(t *testing.T) { checkAllocations(t, start(t), PortRange{}) })
	t.Run("ports in turns", func(t *testing.T) {
		s := start(t)
		checkAllocations(t, s, portsFor(t, s, 16))
	})
}

func checkAllocations(t *testing.T, s *Shaker, ports PortRange) {
	t.Helper()
	target, _ := listen(t, "127.0.0.1:0")
	var results atomic.Int64
	for i := range 50 {
		own := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, byte(i)}), target.Port())
		schedule := Schedule{Interval: 10 * time.Millisecond, SourcePorts: ports}
		mustRepeat(t, s, own, schedule, func(Repeated) { results.Add(1) })
	}
	lab.Eventually(t, "all have begun", func() bool { return results.Load() > 200 })
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := results.Load()
	lab.Eventually(t, "there are many results", func() bool { return results.Load() > n+5000 })
	runtime.ReadMemStats(&after)
	n = results.Load() - n
	if each := float64(after.Mallocs-before.Mallocs) / float64(n); each > 0.2 {
		t.Errorf("%.2f allocations per handshake, want none but those of the test and of timers", each)
	}
}

// Closing the Shaker ends its Repetitions. Stop returns afterwards, too.
func TestRepeatClose(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	s, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	descriptors := lab.Descriptors(t)
	var all []*Repetition
	for i := range 20 {
		target := netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:80", i+1))
		all = append(all, mustRepeat(t, s, target, Schedule{Interval: 10 * time.Millisecond}, func(Repeated) {}))
	}
	lab.Eventually(t, "handshakes are running", func() bool { return lab.Descriptors(t) > descriptors })
	s.Close()
	for _, r := range all {
		r.Stop()
	}
	if now := lab.Descriptors(t); now >= descriptors {
		t.Errorf("%d descriptors after Close, want fewer than before: %d", now, descriptors)
	}
}
