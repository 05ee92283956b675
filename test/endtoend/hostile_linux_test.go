package endtoend

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Each malformed or unusual request gets the expected status and nothing else. It has no effect on the next
// request, and the exporter logs nothing. The same is true with debug=true.
func TestMalformedRequests(t *testing.T) {
	startQuietExporter(t)
	const (
		head    = "GET /probe?target=localhost:10115 HTTP/1.1\r\nHost: x\r\n"
		request = head + "\r\n"
		alive   = "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
	)
	target := func(text string) string { return "GET /probe?target=" + text + " HTTP/1.1\r\nHost: x\r\n\r\n" }
	hello := clientHello(t)
	for _, c := range []struct {
		name, raw string
		want      string // statuses
	}{
		{name: "a valid request", raw: request, want: "200"},
		{name: "two requests at once", raw: request + request, want: "200 200"},
		{name: "a malformed request after a valid one", raw: alive + "nonsense\r\n\r\n", want: "200 400"},
		{
			name: "thousands of requests at once", want: strings.TrimSpace(strings.Repeat("200 ", 2000)),
			raw: strings.Repeat(alive, 2000),
		},

		{name: "empty lines", raw: "\r\n\r\n", want: "400"},
		{name: "one word", raw: "GET\r\n\r\n", want: "400"},
		{name: "no version", raw: "GET /probe\r\n\r\n", want: "400"},
		{name: "HTTP/0.9", raw: "GET /probe HTTP/0.9\r\n\r\n", want: "505"},
		{name: "HTTP/1.0 without Host", raw: "GET /probe?target=localhost:10115 HTTP/1.0\r\n\r\n", want: "200"},
		{name: "HTTP/1.2", raw: strings.Replace(request, "1.1", "1.2", 1), want: "200"},
		{name: "HTTP/2.0 in plain text", raw: strings.Replace(request, "1.1", "2.0", 1), want: "505"},
		{name: "HTTP/11", raw: strings.Replace(request, "1.1", "11", 1), want: "400"},
		{
			name: "HTTP/2 preface", want: "400",
			raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		},
		{
			name: "upgrade to HTTP/2", want: "200",
			raw: head + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" +
				"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		},
		{name: "TLS", raw: hello, want: "400"},

		{name: "NUL in the path", raw: "GET /probe\x00 HTTP/1.1\r\nHost: x\r\n\r\n", want: "400"},
		{name: "NUL in a header", raw: head + "Accept: \x00\r\n\r\n", want: "400"},
		{name: "only line feeds", raw: strings.ReplaceAll(request, "\r", ""), want: "200"},

		{name: "no Host", raw: "GET /probe?target=localhost:10115 HTTP/1.1\r\n\r\n", want: "400"},
		{name: "two Hosts", raw: head + "Host: y\r\n\r\n", want: "400"},
		{name: "an invalid Host", raw: strings.Replace(request, "x", "a b<\"", 1), want: "400"},
		{name: "a header without a colon", raw: head + "Accept\r\n\r\n", want: "400"},
		{name: "a space before the colon", raw: head + "Accept : */*\r\n\r\n", want: "400"},
		{name: "a folded header", raw: head + "Accept:\r\n */*\r\n\r\n", want: "200"},
		{name: "a large header", raw: head + "Cookie: " + strings.Repeat("x", 15<<10) + "\r\n\r\n", want: "200"},
		{name: "a huge header", raw: head + "Cookie: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", want: "431"},
		{name: "thousands of headers", raw: head + strings.Repeat("A: b\r\n", 20_000) + "\r\n", want: "431"},
		{
			name: "thousands of formats", want: "200",
			raw: head + "Accept: " + strings.Repeat("*/*;q=9,", 1500) + "\r\n\r\n",
		},
		{
			name: "a timeout in invalid UTF-8", want: "400",
			raw: head + "X-Prometheus-Scrape-Timeout-Seconds: \xff\"\r\n\r\n",
		},

		{name: "two lengths", raw: head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", want: "400"},
		{name: "one length twice", raw: head + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", want: "200"},
		{name: "a negative length", raw: head + "Content-Length: -1\r\n\r\n", want: "400"},
		{name: "a length of 2^62", raw: head + "Content-Length: 4611686018427387904\r\n\r\n", want: "200"},
		{name: "a length above 2^63", raw: head + "Content-Length: 9999999999999999999\r\n\r\n", want: "400"},
		{
			name: "another request as the body", want: "200",
			raw: head + "Content-Length: " + strconv.Itoa(len(alive)) + "\r\n\r\n" + alive,
		},
		{
			name: "another request after the last chunk, within the length", want: "200 200",
			raw: head + "Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + alive,
		},
		{name: "an unsupported encoding", raw: head + "Transfer-Encoding: gzip, chunked\r\n\r\n", want: "501"},
		{
			name: "chunks twice", want: "501",
			raw: head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		},
		{
			name: "a chunk size that is not a number", want: "200",
			raw: head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + alive,
		},
		{
			name: "a chunk size above 2^64", want: "200",
			raw: head + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + alive,
		},
		{
			name: "a malformed trailer", want: "200",
			raw: head + "Transfer-Encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n",
		},
		{
			name: "a body that waits for 100 Continue", want: "200",
			raw: head + "Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
		},
		{name: "an unknown expectation", raw: head + "Expect: nonsense\r\n\r\n", want: "417"},

		{name: "GET in lower case", raw: strings.Replace(request, "GET", "get", 1), want: "405"},
		{name: "HEAD", raw: strings.Replace(request, "GET", "HEAD", 1), want: "200"},
		{name: "TRACE", raw: strings.Replace(request, "GET", "TRACE", 1), want: "405"},
		{name: "POST", raw: strings.Replace(head, "GET", "POST", 1) + "Content-Length: 3\r\n\r\nabc", want: "405"},
		{name: "CONNECT", raw: "CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n", want: "405"},
		{name: "CONNECT to a path", raw: strings.Replace(request, "GET", "CONNECT", 1), want: "405"},
		{name: "OPTIONS *", raw: "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", want: "200"},
		{name: "GET *", raw: "GET * HTTP/1.1\r\nHost: x\r\n\r\n", want: "400"},
		{name: "an absolute URL", raw: strings.Replace(request, "/", "http://elsewhere.example/", 1), want: "200"},
		{
			name: "another host as the path", want: "307",
			raw: "GET //elsewhere.example/probe HTTP/1.1\r\nHost: x\r\n\r\n",
		},
		{name: "out of the root", raw: "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", want: "307"},
		{name: "newlines in the path", raw: "GET //%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\nHost: x\r\n\r\n", want: "307"},
		{name: "invalid percent-encoding in the path", raw: "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", want: "400"},

		{name: "invalid percent-encoding in the target", raw: target("%zz"), want: "400"},
		{name: "an incomplete percent-encoding in the target", raw: target("localhost:1%"), want: "400"},
		{name: "invalid UTF-8 in the target", raw: target("\xff\xfe:1"), want: "400"},
		{name: "invalid UTF-8 in the target, percent-encoded", raw: target("%ff%fe:1"), want: "400"},
		{name: "NUL in the target", raw: target("localhost%00:1"), want: "400"},
		{name: "a forged metric", raw: target("a%22%7d%0aprobe_success%201%0a:1"), want: "400"},
		{name: "a forged log line", raw: target("a:1&module=%22%0atime=0%20level=ERROR%20msg=panic"), want: "400"},
		{name: "terminal escape sequences in the target", raw: target("%1b[2J%1b]0;x%07:1"), want: "400"},
		{name: "a right-to-left override in the target", raw: target("%e2%80%ae:1"), want: "400"},
		{name: "a fragment in the target", raw: target("localhost:10115%23\"x"), want: "400"},
		{name: "a semicolon in the target", raw: target("localhost:1;module=tcp_connect"), want: "400"},
		{name: "two targets", raw: target("localhost:1&target=localhost:2"), want: "400"},
		{name: "a large target", raw: target(strings.Repeat("x", 15<<10) + ":1"), want: "400"},
		{name: "a huge target", raw: target(strings.Repeat("x", 100<<10) + ":1"), want: "431"},
		{name: "thousands of parameters", raw: target("localhost:1" + strings.Repeat("&a", 7000)), want: "200"},
		{
			name: "thousands of zeros before the port", want: "400",
			raw: target("localhost:" + strings.Repeat("0", 15<<10) + "10115"),
		},
		{
			name: "metrics with an invalid name[] parameter", want: "200",
			raw: "GET /metrics?name[]=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
		},
		{
			name: "metrics in an unknown format", want: "200",
			raw: "GET /metrics HTTP/1.1\r\nHost: x\r\n" +
				"Accept: application/openmetrics-text;version=9.9.9,;q=\r\nAccept-Encoding: ;q=x,,\r\n\r\n",
		},
	} {
		feed(t, c.name, c.raw, c.want, false)
		if debug := strings.ReplaceAll(c.raw, "/probe?", "/probe?debug=true&"); debug != c.raw {
			feed(t, c.name+", debug", debug, c.want, false)
		}
	}
}

// A zone that is not an interface of this host is a local error. It cannot forge a label, whatever it contains.
func TestForgedLabelInTheZone(t *testing.T) {
	exporter.Start(t)
	const query = "target=[fe80::1%25%22%7d%5c]:1"
	for _, query := range []string{query, "debug=true&" + query} {
		feed(t, query, "GET /probe?"+query+" HTTP/1.1\r\nHost: x\r\n\r\n", "503", false)
	}
}

// A client that ends its request too early, and waits for a response, gets one.
func TestHalfRequests(t *testing.T) {
	startQuietExporter(t)
	const request = "GET /probe?target=localhost:10115 HTTP/1.1\r\nHost: x\r\n"
	for _, c := range []struct{ name, raw, want string }{
		{name: "nothing", raw: "", want: ""},
		{name: "half a request line", raw: "GET /pro", want: "400"},
		{name: "no empty line after the headers", raw: request, want: "400"},
		{name: "half a header", raw: request + "Acc", want: "400"},
		// No handler reads the body.
		{name: "half a body", raw: request + "Content-Length: 10\r\n\r\nabc", want: "200"},
		{name: "half a chunk", raw: request + "Transfer-Encoding: chunked\r\n\r\n5\r\nab", want: "200"},
		{name: "half a TLS handshake message", raw: clientHello(t)[:20], want: "400"},
	} {
		feed(t, c.name, c.raw, c.want, true)
	}
}

// startQuietExporter starts the exporter, and fails the test if the exporter logs anything after its start.
func startQuietExporter(t *testing.T) {
	t.Helper()
	p := exporter.Start(t)
	exporter.Get(t, "/-/healthy") // the exporter has logged that it listens
	before := p.Output()
	t.Cleanup(func() {
		if after := strings.TrimPrefix(p.Output(), before); after != "" {
			t.Errorf("after its start the exporter logs %s\nwant nothing", after)
		}
	})
}

// feed sends raw bytes to the exporter, and requires responses with the statuses in want and nothing else. A
// valid probe afterwards must succeed. With half, feed closes its side of the connection after the bytes.
func feed(t *testing.T, name, raw, want string, half bool) {
	t.Helper()
	conn := dial(t)
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.WriteString(conn, raw) // fails if the exporter closes the connection before it has read everything
		if half {
			conn.CloseWrite()
		}
	}()
	method, _, _ := strings.Cut(raw, " ")
	in := bufio.NewReader(conn)
	var statuses []string
	for last := false; !last && len(statuses) < len(strings.Fields(want)); {
		response, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Errorf("%s: statuses %.50s and then %v, want %.50s", name, strings.Join(statuses, " "), err, want)
			return
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Errorf("%s: %s, and then %v in the body, want all of it", name, response.Status, err)
		}
		checkResponse(t, name, response, string(body))
		statuses = append(statuses, strconv.Itoa(response.StatusCode))
		last = response.Close
	}
	<-sent
	conn.CloseWrite()
	rest, err := io.ReadAll(in)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // sent if the exporter closes with unread bytes
		t.Errorf("%s: after the responses: %v, want EOF", name, err)
	}
	if got := strings.Join(statuses, " "); got != want || len(rest) > 0 {
		t.Errorf("%s: statuses %.50s and then %.100q, want %.50s and nothing else", name, got, rest, want)
	}
	const path, open = "/probe?target=localhost:10115", "\nprobe_success 1\n"
	if status, body := exporter.Get(t, path); status != 200 || !strings.Contains(body, open) {
		t.Fatalf("after %s, GET %s = %d %s\nwant 200 and %q in it", name, path, status, body, open)
	}
}

// checkResponse requires that a response is a valid exposition, or text that is printable, and that an error is
// one line.
func checkResponse(t *testing.T, name string, response *http.Response, body string) {
	t.Helper()
	if cookies := response.Header["Set-Cookie"]; cookies != nil {
		t.Errorf("%s: the response sets the cookies %q, want none", name, cookies)
	}
	if strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain; version=") {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		if _, err := parser.TextToMetricFamilies(strings.NewReader(body)); err != nil {
			t.Errorf("%s: the response is %s\n%v, want a valid exposition", name, body, err)
		}
		return
	}
	unprintable := func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }
	if !utf8.ValidString(body) || strings.ContainsFunc(body, unprintable) {
		t.Errorf("%s: the response is %q, want printable text", name, body)
	}
	if response.StatusCode != 200 && strings.Contains(strings.TrimRight(body, "\n"), "\n") {
		t.Errorf("%s: the response is %s %q, want one line", name, response.Status, body)
	}
}

// dial connects to the exporter. Reads and writes fail after a minute: no response takes that long.
func dial(t *testing.T) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", "localhost:10115")
	if err != nil {
		t.Fatalf("connect to the exporter: %v", err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.TCPConn)
}

// clientHello returns the first message of a TLS client.
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

// No limit of the server cuts off a probe that takes the module's whole timeout, over HTTP/1.1 or HTTP/2.
func TestLongestProbe(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t)
	webConfig, client := newWebConfig(t)
	overTLS := process.Start(t, exporter.Command(t, "--web.listen-address=:10116", "--web.config.file="+webConfig))
	overTLS.Listening(10116)
	probe := func(server, protocol string) {
		url := server + "/probe?target=192.0.2.1:443"
		response, err := client.Get(url)
		if err != nil {
			t.Errorf("%v, want a response", err)
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != 200 || response.Proto != protocol {
			t.Errorf("GET %s = %s %s, %v, %s\nwant %s 200", url, response.Proto, response.Status, err, body, protocol)
		}
		for _, want := range []string{
			`probe_result_info{result="timeout",errno="ETIMEDOUT"} 1`,
			"probe_timeout_seconds 5\n",
		} {
			if !strings.Contains(string(body), want) {
				t.Errorf("GET %s = %s\nwant %q in it", url, body, want)
			}
		}
	}
	var probes sync.WaitGroup
	probes.Go(func() { probe("http://localhost:10115", "HTTP/1.1") })
	probes.Go(func() { probe("https://127.0.0.1:10116", "HTTP/2.0") })
	probes.Wait()
	client.CloseIdleConnections()
}

// The exporter logs the errors of net/http about TLS clients in the format of --log.format.
func TestLogOfTLS(t *testing.T) {
	webConfig, _ := newWebConfig(t)
	p := exporter.Start(t, "--web.config.file="+webConfig, "--log.format=json")
	for _, raw := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		clientHello(t)[:20],
		"\x16\x03\x01\x00\x05\n\"}\n\x00",
	} {
		conn := dial(t)
		io.WriteString(conn, raw)
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	lab.Eventually(t, "the log has three TLS handshake errors", func() bool {
		return strings.Count(p.Output(), "TLS handshake error") == 3
	})
	for line := range strings.Lines(p.Output()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("with --log.format=json the log has the line %q, want valid JSON", line)
		}
	}
}

// newWebConfig writes a web configuration file that enables TLS, and returns a client that trusts its
// certificate.
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

// If a client disconnects during a probe, the exporter ends the probe, and frees its socket and everything else
// that it holds for the client. Otherwise the socket would send SYNs until the timeout of the probe. The target
// gets no result.
func TestClientsThatDisconnect(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	for _, c := range []struct {
		clients int
		with    string
		linger  int // the argument of SetLinger
	}{
		{clients: 1, with: "FIN", linger: -1},
		{clients: 1, with: "RST", linger: 0},
		{clients: 200, with: "FIN", linger: -1},
		{clients: 200, with: "RST", linger: 0},
	} {
		t.Run(fmt.Sprintf("%d with %s", c.clients, c.with), func(t *testing.T) {
			exporter.Start(t)
			before := exporter.Metrics(t)
			conns := make([]*net.TCPConn, c.clients)
			for i := range conns {
				conns[i] = dial(t)
				defer conns[i].Close()
				io.WriteString(conns[i], "GET /probe?target=192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
			}
			lab.Eventually(t, fmt.Sprintf("%d probes run", c.clients), func() bool {
				return exporter.SilentHandshakes(t) == c.clients
			})
			for _, conn := range conns {
				conn.SetLinger(c.linger)
				conn.Close()
			}
			lab.Eventually(t, "no probe has a socket", func() bool { return exporter.SilentHandshakes(t) == 0 })
			const (
				gone     = `shaker_probes_rejected_total{reason="caller_gone"}`
				ended    = `shaker_probes_total{module="tcp_connect"}`
				failed   = `shaker_probe_failures_total{module="tcp_connect",result="timeout",errno="ETIMEDOUT"}`
				inFlight = `shaker_probes_in_flight`
			)
			var after map[string]string
			lab.Eventually(t, fmt.Sprintf("the exporter has counted %d probes", c.clients), func() bool {
				after = exporter.Metrics(t)
				n, _ := strconv.Atoi(after[gone])
				m, _ := strconv.Atoi(after[ended])
				return n+m == c.clients
			})
			for name, want := range map[string]string{
				gone: strconv.Itoa(c.clients), ended: "0", failed: "", inFlight: "0",
			} {
				if after[name] != want {
					t.Errorf("after %d clients disconnected, %s = %q, want %q", c.clients, name, after[name], want)
				}
			}
			descriptors := before["process_open_fds"]
			lab.Eventually(t, "the exporter has "+descriptors+" descriptors again", func() bool {
				return exporter.Metrics(t)["process_open_fds"] == descriptors
			})
		})
	}
}

// A client that closes only its sending side looks like a client that has disconnected: the exporter ends its
// probe, too, and responds with 503.
func TestClientThatHalfCloses(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t)
	conn := dial(t)
	defer conn.Close()
	io.WriteString(conn, "GET /probe?target=192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
	wire.Await(1)
	conn.CloseWrite()
	response, err := io.ReadAll(conn)
	const start, end = "HTTP/1.1 503 ", "context canceled\n"
	if err != nil || !strings.HasPrefix(string(response), start) || !strings.HasSuffix(string(response), end) {
		t.Errorf("after the client's FIN the response is %s, %v\nwant %q at its start and %q at its end",
			response, err, start, end)
	}
}
