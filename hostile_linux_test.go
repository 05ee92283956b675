package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// dial connects to the exporter. What is not answered within a minute never is.
func dial(t *testing.T) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", "localhost:10115")
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.TCPConn)
}

// clientHello returns what a client of TLS says first.
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

// No client holds a connection for longer than the server's limit and the time it is in
// touch, whatever it does not send or does not read.
func TestSlowClients(t *testing.T) {
	const (
		request = "GET / HTTP/1.1\r\nHost: x\r\n"
		endless = "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"
		// SETTINGS with the largest window, WINDOW_UPDATE to the largest, and HEADERS of
		// GET /endless. RFC 9113, 6; RFC 7541, Appendix A.
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
		drip      string // sent again and again, as long as there is somebody to take it
		tls       bool
	}{
		{name: "says nothing"},
		{name: "stops in the request line", raw: "GET /pro"},
		{name: "stops in the header", raw: request + "Acc"},
		{name: "sends its header by the byte", raw: request + "A: ", drip: "x"},
		{name: "sends a second header by the byte", raw: request + "\r\n" + request + "A: ", drip: "x"},
		{name: "keeps its body for itself", raw: request + "Content-Length: 10\r\n\r\n"},
		{name: "sends its body by the byte", raw: request + "Content-Length: 200000\r\n\r\n", drip: "x"},
		{name: "sends its body by the chunk", raw: request + "Transfer-Encoding: chunked\r\n\r\n", drip: "1\r\nx\r\n"},
		{name: "does not read its answer", raw: endless},
		{name: "stops in its TLS handshake", raw: clientHello(t)[:20], tls: true},
		{name: "does not read its answer, by HTTP/2", raw: http2, tls: true},
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
			io.WriteString(conn, c.raw) // fails if the server was quicker
			for deadline := time.After(time.Minute); ; {
				select {
				case <-closed:
					return
				case <-deadline:
					t.Fatal("still connected after a minute")
				case <-time.After(10 * time.Millisecond):
					io.WriteString(conn, c.drip) // fails once the server has left
				}
			}
		})
	}
}

// The server in use has all of the limits, and room for the longest probe.
func TestServerLimits(t *testing.T) {
	limit := requestLimit(&config.Config{Modules: map[string]config.Module{
		"a": {Timeout: time.Second}, "b": {Timeout: 20 * time.Second}, "c": {Timeout: 2 * time.Second}}})
	if limit != 25*time.Second {
		t.Errorf("a request may take %v, a probe 20s", limit)
	}
	s := newServer(nil, limit, slog.New(slog.DiscardHandler))
	if s.ReadTimeout != limit || s.WriteTimeout != limit || s.HTTP2.WriteByteTimeout != limit || s.IdleTimeout != 5*time.Minute {
		t.Errorf("%+v", s)
	}
}

// Nothing cuts off a probe that takes as long as any may, in HTTP/1.1 or HTTP/2.
func TestLongestProbe(t *testing.T) {
	lab.NewWire(t, nil, "192.0.2.0/24")
	startExporter(t)
	webConfig, client := newWebConfig(t)
	overTLS := lab.Start(t, exporter(t, "--web.listen-address=:10116", "--web.config.file="+webConfig))
	overTLS.Listening(10116)
	ask := func(url, proto string) {
		response, err := client.Get(url + "/probe?target=192.0.2.1:443")
		if err != nil {
			t.Error(err)
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != 200 || response.Proto != proto ||
			!strings.Contains(string(body), `probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`) ||
			!strings.Contains(string(body), "probe_timeout_seconds 5\n") {
			t.Errorf("%s: %s %s, %v: %s", url, response.Proto, response.Status, err, body)
		}
	}
	var asking sync.WaitGroup
	asking.Go(func() { ask("http://localhost:10115", "HTTP/1.1") })
	asking.Go(func() { ask("https://127.0.0.1:10116", "HTTP/2.0") })
	asking.Wait()
	client.CloseIdleConnections()
}

// What net/http has to say about clients is logged as everything else.
func TestLogOfTLS(t *testing.T) {
	webConfig, _ := newWebConfig(t)
	p := startExporter(t, "--web.config.file="+webConfig, "--log.format=json")
	for _, raw := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", clientHello(t)[:20], "\x16\x03\x01\x00\x05\n\"}\n\x00"} {
		conn := dial(t)
		io.WriteString(conn, raw)
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	lab.Eventually(t, "the log has three errors", func() bool { return strings.Count(p.Output(), "TLS handshake error") == 3 })
	for line := range strings.Lines(p.Output()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("logged %s", line)
		}
	}
}

// newWebConfig writes a configuration file that enables TLS, and returns a client that
// trusts the certificate.
func newWebConfig(t *testing.T) (file string, client *http.Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil) // has a certificate
	server.EnableHTTP2 = true
	server.StartTLS()
	server.Close()
	certificate := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"web.yml":  []byte("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "web.yml"), server.Client()
}

// Shutdown waits for the running requests, but not for ever.
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
		t.Errorf("drained: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the request was waited for")
	}
}
