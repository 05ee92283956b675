package shaker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// BenchmarkBeside runs Shake beside what anyone can write with the standard library: a
// net.Dialer whose Control sets TCP_QUICKACK 0 and whose connection is closed with linger 0.
// Both shake hands with the same loopback listener in turns, in the end while other programs
// keep every processor busy. The ratios are of Shake to Dialer: on a shared machine only
// these mean something.
//
//	go test -run '^$' -bench Beside -benchtime 50000x ./shaker
func BenchmarkBeside(b *testing.B) {
	lab.Need(b)
	target, _ := listen(b, "127.0.0.1:0")
	shake, dial := shaking(b, target), dialing(target)
	for _, callers := range []int{1, 10, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { beside(b, callers, shake, dial) })
	}
	b.Run("callers=10000,busy", func(b *testing.B) {
		process.KeepBusy(b)
		beside(b, 10000, shake, dial)
	})
}

func beside(b *testing.B, callers int, shake, dial func() error) {
	var ours, theirs cost
	const rounds = 4
	for range rounds {
		ours.add(measure(b, callers, b.N/rounds+1, shake))
		theirs.add(measure(b, callers, b.N/rounds+1, dial))
	}
	b.ReportMetric(0, "ns/op") // of both together: means nothing
	for _, side := range []struct {
		name string
		cost
	}{{"shake", ours}, {"dial", theirs}} {
		n := float64(side.n)
		b.ReportMetric(float64(side.cpu.Microseconds())/n, "CPU-µs/"+side.name)
		b.ReportMetric(float64(side.allocs)/n, "allocs/"+side.name)
		b.ReportMetric(float64(side.acks)/n, "ACKs/"+side.name)
		b.ReportMetric(float64(side.failed)/n, "failed/"+side.name)
	}
	b.ReportMetric(ours.cpu.Seconds()/theirs.cpu.Seconds(), "CPU-ratio")
	b.ReportMetric(theirs.wall.Seconds()/ours.wall.Seconds(), "rate-ratio")
}

// dialing returns what Shake is measured beside.
func dialing(target netip.AddrPort) func() error {
	dialer := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
		})
	}}
	dialer.SetMultipathTCP(false)
	return func() error {
		conn, err := dialer.Dial("tcp4", target.String())
		if err != nil {
			return err
		}
		conn.(*net.TCPConn).SetLinger(0)
		return conn.Close()
	}
}

// BenchmarkSystemCalls counts the system calls of Shake and of the Dialer, with strace,
// under which the Go scheduler's own calls may be more or fewer than otherwise.
//
//	go test -run '^$' -bench SystemCalls -benchtime 10000x ./shaker
func BenchmarkSystemCalls(b *testing.B) {
	lab.Need(b)
	target, _ := listen(b, "127.0.0.1:0")
	shake, dial := shaking(b, target), dialing(target)
	for _, callers := range []int{1, 10, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // of both together: means nothing
			b.ReportMetric(systemCalls(b, callers, shake), "calls/shake")
			b.ReportMetric(systemCalls(b, callers, dial), "calls/dial")
		})
	}
}

// systemCalls returns how many system calls this process makes for a handshake.
func systemCalls(b *testing.B, callers int, handshake func() error) float64 {
	b.Helper()
	summary := filepath.Join(b.TempDir(), "summary")
	strace := exec.Command(lab.Program(b, "strace", "strace"), "-f", "-c", "-o", summary, "-p", strconv.Itoa(os.Getpid()))
	says, err := strace.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := strace.Start(); err != nil {
		b.Fatal(err)
	}
	if line, _ := bufio.NewReader(says).ReadString('\n'); !strings.Contains(line, "attached") {
		lab.Skip(b, "needs strace: %s", line)
	}
	measure(b, callers, b.N, handshake)
	strace.Process.Signal(os.Interrupt)
	strace.Wait()
	table, err := os.ReadFile(summary)
	if err != nil {
		b.Fatal(err)
	}
	// The last line is percentage, seconds, µs a call, calls, errors, "total".
	fields := strings.Fields(string(table))
	calls, err := strconv.Atoi(fields[max(0, len(fields)-3)])
	if err != nil {
		b.Fatalf("%v: %s", err, table)
	}
	return float64(calls) / float64(b.N)
}

// BenchmarkFloor runs Shake beside a C program of one thread that does the system calls of a
// handshake and nothing else (testdata/floor.c), in turns. Here, where the target is this
// host, Shake does without epoll; what it does more is IP_RECVERR and getsockname.
//
//	go test -run '^$' -bench Floor -benchtime 40000x ./shaker
func BenchmarkFloor(b *testing.B) {
	floor := process.Compile(b, "testdata/floor.c")
	target, _ := listen(b, "127.0.0.1:0")
	shake := shaking(b, target)
	for _, callers := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			var ours, theirs cost
			const rounds = 4
			for range rounds {
				n := b.N/rounds + 1
				ours.add(measure(b, callers, n, shake))
				cmd := exec.Command(floor, target.Addr().String(), strconv.Itoa(int(target.Port())), strconv.Itoa(n), strconv.Itoa(callers))
				began := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				theirs.add(cost{n: n, wall: time.Since(began), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()})
			}
			if ours.failed > 0 || ours.acks > 0 {
				b.Errorf("%d failed, %d ACKs", ours.failed, ours.acks)
			}
			b.ReportMetric(0, "ns/op") // of both together: means nothing
			b.ReportMetric(float64(ours.cpu.Microseconds())/float64(ours.n), "CPU-µs/shake")
			b.ReportMetric(float64(theirs.cpu.Microseconds())/float64(theirs.n), "CPU-µs/floor")
			b.ReportMetric(ours.cpu.Seconds()/theirs.cpu.Seconds(), "CPU-ratio")
			b.ReportMetric(theirs.wall.Seconds()/ours.wall.Seconds(), "rate-ratio")
		})
	}
}

// BenchmarkOneDestination shakes hands with one address and port at full speed. A connection
// that is completed, and closed by the one who asked, holds its local port in TIME_WAIT for
// 60 s: there are 28,232 of them, enough for 470 connections a second. These handshakes hold
// none, and the last of a million are as fast as the first. The ratio is of the rate in the
// last tenth to that in the first.
//
//	go test -run '^$' -bench OneDestination -benchtime 1000000x ./shaker
func BenchmarkOneDestination(b *testing.B) {
	lab.Need(b)
	target, _ := listen(b, "127.0.0.1:0")
	shake := shaking(b, target)
	timeWaits := kernel.TimeWaits(b)
	var tenths [10]cost
	var all cost
	for i := range tenths {
		tenths[i] = measure(b, 100, b.N/len(tenths)+1, shake)
		all.add(tenths[i])
	}
	timeWaits = kernel.TimeWaits(b) - timeWaits
	if all.failed > 0 || all.acks > 0 || timeWaits > 0 {
		b.Errorf("%d failed, %d ACKs, %d in TIME_WAIT", all.failed, all.acks, timeWaits)
	}
	b.ReportMetric(0, "ns/op") // means nothing on a shared machine
	b.ReportMetric(float64(all.n), "handshakes")
	b.ReportMetric(float64(all.failed), "failed")
	b.ReportMetric(float64(all.acks), "ACKs")
	b.ReportMetric(float64(timeWaits), "TIME_WAITs")
	b.ReportMetric(tenths[0].wall.Seconds()/tenths[9].wall.Seconds(), "rate-ratio")
}

// shaking returns a handshake with the target. The error says why the target is not open, or
// why nobody knows.
func shaking(b *testing.B, target netip.AddrPort) func() error {
	b.Helper()
	s, err := New(&Config{Timeout: 5 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return func() error {
		r, err := s.Shake(context.Background(), target, nil)
		return errors.Join(err, r.Err())
	}
}

// cost is what n handshakes took.
type cost struct {
	n      int
	failed int64
	acks   int // handshakes that the server saw completed
	wall   time.Duration
	cpu    time.Duration // user and system, of the whole process
	allocs uint64
}

func (c *cost) add(d cost) {
	c.n += d.n
	c.failed += d.failed
	c.acks += d.acks
	c.wall += d.wall
	c.cpu += d.cpu
	c.allocs += d.allocs
}

// measure shares n handshakes among the callers.
func measure(b *testing.B, callers, n int, handshake func() error) cost {
	counters := kernel.Counters(b)
	var left, failed atomic.Int64
	left.Store(int64(n))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, start := lab.CPU(), time.Now()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if handshake() != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	c := cost{n: n, wall: time.Since(start), cpu: lab.CPU() - cpu}
	c.failed, c.acks = failed.Load(), kernel.Counters(b)["TcpPassiveOpens"]-counters["TcpPassiveOpens"]
	runtime.ReadMemStats(&after)
	c.allocs = after.Mallocs - before.Mallocs
	return c
}

// BenchmarkLateness keeps 10,000 silent targets in flight and tells by how much their verdicts
// come after their deadlines: to the callers, waking them up included.
//
//	go test -run '^$' -bench Lateness -benchtime 5x ./shaker
func BenchmarkLateness(b *testing.B) {
	const targets = 10_000
	lab.NeedDescriptors(b, targets+100)
	simnet.NewNetwork(b)
	s, err := New(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	late := make([]time.Duration, targets*b.N)
	var group sync.WaitGroup
	for i := range targets {
		group.Go(func() {
			target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
			for n := range b.N {
				deadline := time.Now().Add(time.Second + time.Duration(i)*100*time.Microsecond)
				r, err := s.Shake(context.Background(), target, &Options{Timeout: time.Until(deadline)})
				late[n*targets+i] = time.Since(deadline)
				if err != nil || r.Outcome != Timeout {
					b.Errorf("%v: %+v, %v", target, r, err)
				}
			}
		})
	}
	group.Wait()
	slices.Sort(late)
	b.ReportMetric(0, "ns/op") // is how long the deadlines are
	for name, share := range map[string]float64{"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1} {
		b.ReportMetric(late[int(share*float64(len(late)-1))].Seconds()*1000, name+"-ms")
	}
}
