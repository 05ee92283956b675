package hold

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The first scrape opens the connection, and all others share it.
func TestScrape(t *testing.T) {
	b := newBench(t, 0)
	s := serve(t, "127.0.0.1:0")
	before := time.Now()
	first := b.scrape(s.address, "plain")
	if !first.Success() || first.Handshake.Handshake <= 0 || first.Hold.Established.Before(before.Add(-time.Second)) {
		t.Errorf("the first scrape = %+v, %+v, want open, with the handshake and since when", first.Verdict, first.Hold)
	}
	var scraping sync.WaitGroup
	for range 20 {
		scraping.Go(func() { b.scrape(s.address, "plain") })
	}
	scraping.Wait()
	last := b.scrape(s.address, "plain")
	if !last.Hold.Established.Equal(first.Hold.Established) {
		t.Errorf("established at %v, and then at %v, want the same", first.Hold.Established, last.Hold.Established)
	}
	if n := s.connections(); n != 1 {
		t.Errorf("%d connections after 22 scrapes, want 1", n)
	}
	if h := last.Hold; total(h.Connects, "open") != 1 || total(h.Connects, "") != 1 || total(h.Closes, "") != 0 ||
		h.Heartbeat != nil || h.HasName || h.LastAnswer.IsZero() || !h.LastData.IsZero() {
		t.Errorf("the last scrape has %+v, want one connect, an answer, and no heartbeats, data or name", h)
	}
	b.checkChanges()
}

// Scrapes of a new target at the same time open one connection.
func TestScrapesAtOnce(t *testing.T) {
	b := newBench(t, 0)
	s := serve(t, "127.0.0.1:0")
	var scraping sync.WaitGroup
	for range 50 {
		scraping.Go(func() {
			if a := b.scrape(s.address, "plain"); !a.Success() {
				t.Errorf("a first scrape = %+v, want open", a.Verdict)
			}
		})
	}
	scraping.Wait()
	if n := s.connections(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// A connection that has ended is counted by the reason, and opened again.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(*net.TCPConn)
		result string
		errno  string
	}{
		"FIN":        {end: func(c *net.TCPConn) { c.Close() }, result: "closed"},
		"half of it": {end: func(c *net.TCPConn) { c.CloseWrite() }, result: "closed"},
		"RST":        {end: func(c *net.TCPConn) { c.SetLinger(0); c.Close() }, result: "reset", errno: "ECONNRESET"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 0)
			s := serve(t, "127.0.0.1:0")
			b.scrape(s.address, "plain")
			conn := s.accept()
			s.listener.Close() // so that it stays closed
			c.end(conn)
			ended := b.await(s.address, "plain", "the connection has ended", func(a Answer) bool {
				return total(a.Hold.Closes, "") == 1
			})
			if ended.Hold.Closes[0] != (ResultCount{Result: c.result, Errno: c.errno, Total: 1}) ||
				ended.Hold.Lifetime.GetSampleCount() != 1 || !ended.Hold.Established.IsZero() ||
				ended.Hold.LastAnswer.IsZero() {
				t.Errorf("after the end: %+v, want one of %s %s, a lifetime, no connection",
					ended.Hold, c.result, c.errno)
			}
			refused := b.awaitResult(s.address, "plain", "refused")
			got := b.target(s.address, "plain").status()
			if got.Reason != "connect failed" || got.Failure != "refused" {
				t.Errorf("the status page has the reason %q and the failure %q, want connect failed, refused",
					got.Reason, got.Failure)
			}
			if refused.Success() || refused.Errno != "ECONNREFUSED" {
				t.Errorf("while the port is closed: %+v, want refused", refused.Verdict)
			}
			again := serve(t, s.address)
			back := b.awaitResult(s.address, "plain", "open")
			again.accept()
			if got := b.target(s.address, "plain").status(); got.Reason != "" || got.Failure != "refused" {
				t.Errorf("after the return the status page has the reason %q and the failure %q, want none, refused",
					got.Reason, got.Failure)
			}
			if total(back.Hold.Connects, "open") != 2 || total(back.Hold.Connects, "refused") == 0 ||
				total(back.Hold.Closes, "") != 1 {
				t.Errorf("after the return: %+v, want two connects, some that were refused, one close", back.Hold)
			}
			b.checkChanges(c.result, "open")
			records := b.results.Tracks(s.address, "plain")[0].Records
			if first, last := records[0], records[len(records)-1]; first.Result != c.result || first.Errno != c.errno ||
				!strings.HasPrefix(first.Reason, "connection ended after ") || first.Success || !last.Success {
				t.Errorf("the history has %+v … %+v, want the end and the return", first, last)
			}
		})
	}
}

// An application that does not answer is silent, although its kernel answers. A late answer counts with its true time.
func TestHeartbeats(t *testing.T) {
	b := newBench(t, 0)
	s := serve(t, "127.0.0.1:0")
	b.connect(s.address, "asks")
	conn := s.accept()
	in := bufio.NewReader(conn)
	answer := func(text string) {
		t.Helper()
		readLine(t, in, "PING\r\n")
		io.WriteString(conn, text)
	}
	answer("+PONG\r\n")
	b.await(s.address, "asks", "a heartbeat is answered", func(a Answer) bool { return a.Hold.Heartbeat.Total == 1 })
	readLine(t, in, "PING\r\n")
	silent := b.awaitResult(s.address, "asks", "silent")
	if silent.Success() || silent.Errno != "" || silent.Hold.Established.IsZero() || silent.Hold.LastData.IsZero() {
		t.Errorf("without an answer: %+v, %+v, want silent, on an established connection", silent.Verdict, silent.Hold)
	}
	if got := b.target(s.address, "asks").status(); got.Result != "silent" || got.Reason != "no answer to a heartbeat" {
		t.Errorf("the status page has the result %s and the reason %q, want silent, no answer to a heartbeat",
			got.Result, got.Reason)
	}
	b.await(s.address, "asks", "the next interval fails, too", func(a Answer) bool {
		return total(a.Hold.Heartbeat.Failures, "silent") == 2
	})
	io.WriteString(conn, "+PONG\r\n")
	b.awaitResult(s.address, "asks", "open")
	answer("-ERR\r\n")
	b.awaitResult(s.address, "asks", "mismatch")
	answer("+PONG\r\n")
	last := b.awaitResult(s.address, "asks", "open")
	beats := last.Hold.Heartbeat
	if beats.Total != 5 || total(beats.Failures, "silent") != 2 || total(beats.Failures, "mismatch") != 1 ||
		total(beats.Failures, "") != 3 || beats.Latency.GetSampleCount() != 4 || beats.Latency.GetSampleSum() < 1 {
		t.Errorf("heartbeats: %+v, want 5, 2 of them silent, 1 a mismatch, 4 answers, one after more than 1 s", beats)
	}
	if n := s.connections(); n != 1 || total(last.Hold.Closes, "") != 0 {
		t.Errorf("%d connections, closes %v, want one that stays", n, last.Hold.Closes)
	}
	b.checkChanges("silent", "open", "mismatch", "open")
}

// A target that ends the connection before it has answered two heartbeats as expected does not want the connection. The
// first answer may be its greeting, and another answer that it does not understand the heartbeat.
func TestRejection(t *testing.T) {
	for name, c := range map[string]struct {
		answers  []string
		rejected bool
	}{
		"no answer":             {answers: nil, rejected: true},
		"one answer":            {answers: []string{"+PONG\r\n"}, rejected: true},
		"unexpected answers":    {answers: []string{"-ERR\r\n", "-ERR\r\n"}, rejected: true},
		"one and an unexpected": {answers: []string{"+PONG\r\n", "-ERR\r\n"}, rejected: true},
		"two answers":           {answers: []string{"+PONG\r\n", "+PONG\r\n"}, rejected: false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 0)
			s := serve(t, "127.0.0.1:0")
			b.connect(s.address, "patient")
			conn := s.accept()
			in := bufio.NewReader(conn)
			for i, answer := range c.answers {
				readLine(t, in, "PING\r\n")
				io.WriteString(conn, answer)
				result := "open"
				if answer[0] == '-' {
					result = "mismatch"
				}
				b.await(s.address, "patient", "the answer has arrived", func(a Answer) bool {
					return a.Hold.Heartbeat.Total == uint64(i+1) && a.Result == result
				})
			}
			conn.Close()
			b.await(s.address, "patient", "the connection has ended", func(a Answer) bool {
				return total(a.Hold.Closes, "") == 1
			})
			target := b.target(s.address, "patient")
			target.mu.Lock()
			defer target.mu.Unlock()
			if rejected := !target.backoff.rejected.IsZero(); rejected != c.rejected {
				t.Errorf("after the answers %q and the end, the target does not want the connection: %t, want %t",
					c.answers, rejected, c.rejected)
			}
		})
	}
}

// A greeting that does not match ends the connection.
func TestGreeting(t *testing.T) {
	b := newBench(t, 0)
	s := serve(t, "127.0.0.1:0")
	b.connect(s.address, "greeted")
	conn := s.accept()
	io.WriteString(conn, "554 no\r\n")
	mismatch := b.awaitResult(s.address, "greeted", "mismatch")
	if h := mismatch.Hold; total(h.Closes, "mismatch") != 1 || h.Lifetime.GetSampleCount() != 1 {
		t.Errorf("after a wrong greeting: %+v, want one close because of it", h)
	}
	if got, err := io.ReadAll(conn); string(got) != "NOOP\r\n" || err != nil {
		t.Errorf("the target has read %q, error %v, want the first heartbeat, and the end of the connection", got, err)
	}
	conn = s.accept()
	io.WriteString(conn, "220 yes\r\n")
	readLine(t, bufio.NewReader(conn), "NOOP\r\n")
	io.WriteString(conn, "250 yes\r\n")
	b.awaitResult(s.address, "greeted", "open")
	s.none()
	b.checkChanges("mismatch", "open")
}

// A target is open when it has answered on a connection, not with the connect before that. Until then, a first scrape
// has no answer, and a later one the previous result.
func TestOpenWithAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		module    string
		greeting  string // before the answers, "" for none
		question  string // the heartbeat, "" for none
		good, bad string
	}{
		"heartbeat": {module: "redis", question: "PING\r\n", good: "+PONG\r\n", bad: "-ERR\r\n"},
		"greeting":  {module: "banner", good: "220 yes\r\n", bad: "554 no\r\n"},
		"greeting and heartbeat": {module: "smtp", greeting: "220 yes\r\n",
			question: "NOOP\r\n", good: "250 yes\r\n", bad: "554 no\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 0)
			b.reload(testConfig + answeringModules)
			s := serve(t, "127.0.0.1:0")
			answer := func(conn net.Conn, text string) {
				if c.question != "" {
					readLine(t, bufio.NewReader(conn), c.question)
				}
				io.WriteString(conn, text)
			}
			short := b.request(s.address, c.module)
			short.Timeout = 50 * time.Millisecond
			if a, err := b.holder.Scrape(t.Context(), short, ""); !errors.Is(err, ErrPending) {
				t.Errorf("the first scrape = %+v, error %v, want %v: the target has not answered",
					a.Report, err, ErrPending)
			}
			for n := range uint64(2) {
				conn := s.accept()
				io.WriteString(conn, c.greeting)
				if n > 0 {
					connected := b.await(s.address, c.module, "there is a connection", func(a Answer) bool {
						return total(a.Hold.Connects, "open") == n+1 && !a.Hold.Established.IsZero()
					})
					if connected.Success() {
						t.Errorf("before an answer on connection %d: %+v, want the previous result",
							n+1, connected.Verdict)
					}
				}
				answer(conn, c.bad)
				b.awaitResult(s.address, c.module, "mismatch")
				conn.Close()
				b.await(s.address, c.module, "the connection has ended", func(a Answer) bool {
					return total(a.Hold.Closes, "") == n+1
				})
			}
			b.checkChanges("mismatch")
			conn := s.accept()
			io.WriteString(conn, c.greeting)
			answer(conn, c.good)
			b.awaitResult(s.address, c.module, "open")
			b.checkChanges("open")
		})
	}
}

// answeringModules have time for an answer that a test gives.
const answeringModules = `
  redis:
    prober: hold
    hold:
      reconnect: {min: 100ms, max: 1s}
      heartbeat: {interval: 1h, timeout: 1m, send: "PING\r\n", expect: '^\+PONG$', frame: {delimiter: "\r\n"}}
  banner:
    prober: hold
    timeout: 1m
    hold: {greeting: '^220 ', reconnect: {min: 100ms, max: 1s}}
  smtp:
    prober: hold
    timeout: 1m
    hold:
      reconnect: {min: 100ms, max: 1s}
      greeting: '^220 '
      heartbeat: {interval: 1h, timeout: 1m, send: "NOOP\r\n", expect: '^250 ', frame: {delimiter: "\r\n"}}
`

// none fails the test if there was a connection that the test has not accepted.
func (s *server) none() {
	s.t.Helper()
	if n := len(s.accepted); n != 0 {
		s.t.Errorf("%d more connections to %s, want none", n, s.address)
	}
}

// Without a greeting, a target is silent, and nothing is sent.
func TestMissingGreeting(t *testing.T) {
	b := newBench(t, 0)
	s := serve(t, "127.0.0.1:0")
	b.connect(s.address, "greeted")
	conn := s.accept()
	silent := b.awaitResult(s.address, "greeted", "silent")
	if beats := silent.Hold.Heartbeat; beats.Total != 0 || total(beats.Failures, "") != 0 {
		t.Errorf("heartbeats without a greeting: %+v, want none", beats)
	}
	io.WriteString(conn, "220 late\r\n")
	readLine(t, bufio.NewReader(conn), "NOOP\r\n")
	io.WriteString(conn, "250 yes\r\n")
	b.awaitResult(s.address, "greeted", "open")
}

// The history of a target ends with its expiry, and with a reload that removes its module: the status page must not
// show its last failure as the present state.
func TestHistoryEnds(t *testing.T) {
	for name, end := range map[string]func(*bench){
		"expiry": func(b *bench) { b.expire(time.Hour) },
		"reload": func(b *bench) { b.reload("modules: {other: {prober: hold}}") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 0)
			s := serve(t, "127.0.0.1:0")
			b.scrape(s.address, "plain")
			conn := s.accept()
			s.listener.Close() // so that it stays closed
			conn.Close()
			b.awaitResult(s.address, "plain", "refused")
			if tracks := b.results.Tracks(s.address, "plain"); len(tracks) != 1 || tracks[0].Ended {
				t.Errorf("the history of a held target has %+v, want one track that has not ended", tracks)
			}
			end(b)
			if tracks := b.results.Tracks(s.address, "plain"); len(tracks) != 1 || !tracks[0].Ended {
				t.Errorf("after the %s, the history has %+v, want one track that has ended", name, tracks)
			}
		})
	}
}

// A slow expression does not hold up other targets.
func TestSlowExpression(t *testing.T) {
	b := newBench(t, 0)
	b.reload(testConfig + `
  slow:
    prober: hold
    timeout: 2s
    hold: {heartbeat: {interval: 1h, send: "?", expect: '(a?){400}b$', frame: {delimiter: "\n"}, max_frame: 1MiB}}
`)
	slow, fast := serve(t, "127.0.0.1:0"), serve(t, "127.0.0.1:0")
	b.connect(slow.address, "slow")
	asking := slow.accept()
	if _, err := io.ReadFull(asking, make([]byte, len("?"))); err != nil { // an earlier answer is not matched
		t.Fatal(err)
	}
	go io.WriteString(asking, slowFrame())
	checking := func() bool {
		target := b.target(slow.address, "slow")
		target.mu.Lock()
		defer target.mu.Unlock()
		return target.beat.checking
	}
	lab.Eventually(t, "the answer is being matched", checking)
	b.connect(fast.address, "asks")
	conn := fast.accept()
	readLine(t, bufio.NewReader(conn), "PING\r\n")
	io.WriteString(conn, "+PONG\r\n")
	b.await(fast.address, "asks", "a heartbeat is answered", func(a Answer) bool { return a.Hold.Heartbeat.Total == 1 })
	if !checking() {
		lab.Skip(t, "this machine has matched the slow expression meanwhile")
	}
	b.awaitResult(slow.address, "slow", "mismatch")
}

// slowFrame returns a frame that takes seconds to match (a?){400}.
func slowFrame() string {
	length := 1 << 18
	if lab.Race {
		length /= 8
	}
	return strings.Repeat("a", length) + "\n"
}

// An answer that arrives while the greeting is being matched counts afterwards: the next heartbeat may be an hour away.
func TestAnswerDuringSlowGreeting(t *testing.T) {
	b := newBench(t, 0)
	b.reload(testConfig + `
  slow:
    prober: hold
    hold:
      greeting: '(a?){400}b?$'
      heartbeat:
        {interval: 1h, timeout: 1m, send: "?", expect: '^!$', frame: {delimiter: "\n"}, max_frame: 1MiB}
`)
	s := serve(t, "127.0.0.1:0")
	short := b.request(s.address, "slow")
	short.Timeout = 50 * time.Millisecond
	if a, err := b.holder.Scrape(t.Context(), short, ""); !errors.Is(err, ErrPending) {
		t.Errorf("the first scrape = %+v, error %v, want %v: the greeting is missing", a.Report, err, ErrPending)
	}
	conn := s.accept()
	go io.WriteString(conn, slowFrame())
	if _, err := io.ReadFull(conn, make([]byte, len("?"))); err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "!\n")
	target := b.target(s.address, "slow")
	lab.Eventually(t, "the answer has arrived", func() bool {
		target.mu.Lock()
		defer target.mu.Unlock()
		return target.heartbeats == 1
	})
	target.mu.Lock()
	checking := target.beat.checking
	target.mu.Unlock()
	if !checking {
		lab.Skip(t, "this machine has matched the slow greeting before the answer arrived")
	}
	b.awaitResult(s.address, "slow", "open")
}

// A silent target is a timeout at the end of the first scrape. A scrape that is too short for that is an error.
func TestSilentConnect(t *testing.T) {
	simnet.NewNetwork(t) // where all targets are silent
	b := newBench(t, 0)
	req := b.request("10.0.0.1:80", "plain")
	req.Timeout = 500 * time.Millisecond
	first, err := b.holder.Scrape(t.Context(), req, "")
	if err != nil || first.Result != "timeout" || first.Errno != "ETIMEDOUT" || first.Success() ||
		total(first.Hold.Connects, "") != 0 {
		t.Fatalf("the first scrape = %+v, error %v, want a timeout, while the connect goes on", first, err)
	}
	b.await("10.0.0.1:80", "plain", "the connect has ended", func(a Answer) bool {
		return a.Result == "timeout" && total(a.Hold.Connects, "timeout") > 0
	})
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := b.holder.Scrape(ctx, b.request("10.0.0.2:80", "plain"), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("a scrape whose client has gone: error %v, want %v", err, context.Canceled)
	}
}

// A target that expires is closed, and keeps its counters for a while.
func TestExpiry(t *testing.T) {
	for module, want := range map[string]error{"plain": io.EOF, "reset": syscall.ECONNRESET} {
		t.Run(module, func(t *testing.T) {
			b := newBench(t, 0)
			s := serve(t, "127.0.0.1:0")
			b.scrape(s.address, module)
			conn := s.accept()
			b.expire(6 * time.Minute)
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, want) {
				t.Errorf("the target has read error %v, want %v", err, want)
			}
			back := b.scrape(s.address, module)
			s.accept()
			if h := back.Hold; !back.Success() || total(h.Connects, "open") != 2 || total(h.Closes, "") != 0 {
				t.Errorf("back within a minute: %+v, %+v, want open, two connects, no close", back.Verdict, h)
			}
			b.expire(6 * time.Minute)
			b.expire(2 * time.Minute)
			if h := b.scrape(s.address, module).Hold; total(h.Connects, "open") != 1 {
				t.Errorf("back after two minutes: %+v, want a new start", h)
			}
			b.checkChanges()
		})
	}
}

// A target that expires while it waits for the next connect continues to wait.
func TestExpiryKeepsBackoff(t *testing.T) {
	b := newBench(t, 0)
	b.reload(strings.Replace(testConfig, "min: 100ms, max: 1s", "min: 1h, max: 1h", 1))
	const closed = "127.0.0.1:7311"
	b.scrape(closed, "plain")
	b.expire(6 * time.Minute)
	back := b.scrape(closed, "plain")
	if n := total(back.Hold.Connects, "refused"); n != 1 || back.Result != "refused" {
		t.Errorf("back: %+v, %d connects, want refused, and no further connect", back.Verdict, n)
	}
	if next := b.target(closed, "plain").status().NextConnect; time.Until(next) < 30*time.Minute {
		t.Errorf("the next connect is at %v, want in about an hour", next)
	}
}

// A reload closes the connections of modules that have changed, and those that the policy does not permit any more.
func TestReload(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		kept   bool
	}{
		"another module changed": {config: strings.Replace(testConfig, "  dead:", "  other:", 1), kept: true},
		"module changed":         {config: strings.Replace(testConfig, "timeout: 2s", "timeout: 3s", 1)},
		"module removed":         {config: strings.Replace(testConfig, "  plain:", "  other:", 1)},
		"address denied":         {config: `targets: {deny: ["127.0.0.0/8:*"]}` + testConfig},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 0)
			s := serve(t, "127.0.0.1:0")
			b.scrape(s.address, "plain")
			conn := s.accept()
			b.reload(c.config)
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, err := conn.Read(make([]byte, 1))
			if kept := !errors.Is(err, io.EOF); kept != c.kept {
				t.Errorf("the target has read error %v, want the connection to stay: %t", err, c.kept)
			}
		})
	}
}

// A connection stays when its name has another address, and the next one uses it.
func TestNewAddress(t *testing.T) {
	b := newBench(t, 0)
	old := serve(t, "127.0.0.2:7312")
	young := serve(t, "127.0.0.3:7312")
	const name = "host.example:7312"
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.2"}})
	first := b.scrape(name, "plain")
	conn := old.accept()
	if !first.Hold.HasName || !first.Hold.AddressCurrent {
		t.Errorf("the first scrape has %+v, want that the name has the address", first.Hold)
	}
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.3"}})
	b.resolve()
	moved := b.await(name, "plain", "the address is not current", func(a Answer) bool { return !a.Hold.AddressCurrent })
	if !moved.Success() || moved.Handshake.Peer.Addr().String() != "127.0.0.2" || total(moved.Hold.Closes, "") != 0 {
		t.Errorf("with another address: %+v, %+v, want the present connection", moved.Verdict, moved.Hold)
	}
	conn.Close()
	conn = young.accept()
	next := b.awaitResult(name, "plain", "open")
	if !next.Hold.AddressCurrent || next.Handshake.Peer.Addr().String() != "127.0.0.3" {
		t.Errorf("after the end: %+v, want the new address", next.Verdict)
	}
	// The name goes. The connection stays, and no other one follows it.
	b.answerDNS(nil)
	b.resolve()
	gone := b.await(name, "plain", "the address is not current", func(a Answer) bool { return !a.Hold.AddressCurrent })
	if !gone.Success() {
		t.Errorf("without an address: %+v, want the present connection", gone.Verdict)
	}
	young.listener.Close()
	conn.Close()
	absent := b.awaitResult(name, "plain", "dns_not_found")
	if absent.Err == nil {
		t.Errorf("without an address and a connection: %+v, want the resolver's error", absent.Verdict)
	}
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.2"}})
	b.resolve()
	b.awaitResult(name, "plain", "open")

	old.accept()
}

// If this host lacks the IP version of the preferred address, the connection uses the other one, and stays with it.
func TestFallBack(t *testing.T) {
	b := newBench(t, 0)
	s := serve(t, "127.0.0.4:7314")
	const name = "host.example:7314"
	b.answerDNS(simnet.Names{"host.example": {"2001:db8::1", "127.0.0.4"}})
	first := b.scrape(name, "dead")
	if !first.Success() || first.Handshake.Peer.Addr().String() != "127.0.0.4" || total(first.Hold.Connects, "") != 1 {
		t.Errorf("the first scrape = %+v, %+v, want one connect, with IPv4", first.Verdict, first.Hold)
	}
	conn := s.accept()
	b.resolve()
	lab.Eventually(t, "the name was looked up again", func() bool {
		again := registry.LookupCount{Result: registry.Resolved, Total: 2}
		return slices.Contains(b.target(name, "dead").Lookups(), again)
	})
	if a := b.scrape(name, "dead"); !a.Hold.AddressCurrent {
		t.Errorf("after a lookup: %+v, want that the address is current", a.Hold)
	}
	conn.Close()
	s.accept()
	b.awaitResult(name, "dead", "open")
	b.answerDNS(simnet.Names{"host.example": {"2001:db8::1"}})
	if a := b.scrape("other.example:7314", "dead"); a.Result != "dns_not_found" || a.Hold != nil {
		t.Errorf("a name that does not exist: %+v, %+v, want dns_not_found, and no connection", a.Verdict, a.Hold)
	}
	if a := b.scrape("host.example:7315", "dead"); a.Result != "unreachable" || a.Errno != "ENETUNREACH" {
		t.Errorf("a name with nothing but IPv6: %+v, want unreachable, ENETUNREACH", a.Verdict)
	}
}

// A connection to an address that the policy permits stays. The next one does not use an address that it denies.
func TestDeniedNextAddress(t *testing.T) {
	b := newBench(t, 0)
	old, young := serve(t, "127.0.0.5:7316"), serve(t, "127.0.0.6:7316")
	const name = "host.example:7316"
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.5"}})
	b.scrape(name, "plain")
	conn := old.accept()
	b.answerDNS(simnet.Names{"host.example": {"127.0.0.6"}})
	b.resolve()
	b.await(name, "plain", "the address is not current", func(a Answer) bool { return !a.Hold.AddressCurrent })
	b.reload(`targets: {deny: ["127.0.0.6/32:*"]}` + testConfig)
	if a := b.scrape(name, "plain"); !a.Success() {
		t.Errorf("after the reload: %+v, want that the connection stays", a.Verdict)
	}
	conn.Close()
	b.awaitResult(name, "plain", "closed")
	target := b.target(name, "plain")
	lab.Eventually(t, "two connects were due", func() bool {
		target.mu.Lock()
		defer target.mu.Unlock()
		return target.backoff.last >= 400*time.Millisecond
	})
	b.resolve()
	lab.Eventually(t, "the scrape says that the address is denied", func() bool {
		_, err := b.holder.Scrape(t.Context(), b.request(name, "plain"), "")
		return errors.Is(err, probe.ErrDenied)
	})
	young.none()
	if n := young.connections(); n != 0 {
		t.Errorf("%d connections to an address that is denied, want none", n)
	}
}

// A limit permits no further connection until another one has gone.
func TestLimit(t *testing.T) {
	b := newBench(t, 1)
	s := serve(t, "127.0.0.1:0")
	b.scrape(s.address, "plain")
	_, err := b.holder.Scrape(t.Context(), b.request(s.address, "dead"), "")
	const want = "connection not held: 1 connection is reserved already (limit: 1, --hold.max-connections)"
	if !errors.Is(err, ErrLimit) || err.Error() != want {
		t.Errorf("Scrape of a second target: error %v, want %s", err, want)
	}
	b.expire(6 * time.Minute)
	b.scrape(s.address, "dead")
}

// An error of this host is no result.
func TestFault(t *testing.T) {
	b := newBench(t, 0)
	s := serve(t, "127.0.0.1:0")
	lab.WithDescriptors(t, 0, func() {
		_, err := b.holder.Scrape(t.Context(), b.request(s.address, "plain"), "")
		if !errors.Is(err, ErrFault) || !errors.Is(err, syscall.EMFILE) {
			t.Errorf("Scrape without descriptors: error %v, want %v, EMFILE", err, ErrFault)
		}
	})
	b.awaitResult(s.address, "plain", "open")
}

// An error of this host is the answer until there is a result. The next connect has none while it goes on.
func TestFaultUntilResult(t *testing.T) {
	simnet.NewNetwork(t) // where all targets are silent
	b := newBench(t, 0)
	const address = "10.0.0.1:80"
	scrape := func() error {
		_, err := b.holder.Scrape(t.Context(), b.request(address, "plain"), "")
		return err
	}
	lab.WithDescriptors(t, 0, func() {
		if err := scrape(); !errors.Is(err, syscall.EMFILE) {
			t.Fatalf("Scrape without descriptors: error %v, want EMFILE", err)
		}
	})
	held := b.target(address, "plain")
	lab.Eventually(t, "the next connect goes on", func() bool {
		held.mu.Lock()
		defer held.mu.Unlock()
		return held.conn != nil
	})
	if err := scrape(); !errors.Is(err, ErrFault) || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Scrape during the next connect: error %v, want %v, EMFILE", err, ErrFault)
	}
	if s := held.status(); !errors.Is(s.Fault, syscall.EMFILE) {
		t.Errorf("the status page has the fault %v during the next connect, want EMFILE", s.Fault)
	}
	b.awaitResult(address, "plain", "timeout")
	lab.WithDescriptors(t, 0, func() {
		lab.Eventually(t, "a connect has failed because of this host", func() bool {
			return errors.Is(scrape(), ErrFault)
		})
		held.Adapt(&probe.Report{Verdict: probe.Verdict{Result: config.DNSNotFound, Err: io.EOF}}, nil)
	})
	b.awaitResult(address, "plain", "dns_not_found")
}

// Scrapes that wait for a connection end when the target is stopped.
func TestStopDuringScrape(t *testing.T) {
	simnet.NewNetwork(t) // where all targets are silent
	for name, c := range map[string]struct {
		stop func(*bench)
		want error
	}{
		"reload": {
			stop: func(b *bench) { b.reload(strings.Replace(testConfig, "plain", "other", 1)) },
			want: ErrStopped,
		},
		"close": {stop: func(b *bench) { b.holder.Close() }, want: shaker.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 0)
			scraped := make(chan error, 1)
			req := b.request("10.0.0.1:80", "plain")
			go func() {
				_, err := b.holder.Scrape(t.Context(), req, "")
				scraped <- err
			}()
			lab.Eventually(t, "the target is registered", func() bool {
				for range b.holder.registry.Targets() {
					return true
				}
				return false
			})
			c.stop(b)
			if err := <-scraped; !errors.Is(err, c.want) {
				t.Errorf("a scrape during which the target is stopped: error %v, want %v", err, c.want)
			}
		})
	}
}

// Connects of many targets are spread over time.
func TestPace(t *testing.T) {
	const targets = 200
	b := newBench(t, 0)
	s := serve(t, "0.0.0.0:0")
	_, port, _ := net.SplitHostPort(s.address)
	began := time.Now()
	var scraping sync.WaitGroup
	for i := range targets {
		scraping.Go(func() { b.scrape(fmt.Sprintf("127.0.1.%d:%s", i+1, port), "plain") })
	}
	scraping.Wait()
	if took, want := time.Since(began), (targets-1)*time.Second/connectsPerSecond; took < want {
		t.Errorf("%d connects took %v, want %v or more", targets, took, want)
	}
}

// A scrape whose turn comes too late is an error at once.
func TestPaceIsTooSlow(t *testing.T) {
	b := newBench(t, 0)
	for range 20 * connectsPerSecond {
		b.holder.pace.reserve()
	}
	_, err := b.holder.Scrape(t.Context(), b.request("127.0.0.1:7313", "plain"), "")
	if !errors.Is(err, ErrPending) || !strings.Contains(err.Error(), "at most 320 connects a second") {
		t.Errorf("Scrape whose turn comes in 20 s: error %v, want %v because of the pace", err, ErrPending)
	}
}
