package hold

import (
	"bufio"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A bench is a Holder whose DNS server can be replaced.
type bench struct {
	t       *testing.T
	prober  *probe.Prober
	holder  *Holder
	results *history.History
	changes chan string // results with which targets begin to fail, and with which they have recovered
	dns     atomic.Pointer[func(ctx context.Context, network, address string) (net.Conn, error)]
}

// testConfig has modules that reconnect soon, so that tests do not wait.
const testConfig = `
modules:
  plain:
    prober: hold
    timeout: 2s
    tcp: {preferred_ip_protocol: ip4}
    hold: {reconnect: {min: 100ms, max: 1s}}
  dead:
    prober: hold
    timeout: 2s
    hold:
      keepalive: {idle: 1s, interval: 1s, count: 1}
      reconnect: {min: 100ms, max: 1s}
  dead_asks:
    prober: hold
    timeout: 2s
    hold:
      keepalive: {idle: 1s, interval: 1s, count: 1}
      reconnect: {min: 100ms, max: 1s}
      heartbeat: {interval: 1s, timeout: 300ms, send: "?"}
  asks:
    prober: hold
    timeout: 2s
    hold:
      reconnect: {min: 100ms, max: 1s}
      heartbeat: {interval: 1s, timeout: 300ms, send: "PING\r\n", expect: '^\+PONG$', frame: {delimiter: "\r\n"}}
  patient:
    prober: hold
    hold:
      reconnect: {min: 100ms, max: 1h}
      heartbeat: {interval: 1s, timeout: 300ms, send: "PING\r\n", expect: '^\+PONG$', frame: {delimiter: "\r\n"}}
  greeted:
    prober: hold
    timeout: 2s
    hold:
      reconnect: {min: 100ms, max: 1s}
      greeting: '^220 '
      heartbeat: {interval: 1h, send: "NOOP\r\n", frame: {delimiter: "\r\n"}}
  reset:
    prober: hold
    hold: {close: reset}
`

// newBench returns a bench with a limit of connections, 0 for none.
func newBench(t *testing.T, most int) *bench {
	t.Helper()
	lab.Need(t)
	b := &bench{t: t, results: history.New(10_000), changes: make(chan string, 10_000)}
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	b.answerDNS(nil)
	b.prober = probe.New(probe.Options{Shaker: engine, Config: b.parse(testConfig),
		DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
			return (*b.dns.Load())(ctx, network, address)
		}})
	b.holder = New(Options{
		Shaker: engine, Prober: b.prober, Connections: probe.NewConnections(b.prober, most, 0), History: b.results,
		Changed: func(r *probe.Report) { b.changes <- r.Result },
	})
	t.Cleanup(b.holder.Close)
	return b
}

func (b *bench) parse(text string) *config.Config {
	b.t.Helper()
	c, _, err := config.Parse("hold.yml", []byte(text))
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// answerDNS replaces the DNS server.
func (b *bench) answerDNS(names simnet.Names) {
	b.t.Helper()
	dial := simnet.NewDNS(b.t, names)
	b.dns.Store(&dial)
}

// request returns a request of the active configuration.
func (b *bench) request(target, module string) *probe.Request {
	b.t.Helper()
	req, err := probe.NewRequest(b.prober.Config(), target, module)
	if err != nil {
		b.t.Fatal(err)
	}
	return req
}

// scrape scrapes a target.
func (b *bench) scrape(target, module string) Answer {
	b.t.Helper()
	answer, err := b.holder.Scrape(b.t.Context(), b.request(target, module), "192.0.2.1")
	if err != nil {
		b.t.Fatalf("Scrape of %s with %s: error %v, want an answer", target, module, err)
	}
	return answer
}

// connect lets a first scrape connect to a target, and does not wait for its answer.
func (b *bench) connect(target, module string) {
	b.t.Helper()
	req := b.request(target, module)
	go b.holder.Scrape(b.t.Context(), req, "192.0.2.1")
}

// await scrapes a target until a condition is true.
func (b *bench) await(target, module, what string, is func(Answer) bool) (last Answer) {
	b.t.Helper()
	lab.Eventually(b.t, what, func() bool {
		var err error
		last, err = b.holder.Scrape(b.t.Context(), b.request(target, module), "192.0.2.1")
		if err != nil && !errors.Is(err, ErrFault) && !errors.Is(err, ErrPending) {
			b.t.Fatalf("Scrape of %s with %s: error %v, want an answer", target, module, err)
		}
		return err == nil && is(last)
	})
	return last
}

// awaitResult scrapes a target until it has a result.
func (b *bench) awaitResult(target, module, result string) Answer {
	b.t.Helper()
	return b.await(target, module, "the result is "+result, func(a Answer) bool { return a.Result == result })
}

// expire lets targets expire as if so much time had passed.
func (b *bench) expire(after time.Duration) { b.holder.registry.Expire(time.Now().Add(after)) }

// resolve looks all names up.
func (b *bench) resolve() { b.holder.registry.Resolve(time.Now().Add(time.Hour)) }

// reload makes another configuration the active one.
func (b *bench) reload(text string) {
	b.t.Helper()
	b.prober.Configure(b.parse(text))
	b.holder.Configure()
}

// target returns a held target.
func (b *bench) target(text, module string) *target {
	b.t.Helper()
	for t := range b.holder.registry.Targets() {
		if t.Key == (registry.Key{Module: module, Target: text}) {
			return t
		}
	}
	b.t.Fatalf("no connection to %s is held with module %s, want one", text, module)
	return nil
}

// checkChanges checks the results with which a target has begun to fail, or has recovered, since the last call.
func (b *bench) checkChanges(want ...string) {
	b.t.Helper()
	for _, result := range want {
		select {
		case got := <-b.changes:
			if got != result {
				b.t.Errorf("a target has changed to %s, want %s", got, result)
			}
		case <-time.After(time.Minute):
			b.t.Fatalf("no target has changed to %s within a minute", result)
		}
	}
	select {
	case got := <-b.changes:
		b.t.Errorf("a target has changed to %s, want no change", got)
	default:
	}
}

// total returns the number of events with a result, or with any if it is "".
func total(counts []ResultCount, result string) (n uint64) {
	for _, c := range counts {
		if result == "" || c.Result == result {
			n += c.Total
		}
	}
	return n
}

// A server accepts connections, and gives them to the test.
type server struct {
	t        *testing.T
	address  string
	listener net.Listener
	accepted chan *net.TCPConn

	mu    sync.Mutex
	peers []string // of all connections, in the order in which they were accepted
}

// serve listens on an address until the test ends.
func serve(t *testing.T, address string) *server {
	t.Helper()
	var listen net.ListenConfig
	listen.SetMultipathTCP(false)
	l, err := listen.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l)
}

// serveOn is serve with a listener.
func serveOn(t *testing.T, l net.Listener) *server {
	s := &server{t: t, address: l.Addr().String(), listener: l, accepted: make(chan *net.TCPConn, 10_000)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			s.mu.Lock()
			s.peers = append(s.peers, conn.RemoteAddr().String())
			s.mu.Unlock()
			t.Cleanup(func() { conn.Close() })
			s.accepted <- conn.(*net.TCPConn)
		}
	}()
	return s
}

// accept returns the next connection.
func (s *server) accept() *net.TCPConn {
	s.t.Helper()
	select {
	case conn := <-s.accepted:
		return conn
	case <-time.After(time.Minute):
		s.t.Fatalf("no connection to %s within a minute", s.address)
	}
	return nil
}

// connections returns how many connections were made until now, whether they were accepted already or not: it makes
// one more, which is accepted after them.
func (s *server) connections() (n int) {
	s.t.Helper()
	last, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { last.Close() })
	lab.Eventually(s.t, "the last connection is accepted", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n = slices.Index(s.peers, last.LocalAddr().String())
		return n >= 0
	})
	return n
}

// readLine reads a line, which has to be a certain one.
func readLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	if got, err := r.ReadString('\n'); got != want || err != nil {
		t.Fatalf("the target has read %q, error %v, want %q", got, err, want)
	}
}
