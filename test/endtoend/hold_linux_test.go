package endtoend

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

const holdConfig = `
modules:
  redis:
    prober: hold
    hold:
      keepalive: {idle: 2s, interval: 1s, count: 2}
      heartbeat: {interval: 1s, timeout: 400ms, send: "PING\r\n", expect: '^\+PONG', frame: {delimiter: "\r\n"}}
      reconnect: {min: 200ms, max: 2s}
  keepalive:
    prober: hold
    hold: {keepalive: {idle: 1s, interval: 1s, count: 2}}
  fin:
    prober: hold
    hold: {keepalive: {idle: 60s}}
  rst:
    prober: hold
    hold: {keepalive: {idle: 60s}, close: reset}
`

// A scrape is the response to a scrape of a held target.
type scrape map[string]float64

var sample = regexp.MustCompile(`(?m)^([^#\s]\S*) (\S+)$`)

// scrapeHeld scrapes a target.
func scrapeHeld(t *testing.T, module, target string) scrape {
	t.Helper()
	path := "/probe?module=" + module + "&target=" + target
	status, body := exporter.Get(t, path)
	if status != http.StatusOK {
		t.Fatalf("GET %s = %d %s, want 200", path, status, body)
	}
	found := make(scrape)
	for _, series := range sample.FindAllStringSubmatch(body, -1) {
		found[series[1]], _ = strconv.ParseFloat(series[2], 64)
	}
	return found
}

// result reports whether the scrape has a result and an errno.
func (s scrape) result(result, errno string) bool {
	return s[fmt.Sprintf("probe_result_info{result=%q,errno=%q}", result, errno)] == 1
}

// awaitHeld scrapes a target until it has a result.
func awaitHeld(t *testing.T, module, target, result, errno string) (last scrape) {
	t.Helper()
	lab.Eventually(t, target+" is "+result, func() bool {
		last = scrapeHeld(t, module, target)
		return last.result(result, errno)
	})
	if success := last["probe_success"] == 1; success != (result == "open") {
		t.Errorf("%s is %s and probe_success is %v", target, result, last["probe_success"])
	}
	return last
}

// A Redis server is stopped, continued, killed, and started again. The exporter's counters are those of the server. The
// control: while Redis is stopped, a connection without heartbeats looks open, because the kernel answers keepalives.
func TestHoldRedis(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const target = "127.0.0.1:7400"
	redis := func() *process.Process {
		p := process.Start(t, exec.Command(lab.Program(t, "redis-server", "redis-server"),
			"--bind", "127.0.0.1", "--port", "7400", "--save", "", "--dir", t.TempDir()))
		p.Listening(7400)
		return p
	}
	server := redis()
	p := exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", holdConfig), "--log.prober=info")
	awaitHeld(t, "redis", target, "open", "")
	lab.Eventually(t, "three heartbeats are answered", func() bool {
		return scrapeHeld(t, "redis", target)["probe_hold_heartbeat_seconds_count"] >= 3
	})

	awaitHeld(t, "keepalive", target, "open", "")
	server.Signal(syscall.SIGSTOP)
	lab.Eventually(t, "Redis is stopped", server.Stopped)
	stopped := scrapeHeld(t, "keepalive", target)
	silent := awaitHeld(t, "redis", target, "silent", "")
	// The first heartbeat that is not answered in time makes the target silent.
	if n := silent[`probe_hold_heartbeat_failures_total{result="silent"}`]; n != 1 {
		t.Errorf("%v heartbeats were not answered when Redis was silent, want 1", n)
	}
	if silent["probe_hold_established_timestamp_seconds"] == 0 || silent["probe_hold_keepalives_unanswered"] != 0 {
		t.Errorf("while Redis is stopped: %v, want an established connection, and answered keepalives", silent)
	}
	const lastAnswer = "probe_hold_last_answer_timestamp_seconds"
	lab.Eventually(t, "the kernel has answered a keepalive while Redis is stopped", func() bool {
		return scrapeHeld(t, "keepalive", target)[lastAnswer] > stopped[lastAnswer]+0.5
	})
	if !server.Stopped() {
		t.Error("Redis is running, want it stopped")
	}
	if control := scrapeHeld(t, "keepalive", target); !control.result("open", "") || control["probe_success"] != 1 {
		t.Errorf("while Redis is stopped, without heartbeats: %v, want open", control)
	}
	server.Signal(syscall.SIGCONT)
	awaitHeld(t, "redis", target, "open", "")

	before := scrapeHeld(t, "redis", target)
	pings := redisCount(t, target, "cmdstat_ping:calls")
	connections := redisCount(t, target, "total_connections_received")
	after := scrapeHeld(t, "redis", target)
	const answers = "probe_hold_heartbeat_seconds_count"
	if float64(pings) < before[answers] || float64(pings) > after[answers] {
		t.Errorf("Redis has answered %d heartbeats, %s was %v and then %v",
			pings, answers, before[answers], after[answers])
	}
	if connections != 4 { // one of each module, and two of this test
		t.Errorf("Redis has had %d connections, want 2 held ones, and 2 of this test", connections)
	}

	server.Signal(syscall.SIGKILL)
	server.Wait()
	refused := awaitHeld(t, "redis", target, "refused", "ECONNREFUSED")
	if refused[`probe_hold_closes_total{result="closed",errno=""}`]+
		refused[`probe_hold_closes_total{result="reset",errno="ECONNRESET"}`] != 1 ||
		refused["probe_hold_lifetime_seconds_count"] != 1 || refused["probe_hold_last_data_timestamp_seconds"] == 0 {
		t.Errorf("after Redis was killed: %v, want one close, a lifetime, and when Redis was heard last", refused)
	}
	redis()
	back := awaitHeld(t, "redis", target, "open", "")
	if back[`probe_hold_connects_total{result="open",errno=""}`] != 2 {
		t.Errorf("after the return: %v, want two connects", back)
	}
	p.Signal(syscall.SIGTERM)
	if status := p.Wait(); status != 0 {
		t.Errorf("the exporter ended with status %d, want 0", status)
	}
	const redisTarget = " target=" + target + " module=redis "
	if log := p.Output(); strings.Count(log, `msg="Held target fails"`+redisTarget) != 2 ||
		strings.Count(log, `msg="Held target has recovered"`+redisTarget) != 2 ||
		!strings.Contains(log, "result=silent") {
		t.Errorf("the log has\n%s\nwant two failures, one of them silent, and two recoveries", log)
	}
}

// redisCount returns a number from the statistics of a Redis server.
func redisCount(t *testing.T, target, name string) int {
	t.Helper()
	conn, err := net.Dial("tcp", target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "INFO everything\r\nQUIT\r\n")
	info, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("INFO of Redis: %v", err)
	}
	key, field, ok := strings.Cut(name, ":")
	pattern := key + `:(\d+)`
	if ok {
		pattern = key + ":" + field + `=(\d+)`
	}
	found := regexp.MustCompile(pattern).FindSubmatch(info)
	if found == nil {
		t.Fatalf("INFO of Redis has no %s:\n%s", name, info)
	}
	n, _ := strconv.Atoi(string(found[1]))
	return n
}

// endings counts how the connections to a server have ended.
type endings struct{ open, fin, rst atomic.Int64 }

// countEndings serves an address, and reads what is sent.
func countEndings(t *testing.T, address string) *endings {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	e := &endings{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			e.open.Add(1)
			go func() {
				defer conn.Close()
				_, err := io.Copy(io.Discard, conn)
				switch e.open.Add(-1); {
				case err == nil:
					e.fin.Add(1)
				case errors.Is(err, syscall.ECONNRESET):
					e.rst.Add(1)
				}
			}()
		}
	}()
	return e
}

// At the end, the exporter closes all connections as the module says, and none is left.
func TestHoldShutdown(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const each = 500
	lab.NeedDescriptors(t, 4*each)
	fin, rst := countEndings(t, "0.0.0.0:7401"), countEndings(t, "0.0.0.0:7402")
	p := exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", holdConfig))
	for i := range each {
		scrapeHeld(t, "fin", fmt.Sprintf("127.0.%d.%d:7401", i/200, i%200+1))
		scrapeHeld(t, "rst", fmt.Sprintf("127.0.%d.%d:7402", i/200, i%200+1))
	}
	if n := exporter.Metric(t, `shaker_held_connections{module="fin"}`); n != each {
		t.Errorf("%d held connections of the module, want %d", n, each)
	}
	lab.Eventually(t, "all connections are accepted", func() bool {
		return fin.open.Load() == each && rst.open.Load() == each
	})
	p.Signal(syscall.SIGTERM)
	if status := p.Wait(); status != 0 {
		t.Errorf("the exporter ended with status %d, want 0", status)
	}
	lab.Eventually(t, "all connections have ended", func() bool { return fin.open.Load()+rst.open.Load() == 0 })
	if fin.fin.Load() != each || rst.rst.Load() != each {
		t.Errorf("close: fin ended %d connections with a FIN, close: reset %d with an RST, want %d each",
			fin.fin.Load(), rst.rst.Load(), each)
	}
	if strings.Contains(p.Output(), "level=WARN") || strings.Contains(p.Output(), "level=ERROR") {
		t.Errorf("the log has warnings:\n%s", p.Output())
	}
}

// A limit is a fault with a hint when to try again. A reload keeps the connections of modules that stay.
func TestHoldLimitAndReload(t *testing.T) {
	e := countEndings(t, "0.0.0.0:7403")
	directory := t.TempDir()
	exporter.Start(t, "--config.file="+lab.Write(t, directory, "shaker.yml", holdConfig), "--hold.max-connections=1")
	const path = "/probe?module=fin&target=127.0.0.1:7403"
	if status, body := exporter.Do(t, exporter.NewRequest(t, http.MethodHead, exporter.Port, path)); status != 200 ||
		body != "" {
		t.Errorf("HEAD of a held target = %d %q, want 200 without a body", status, body)
	}
	answer := exporter.Call(t, 0).Get(t, "/probe?module=fin&target=127.0.0.2:7403")
	if answer.Status != http.StatusServiceUnavailable || answer.RetryAfter == "" ||
		!strings.Contains(answer.Body, "--hold.max-connections") {
		t.Errorf("beyond the limit: %+v, want 503 with Retry-After, and the flag", answer)
	}
	if n := exporter.Metric(t, `shaker_probes_rejected_total{reason="hold_limit"}`); n != 1 {
		t.Errorf("%d requests rejected by the limit, want 1", n)
	}
	if status, body := exporter.Get(t, path+"&debug=true"); status != 200 ||
		!strings.HasPrefix(body, "# Held since ") || !strings.Contains(body, "SYN-ACK from 127.0.0.1:7403") ||
		strings.Contains(body, "RST, final ACK") {
		t.Errorf("debug=true = %d\n%.400s\nwant since when the target is held, and its last connect", status, body)
	}
	reload := func(text string) {
		t.Helper()
		lab.Write(t, directory, "shaker.yml", text)
		request := exporter.NewRequest(t, http.MethodPost, exporter.Port, "/-/reload")
		if status, body := exporter.Do(t, request); status != 200 {
			t.Fatalf("reload = %d %s, want 200", status, body)
		}
	}
	reload(holdConfig + "  other: {prober: tcp}\n")
	if n := scrapeHeld(t, "fin", "127.0.0.1:7403")[`probe_hold_connects_total{result="open",errno=""}`]; n != 1 ||
		e.fin.Load() != 0 {
		t.Errorf("%v connects after a reload that changes another module, want 1", n)
	}
	reload(`targets: {deny: ["127.0.0.1/32:*"]}` + holdConfig)
	lab.Eventually(t, "the connection that is denied now is closed", func() bool { return e.fin.Load() == 1 })
	if status, body := exporter.Get(t, path); status != http.StatusForbidden {
		t.Errorf("a scrape of a target that is denied now = %d %s, want 403", status, body)
	}
	scrapeHeld(t, "fin", "127.0.0.2:7403") // the limit permits it now
	if n := exporter.Metric(t, `shaker_held_connections{module="fin"}`); n != 1 {
		t.Errorf("%d held connections, want 1", n)
	}
}

// The exporter is stopped for longer than a heartbeat may take. It has been late itself, so no heartbeat has failed.
func TestHoldStopped(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:7404")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				for line := make([]byte, 6); ; {
					if _, err := io.ReadFull(conn, line); err != nil {
						return
					}
					io.WriteString(conn, "+PONG\r\n")
				}
			}()
		}
	}()
	p := exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", holdConfig))
	const target = "127.0.0.1:7404"
	for range 5 {
		lab.Eventually(t, "a heartbeat is answered", func() bool {
			return scrapeHeld(t, "redis", target)["probe_hold_heartbeats_total"] >= 1
		})
		p.Signal(syscall.SIGSTOP)
		lab.Eventually(t, "the exporter is stopped", p.Stopped)
		time.Sleep(1100 * time.Millisecond)
		p.Signal(syscall.SIGCONT)
	}
	last := scrapeHeld(t, "redis", target)
	for _, result := range []string{"silent", "timeout", "mismatch"} {
		if n := last[fmt.Sprintf("probe_hold_heartbeat_failures_total{result=%q}", result)]; n != 0 {
			t.Errorf("%v heartbeats failed with %s while the exporter was stopped, want 0", n, result)
		}
	}
	if !last.result("open", "") {
		t.Errorf("after the exporter was stopped: %v, want open", last)
	}
}
