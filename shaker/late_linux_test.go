package shaker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/capture"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Invariant 9. The loop starts a handshake so late that its deadline has passed, or that little of its time
// is left. In the first case no SYN is sent.
func TestLateStart(t *testing.T) {
	for _, c := range []struct {
		name  string
		start time.Duration // when the handshake is started, after the call of Shake
		sent  bool
	}{
		{name: "after the deadline", start: lateTimeout},
		{name: "in the last quarter", start: lateTimeout * 4 / 5, sent: true},
		{name: "in the second quarter", start: lateTimeout * 2 / 5, sent: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			wire := simnet.NewWire(t, nil, "192.0.2.0/24")
			s, l := startOne(t)
			h := hold(l)
			called := l.clock()
			var started time.Duration
			l.submit(startTask(func() {
				for started < called+c.start {
					time.Sleep(time.Millisecond)
					started = l.clock()
				}
			}), interactive, 0)
			done := make(chan error)
			go func() {
				r, err := s.Shake(context.Background(), target4, &Options{Timeout: lateTimeout})
				if err == nil {
					err = r.Err()
				}
				done <- err
			}()
			awaitLoop(t, l, "both are queued", func() bool { return len(l.arrivals) == 2 })
			close(h.release)
			if err := <-done; !errors.Is(err, ErrUnsent) {
				t.Errorf("Shake(%v, timeout %v), started %v after the call: error %v, want %v",
					target4, lateTimeout, started-called, err, ErrUnsent)
			}
			if started < called+c.start {
				return // the machine stood still, and the deadline passed while both were queued
			}
			for segment := range wire.Sent() {
				if !c.sent {
					t.Errorf("%v was sent %v after the call, want nothing after %v",
						segment, started-called, lateTimeout)
				}
			}
		})
	}
}

// Invariant 9. The loop sends a SYN late, and is held up until long after the deadline. The target has answered
// meanwhile: soon after the SYN, but after the deadline. That is not the silence of a target, although the SYN has been
// out for a long time.
func TestLateAnswerToALateSYN(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK().After(lateTimeout/2))
	withoutSocketsIn(t)
	s, l := startOne(t)
	first := hold(l)
	called := l.clock()
	until := func(after time.Duration) {
		for l.clock() < called+after {
			time.Sleep(time.Millisecond)
		}
	}
	done := make(chan error)
	go func() {
		_, err := s.Shake(context.Background(), target4, &Options{Timeout: lateTimeout})
		done <- err
	}()
	awaitLoop(t, l, "the handshake is queued", func() bool { return len(l.arrivals) == 1 })
	second := &holdUp{held: make(chan struct{}), release: make(chan struct{})}
	l.submit(second, interactive, 0)
	until(lateTimeout * 3 / 4)
	close(first.release)
	<-second.held
	until(2 * lateTimeout)
	close(second.release)
	if err := <-done; !errors.Is(err, ErrUnsent) {
		t.Errorf("Shake(%v, timeout %v), whose SYN was sent after three quarters of the time: error %v, want %v\n%s",
			target4, lateTimeout, err, ErrUnsent, network.Trace(target4.Addr()))
	}
}

const lateTimeout = 500 * time.Millisecond

// The absence of a reply is a verdict if the SYN was out for three quarters of the time.
func TestIsTimeout(t *testing.T) {
	for out, want := range map[time.Duration]bool{0: false, 74: false, 75: true, 100: true, 200: true} {
		if got := isTimeout(out, 100); got != want {
			t.Errorf("isTimeout(%v, 100ns) = %t, want %t", out, got, want)
		}
	}
}

// The time of which the SYN must have been out for three quarters ends with the deadline, or before it if a context
// with an earlier one has ended. All times are in ms after the call of Shake.
func TestTimeForAReply(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		out, deadline, now time.Duration
		want               bool
	}{
		{out: 25, deadline: 100, now: 100, want: true},
		{out: 26, deadline: 100, now: 100, want: false},
		{out: 95, deadline: 100, now: 300, want: true}, // it was seen late: the SYN was out for long enough
		{out: 20, deadline: 1000, now: 100, want: true},
		{out: 30, deadline: 1000, now: 100, want: false},
		{out: 20, now: 100, want: true}, // no deadline that the loop knows
		{out: 30, now: 100, want: false},
	} {
		const called = 10 * ms // on the loop's clock
		h := &handshake{called: called, out: called + c.out*ms}
		if c.deadline > 0 {
			h.deadline = called + c.deadline*ms
		}
		if got := h.isTimeout(called + c.now*ms); got != c.want {
			t.Errorf("a SYN out at %d of %d, now at %d: isTimeout = %t, want %t",
				c.out, c.deadline, c.now, got, c.want)
		}
	}
}

// Invariant 9. A delay of this host is not a verdict. Another process shakes hands with live targets: it
// gets so little CPU time, or so much work at once, that its SYNs are late. The targets are not affected:
// the kernel's times of the packets prove that they answer in time. None of them may be a Timeout.
func TestDelaysAreNotVerdicts(t *testing.T) {
	if b := lateBurst(); b != nil {
		b.shake(t)
		return
	}
	for _, c := range []struct {
		name    string
		rtt     time.Duration
		burst   burst
		percent int // of a processor that the process gets; 0 for all
		busy    int // busy loops beside it
	}{
		{
			name:    "1 % of a processor",
			rtt:     20 * time.Millisecond,
			burst:   burst{Targets: 500, Rounds: 3, Timeout: 500 * time.Millisecond},
			percent: 1,
		},
		{
			name:    "2 % of a processor",
			rtt:     20 * time.Millisecond,
			burst:   burst{Targets: 1000, Rounds: 3, Timeout: 500 * time.Millisecond},
			percent: 2,
		},
		{
			name:  "eight busy loops",
			rtt:   20 * time.Millisecond,
			burst: burst{Targets: 5000, Rounds: 4, Timeout: 500 * time.Millisecond},
			busy:  8,
		},
		{
			name:  "10,000 callers",
			rtt:   50 * time.Millisecond,
			burst: burst{Targets: 10_000, Rounds: 3, Timeout: 80 * time.Millisecond},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if lab.Race {
				c.burst.Targets /= 10
			}
			lab.NeedDescriptors(t, c.burst.Targets+100)
			process.Prefer(t)
			network := simnet.NewNetwork(t)
			network.At("10.0.0.0/8", simnet.SYNACK().After(c.rtt))
			packets := capture.Interface(t, network.Interface(), netip.MustParseAddr("10.255.0.1"))
			nice := lab.Program(t, "nice", "coreutils")
			for range c.busy {
				process.Start(t, exec.Command(nice, "-n", "19", "sh", "-c", "while :; do :; done"))
			}
			verdicts := c.burst.run(t, nice, func(child *process.Process) {
				if c.percent > 0 {
					child.LimitCPU(c.percent)
				}
			}, nil)
			c.burst.check(t, verdicts, answerTimes(packets))
		})
	}
}

// A burst is handshakes with many targets at once, several times.
type burst struct {
	Targets, Rounds int
	Timeout         time.Duration
	Raw             bool // without sockets
}

const (
	lateEnv  = "SHAKER_TEST_LATE" // the burst of the process whose SYNs are late
	lateDone = "no result follows"
)

func lateBurst() *burst {
	var b burst
	if n, _ := fmt.Sscan(os.Getenv(lateEnv), &b.Targets, &b.Rounds, (*int64)(&b.Timeout), &b.Raw); n < 4 {
		return nil
	}
	return &b
}

// target returns a target that is the only one with its number.
func (b *burst) target(number int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(number >> 16), byte(number >> 8), byte(number)}), 80)
}

// run lets a process with low priority shake hands, and returns its results. It calls before when the process is ready,
// and during when it has begun.
func (b *burst) run(t *testing.T, nice string, before, during func(child *process.Process)) map[netip.AddrPort]string {
	t.Helper()
	itself, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nice, "-n", "19", itself, "-test.run=^TestDelaysAreNotVerdicts$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %d %t", lateEnv, b.Targets, b.Rounds, b.Timeout, b.Raw))
	begin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	child := process.Start(t, cmd)
	lab.Eventually(t, "the process is ready", func() bool { return strings.Contains(child.Output(), "ready\n") })
	if before != nil {
		before(child)
	}
	begin.Close()
	if during != nil {
		during(child)
	}
	lab.Eventually(t, "the process has its results", func() bool {
		return child.Ended() || strings.Contains(child.Output(), lateDone)
	})
	verdicts := make(map[netip.AddrPort]string)
	for line := range strings.Lines(child.Output()) {
		var target, verdict string
		if n, _ := fmt.Sscanf(line, "result %s %s", &target, &verdict); n == 2 {
			verdicts[netip.MustParseAddrPort(target)] = verdict
		}
	}
	return verdicts
}

// check fails the test if a target that answered in time, as the kernel's times of the packets prove, is a Timeout.
func (b *burst) check(t *testing.T, verdicts map[netip.AddrPort]string, answered map[netip.AddrPort]time.Duration) {
	t.Helper()
	counts := make(map[string]int)
	wrong := 0
	for target, verdict := range verdicts {
		counts[verdict]++
		after, ok := answered[target]
		if verdict == Timeout.String() && ok && after < b.Timeout*3/4 {
			if wrong++; wrong <= 5 {
				t.Errorf("Shake(%v, timeout %v) is a timeout, want %v: the SYN-ACK arrived %v after the SYN",
					target, b.Timeout, ErrUnsent, after)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d live targets are a timeout, want 0", wrong, len(verdicts))
	}
	if want := b.Targets * b.Rounds; len(verdicts) != want {
		t.Errorf("%d results, want %d", len(verdicts), want)
	}
	t.Logf("%v", counts)
}

// shake is what the process does.
func (b *burst) shake(t *testing.T) {
	s := start(t)
	if b.Raw {
		s = startWithoutSockets(t)
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1)) // until the test lets it begin
	out := bufio.NewWriter(os.Stdout)
	for round := range b.Rounds {
		results := make([]string, b.Targets)
		var group sync.WaitGroup
		for i := range results {
			group.Go(func() {
				target := b.target(round*b.Targets + i)
				r, err := s.Shake(context.Background(), target, &Options{Timeout: b.Timeout})
				verdict := r.Outcome.String()
				switch {
				case errors.Is(err, ErrUnsent):
					verdict = "unsent"
				case err != nil:
					t.Errorf("Shake(%v): error %v, want a verdict or %v", target, err, ErrUnsent)
				}
				results[i] = fmt.Sprintf("result %v %s\n", target, verdict)
			})
		}
		group.Wait()
		for _, result := range results {
			out.WriteString(result)
		}
	}
	fmt.Fprintln(out, lateDone)
	out.Flush()
}

// answerTimes returns the time from the SYN to the SYN-ACK for each target that answered.
func answerTimes(packets *capture.Capture) map[netip.AddrPort]time.Duration {
	sent, answered := make(map[netip.AddrPort]time.Time), make(map[netip.AddrPort]time.Duration)
	for _, segment := range packets.Segments() {
		switch {
		case segment.SYN && !segment.ACK:
			if sent[segment.Dst].IsZero() {
				sent[segment.Dst] = segment.Time
			}
		case segment.SYN && segment.ACK:
			if _, again := answered[segment.Src]; !again {
				answered[segment.Src] = segment.Time.Sub(sent[segment.Src])
			}
		}
	}
	return answered
}
