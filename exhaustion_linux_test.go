package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A caller has a connection to the exporter for one request.
type caller struct{ net.Conn }

// call connects the i-th caller. Each goes to an address of its own, so that callers do
// not compete for local ports, neither with each other nor with the probes.
func call(t *testing.T, i int) caller {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.1.%d.%d:10115", i>>8, i&255))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute)) // what is not answered until then never is
	return caller{conn}
}

// answer is what the exporter answers.
type answer struct {
	status     int
	retryAfter string
	body       string
}

// open tells whether the answer is that the target is open.
func (a answer) open() bool {
	return a.status == 200 && strings.Contains(a.body, "\nprobe_success 1\n")
}

// ask asks for a path. When it returns, the exporter has closed the connection.
func (c caller) ask(t *testing.T, path string, headers ...string) (a answer) {
	defer c.Close()
	lines := append([]string{"GET " + path + " HTTP/1.1", "Host: x", "Connection: close"}, headers...)
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Error(err)
		return a
	}
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Error(err)
		return a
	}
	body, err := io.ReadAll(response.Body)
	if err == nil {
		_, err = reader.Peek(1) // the end of the connection
	}
	if err != io.EOF {
		t.Errorf("after the answer: %v", err)
	}
	return answer{response.StatusCode, response.Header.Get("Retry-After"), string(body)}
}

// own returns the value of one of the exporter's own series, 0 if there is none.
func own(t *testing.T, series string) int {
	t.Helper()
	metrics := call(t, 0).ask(t, "/metrics").body
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(metrics)
	if line == nil {
		return 0
	}
	value, err := strconv.ParseFloat(line[1], 64)
	if err != nil {
		t.Error(err)
	}
	return int(value)
}

// withDescriptors lets a program have n descriptors at most.
func withDescriptors(t *testing.T, n int, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	program, err := os.Executable() // /proc/self/exe would be the shell
	if err != nil {
		t.Fatal(err)
	}
	limited := exec.Command("sh", append([]string{"-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(n), program}, cmd.Args[1:]...)...)
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
	inFlightText  = "no more probes may be in flight (--probe.max-in-flight)\n"
	inFlightCount = `shaker_probes_rejected_total{reason="in_flight"}`
	troubleText   = "this prober is in trouble, not the target: shake 192.0.2.1:80: "
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
			p := process.Start(t, withDescriptors(t, c.descriptors, exporter(t, c.args...)))
			p.Listening(10115)
			kernel.Sysctl(t, "net.ipv4.ip_local_port_range", fmt.Sprintf("40000 %d", 40_000+c.ports-1))
			faultCount := fmt.Sprintf("shaker_faults_total{errno=%q}", c.errno)
			descriptors, goroutines := own(t, "process_open_fds"), own(t, "go_goroutines")

			answers := make([]answer, callers)
			var group sync.WaitGroup
			ask := func(i int, from caller) {
				group.Go(func() {
					answers[i] = from.ask(t, openTarget)
					open()
				})
			}
			for i := range c.room {
				ask(i, call(t, i))
			}
			wire.Await(c.room) // these are under way, and stay so until another one has its answer
			var others []caller
			for i := c.room; i < callers; i++ {
				others = append(others, call(t, i))
			}
			lab.Eventually(t, "the exporter is full", func() bool { return strings.Contains(p.Output(), c.full) })
			for i, other := range others {
				ask(c.room+i, other)
			}
			group.Wait()
			for i := range 100 {
				if a := call(t, i).ask(t, openTarget); !a.open() {
					t.Fatalf("afterwards, caller %d: %+v", i, a)
				}
			}

			opened, turnedAway, faults := 0, 0, 0
			for _, a := range answers {
				switch {
				case a.open():
					opened++
				case a == answer{503, "1", inFlightText}:
					turnedAway++
				case a == answer{503, "", troubleText + c.text}:
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
				if got := own(t, series); got != want {
					t.Errorf("%s is %d, want %d", series, got, want)
				}
			}
			lab.Eventually(t, "the goroutines end", func() bool { return own(t, "go_goroutines") <= goroutines })
		})
	}
}

// The files that say where names are looked up, and the names of this host, are known from
// the start. An exporter that had to open them without a descriptor would ask the wrong
// server, and find that there is no such name.
func TestNamesWithoutDescriptors(t *testing.T) {
	cmd := exporter(t)
	process.Start(t, cmd).Listening(10115)
	conn := call(t, 0)
	defer conn.Close()
	reader := bufio.NewReader(conn)
	ask := func(path string) answer {
		t.Helper()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		return answer{response.StatusCode, "", string(body)}
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
	if a.status != 503 || !strings.HasPrefix(a.body, "this prober is in trouble, not the target: shake ") {
		t.Errorf("%+v", a)
	}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	if a := ask("/probe?target=localhost:10115"); !a.open() {
		t.Errorf("afterwards: %+v", a)
	}
}

// Of a thousand callers of silent targets, ten at a time are served, and all others are told
// to come again. When the ten have their verdict, there is room for ten.
func TestInFlightLimit(t *testing.T) {
	const callers, limit, timeout = 1000, 10, time.Second
	lab.NeedDescriptors(t, 1200)
	simnet.NewWire(t, nil, "192.0.2.0/24")
	startExporter(t, "--probe.max-in-flight=10", "--timeout-offset=0")
	began := time.Now()
	var group sync.WaitGroup
	var measured, turnedAway atomic.Int64
	for i := range callers {
		from := call(t, i)
		group.Go(func() {
			a := from.ask(t, openTarget, fmt.Sprintf("X-Prometheus-Scrape-Timeout-Seconds: %v", timeout.Seconds()))
			switch {
			case a.status == 200 && strings.Contains(a.body, `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`):
				measured.Add(1)
			case a == answer{503, "1", inFlightText}:
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
	if got := own(t, inFlightCount); got != int(turnedAway.Load()) {
		t.Errorf("%d were turned away, %d are counted", turnedAway.Load(), got)
	}
	for i := range limit {
		from := call(t, i)
		group.Go(func() {
			if a := from.ask(t, "/probe?target=127.0.0.1:10115"); !a.open() {
				t.Errorf("afterwards: %+v", a)
			}
		})
	}
	group.Wait()
}
