package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// mainEnv makes the test binary the exporter.
const mainEnv = "SHAKER_EXPORTER_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) == "1" {
		if name := os.Getenv(failEnv); name != "" {
			if err := fail(name); err != nil {
				panic(err)
			}
		}
		main()
		os.Exit(0)
	}
	lab.Main(m)
}

// exporter returns the exporter as a program with the arguments.
func exporter(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	return cmd
}

// startExporter starts the exporter on its usual port.
func startExporter(t testing.TB, args ...string) *process.Process {
	t.Helper()
	p := process.Start(t, exporter(t, args...))
	p.Listening(10115)
	return p
}

// get asks the exporter for a path and returns status and body. Without an answer the test
// is over.
func get(t testing.TB, path string) (int, string) {
	t.Helper()
	status, body := ask(t, 10115, path, "")
	if status == 0 {
		t.FailNow()
	}
	return status, body
}

// ask asks an exporter for a path, with Prometheus' scrape timeout in seconds if there is
// one, and returns status and body.
func ask(t testing.TB, port int, path, timeout string) (int, string) {
	t.Helper()
	request := newRequest(t, "GET", port, path)
	if timeout != "" {
		request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", timeout)
	}
	return do(t, request)
}

// newRequest returns a request to an exporter.
func newRequest(t testing.TB, method string, port int, path string) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://localhost:%d%s", port, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// do makes a request and returns status and body of the answer.
func do(t testing.TB, request *http.Request) (int, string) {
	t.Helper()
	response, err := lab.Client.Do(request)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(body)
}

func TestEndpoints(t *testing.T) {
	startExporter(t)
	for path, want := range map[string]struct {
		status int
		body   string // a part of it
	}{
		"/":                             {200, `<form action="probe"`},
		"/-/healthy":                    {200, "Healthy\n"},
		"/-/ready":                      {200, "Ready\n"},
		"/-/reload":                     {405, ""},
		"/config":                       {200, "tcp_connect_ip4:"},
		"/logs?target=absent:1":         {404, "nothing is in the history"},
		"/metrics":                      {200, "shaker_exporter_build_info{"},
		"/probe":                        {400, "target is missing"},
		"/probe?target=localhost:10115": {200, "probe_success 1\n"},
		"/nothing":                      {404, "404 page not found\n"},
		"/debug/pprof/":                 {404, ""},
	} {
		if status, body := get(t, path); status != want.status || !strings.Contains(body, want.body) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	response, err := lab.Client.Do(newRequest(t, "POST", 10115, "/probe?target=localhost:10115"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 405 || response.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, %v", response.StatusCode, response.Header)
	}
}

// On SIGTERM a running probe gets its answer, and the exporter ends with 0.
func TestShutdownDrains(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := startExporter(t)
	answer := make(chan string)
	go func() {
		status, body := ask(t, 10115, "/probe?target=192.0.2.1:443", "2.5")
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
	p := startExporter(t)
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

// The limit of open files has room for every probe that is let in.
func TestDefaultMaxInFlight(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	for limit, want := range map[uint64]int{1000: (1000 - 64 - runtime.GOMAXPROCS(0)) / 3, 64: 1} {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		if got := defaultMaxInFlight(); got != want {
			t.Errorf("with %d open files: %d probes, want %d", limit, got, want)
		}
	}
}

// A second signal ends the exporter at once, whatever is running.
func TestSecondSignal(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := startExporter(t)
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

func TestProbeFlags(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	startExporter(t, "--timeout-offset=1.5", "--probe.max-in-flight=1")
	if _, body := ask(t, 10115, "/probe?target=localhost:1", "4"); !strings.Contains(body, "probe_timeout_seconds 2.5\n") {
		t.Errorf("--timeout-offset: %s", body)
	}
	if _, body := get(t, "/metrics"); !strings.Contains(body, "\nshaker_probes_in_flight_limit 1\n") {
		t.Errorf("--probe.max-in-flight is no metric: %s", body)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		get(t, "/probe?target=192.0.2.1:443")
	}()
	wire.Await(1)
	if status, body := get(t, "/probe?target=localhost:1"); status != 503 {
		t.Errorf("--probe.max-in-flight: %d %s", status, body)
	}
	<-done
}

func TestWrongCommandLines(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--timeout-offset=NaN"}, "--timeout-offset is NaN, want 0 to 3600 seconds"},
		{[]string{"--timeout-offset=-1"}, "--timeout-offset is -1, want 0 to 3600 seconds"},
		{[]string{"--probe.max-in-flight=-1"}, "--probe.max-in-flight is -1, want 0 or more"},
		{[]string{"--history.limit=x"}, `--history.limit is "x": `},
		{[]string{"--history.limit=-1"}, "--history.limit is -1, want 0 or more"},
		{[]string{"--log.prober=warn"}, `--log.prober is "warn": `},
		{[]string{"--web.external-url=shaker"}, `--web.external-url is "shaker", want a URL such as https://example.com/shaker/`},
		{[]string{"--web.route-prefix=a b"}, `--web.route-prefix is "/a b", want a path such as /shaker`},
		{[]string{"--web.config.file=/absent"}, "open /absent: no such file or directory"},
		{[]string{"localhost:443"}, `unexpected localhost:443 (is "shaker_exporter probe localhost:443" meant?)`},
		{[]string{"--no-such-flag"}, "unknown long flag '--no-such-flag'"},
		{[]string{"--web.listen-address=nowhere"}, "missing port in address"},
	} {
		out, err := exporter(t, c.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v, %s", c.args, err, out)
		}
	}
}

// README shows the flags as --help prints them.
func TestREADMEFlags(t *testing.T) {
	var f flags
	app := kingpin.New(name, description)
	f.register(app)
	var help bytes.Buffer
	app.UsageWriter(&help).Terminate(nil)
	app.Usage(nil)
	_, want, _ := strings.Cut(help.String(), "Flags:\n")
	want = regexp.MustCompile(`(?m) +$`).ReplaceAllString(strings.Trim(want, "\n"), "")
	if !strings.Contains(lab.Read(t, "README.md"), "```text\n"+want+"\n```") {
		t.Errorf("README.md lacks\n%s", want)
	}
}

// README has a row for each metric, with its labels, and none for others.
func TestREADMEMetrics(t *testing.T) {
	startExporter(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", "modules: {tcp_connect: {prober: tcp, tcp: {addresses: all, path: always}}}"))
	exported := make(map[string]bool)
	simnet.NewWire(t, func(s simnet.Segment) [][]byte {
		return [][]byte{s.ICMPError(s.Dst.Addr(), 3, 13)}
	}, "192.0.2.0/24")
	for _, path := range []string{"/probe?target=192.0.2.1:1", "/probe?target=localhost:10115", "/metrics"} {
		_, body := get(t, path)
		for _, line := range regexp.MustCompile(`(?m)^# TYPE ((?:probe|shaker)_\S+)`).FindAllStringSubmatch(body, -1) {
			exported[line[1]+labelsOf(body, line[1])] = true
		}
	}
	if len(exported) < 20 {
		t.Fatalf("only %v", exported)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:probe|shaker)_[a-z_]+)(?:\\{([a-z_,]+)\\})?`").FindAllStringSubmatch(lab.Read(t, "README.md"), -1) {
		labels := strings.Split(row[2], ",")
		slices.Sort(labels)
		if want := row[1] + " " + strings.Join(labels, ","); !exported[want] {
			t.Errorf("README.md has a row for %s, which is not exported", want)
		} else {
			delete(exported, want)
		}
	}
	for name := range exported {
		t.Errorf("README.md has no row for %s", name)
	}
}

// labelsOf returns a space and the names of a metric's labels, in order, but for the bounds
// of histograms and what a build is described by.
func labelsOf(exposition, name string) string {
	series := regexp.MustCompile(`(?m)^` + name + `(?:_sum)?\{(.*)\} `).FindStringSubmatch(exposition)
	if series == nil || name == "shaker_exporter_build_info" {
		return " "
	}
	var labels []string
	for _, label := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(series[1], -1) {
		labels = append(labels, label[1])
	}
	slices.Sort(labels)
	return " " + strings.Join(labels, ",")
}
