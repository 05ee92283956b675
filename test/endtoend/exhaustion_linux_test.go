package endtoend

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// withDescriptors lets a program have n descriptors at most.
func withDescriptors(t *testing.T, n int, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	limited := exec.Command("sh", append([]string{"-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(n), cmd.Path}, cmd.Args[1:]...)...)
	limited.Env = cmd.Env
	return limited
}

// newGate lays a wire to 192.0.2.0/24, where every port is open, but where no SYN-ACK comes
// before the gate is opened. To open it again does nothing.
func newGate(t *testing.T) (wire *simnet.Wire, open func()) {
	t.Helper()
	opened := make(chan struct{})
	open = sync.OnceFunc(func() { close(opened) })
	var sending sync.WaitGroup
	t.Cleanup(func() { open(); sending.Wait() })
	wire = simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		if s.SYN {
			packet := s.SYNACK()
			sending.Go(func() { <-opened; wire.Send(packet) })
		}
		return nil
	}, "192.0.2.0/24")
	return wire, open
}

const (
	anyNumber     = "--probe.max-in-flight=100000"
	openTarget    = "/probe?target=192.0.2.1:80" // behind the gate
	inFlightText  = "too many probes in flight (limit set by --probe.max-in-flight)\n"
	inFlightCount = `shaker_probes_rejected_total{reason="in_flight"}`
	troubleText   = "probe not performed, target state unknown: shake 192.0.2.1:80: "
)

// A thousand callers come to an exporter that has room for few of them. Each of them is told
// that its target is open, which it is, or that the exporter could not find out. The next
// callers are served, and all is as it was before.
func TestExhaustion(t *testing.T) {
	const callers = 1000
	for _, c := range []struct {
		name        string
		descriptors int // that the exporter may have
		ports       int // that the host has
		args        []string
		room        int    // at least so many probes run at once
		errno       string // of a fault
		text        string // and what is said of it
		full        string // what the exporter has logged once others find no room
	}{
		{name: "descriptors", descriptors: 256, ports: 20_000,
			room: 64, errno: "EMFILE", text: "socket: too many open files\n"},
		{name: "descriptors, and any number in flight", descriptors: 256, ports: 20_000, args: []string{anyNumber},
			room: 64, errno: "EMFILE", text: "socket: too many open files\n", full: "too many open files"},
		{name: "local ports", descriptors: 1200, ports: 50, args: []string{anyNumber},
			room: 50, errno: "EADDRNOTAVAIL", text: "connect: cannot assign requested address\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.NeedDescriptors(t, 1200)
			wire, open := newGate(t)
			p := process.Start(t, withDescriptors(t, c.descriptors, exporter.Command(t, c.args...)))
			p.Listening(10115)
			kernel.Sysctl(t, "net.ipv4.ip_local_port_range", fmt.Sprintf("40000 %d", 40_000+c.ports-1))
			faultCount := fmt.Sprintf("shaker_faults_total{errno=%q}", c.errno)
			descriptors, goroutines := exporter.Metric(t, "process_open_fds"), exporter.Metric(t, "go_goroutines")

			answers := make([]exporter.Answer, callers)
			var group sync.WaitGroup
			ask := func(i int, from exporter.Caller) {
				group.Go(func() {
					answers[i] = from.Get(t, openTarget)
					open()
				})
			}
			for i := range c.room {
				ask(i, exporter.Call(t, i))
			}
			wire.Await(c.room) // these are under way, and stay so until another one has its answer
			var others []exporter.Caller
			for i := c.room; i < callers; i++ {
				others = append(others, exporter.Call(t, i))
			}
			lab.Eventually(t, "the exporter is full", func() bool { return strings.Contains(p.Output(), c.full) })
			for i, other := range others {
				ask(c.room+i, other)
			}
			group.Wait()
			for i := range 100 {
				if a := exporter.Call(t, i).Get(t, openTarget); !a.Open() {
					t.Fatalf("afterwards, caller %d: %+v", i, a)
				}
			}

			opened, turnedAway, faults := 0, 0, 0
			for _, a := range answers {
				switch {
				case a.Open():
					opened++
				case a == exporter.Answer{Status: 503, RetryAfter: "1", Body: inFlightText}:
					turnedAway++
				case a == exporter.Answer{Status: 503, Body: troubleText + c.text}:
					faults++
				default:
					t.Errorf("%+v", a)
				}
			}
			if opened < c.room || c.args == nil && turnedAway == 0 || c.args != nil && faults == 0 {
				t.Errorf("%d open, %d turned away, %d faults", opened, turnedAway, faults)
			}
			for series, want := range map[string]int{
				inFlightCount: turnedAway,
				faultCount:    faults,
				`shaker_probes_total{module="tcp_connect"}`: opened + 100,
				"shaker_probes_in_flight":                   0,
				"process_open_fds":                          descriptors,
			} {
				if got := exporter.Metric(t, series); got != want {
					t.Errorf("%s is %d, want %d", series, got, want)
				}
			}
			lab.Eventually(t, "the goroutines end", func() bool { return exporter.Metric(t, "go_goroutines") <= goroutines })
		})
	}
}

// The files that say where names are looked up, and the names of this host, are known from
// the start. An exporter that had to open them without a descriptor would ask the wrong
// server, and find that there is no such name.
func TestNamesWithoutDescriptors(t *testing.T) {
	cmd := exporter.Command(t)
	process.Start(t, cmd).Listening(10115)
	conn := exporter.Call(t, 0)
	defer conn.Close()
	reader := bufio.NewReader(conn)
	ask := func(path string) exporter.Answer {
		t.Helper()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		return exporter.Answer{Status: response.StatusCode, Body: string(body)}
	}
	ask("/-/healthy") // the connection has its descriptor
	var before unix.Rlimit
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	a := ask("/probe?target=localhost:10115")
	if a.Status != 503 || !strings.HasPrefix(a.Body, "probe not performed, target state unknown: shake ") {
		t.Errorf("%+v", a)
	}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	if a := ask("/probe?target=localhost:10115"); !a.Open() {
		t.Errorf("afterwards: %+v", a)
	}
}

// Of a thousand callers of silent targets, ten at a time are served, and all others are told
// to come again. When the ten have their verdict, there is room for ten.
func TestInFlightLimit(t *testing.T) {
	const callers, limit, timeout = 1000, 10, time.Second
	lab.NeedDescriptors(t, 1200)
	simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t, "--probe.max-in-flight=10", "--timeout-offset=0")
	began := time.Now()
	var group sync.WaitGroup
	var measured, turnedAway atomic.Int64
	for i := range callers {
		from := exporter.Call(t, i)
		group.Go(func() {
			a := from.Get(t, openTarget, fmt.Sprintf("X-Prometheus-Scrape-Timeout-Seconds: %v", timeout.Seconds()))
			switch {
			case a.Status == 200 && strings.Contains(a.Body, `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`):
				measured.Add(1)
			case a == exporter.Answer{Status: 503, RetryAfter: "1", Body: inFlightText}:
				turnedAway.Add(1)
			default:
				t.Errorf("%+v", a)
			}
		})
	}
	group.Wait()
	// Ten, unless the machine is so busy that some callers came when those had their verdict.
	most := int64(limit * (time.Since(began) / timeout))
	if n := measured.Load(); n < limit || n > most {
		t.Errorf("%d were served, want %d to %d", n, limit, most)
	}
	if got := exporter.Metric(t, inFlightCount); got != int(turnedAway.Load()) {
		t.Errorf("%d were turned away, %d are counted", turnedAway.Load(), got)
	}
	for i := range limit {
		from := exporter.Call(t, i)
		group.Go(func() {
			if a := from.Get(t, "/probe?target=127.0.0.1:10115"); !a.Open() {
				t.Errorf("afterwards: %+v", a)
			}
		})
	}
	group.Wait()
}
