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

// Nonsense gets the answer it deserves and no other, and leaves no trace: the next one is
// answered, and nothing is logged. With debug=true it is the same.
func TestMalformedRequests(t *testing.T) {
	startQuietExporter(t)
	const (
		head  = "GET /probe?target=localhost:10115 HTTP/1.1\r\nHost: x\r\n"
		ask   = head + "\r\n"
		alive = "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
	)
	target := func(text string) string { return "GET /probe?target=" + text + " HTTP/1.1\r\nHost: x\r\n\r\n" }
	hello := clientHello(t)
	for _, c := range []struct {
		name, raw, want string
	}{
		{"a proper request", ask, "200"},
		{"two at once", ask + ask, "200 200"},
		{"nonsense after a request", alive + "nonsense\r\n\r\n", "200 400"},
		{"thousands at once", strings.Repeat(alive, 2000), strings.TrimSpace(strings.Repeat("200 ", 2000))},

		{"empty lines", "\r\n\r\n", "400"},
		{"one word", "GET\r\n\r\n", "400"},
		{"no version", "GET /probe\r\n\r\n", "400"},
		{"HTTP/0.9", "GET /probe HTTP/0.9\r\n\r\n", "505"},
		{"HTTP/1.0 without Host", "GET /probe?target=localhost:10115 HTTP/1.0\r\n\r\n", "200"},
		{"HTTP/1.2", strings.Replace(ask, "1.1", "1.2", 1), "200"},
		{"HTTP/2.0 in plain text", strings.Replace(ask, "1.1", "2.0", 1), "505"},
		{"HTTP/11", strings.Replace(ask, "1.1", "11", 1), "400"},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "400"},
		{"upgrade to HTTP/2", head + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "200"},
		{"TLS", hello, "400"},

		{"NUL in the path", "GET /probe\x00 HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"NUL in a header", head + "Accept: \x00\r\n\r\n", "400"},
		{"only line feeds", strings.ReplaceAll(ask, "\r", ""), "200"},

		{"no Host", "GET /probe?target=localhost:10115 HTTP/1.1\r\n\r\n", "400"},
		{"two Hosts", head + "Host: y\r\n\r\n", "400"},
		{"a Host that cannot be", strings.Replace(ask, "x", "a b<\"", 1), "400"},
		{"a header without a colon", head + "Accept\r\n\r\n", "400"},
		{"a space before the colon", head + "Accept : */*\r\n\r\n", "400"},
		{"a folded header", head + "Accept:\r\n */*\r\n\r\n", "200"},
		{"a large header", head + "Cookie: " + strings.Repeat("x", 60<<10) + "\r\n\r\n", "200"},
		{"a huge header", head + "Cookie: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", "431"},
		{"thousands of headers", head + strings.Repeat("A: b\r\n", 20_000) + "\r\n", "431"},
		{"thousands of formats", head + "Accept: " + strings.Repeat("*/*;q=9,", 5000) + "\r\n\r\n", "200"},
		{"a timeout in invalid UTF-8", head + "X-Prometheus-Scrape-Timeout-Seconds: \xff\"\r\n\r\n", "400"},

		{"two lengths", head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"},
		{"one length twice", head + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", "200"},
		{"a negative length", head + "Content-Length: -1\r\n\r\n", "400"},
		{"a length of 2^62", head + "Content-Length: 4611686018427387904\r\n\r\n", "200"},
		{"a length above 2^63", head + "Content-Length: 9999999999999999999\r\n\r\n", "400"},
		{"another request as the body", head + "Content-Length: " + strconv.Itoa(len(alive)) + "\r\n\r\n" + alive, "200"},
		{"another request behind the last chunk, within the length", head + "Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + alive, "200 200"},
		{"an encoding of no use", head + "Transfer-Encoding: gzip, chunked\r\n\r\n", "501"},
		{"chunks twice", head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501"},
		{"no number before a chunk", head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + alive, "200"},
		{"a chunk beyond 2^64", head + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + alive, "200"},
		{"a wrong trailer", head + "Transfer-Encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n", "200"},
		{"a body that waits to be wanted", head + "Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", "200"},
		{"other expectations", head + "Expect: nonsense\r\n\r\n", "417"},

		{"GET in lower case", strings.Replace(ask, "GET", "get", 1), "405"},
		{"HEAD", strings.Replace(ask, "GET", "HEAD", 1), "200"},
		{"TRACE", strings.Replace(ask, "GET", "TRACE", 1), "405"},
		{"POST", strings.Replace(head, "GET", "POST", 1) + "Content-Length: 3\r\n\r\nabc", "405"},
		{"CONNECT", "CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n", "405"},
		{"CONNECT to a path", strings.Replace(ask, "GET", "CONNECT", 1), "405"},
		{"OPTIONS of all", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"GET of all", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"an absolute URL", strings.Replace(ask, "/", "http://elsewhere.example/", 1), "200"},
		{"another host as the path", "GET //elsewhere.example/probe HTTP/1.1\r\nHost: x\r\n\r\n", "307"},
		{"out of the root", "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "307"},
		{"new lines in the path", "GET //%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\nHost: x\r\n\r\n", "307"},
		{"wrong percent-encoding of the path", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400"},

		{"wrong percent-encoding of the target", target("%zz"), "400"},
		{"half a percent-encoding", target("localhost:1%"), "400"},
		{"invalid UTF-8", target("\xff\xfe:1"), "400"},
		{"invalid UTF-8, encoded", target("%ff%fe:1"), "400"},
		{"NUL in the target", target("localhost%00:1"), "400"},
		{"a forged metric", target("a%22%7d%0aprobe_success%201%0a:1"), "400"},
		{"a forged log line", target("a:1&module=%22%0atime=0%20level=ERROR%20msg=panic"), "400"},
		{"a terminal's escapes", target("%1b[2J%1b]0;x%07:1"), "400"},
		{"right-to-left override", target("%e2%80%ae:1"), "400"},
		{"a zone that forges", target("[fe80::1%25%22%7d%5c]:1"), "400"},
		{"a fragment", target("localhost:10115%23\"x"), "400"},
		{"a semicolon", target("localhost:1;module=tcp_connect"), "400"},
		{"a target for each", target("localhost:1&target=localhost:2"), "400"},
		{"a large target", target(strings.Repeat("x", 60<<10) + ":1"), "400"},
		{"a huge target", target(strings.Repeat("x", 100<<10) + ":1"), "431"},
		{"thousands of parameters", target("localhost:1" + strings.Repeat("&a=b", 9000)), "200"},
		{"tens of thousands of parameters", target("localhost:1" + strings.Repeat("&a", 20_000)), "400"},
		{"metrics by wrong names", "GET /metrics?name[]=%ff HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"metrics in no known format", "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=9.9.9,;q=\r\nAccept-Encoding: ;q=x,,\r\n\r\n", "200"},
	} {
		feed(t, c.name, c.raw, c.want, false)
		if debug := strings.ReplaceAll(c.raw, "/probe?", "/probe?debug=true&"); debug != c.raw {
			feed(t, c.name+", debug", debug, c.want, false)
		}
	}
}

// A client that stops in the middle of its request, and waits for an answer.
func TestHalfRequests(t *testing.T) {
	startQuietExporter(t)
	const request = "GET /probe?target=localhost:10115 HTTP/1.1\r\nHost: x\r\n"
	for _, c := range []struct{ raw, want string }{
		{"", ""},
		{"GET /pro", "400"},
		{request, "400"},
		{request + "Acc", "400"},
		{request + "Content-Length: 10\r\n\r\nabc", "200"}, // no handler wants the body
		{request + "Transfer-Encoding: chunked\r\n\r\n5\r\nab", "200"},
		{clientHello(t)[:20], "400"},
	} {
		feed(t, "half a request", c.raw, c.want, true)
	}
}

// startQuietExporter starts the exporter for a test in which it is to log nothing.
func startQuietExporter(t *testing.T) {
	t.Helper()
	p := exporter.Start(t)
	exporter.Get(t, "/-/healthy") // now it has said that it listens
	before := p.Output()
	t.Cleanup(func() {
		if after := strings.TrimPrefix(p.Output(), before); after != "" {
			t.Errorf("logged %s", after)
		}
	})
}

// feed sends the exporter something raw, wants answers with these statuses and nothing
// more, and then a proper probe to be answered properly. With half it says at once that it
// will not send more.
func feed(t *testing.T, name, raw, want string, half bool) {
	t.Helper()
	conn := dial(t)
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.WriteString(conn, raw) // fails if the exporter has seen enough
		if half {
			conn.CloseWrite()
		}
	}()
	method, _, _ := strings.Cut(raw, " ")
	in := bufio.NewReader(conn)
	var got []string
	for last := false; !last && len(got) < len(strings.Fields(want)); {
		response, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Errorf("%s: %v after %v, want %s", name, err, got, want)
			return
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkAnswer(t, name, response, string(body))
		got = append(got, strconv.Itoa(response.StatusCode))
		last = response.Close
	}
	<-sent
	conn.CloseWrite()
	rest, err := io.ReadAll(in)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // the exporter left with something unread
		t.Errorf("%s: %v", name, err)
	}
	if strings.Join(got, " ") != want || len(rest) > 0 {
		t.Errorf("%s: %.50s, want %.50s; and then %.100q", name, got, want, rest)
	}
	if status, body := exporter.Get(t, "/probe?target=localhost:10115"); status != 200 || !strings.Contains(body, "\nprobe_success 1\n") {
		t.Fatalf("after %s: %d %s", name, status, body)
	}
}

// checkAnswer sees to it that an answer is an exposition or else text which can be shown,
// of one line if it is about a mistake.
func checkAnswer(t *testing.T, name string, response *http.Response, body string) {
	t.Helper()
	if response.Header["Set-Cookie"] != nil {
		t.Errorf("%s: headers %v", name, response.Header)
	}
	if strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain; version=") {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		if _, err := parser.TextToMetricFamilies(strings.NewReader(body)); err != nil {
			t.Errorf("%s: %v in %s", name, err, body)
		}
		return
	}
	if !utf8.ValidString(body) || strings.ContainsFunc(body, func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }) ||
		response.StatusCode != 200 && strings.Contains(strings.TrimRight(body, "\n"), "\n") {
		t.Errorf("%s: %q", name, body)
	}
}

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

// Nothing cuts off a probe that takes as long as any may, in HTTP/1.1 or HTTP/2.
func TestLongestProbe(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t)
	webConfig, client := newWebConfig(t)
	overTLS := process.Start(t, exporter.Command(t, "--web.listen-address=:10116", "--web.config.file="+webConfig))
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
	p := exporter.Start(t, "--web.config.file="+webConfig, "--log.format=json")
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

// A client that leaves in the middle of a probe takes the probe with it: the socket, which
// else would send SYNs for as long as the probe may take, and all that was kept for the
// client. The target gets no verdict.
func TestClientsThatLeave(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	for _, c := range []struct {
		how     string
		clients int
		linger  int // as SetLinger has it
	}{
		{"FIN", 1, -1},
		{"RST", 1, 0},
		{"FIN", 200, -1},
		{"RST", 200, 0},
	} {
		t.Run(fmt.Sprintf("%d by %s", c.clients, c.how), func(t *testing.T) {
			exporter.Start(t)
			before := exporter.Metrics(t)
			conns := make([]*net.TCPConn, c.clients)
			for i := range conns {
				conns[i] = dial(t)
				defer conns[i].Close()
				io.WriteString(conns[i], "GET /probe?target=192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
			}
			lab.Eventually(t, "all probes run", func() bool { return exporter.SilentHandshakes(t) == c.clients })
			for _, conn := range conns {
				conn.SetLinger(c.linger)
				conn.Close()
			}
			lab.Eventually(t, "all sockets are free", func() bool { return exporter.SilentHandshakes(t) == 0 })
			var after map[string]string
			lab.Eventually(t, "all probes are accounted for", func() bool {
				after = exporter.Metrics(t)
				gone, _ := strconv.Atoi(after[`shaker_probes_rejected_total{reason="caller_gone"}`])
				ended, _ := strconv.Atoi(after[`shaker_probes_total{module="tcp_connect"}`])
				return gone+ended == c.clients
			})
			for name, want := range map[string]string{
				`shaker_probes_rejected_total{reason="caller_gone"}`:                                   strconv.Itoa(c.clients),
				`shaker_probes_total{module="tcp_connect"}`:                                            "0",
				`shaker_probe_failures_total{module="tcp_connect",result="timeout",errno="ETIMEDOUT"}`: "",
				`shaker_probes_in_flight`:                                                              "0",
			} {
				if after[name] != want {
					t.Errorf("%s is %q, want %q", name, after[name], want)
				}
			}
			lab.Eventually(t, "all descriptors are free", func() bool {
				return exporter.Metrics(t)["process_open_fds"] == before["process_open_fds"]
			})
		})
	}
}

// A client that only says that it will send no more looks like one that has left: it loses
// its probe, too, but is there to be told.
func TestClientThatHalfCloses(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t)
	conn := dial(t)
	defer conn.Close()
	io.WriteString(conn, "GET /probe?target=192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
	wire.Await(1)
	conn.CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 503 ") || !strings.HasSuffix(string(answer), "context canceled\n") {
		t.Errorf("%v, %s", err, answer)
	}
}
