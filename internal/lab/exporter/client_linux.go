package exporter

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// Get requests a path from the exporter on its default port and returns status and body. Without
// a response the test ends.
func Get(t testing.TB, path string) (status int, body string) {
	t.Helper()
	status, body = Scrape(t, Port, path, "")
	if status == 0 {
		t.FailNow()
	}
	return status, body
}

// Scrape requests a path from an exporter, with Prometheus' scrape timeout in seconds unless that
// is "", and returns status and body. Without a response the test fails and the status is 0.
func Scrape(t testing.TB, port int, path, timeout string) (status int, body string) {
	t.Helper()
	request := NewRequest(t, "GET", port, path)
	if timeout != "" {
		request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", timeout)
	}
	return Do(t, request)
}

// NewRequest returns a request to an exporter.
func NewRequest(t testing.TB, method string, port int, path string) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://localhost:%d%s", port, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// Do makes a request and returns status and body. Without a response the test fails and the
// status is 0.
func Do(t testing.TB, request *http.Request) (status int, body string) {
	t.Helper()
	response, err := lab.Client.Do(request)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(content)
}

// A Caller is a connection to the exporter for one request. A test opens many of them before the
// exporter gets into trouble, and uses them then.
type Caller struct{ net.Conn }

// Call connects the i-th caller. Each connects to an address of its own, so that callers compete
// for local ports neither with each other nor with the probes.
func Call(t testing.TB, i int) Caller {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.1.%d.%d:%d", i>>8, i&255, Port))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute)) // no response takes that long
	return Caller{conn}
}

// Answer is what a test looks at in a response.
type Answer struct {
	Status     int
	RetryAfter string
	Body       string
}

// Open reports whether the answer is that the target is open.
func (a Answer) Open() bool {
	return a.Status == 200 && strings.Contains(a.Body, "\nprobe_success 1\n")
}

// Get requests a path. When it returns, the exporter has closed the connection.
func (c Caller) Get(t testing.TB, path string, headers ...string) (a Answer) {
	t.Helper()
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
		t.Errorf("GET %s: after the response: %v, want EOF", path, err)
	}
	return Answer{response.StatusCode, response.Header.Get("Retry-After"), string(body)}
}

// Metric returns the value of one of the exporter's own series, 0 if there is no such series.
func Metric(t testing.TB, series string) int {
	t.Helper()
	metrics := Call(t, 0).Get(t, "/metrics").Body
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

// Metrics returns the values of all of the exporter's own series, by name and labels.
func Metrics(t testing.TB) map[string]string {
	t.Helper()
	_, body := Get(t, "/metrics")
	metrics := make(map[string]string)
	for line := range strings.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		metrics[name] = value
	}
	return metrics
}

// SilentHandshakes returns how many sockets of the namespace are in SYN_SENT to port 443: how many
// probes of silent targets are under way.
func SilentHandshakes(t testing.TB) (n int) {
	t.Helper()
	for _, s := range kernel.Sockets(t) {
		if s.State == unix.BPF_TCP_SYN_SENT && s.Far == 443 {
			n++
		}
	}
	return n
}
