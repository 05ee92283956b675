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

// On SIGTERM a running probe gets its answer, and the exporter ends with 0.
func TestShutdownDrains(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := exporter.Start(t)
	answer := make(chan string)
	go func() {
		status, body := exporter.Scrape(t, 10115, "/probe?target=192.0.2.1:443", "2.5")
		answer <- fmt.Sprintf("%d\n%s", status, body)
	}()
	wire.Await(1)
	p.Signal(syscall.SIGTERM)
	if got := <-answer; !strings.HasPrefix(got, "200\n") || !strings.Contains(got, `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`) {
		t.Errorf("the running probe was answered: %s", got)
	}
	if code := p.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(p.Output(), "waiting for the running probes") {
		t.Errorf("logged %s", p.Output())
	}
}

// A client that does not take its answer does not keep the exporter from ending.
func TestShutdownDoesNotWaitForSlowClients(t *testing.T) {
	p := exporter.Start(t)
	conn, err := net.Dial("tcp", "localhost:10115")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// So many requests that their answers fill every buffer on the way.
	go io.WriteString(conn, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 10_000))
	var unsent int
	lab.Eventually(t, "the exporter is stuck with the answers", func() bool {
		before := unsent
		unsent = unsentTo(t, conn)
		time.Sleep(100 * time.Millisecond)
		return unsent == before && unsent > 0
	})
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(); code != 0 { // for the server has a limit for them, and Shutdown has one, too
		t.Errorf("exit code %d", code)
	}
}

// unsentTo returns how many bytes wait in the exporter's socket for the client at the other
// end to make room.
func unsentTo(t *testing.T, client net.Conn) int {
	t.Helper()
	port := client.LocalAddr().(*net.TCPAddr).Port
	for _, s := range kernel.Sockets(t) {
		// Other clients of this port may have left a TIME_WAIT.
		if s.Far == port && s.State == unix.BPF_TCP_ESTABLISHED {
			return s.Unacked
		}
	}
	return 0
}

// A second signal ends the exporter at once, whatever is running.
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
	lab.Eventually(t, "the exporter shuts down", func() bool { return strings.Contains(p.Output(), "waiting for the running probes") })
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(); code != -1 { // ended by the signal
		t.Errorf("exit code %d", code)
	}
	if err := <-answered; err == nil {
		t.Error("the running probe was waited for")
	}
}
