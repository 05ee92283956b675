package endtoend

import (
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// After SIGTERM the exporter waits for a running probe, responds with its result, and exits with 0.
func TestShutdownDrains(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := exporter.Start(t)
	answer := make(chan string)
	go func() {
		status, body := exporter.Scrape(t, exporter.Port, "/probe?target=192.0.2.1:443", "2.5")
		answer <- fmt.Sprintf("%d\n%s", status, body)
	}()
	wire.Await(1)
	p.Signal(syscall.SIGTERM)
	const want = `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`
	if got := <-answer; !strings.HasPrefix(got, "200\n") || !strings.Contains(got, want) {
		t.Errorf("the probe that runs during the shutdown = %s\nwant 200 and %q in it", got, want)
	}
	if code := p.Wait(); code != 0 {
		t.Errorf("after SIGTERM the exporter exits with %d, want 0", code)
	}
	if log := p.Output(); !strings.Contains(log, "waiting for the running probes") {
		t.Errorf("after SIGTERM the log is %s\nwant \"waiting for the running probes\" in it", log)
	}
}

// The exporter exits after SIGTERM even if a client does not read its responses.
func TestShutdownDoesNotWaitForSlowClients(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	p := exporter.Start(t)
	conn := dial(t)
	defer conn.Close()
	// The responses to so many requests fill every buffer between the exporter and the client.
	go io.WriteString(conn, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 10_000))
	var unsent int
	lab.Eventually(t, "the exporter cannot send any more responses", func() bool {
		before := unsent
		unsent = unsentTo(t, conn)
		time.Sleep(100 * time.Millisecond)
		return unsent == before && unsent > 0
	})
	p.Signal(syscall.SIGTERM)
	// Both the server's write timeout and the shutdown's timeout end the wait for the client.
	if code := p.Wait(); code != 0 {
		t.Errorf("after SIGTERM, with a client that does not read, the exporter exits with %d, want 0", code)
	}
}

// unsentTo returns how many bytes are in the send queue of the exporter's socket for the client.
func unsentTo(t *testing.T, client net.Conn) int {
	t.Helper()
	port := client.LocalAddr().(*net.TCPAddr).Port
	for _, s := range kernel.Sockets(t) {
		// Another socket may have this port, too, in the state TIME_WAIT.
		if s.Far == port && s.State == unix.BPF_TCP_ESTABLISHED {
			return s.Unacked
		}
	}
	return 0
}

// A second signal ends the exporter at once, even while a probe is running.
func TestSecondSignal(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := exporter.Start(t)
	answered := make(chan error)
	go func() {
		response, err := lab.Client.Get("http://localhost:10115/probe?target=192.0.2.1:443")
		if err == nil {
			response.Body.Close()
		}
		answered <- err
	}()
	wire.Await(1)
	p.Signal(syscall.SIGTERM)
	lab.Eventually(t, "the exporter is shutting down", func() bool {
		return strings.Contains(p.Output(), "waiting for the running probes")
	})
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(); code != -1 {
		t.Errorf("after a second SIGTERM the exporter exits with %d, want -1: ended by the signal", code)
	}
	if err := <-answered; err == nil {
		t.Error("the running probe got a response after a second SIGTERM, want the connection closed without one")
	}
}
