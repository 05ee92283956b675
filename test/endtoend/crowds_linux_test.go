package endtoend

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const ownPort = "/probe?target=127.0.0.1:10115"

// mustProbe fails the test unless a probe of the exporter's own port succeeds.
func mustProbe(t *testing.T, while string) {
	t.Helper()
	if status, body := exporter.Get(t, ownPort); status != 200 || !strings.Contains(body, "\nprobe_success 1\n") {
		t.Errorf("while %s, GET %s = %d %s\nwant 200 and an open target", while, ownPort, status, body)
	}
}

// keepAlive sends a request on a connection that stays open, and returns the status of the response.
func keepAlive(t *testing.T, conn net.Conn, in *bufio.Reader, path string) int {
	t.Helper()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatalf("GET %s: %v in the body", path, err)
	}
	return response.StatusCode
}

// fillHistory makes the history have results of n targets, with as little traffic as possible.
func fillHistory(t *testing.T, n, each int) {
	t.Helper()
	conn := dial(t)
	defer conn.Close()
	in := bufio.NewReader(conn)
	for i := range each * n {
		// No probe of a closed port of this host takes long.
		path := fmt.Sprintf("/probe?target=127.%d.%d.1:1", i%n>>8, i%n&255)
		if status := keepAlive(t, conn, in, path); status != 200 {
			t.Fatalf("GET %s = %d, want 200", path, status)
		}
	}
}

// Thousands of connections with an unfinished header take little memory, and do not keep probes from connecting,
// whether the header is already too large or not.
func TestUnfinishedHeaders(t *testing.T) {
	const most = 100 // MB
	for _, c := range []struct {
		clients, size int // size is that of the header, in kB
	}{
		{clients: 9000, size: 60},
		{clients: 4500, size: 15}, // these wait for their turn
	} {
		t.Run(fmt.Sprintf("%d of %d kB", c.clients, c.size), func(t *testing.T) {
			lab.NeedDescriptors(t, c.clients+1000)
			p := exporter.Start(t)
			var sending sync.WaitGroup
			header := "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: "+strings.Repeat("x", 1000)+"\r\n", c.size)
			conns := make([]net.Conn, c.clients)
			for i := range conns {
				conns[i] = exporter.Call(t, i)
				sending.Go(func() { io.WriteString(conns[i], header) }) // fails if the exporter closes the connection
			}
			mustProbe(t, fmt.Sprintf("%d clients do not finish their headers", c.clients))
			resident := p.PeakResident() / 1e6
			for _, conn := range conns {
				conn.Close()
			}
			sending.Wait()
			p.Stop()
			t.Logf("%d clients with an unfinished header of %d kB: %d MB resident", c.clients, c.size, resident)
			if resident > most && !lab.Race {
				t.Errorf("%d clients with an unfinished header of %d kB take %d MB, want at most %d",
					c.clients, c.size, resident, most)
			}
		})
	}
}

// Connections that are kept alive, and idle, do not use up the descriptors that probes need.
func TestIdleConnections(t *testing.T) {
	const descriptors, idle, probes = 256, 245, 50
	wire, open := newGate(t)
	p := process.Start(t, withDescriptors(t, descriptors, exporter.Command(t)))
	p.Listening(10115)
	for i := range idle {
		conn := exporter.Call(t, i)
		defer conn.Close()
		keepAlive(t, conn, bufio.NewReader(conn), "/-/healthy")
	}
	answers := make([]exporter.Answer, probes)
	var probing sync.WaitGroup
	for i := range answers {
		from := exporter.Call(t, i)
		probing.Go(func() { answers[i] = from.Get(t, openTarget) })
	}
	wire.Await(probes)
	open()
	probing.Wait()
	for _, a := range answers {
		if !a.Open() {
			t.Errorf("with %d descriptors and %d idle connections, GET %s = %+v, want an open target",
				descriptors, idle, openTarget, a)
		}
	}
}

// Clients that request a large page and do not read it take little memory, and other requests are served.
func TestReadersThatDoNotRead(t *testing.T) {
	const clients, growth = 300, 60 // MB
	lab.Need(t)
	p := exporter.Start(t)
	fillHistory(t, 1000, 10)
	before := p.PeakResident() / 1e6
	conns := make([]exporter.Caller, clients)
	for i := range conns {
		conns[i] = exporter.Call(t, i)
		defer conns[i].Close()
		conns[i].Conn.(*net.TCPConn).SetReadBuffer(4096)
		io.WriteString(conns[i], "GET /logs HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	for i, conn := range conns {
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatalf("GET /logs, client %d of %d: %v, want the start of a response", i, clients, err)
		}
	}
	mustProbe(t, fmt.Sprintf("%d clients do not read", clients))
	after := p.PeakResident() / 1e6
	t.Logf("%d readers of /logs that do not read: %d MB resident, %d MB before", clients, after, before)
	if after-before > growth && !lab.Race {
		t.Errorf("%d readers that do not read take %d MB, want at most %d MB", clients, after-before, growth)
	}
}

// However many clients request a page that takes long to render, and hang up, no probe beside them sends its ACK.
func TestPagesDoNotDelayResets(t *testing.T) {
	const targets, clients, probes = 10_000, 40, 20
	network := simnet.NewNetwork(t)
	network.WatchStalls()
	process.Prefer(t)
	network.At("192.0.2.0/24", simnet.SYNACK().After(20*time.Millisecond))
	exporter.Start(t)
	fillHistory(t, targets, 1)
	filter := strings.TrimSuffix(strings.Repeat("1+", 16), "+") // as many words as are permitted
	stop := make(chan struct{})
	var viewing sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(stop)
		viewing.Wait()
	})
	defer end()
	for range clients {
		viewing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.Dial("tcp", "127.0.0.1:10115")
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintf(conn, "GET /?filter=%s HTTP/1.1\r\nHost: x\r\n\r\n", filter)
				time.Sleep(50 * time.Millisecond) // then the client hangs up
				conn.Close()
			}
		})
	}
	for i := range probes {
		path := fmt.Sprintf("/probe?target=192.0.2.%d:80", i+1)
		if status, body := exporter.Get(t, path); status != 200 || !strings.Contains(body, "\nprobe_success 1\n") {
			t.Errorf("GET %s = %d %s\nwant 200 and an open target", path, status, body)
		}
	}
	end()
	if acks := network.ACKs(); len(acks) > 0 {
		t.Errorf("%d of %d probes sent their ACK while %d clients requested pages, want none: %v",
			len(acks), probes, clients, acks)
	}
}
