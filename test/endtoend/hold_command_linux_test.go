package endtoend

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A peer is a server that the hold command connects to.
type peer struct {
	net.Listener
	address string
}

// servePeer listens on a port of this host until the test ends. It calls serve for each connection, with its number,
// the first one being 1, and closes the connection when serve returns.
func servePeer(t *testing.T, serve func(n int, c *net.TCPConn)) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return // the listener is closed
			}
			serving.Go(func() {
				defer c.Close()
				serve(n, c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { // before this, process.Start's cleanup has ended the command and its connections
		l.Close()
		serving.Wait()
	})
	return &peer{Listener: l, address: l.Addr().String()}
}

// take reads a heartbeat, and reports whether there was one.
func take(c net.Conn) bool {
	_, err := io.ReadFull(c, make([]byte, len("PING\r\n")))
	return err == nil
}

// holdCommand returns the arguments of a hold command with heartbeats.
func holdCommand(p *peer, flags ...string) []string {
	args := append([]string{"hold", `--send=PING\r\n`, `--expect=^\+PONG$`, `--delimiter=\r\n`}, flags...)
	return append(args, p.address)
}

// The hold command prints one line for each event of a connection and why it ended, and opens the next one. What the
// peer sends reaches the terminal without control characters.
func TestHoldCommand(t *testing.T) {
	p := servePeer(t, func(n int, c *net.TCPConn) {
		fmt.Fprint(c, map[bool]string{true: "go away\r\n", false: "hello\r\n"}[n == 2])
		switch {
		case !take(c):
		case n == 1:
			fmt.Fprint(c, "+PONG\r\n")
			take(c)
			fmt.Fprint(c, "\x1b[31m\x9b\xff\x07\r\n")
			fmt.Fprint(c, "bye\r\n")
		case n == 3: // an RST
			c.SetLinger(0)
		case n == 4:
			fmt.Fprint(c, strings.Repeat("x", 5000))
		}
	})
	args := holdCommand(p, "--count=4", "--heartbeat-interval=1s", "--heartbeat-timeout=900ms", "--greeting=^hello$",
		"--reconnect=100ms/100ms")
	command := process.Start(t, exporter.Command(t, args...))
	if code := command.Wait(); code != 1 {
		t.Errorf("%q exits with %d, want 1, because there is no connection at the end", args, code)
	}
	got := strings.ReplaceAll(exporter.Steady(command.Output()), p.address, "PEER")
	const want = `T PEER: seq=1 connected time=T ms, local port T
T PEER: seq=1 greeted after T ms: "hello"
T PEER: seq=1 answered after T ms: "+PONG"
T PEER: seq=1 answered: mismatch after T ms: "\x1b[31m\x9b\xff\a" does not match '^\+PONG$'
T PEER: seq=1 received: "bye"
T PEER: seq=1 ended: closed after T, the peer sent a FIN, reconnect in T
T PEER: seq=2 connected time=T ms, local port T
T PEER: seq=2 greeted: mismatch after T ms: "go away" does not match '^hello$'
T PEER: seq=2 ended: mismatch after T, closed, because the greeting is not as expected, reconnect in T
T PEER: seq=3 connected time=T ms, local port T
T PEER: seq=3 greeted after T ms: "hello"
T PEER: seq=3 ended: reset ECONNRESET after T, the peer sent an RST, reconnect in T
T PEER: seq=4 connected time=T ms, local port T
T PEER: seq=4 greeted after T ms: "hello"
T PEER: seq=4 ended: mismatch after T, the peer sent a frame of more than 4096 bytes

--- PEER ---
4 connects, 1 ended: closed, 2 ended: mismatch, 1 ended: reset
age at the end min/avg/max = T/T/T
2 heartbeats, 2 answered, 0 unanswered, 1 mismatch; min/p50/p99/max = T/T/T/T ms
longest silence T
`
	if got != want {
		t.Errorf("%q prints\n%s\nwant\n%s", args, got, want)
	}
}

// The JSON output has one object for each event, and one for the summary.
func TestHoldCommandJSON(t *testing.T) {
	p := servePeer(t, func(_ int, c *net.TCPConn) {
		take(c)
		fmt.Fprint(c, "\x1b\"é\r\n")
	})
	args := holdCommand(p, "--count=1", "--output=json")
	command := process.Start(t, exporter.Command(t, args...))
	if code := command.Wait(); code != 1 {
		t.Errorf("%q exits with %d, want 1", args, code)
	}
	got := strings.ReplaceAll(exporter.Steady(command.Output()), p.address, "PEER")
	const want = `{"time":T,"target":"PEER","seq":1,"event":"connected","address":"127.0.0.1","success":true,` +
		`"local_port":T,"latency_seconds":T}
{"time":T,"target":"PEER","seq":1,"event":"answered","address":"127.0.0.1","success":false,"result":"mismatch",` +
		`"latency_seconds":T,"frame":"\\x1b\"\\u00e9"}
{"time":T,"target":"PEER","seq":1,"event":"ended","address":"127.0.0.1","success":false,"result":"closed",` +
		`"age_seconds":T,"keepalives_unanswered":0,"last_answer_age_seconds":T,"last_data_age_seconds":T,` +
		`"unacknowledged_segments":0,"window_closed":false}
{"time":T,"target":"PEER","event":"summary","success":false,"connects":1,"ended":{"closed":1},"failed":{},` +
		`"heartbeats_answered":1,"heartbeats_unanswered":0,"heartbeats_late":0,"heartbeats_mismatch":1,` +
		`"latency_p50_seconds":T,"latency_p99_seconds":T`
	// The longest silence may be too short to be known.
	if rest, ok := strings.CutPrefix(got, want); !ok || rest != "}\n" && rest != `,"longest_silence_seconds":T}`+"\n" {
		t.Errorf("%q prints\n%s\nwant\n%s}", args, got, want)
	}
}

// An application that does not answer while its kernel acknowledges is silent: the connection stays, and is well again
// when the answer comes.
func TestHoldCommandSilent(t *testing.T) {
	answer := make(chan struct{})
	p := servePeer(t, func(_ int, c *net.TCPConn) {
		take(c)
		<-answer
		for ok := true; ok; ok = take(c) {
			fmt.Fprint(c, "+PONG\r\n")
		}
	})
	proceed := sync.OnceFunc(func() { close(answer) })
	t.Cleanup(proceed)
	start := func() *process.Process {
		return process.Start(t, exporter.Command(t, holdCommand(p, "--heartbeat-interval=2s")...))
	}
	first, second := start(), start()
	silent := regexp.MustCompile(`(?m) seq=1 unanswered: silent, no answer for \S+, ` +
		`although its kernel acknowledged all data, last segment \S+ ago, no data ever$`)
	for _, command := range []*process.Process{first, second} {
		lab.Eventually(t, "the application is silent", func() bool { return silent.MatchString(command.Output()) })
	}
	first.Signal(os.Interrupt)
	const unanswered = "\n1 heartbeat, 0 answered, 1 unanswered\n"
	if code := first.Wait(); code != 1 || !strings.Contains(first.Output(), unanswered) {
		t.Errorf("interrupted while the application is silent, the command exits with %d and prints\n%s\n"+
			"want 1 and %q", code, first.Output(), unanswered)
	}
	second.Signal(syscall.SIGQUIT)
	lab.Eventually(t, "SIGQUIT prints the statistics so far", func() bool {
		return strings.Contains(second.Output(), "\n"+p.address+": 1 connect, connected for ")
	})
	proceed()
	lab.Eventually(t, "the late answer arrives, and another one in time", func() bool {
		_, after, ok := strings.Cut(second.Output(), " ms, late: \"+PONG\"\n")
		return ok && strings.HasSuffix(after, " ms: \"+PONG\"\n")
	})
	second.Signal(os.Interrupt)
	summary := regexp.MustCompile(`\n1 connect, 1 closed by this command after \S+\n` +
		`\d+ heartbeats, \d+ answered, \d+ unanswered, \d+ late; min/p50/p99/max = .* ms\n`)
	if code := second.Wait(); code != 0 || !summary.MatchString(second.Output()) {
		t.Errorf("interrupted after the application answered again, the command exits with %d and prints\n%s\n"+
			"want 0 and %v", code, second.Output(), summary)
	}
}

// A greeting that is missing is reported, and the connection is not well until it arrives.
func TestHoldCommandLateGreeting(t *testing.T) {
	greet := make(chan struct{})
	p := servePeer(t, func(_ int, c *net.TCPConn) {
		<-greet
		fmt.Fprintln(c, "hello")
		c.Read(make([]byte, 1))
	})
	proceed := sync.OnceFunc(func() { close(greet) })
	t.Cleanup(proceed)
	start := func() *process.Process {
		args := []string{"hold", "--greeting=^hello$", `--delimiter=\n`, "--timeout=1s", p.address}
		return process.Start(t, exporter.Command(t, args...))
	}
	first, second := start(), start()
	missing := regexp.MustCompile(
		`(?m) seq=1 unanswered: silent, no greeting for 1s, last segment \S+ ago, no data ever$`)
	for _, command := range []*process.Process{first, second} {
		lab.Eventually(t, "the greeting is missing", func() bool { return missing.MatchString(command.Output()) })
	}
	first.Signal(os.Interrupt)
	if code := first.Wait(); code != 1 {
		t.Errorf("interrupted without a greeting, the command exits with %d, want 1", code)
	}
	proceed()
	lab.Eventually(t, "the greeting arrives", func() bool {
		return strings.Contains(second.Output(), " ms, late: \"hello\"\n")
	})
	second.Signal(os.Interrupt)
	if code := second.Wait(); code != 0 {
		t.Errorf("interrupted after the greeting, the command exits with %d, want 0", code)
	}
}

// If this host lacks the IP version of the preferred address, the command uses the other one, as the probe command
// does.
func TestHoldCommandFallsBack(t *testing.T) {
	p := servePeer(t, func(_ int, c *net.TCPConn) { io.Copy(io.Discard, c) })
	_, port, _ := net.SplitHostPort(p.address)
	dns := simnet.ServeDNS(t, "127.0.0.1:0", simnet.Names{"host.example": {"2001:db8::1", "127.0.0.1"}})
	file := lab.Write(t, t.TempDir(), "shaker.yml",
		fmt.Sprintf("modules: {held: {prober: hold, tcp: {dns_server: '%s'}}}\n", dns))
	command := process.Start(t, exporter.Command(t, "hold", "--config.file="+file, "--module=held", "--duration=1s",
		"host.example:"+port))
	code := command.Wait()
	want := regexp.MustCompile(`^T host.example:T \(127.0.0.1\): seq=1 connected time=T ms, local port T\n` +
		`\n--- host.example:T ---\n1 connect, 1 closed by this command after T\nlongest silence T\n$`)
	got := strings.ReplaceAll(exporter.Steady(command.Output()), ":"+port, ":T")
	if code != 0 || !want.MatchString(got) {
		t.Errorf("a name whose IPv6 address this host lacks: exit status %d, and it prints\n%s\nwant 0 and\n%v",
			code, got, want)
	}
}

// A peer whose kernel does not answer is found by keepalives, or by the heartbeat that it does not acknowledge.
func TestHoldCommandDeadPeer(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	simnet.NewNetwork(t).At("192.0.2.1", simnet.SYNACK())
	args := []string{"hold", "--count=1", "--keepalive=1s/1s/2", "192.0.2.1:80"}
	idle := process.Start(t, exporter.Command(t, args...))
	asking := process.Start(t, exporter.Command(t, append(args, "--send=x", "--heartbeat-timeout=500ms")...))
	for _, c := range []struct {
		what    string
		command *process.Process
		want    *regexp.Regexp
	}{
		{what: "an idle connection", command: idle, want: regexp.MustCompile(
			`^T 192.0.2.1:80: seq=1 connected time=T ms, local port T\n` +
				`T 192.0.2.1:80: seq=1 keepalives unanswered: 1 of 2, last segment T ago, no data ever\n` +
				`(T 192.0.2.1:80: seq=1 keepalives unanswered: 2 of 2, last segment T ago, no data ever\n)?` +
				`T 192.0.2.1:80: seq=1 ended: timeout ETIMEDOUT after T, 2 keepalives unanswered, ` +
				`last segment T ago, no data ever\n\n--- 192.0.2.1:80 ---\n1 connect, 1 ended: timeout\n` +
				`age at the end min/avg/max = T/T/T\nlongest silence T\n$`)},
		{what: "a connection with a heartbeat", command: asking, want: regexp.MustCompile(
			`^T 192.0.2.1:80: seq=1 connected time=T ms, local port T\n` +
				`T 192.0.2.1:80: seq=1 unanswered: timeout ETIMEDOUT, no answer for T, 1 segment not acknowledged, ` +
				`last segment T ago, no data ever\n` +
				`T 192.0.2.1:80: seq=1 ended: timeout ETIMEDOUT after T, 1 segment not acknowledged, ` +
				`last segment T ago, no data ever\n\n--- 192.0.2.1:80 ---\n1 connect, 1 ended: timeout\n` +
				`age at the end min/avg/max = T/T/T\n1 heartbeat, 0 answered, 1 unanswered\nlongest silence T\n$`)},
	} {
		code := c.command.Wait()
		if got := exporter.Steady(c.command.Output()); code != 1 || !c.want.MatchString(got) {
			t.Errorf("%s to a peer that does not answer: exit status %d, and it prints\n%s\nwant 1 and\n%v",
				c.what, code, got, c.want)
		}
	}
}

// The command closes its connection as told when it is interrupted or its time is over, prints a summary also if its
// output is no terminal, and exits with 0 because the connection was well.
func TestHoldCommandEnd(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags []string
		want  error // that the peer reads
	}{
		{name: "default", want: io.EOF},
		{name: "fin", flags: []string{"--close=fin"}, want: io.EOF},
		{name: "reset", flags: []string{"--close=reset"}, want: syscall.ECONNRESET},
		{name: "duration", flags: []string{"--duration=1s"}, want: io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			read := make(chan error, 1)
			p := servePeer(t, func(_ int, conn *net.TCPConn) {
				_, err := conn.Read(make([]byte, 1))
				read <- err
			})
			command := process.Start(t, exporter.Command(t, append(append([]string{"hold"}, c.flags...), p.address)...))
			if c.name != "duration" {
				lab.Eventually(t, "the command is connected", func() bool {
					return strings.Contains(command.Output(), " connected time=")
				})
				command.Signal(os.Interrupt)
			}
			code := command.Wait()
			if err := <-read; !errors.Is(err, c.want) {
				t.Errorf("when the command ends, the peer reads %v, want %v", err, c.want)
			}
			summary := regexp.MustCompile(`\n--- \S+ ---\n` +
				`1 connect, 1 closed by this command after \S+\n(longest silence \S+\n)?$`)
			if out := command.Output(); code != 0 || !summary.MatchString(out) {
				t.Errorf("at its end, the command exits with %d and prints\n%s\nwant 0 and %v", code, out, summary)
			}
		})
	}
}

// On a terminal, the results are coloured, and the last line shows for how long the connection is held.
func TestHoldCommandOnTerminal(t *testing.T) {
	p := servePeer(t, func(_ int, c *net.TCPConn) { c.Read(make([]byte, 1)) })
	out := onTerminal(t, "TERM=xterm", "hold", "--duration=2s", p.address)
	held := regexp.MustCompile(`seq=1 \x1b\[32mconnected\x1b\[0m time=.*` + regexp.QuoteMeta(p.address) +
		`: connected, \d\.\d s\r\x1b\[K`)
	if !held.MatchString(strings.ReplaceAll(out, "\n", " ")) {
		t.Errorf("the terminal shows %q, want %v", out, held)
	}
	p.Close()
	out = onTerminal(t, "TERM=xterm", "hold", "--count=1", p.address)
	if want := "seq=1 \x1b[31mnot connected\x1b[0m: refused ECONNREFUSED"; !strings.Contains(out, want) {
		t.Errorf("the terminal shows %q, want %q in it", out, want)
	}
}
