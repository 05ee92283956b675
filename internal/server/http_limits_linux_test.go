package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// The server closes the connection of a client that exceeds the limit, no matter what the client fails to send
// or read.
func TestSlowClients(t *testing.T) {
	const (
		request = "GET / HTTP/1.1\r\nHost: x\r\n"
		endless = "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"
		// SETTINGS and WINDOW_UPDATE with the largest window, and HEADERS of GET /endless. See RFC 9113,
		// section 6, and RFC 7541, Appendix A.
		http2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" +
			"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + "\x00\x04\x7f\xff\xff\xff" +
			"\x00\x00\x04\x08\x00\x00\x00\x00\x00" + "\x7f\xff\x00\x00" +
			"\x00\x00\x0f\x01\x05\x00\x00\x00\x01" + "\x82\x87\x04\x08/endless\x01\x01x"
	)
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for err := error(nil); err == nil; _, err = w.Write(make([]byte, 1<<16)) {
		}
	})
	for _, c := range []struct {
		name, raw string
		drip      string // sent repeatedly until the server closes the connection
		tls       bool
	}{
		{name: "sends nothing"},
		{name: "stops in the request line", raw: "GET /pro"},
		{name: "stops in the header", raw: request + "Acc"},
		{name: "sends its header byte by byte", raw: request + "A: ", drip: "x"},
		{name: "sends a second header byte by byte", raw: request + "\r\n" + request + "A: ", drip: "x"},
		{name: "does not send its body", raw: request + "Content-Length: 10\r\n\r\n"},
		{name: "sends its body byte by byte", raw: request + "Content-Length: 200000\r\n\r\n", drip: "x"},
		{name: "sends its body chunk by chunk", raw: request + "Transfer-Encoding: chunked\r\n\r\n",
			drip: "1\r\nx\r\n"},
		{name: "does not read the response", raw: endless},
		{name: "stops in its TLS handshake", raw: clientHello(t)[:20], tls: true},
		{name: "does not read the response, with HTTP/2", raw: http2, tls: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			closed := make(chan struct{})
			server := httptest.NewUnstartedServer(nil)
			server.Config = newServer(mux, 300*time.Millisecond, slog.New(slog.DiscardHandler))
			server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateClosed {
					close(closed) // there is only one connection
				}
			}
			server.EnableHTTP2 = true
			if c.tls {
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if c.raw == http2 {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			}
			io.WriteString(conn, c.raw) // fails if the server has closed the connection
			for deadline := time.After(time.Minute); ; {
				select {
				case <-closed:
					return
				case <-deadline:
					t.Fatal("the server has not closed the connection within a minute, want it after 300 ms")
				case <-time.After(10 * time.Millisecond):
					io.WriteString(conn, c.drip) // fails if the server has closed the connection
				}
			}
		})
	}
}

// The server limits the time to read a request, to write a response and to be idle, also with HTTP/2.
func TestServerLimits(t *testing.T) {
	const limit = requestLimit
	s := newServer(nil, limit, slog.New(slog.DiscardHandler))
	for _, c := range []struct {
		name      string
		got, want time.Duration
	}{
		{name: "ReadTimeout", got: s.ReadTimeout, want: limit},
		{name: "WriteTimeout", got: s.WriteTimeout, want: limit},
		{name: "HTTP2.WriteByteTimeout", got: s.HTTP2.WriteByteTimeout, want: limit},
		{name: "IdleTimeout", got: s.IdleTimeout, want: 5 * time.Minute},
	} {
		if c.got != c.want {
			t.Errorf("%s of the server is %v, want %v", c.name, c.got, c.want)
		}
	}
}

// drain waits for the running requests, but not longer than its limit.
func TestDrainEnds(t *testing.T) {
	running := make(chan struct{})
	server := httptest.NewUnstartedServer(nil)
	server.Config = newServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(running)
		<-r.Context().Done()
	}), time.Hour, slog.New(slog.DiscardHandler))
	server.Start()
	defer server.Close()
	failed := make(chan error)
	go func() {
		_, err := server.Client().Get(server.URL)
		failed <- err
	}()
	<-running
	if err := drain(server.Config, 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drain with a limit of 50 ms and a request that does not end = %v, want DeadlineExceeded", err)
	}
	if err := <-failed; err == nil {
		t.Error("the request succeeded after drain, want an error: drain closes its connection")
	}
}

// clientHello returns the first bytes that a TLS client sends.
func clientHello(t *testing.T) string {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tls.Client(client, &tls.Config{ServerName: "localhost"}).Handshake()
	}()
	hello := make([]byte, 4096)
	n, err := server.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	<-done
	return string(hello[:n])
}
