package server

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A limitedServer is a server with limits of its connections. (A server of package httptest cannot wait until
// a limit permits a connection.)
type limitedServer struct {
	*connections
	address string
}

// startLimited starts a server, with TLS and HTTP/2 if certificates is not nil.
func startLimited(
	t *testing.T, limit, waiting int, first time.Duration, certificates []tls.Certificate, handler http.HandlerFunc,
) *limitedServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(handler, time.Minute, slog.New(slog.DiscardHandler))
	c := limitConnections(server, limit)
	c.waiting, c.first = waiting, first
	var serving sync.WaitGroup
	serving.Go(func() {
		if certificates == nil {
			server.Serve(listener)
			return
		}
		server.TLSConfig = &tls.Config{Certificates: certificates}
		server.ServeTLS(listener, "", "")
	})
	t.Cleanup(func() {
		server.Close()
		serving.Wait()
	})
	return &limitedServer{connections: c, address: listener.Addr().String()}
}

// certificates returns the certificate of a server in a test.
func certificates() []tls.Certificate {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	return server.TLS.Certificates
}

// respond is a handler that responds at once.
func respond(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "response") }

// A client is one connection to a server.
type client struct {
	net.Conn
	in *bufio.Reader
}

func connect(t *testing.T, server *limitedServer) client {
	t.Helper()
	conn, err := net.Dial("tcp", server.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute)) // longer than anything takes
	return client{Conn: conn, in: bufio.NewReader(conn)}
}

// get sends a request and returns an error unless the status is 200.
func (c client) get() error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	if response.StatusCode != 200 {
		return fmt.Errorf("GET / = %s, want 200", response.Status)
	}
	if _, err := io.ReadAll(response.Body); err != nil {
		return fmt.Errorf("GET /: the body ends with %w, want all of it", err)
	}
	return nil
}

// mustGet fails the test unless the client gets a response.
func (c client) mustGet(t *testing.T, who string) {
	t.Helper()
	if err := c.get(); err != nil {
		t.Errorf("%s: %v, want status 200", who, err)
	}
}

// mustBeClosed fails the test unless the server has closed the connection, or closes it now.
func (c client) mustBeClosed(t *testing.T, who string) {
	t.Helper()
	if _, err := c.in.ReadByte(); err == nil || isTimeout(err) {
		t.Errorf("%s: %v, want a closed connection", who, err)
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

// count returns how many connections are open, and how many of them wait for a request.
func (c *connections) count() (open, waiting int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open), c.unasked.Len() + c.idle.Len()
}

// A new connection takes the place of the one that has been idle for the longest time.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	server := startLimited(t, 3, 3, time.Hour, nil, respond)
	var clients []client
	for i := range 3 {
		clients = append(clients, connect(t, server))
		clients[i].mustGet(t, fmt.Sprintf("client %d of 3, the limit", i))
		lab.Eventually(t, "the client is idle", func() bool { _, waiting := server.count(); return waiting == i+1 })
	}
	clients[0].mustGet(t, "client 0 again") // now client 1 has been idle for the longest time
	lab.Eventually(t, "all clients are idle", func() bool { _, waiting := server.count(); return waiting == 3 })
	next := connect(t, server)
	next.mustGet(t, "client 3, beyond the limit")
	clients[1].mustBeClosed(t, "client 1, idle for the longest time")
	next.mustGet(t, "client 3 again")
	clients[0].mustGet(t, "client 0, idle for a shorter time")
	clients[2].mustGet(t, "client 2, idle for a shorter time")
}

// The same with TLS and HTTP/2.
func TestIdleConnectionsMakeRoomForHTTP2(t *testing.T) {
	server := startLimited(t, 2, 2, time.Hour, certificates(), respond)
	for i := range 5 {
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport}).Get("https://" + server.address)
		if err != nil {
			t.Fatalf("client %d, while as many connections as permitted are idle: %v, want a response", i, err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.ProtoMajor != 2 {
			t.Fatalf("client %d uses %s, want HTTP/2", i, response.Proto)
		}
		lab.Eventually(t, "the client is idle", func() bool {
			open, waiting := server.count()
			return open == waiting && open <= 2
		})
	}
}

// A connection with a running request is not closed. If there is no other one, a new connection waits until one of
// them ends.
func TestRunningRequestsKeepTheirConnections(t *testing.T) {
	for _, test := range []struct {
		name        string
		limit, most int // most is how many requests may run at once
	}{
		{name: "the limit", limit: 2, most: 2},
		{name: "the control, a higher limit", limit: 10, most: 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			var running, most atomic.Int64
			proceed := make(chan struct{})
			server := startLimited(t, test.limit, test.limit, time.Hour, nil, func(http.ResponseWriter, *http.Request) {
				now := running.Add(1)
				for before := most.Load(); now > before && !most.CompareAndSwap(before, now); before = most.Load() {
				}
				<-proceed
				running.Add(-1)
			})
			var clients sync.WaitGroup
			for i := range 10 {
				c := connect(t, server)
				clients.Go(func() { c.mustGet(t, fmt.Sprintf("client %d of 10, limit %d", i, test.limit)) })
			}
			lab.Eventually(t, fmt.Sprintf("%d requests run", test.most), func() bool {
				return running.Load() == int64(test.most)
			})
			for range 10 {
				proceed <- struct{}{}
			}
			clients.Wait()
			if got := most.Load(); got != int64(test.most) {
				t.Errorf("%d requests of 10 ran at once with a limit of %d connections, want %d",
					got, test.limit, test.most)
			}
		})
	}
}

// An idle connection makes room although as many may wait, if requests run on the others.
func TestIdleConnectionsMakeRoomBesideRunningRequests(t *testing.T) {
	proceed := make(chan struct{})
	var once atomic.Bool
	server := startLimited(t, 2, 2, time.Hour, nil, func(http.ResponseWriter, *http.Request) {
		if once.CompareAndSwap(false, true) {
			<-proceed
		}
	})
	var running sync.WaitGroup
	busy := connect(t, server)
	running.Go(func() { busy.mustGet(t, "the client whose request runs") })
	lab.Eventually(t, "a request runs", func() bool {
		open, waiting := server.count()
		return open == 1 && waiting == 0
	})
	idle := connect(t, server)
	idle.mustGet(t, "the second client, limit 2")
	connect(t, server).mustGet(t, "the third client, limit 2")
	idle.mustBeClosed(t, "the second client, which is idle")
	close(proceed)
	running.Wait()
}

// The requests of one HTTP/2 connection are as many as there may be connections. More are rejected at once.
func TestRequestsOfOneConnection(t *testing.T) {
	const requests = 10
	for _, test := range []struct {
		name     string
		limit    int
		rejected int
	}{
		{name: "the limit", limit: 3, rejected: requests - 3},
		{name: "the control, a higher limit", limit: requests},
	} {
		t.Run(test.name, func(t *testing.T) {
			proceed := make(chan struct{})
			var running atomic.Int64
			wait := func(http.ResponseWriter, *http.Request) { running.Add(1); <-proceed }
			server := startLimited(t, test.limit, test.limit, time.Hour, certificates(), wait)
			transport := &http.Transport{
				ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: 1,
			}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			var served, rejected atomic.Int64
			var clients sync.WaitGroup
			for range requests {
				clients.Go(func() {
					response, err := client.Get("https://" + server.address)
					if err != nil {
						t.Errorf("a request with a limit of %d: %v, want a response", test.limit, err)
						return
					}
					response.Body.Close()
					switch {
					case response.StatusCode == 200:
						served.Add(1)
					case response.StatusCode == 503 && response.Header.Get("Retry-After") == "1":
						rejected.Add(1)
					}
				})
			}
			lab.Eventually(t, "all requests run or are rejected", func() bool {
				return running.Load()+rejected.Load() == requests
			})
			close(proceed)
			clients.Wait()
			if got := rejected.Load(); got != int64(test.rejected) || got+served.Load() != requests {
				t.Errorf("%d of %d requests of one connection are served and %d are rejected with a limit of %d, "+
					"want %d rejected", served.Load(), requests, got, test.limit, test.rejected)
			}
		})
	}
}

// A connection that does not send its first request in time makes room for a new one. In time, it does not.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	server := startLimited(t, 2, 2, 10*time.Millisecond, nil, respond)
	silent := []client{connect(t, server), connect(t, server)}
	io.WriteString(silent[0], "GET / HTTP/1.1\r\nHost: x\r\nCookie: unfinished")
	for i := range 4 {
		connect(t, server).mustGet(t, fmt.Sprintf("client %d after two silent ones, limit 2", i))
	}
	silent[0].mustBeClosed(t, "the client with an unfinished header")

	server = startLimited(t, 2, 2, time.Hour, nil, respond)
	silent = []client{connect(t, server), connect(t, server)}
	lab.Eventually(t, "both silent clients are connected", func() bool { open, _ := server.count(); return open == 2 })
	next := connect(t, server)
	lab.Eventually(t, "the next client waits", func() bool { open, _ := server.count(); return open == 3 })
	silent[0].Close()
	next.mustGet(t, "the client that waited for room")
	silent[1].mustGet(t, "the client that was silent for a permitted time")
}

// No more connections than the limit wait for a request, however many requests may run.
func TestWaitingConnections(t *testing.T) {
	server := startLimited(t, 100, 3, time.Hour, nil, respond)
	for i := range 20 {
		connect(t, server).mustGet(t, fmt.Sprintf("client %d of 20", i))
	}
	lab.Eventually(t, "three connections are open", func() bool {
		open, waiting := server.count()
		return open == 3 && waiting == 3
	})
}

// A TLS client that does not read cannot make others wait while its connection is closed.
func TestSilentTLSClientsMakeRoom(t *testing.T) {
	server := startLimited(t, 2, 2, 10*time.Millisecond, certificates(), respond)
	connect(t, server)
	half := connect(t, server)
	io.WriteString(half, clientHello(t)[:20])
	for i := range 4 {
		c := connect(t, server)
		c.Conn = tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
		c.in.Reset(c.Conn)
		c.mustGet(t, fmt.Sprintf("client %d after two silent ones, limit 2", i))
	}
	half.mustBeClosed(t, "the client that stopped in its TLS handshake")
}

// The limit of connections follows that of probes in flight, as far as the resources of the process permit.
func TestMaxConnections(t *testing.T) {
	for _, c := range []struct{ inFlight, derived, want int }{
		{inFlight: 0, derived: 0, want: 0}, // no limit
		{inFlight: 63, derived: 63, want: 95},
		{inFlight: 10, derived: 63, want: 42},
		{inFlight: 100_000, derived: 64, want: 128},
		{inFlight: 100, derived: 0, want: 132},
	} {
		if got := maxConnections(c.inFlight, c.derived); got != c.want {
			t.Errorf("maxConnections(%d, %d) = %d, want %d", c.inFlight, c.derived, got, c.want)
		}
	}
}

// What is reserved for others is not there for connections, except for a few.
func TestReservedConnections(t *testing.T) {
	c := limitConnections(&http.Server{}, otherConnections+100)
	for reserved, want := range map[int]int{
		0: otherConnections + 100, 30: otherConnections + 70, 500: otherConnections,
	} {
		c.reserved = func() int { return reserved }
		if got := c.most(); got != want {
			t.Errorf("with a limit of %d and %d reserved: %d connections, want %d", c.limit, reserved, got, want)
		}
	}
	c.reserved = nil
	if got := c.most(); got != c.limit {
		t.Errorf("with nothing reserved: %d connections, want %d", got, c.limit)
	}
}
