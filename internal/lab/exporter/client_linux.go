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

// Get requests a path from the exporter on its default port and returns the status and the body. If there
// is no response, the test fails and ends.
func Get(t testing.TB, path string) (status int, body string) {
	t.Helper()
	status, body = Scrape(t, Port, path, "")
	if status == 0 {
		t.FailNow()
	}
	return status, body
}

// Scrape requests a path from an exporter and returns the status and the body. Unless timeout is "", the
// request has the header in which Prometheus sends its scrape timeout, in seconds. If there is no response,
// the test fails and the status is 0.
func Scrape(t testing.TB, port int, path, timeout string) (status int, body string) {
	t.Helper()
	request := NewRequest(t, "GET", port, path)
	if timeout != "" {
		request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", timeout)
	}
	return Do(t, request)
}

// NewRequest returns a request to the exporter on a port of this host.
func NewRequest(t testing.TB, method string, port int, path string) *http.Request {
	t.Helper()
	url := fmt.Sprintf("http://localhost:%d%s", port, path)
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// Do sends a request and returns the status and the body of the response. If there is no response, the
// test fails and the status is 0.
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
		t.Errorf("%s %s: the body of the response: %v", request.Method, request.URL, err)
	}
	return response.StatusCode, string(content)
}

// A Caller is a connection to the exporter for one request. A test opens many callers before it exhausts a
// resource of the exporter, and sends their requests afterwards.
type Caller struct{ net.Conn }

// Call connects the i-th caller. Each caller connects to an address of its own, so that callers do not
// compete for local ports with each other or with the probes.
func Call(t testing.TB, i int) Caller {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.1.%d.%d:%d", i>>8, i&255, Port))
	if err != nil {
		t.Fatalf("connecting caller %d: %v", i, err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute)) // longer than any response takes
	return Caller{conn}
}

// An Answer is the part of a response that tests compare.
type Answer struct {
	Status     int
	RetryAfter string
	Body       string
}

// Open reports whether the answer is the result of a successful probe.
func (a Answer) Open() bool {
	return a.Status == 200 && strings.Contains(a.Body, "\nprobe_success 1\n")
}

// Get requests a path and returns the answer. When it returns, the exporter has closed the connection.
func (c Caller) Get(t testing.TB, path string, headers ...string) (a Answer) {
	t.Helper()
	defer c.Close()
	lines := append([]string{"GET " + path + " HTTP/1.1", "Host: x", "Connection: close"}, headers...)
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Errorf("GET %s: the request: %v", path, err)
		return a
	}
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Errorf("GET %s: the response: %v", path, err)
		return a
	}
	body, err := io.ReadAll(response.Body)
	if err == nil {
		_, err = reader.Peek(1) // EOF when the exporter closes the connection
	}
	if err != io.EOF {
		t.Errorf("GET %s: after the response: %v, want EOF", path, err)
	}
	return Answer{response.StatusCode, response.Header.Get("Retry-After"), string(body)}
}

// Metric returns the value of a series on /metrics, 0 if there is no such series.
func Metric(t testing.TB, series string) int {
	t.Helper()
	metrics := Call(t, 0).Get(t, "/metrics").Body
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(metrics)
	if line == nil {
		return 0
	}
	value, err := strconv.ParseFloat(line[1], 64)
	if err != nil {
		t.Errorf("the value of %s: %v", series, err)
	}
	return int(value)
}

// Metrics returns the values of all series on /metrics, by name and labels.
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

// SilentHandshakes returns the number of sockets of the namespace in state SYN_SENT to port 443: the number
// of running probes of silent targets.
func SilentHandshakes(t testing.TB) (n int) {
	t.Helper()
	for _, s := range kernel.Sockets(t) {
		if s.State == unix.BPF_TCP_SYN_SENT && s.Far == 443 {
			n++
		}
	}
	return n
}
