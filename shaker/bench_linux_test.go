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

// BenchmarkBeside compares Shake with a net.Dialer whose Control sets TCP_QUICKACK to 0 and whose
// connection is closed with a linger of 0. Both shake hands with the same loopback listener in turns;
// in the last case other programs keep every processor busy. Both ratios are Shake divided by Dialer.
// On a shared machine only the ratios are meaningful.
//
//	go test -run '^$' -bench Beside -benchtime 50000x ./shaker
func BenchmarkBeside(b *testing.B) {
	lab.Need(b)
	target, _ := listen(b, "127.0.0.1:0")
	shake, dial := shaking(b, target), dialing(target)
	for _, callers := range []int{1, 10, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { compare(b, callers, shake, dial) })
	}
	b.Run("callers=10000,busy", func(b *testing.B) {
		process.KeepBusy(b)
		compare(b, 10000, shake, dial)
	})
}

// compare measures both handshakes in turns and reports what each takes.
func compare(b *testing.B, callers int, shake, dial func() error) {
	var ours, theirs cost
	const rounds = 4
	for range rounds {
		ours.add(measure(b, callers, b.N/rounds+1, shake))
		theirs.add(measure(b, callers, b.N/rounds+1, dial))
	}
	b.ReportMetric(0, "ns/op") // of both together: meaningless
	for _, side := range []struct {
		name string
		cost
	}{
		{name: "shake", cost: ours},
		{name: "dial", cost: theirs},
	} {
		n := float64(side.n)
		b.ReportMetric(float64(side.cpu.Microseconds())/n, "CPU-µs/"+side.name)
		b.ReportMetric(float64(side.allocs)/n, "allocs/"+side.name)
		b.ReportMetric(float64(side.acks)/n, "ACKs/"+side.name)
		b.ReportMetric(float64(side.failed)/n, "failed/"+side.name)
	}
	b.ReportMetric(ours.cpu.Seconds()/theirs.cpu.Seconds(), "CPU-ratio")
	b.ReportMetric(theirs.wall.Seconds()/ours.wall.Seconds(), "rate-ratio")
}

// dialing returns a handshake of a net.Dialer that withholds the final ACK.
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

// BenchmarkSystemCalls counts the system calls of Shake and of the Dialer with strace. The number of
// the Go scheduler's own calls may differ under strace.
//
//	go test -run '^$' -bench SystemCalls -benchtime 10000x ./shaker
func BenchmarkSystemCalls(b *testing.B) {
	lab.Need(b)
	target, _ := listen(b, "127.0.0.1:0")
	shake, dial := shaking(b, target), dialing(target)
	for _, callers := range []int{1, 10, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // of both together: meaningless
			b.ReportMetric(systemCalls(b, callers, shake), "calls/shake")
			b.ReportMetric(systemCalls(b, callers, dial), "calls/dial")
		})
	}
}

// systemCalls returns how many system calls this process makes for a handshake.
func systemCalls(b *testing.B, callers int, handshake func() error) float64 {
	b.Helper()
	summary := filepath.Join(b.TempDir(), "summary")
	strace := exec.Command(lab.Program(b, "strace", "strace"),
		"-f", "-c", "-o", summary, "-p", strconv.Itoa(os.Getpid()))
	stderr, err := strace.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := strace.Start(); err != nil {
		b.Fatal(err)
	}
	if line, _ := bufio.NewReader(stderr).ReadString('\n'); !strings.Contains(line, "attached") {
		lab.Skip(b, "needs permission to attach strace: %s", line)
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
		b.Fatalf("the summary of strace has no total: %v:\n%s", err, table)
	}
	return float64(calls) / float64(b.N)
}

// BenchmarkFloor compares Shake with a C program of one thread that makes the system calls of a
// handshake and nothing else (testdata/floor.c), in turns. The target is on this host, so Shake does
// not need epoll here. In addition to the program's calls, it sets IP_RECVERR and calls getsockname.
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
				theirs.add(runFloor(b, floor, target.Port(), n, callers))
			}
			if ours.failed > 0 || ours.acks > 0 {
				b.Errorf("of %d handshakes %d failed and %d sent an ACK, want 0 and 0", ours.n, ours.failed, ours.acks)
			}
			b.ReportMetric(0, "ns/op") // of both together: meaningless
			b.ReportMetric(float64(ours.cpu.Microseconds())/float64(ours.n), "CPU-µs/shake")
			b.ReportMetric(float64(theirs.cpu.Microseconds())/float64(theirs.n), "CPU-µs/floor")
			b.ReportMetric(ours.cpu.Seconds()/theirs.cpu.Seconds(), "CPU-ratio")
			b.ReportMetric(theirs.wall.Seconds()/ours.wall.Seconds(), "rate-ratio")
		})
	}
}

// runFloor runs the C program, which makes n handshakes with a port of this host, and returns their cost.
func runFloor(b *testing.B, floor string, port uint16, n, atOnce int) cost {
	b.Helper()
	cmd := exec.Command(floor, "127.0.0.1", strconv.Itoa(int(port)), strconv.Itoa(n), strconv.Itoa(atOnce))
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%d handshakes of the C program %v end with %v, want no error: %s", n, cmd, err, out)
	}
	return cost{n: n, wall: time.Since(began), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
}

// BenchmarkOneDestination shakes hands with one address and port at full speed. A completed connection
// that the client closes keeps its local port in TIME_WAIT for 60 s, and there are 28,232 local ports,
// enough for 470 connections per second. These handshakes leave no port in TIME_WAIT, and the last of
// a million are as fast as the first. The ratio is the rate in the last tenth divided by the rate in
// the first tenth.
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
		b.Errorf("of %d handshakes %d failed, %d sent an ACK and %d are in TIME_WAIT, want 0, 0 and 0",
			all.n, all.failed, all.acks, timeWaits)
	}
	b.ReportMetric(0, "ns/op") // meaningless on a shared machine
	b.ReportMetric(float64(all.n), "handshakes")
	b.ReportMetric(float64(all.failed), "failed")
	b.ReportMetric(float64(all.acks), "ACKs")
	b.ReportMetric(float64(timeWaits), "TIME_WAITs")
	b.ReportMetric(tenths[0].wall.Seconds()/tenths[9].wall.Seconds(), "rate-ratio")
}

// shaking returns a handshake of Shake with the target. The handshake's error is the error of Shake or
// of the verdict.
func shaking(b *testing.B, target netip.AddrPort) func() error {
	b.Helper()
	s, err := New(&Config{Options: Options{Timeout: 5 * time.Second}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return func() error {
		r, err := s.Shake(context.Background(), target, nil)
		return errors.Join(err, r.Err())
	}
}

// A cost is the resources that n handshakes took.
type cost struct {
	n      int
	failed int64
	acks   int // handshakes that were completed
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

// measure distributes n handshakes among the callers and returns their cost.
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

// BenchmarkLateness keeps handshakes with 10,000 silent targets in flight, and reports how late after
// their deadlines the callers get the verdicts.
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
					b.Errorf("Shake(%v) = %+v, error %v, want Timeout", target, r, err)
				}
			}
		})
	}
	group.Wait()
	slices.Sort(late)
	b.ReportMetric(0, "ns/op") // meaningless: it depends on the timeouts
	for name, share := range map[string]float64{"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1} {
		b.ReportMetric(late[int(share*float64(len(late)-1))].Seconds()*1000, name+"-ms")
	}
}
