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

// withDescriptors returns a command that may open at most n file descriptors.
func withDescriptors(t *testing.T, n int, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	args := []string{"-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(n), cmd.Path}
	limited := exec.Command(lab.Program(t, "sh", "dash"), append(args, cmd.Args[1:]...)...)
	limited.Env = cmd.Env
	return limited
}

// newGate lays a wire to 192.0.2.0/24, where every port is open, but no SYN-ACK arrives until the gate is open.
// Calling open again has no effect.
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
	inFlightText  = "too many probes in flight (limit: --probe.max-in-flight)\n"
	inFlightCount = `shaker_probes_rejected_total{reason="in_flight"}`
	faultText     = "probe not performed, target state unknown: shake "
)

// A thousand callers request probes from an exporter that has resources for a few. Each response is that the
// target is open, which is right, or 503. Afterwards the exporter responds to all requests again, and it has
// as many goroutines and file descriptors as before.
func TestExhaustion(t *testing.T) {
	const callers = 1000
	for _, c := range []struct {
		name        string
		descriptors int // the exporter's limit
		ports       int // the number of the host's local ports
		args        []string
		room        int    // the exporter has resources for at least this many concurrent probes
		errno       string // of a fault
		text        string // at the end of the text of a fault
	}{
		{name: "descriptors", descriptors: 256, ports: 20_000,
			room: 64, errno: "EMFILE", text: "socket: too many open files\n"},
		{name: "descriptors, and any number in flight", descriptors: 256, ports: 20_000, args: []string{anyNumber},
			room: 64, errno: "EMFILE", text: "socket: too many open files\n"},
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
			wire.Await(c.room) // these probes run until the first response to another caller opens the gate
			var others []exporter.Caller
			for i := c.room; i < callers; i++ {
				others = append(others, exporter.Call(t, i))
			}
			for i, other := range others {
				ask(c.room+i, other)
			}
			group.Wait()
			for i := range 100 {
				if a := exporter.Call(t, i).Get(t, openTarget); !a.Open() {
					t.Fatalf("after the exhaustion, GET %s by caller %d = %+v, want an open target", openTarget, i, a)
				}
			}

			opened, rejected, faults := 0, 0, 0
			for _, a := range answers {
				switch {
				case a.Open():
					opened++
				case a == exporter.Answer{Status: 503, RetryAfter: "1", Body: inFlightText}:
					rejected++
				case a == exporter.Answer{Status: 503, Body: faultText + "192.0.2.1:80: " + c.text}:
					faults++
				default:
					t.Errorf("GET %s = %+v, want an open target, or 503 with %q or with %q",
						openTarget, a, inFlightText, c.text)
				}
			}
			if opened < c.room {
				t.Errorf("%d of %d probes found the target open, want at least %d", opened, callers, c.room)
			}
			if c.args == nil && rejected == 0 {
				t.Errorf("the limit of probes in flight rejected no probe of %d, want some", callers)
			}
			if c.args != nil && faults == 0 {
				t.Errorf("no probe of %d failed with %s, want some", callers, c.errno)
			}
			for series, want := range map[string]int{
				inFlightCount: rejected,
				faultCount:    faults,
				`shaker_probes_total{module="tcp_connect"}`: opened + 100,
				"shaker_probes_in_flight":                   0,
				"process_open_fds":                          descriptors,
			} {
				if got := exporter.Metric(t, series); got != want {
					t.Errorf("after the exhaustion %s = %d, want %d", series, got, want)
				}
			}
			lab.Eventually(t, fmt.Sprintf("the exporter has at most %d goroutines again", goroutines), func() bool {
				return exporter.Metric(t, "go_goroutines") <= goroutines
			})
		})
	}
}

// The exporter reads the files that configure name resolution, and the host's own names, when it starts. If it
// had to open them when no descriptor is left, it would ask the wrong server, and report that the name does not
// exist.
func TestNamesWithoutDescriptors(t *testing.T) {
	cmd := exporter.Command(t)
	process.Start(t, cmd).Listening(10115)
	conn := exporter.Call(t, 0)
	defer conn.Close()
	reader := bufio.NewReader(conn)
	get := func(path string) exporter.Answer {
		t.Helper()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("GET %s: %v", path, err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Errorf("GET %s: %v in the body", path, err)
		}
		return exporter.Answer{Status: response.StatusCode, Body: string(body)}
	}
	get("/-/healthy") // now the connection has its descriptor
	limit := func(limit, before *unix.Rlimit) {
		t.Helper()
		if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, limit, before); err != nil {
			t.Fatalf("prlimit RLIMIT_NOFILE: %v", err)
		}
	}
	var before unix.Rlimit
	limit(nil, &before)
	limit(&unix.Rlimit{Max: before.Max}, nil)
	const path = "/probe?target=localhost:10115"
	if a := get(path); a.Status != 503 || !strings.HasPrefix(a.Body, faultText) {
		t.Errorf("without descriptors, GET %s = %+v, want 503 and %q at the start", path, a, faultText)
	}
	limit(&before, nil)
	if a := get(path); !a.Open() {
		t.Errorf("with descriptors again, GET %s = %+v, want an open target", path, a)
	}
}

// With --probe.max-in-flight=10, ten of a thousand concurrent probes of a target that does not reply run, and all
// others are rejected with 503 and Retry-After. When the ten have ended, the exporter accepts ten probes again.
func TestInFlightLimit(t *testing.T) {
	const callers, limit, timeout = 1000, 10, time.Second
	lab.NeedDescriptors(t, 1200)
	simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t, "--probe.max-in-flight=10", "--timeout-offset=0")
	began := time.Now()
	var group sync.WaitGroup
	var measured, rejected atomic.Int64
	for i := range callers {
		from := exporter.Call(t, i)
		group.Go(func() {
			a := from.Get(t, openTarget, fmt.Sprintf("X-Prometheus-Scrape-Timeout-Seconds: %v", timeout.Seconds()))
			switch {
			case a.Status == 200 && strings.Contains(a.Body, `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`):
				measured.Add(1)
			case a == exporter.Answer{Status: 503, RetryAfter: "1", Body: inFlightText}:
				rejected.Add(1)
			default:
				t.Errorf("GET %s = %+v, want the result timeout, or 503 with %q", openTarget, a, inFlightText)
			}
		})
	}
	group.Wait()
	// Ten, unless the machine is so busy that more requests arrive after the first ten probes have ended.
	most := int64(limit * (time.Since(began) / timeout))
	if n := measured.Load(); n < limit || n > most {
		t.Errorf("%d of %d probes ran, want %d to %d", n, callers, limit, most)
	}
	if got, want := exporter.Metric(t, inFlightCount), int(rejected.Load()); got != want {
		t.Errorf("%s = %d, want %d: the number of 503 responses", inFlightCount, got, want)
	}
	const path = "/probe?target=127.0.0.1:10115"
	for i := range limit {
		from := exporter.Call(t, i)
		group.Go(func() {
			if a := from.Get(t, path); !a.Open() {
				t.Errorf("after the first ten probes, GET %s = %+v, want an open target", path, a)
			}
		})
	}
	group.Wait()
}
