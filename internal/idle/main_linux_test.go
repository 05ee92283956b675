package idle

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

var everyRouter = flag.Bool("routers", false, "measure the routers of TestRouters that take more than a minute, too")

// maxInFlight is the limit of the probes in flight.
const maxInFlight = 64

// A bench is a Meter, with what it has told.
type bench struct {
	t       *testing.T
	prober  *probe.Prober
	meter   *Meter
	results *history.History

	connections *probe.Connections
	dns         atomic.Pointer[func(ctx context.Context, network, address string) (net.Conn, error)]

	mu      sync.Mutex
	changes []string // results
	faults  []error
}

const idleConfig = `
modules:
  short:
    prober: idle
    timeout: 1s
    idle: {steps: [2s, 4s, 7s, 11s], probe: {interval: 1s, count: 3}, control: 1s}
  long:
    prober: idle
    timeout: 1s
    idle: {steps: [2s, 4s, 8s, 12s, 17s, 25s], probe: {interval: 1s, count: 3}, control: 1s}
  quick:
    prober: idle
    timeout: 1s
    idle: {steps: [1s, 2s], probe: {interval: 1s, count: 1}, control: 1s}
  ports:
    prober: idle
    timeout: 1s
    idle: {steps: [1s, 2s], probe: {interval: 1s, count: 1}, control: 1s}
    tcp: {source_ports: 41000-41002}
  hour:
    prober: idle
    timeout: 1s
    idle: {steps: [1h], control: 1s}
  alone:
    prober: idle
    timeout: 1s
    idle: {steps: [1s, 3s], probe: {interval: 1s, count: 1}, control: 0}
`

// newBench returns a bench whose Meter may have so many connections, 0 for any number.
func newBench(t *testing.T, text string, maxConnections int) *bench {
	t.Helper()
	lab.Need(t)
	b := &bench{t: t, results: history.New(1000)}
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	b.answerDNS(nil)
	b.prober = probe.New(probe.Options{Shaker: engine, Config: b.parse(text), MaxInFlight: maxInFlight,
		DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
			return (*b.dns.Load())(ctx, network, address)
		}})
	b.connections = probe.NewConnections(b.prober, maxConnections, 0)
	b.meter = New(Options{
		Shaker: engine, Prober: b.prober, Connections: b.connections, History: b.results,
		Changed: func(r *probe.Report) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.changes = append(b.changes, r.Result)
		},
		Fault: func(err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.faults = append(b.faults, err)
		},
	})
	t.Cleanup(b.meter.Close)
	return b
}

func (b *bench) parse(text string) *config.Config {
	b.t.Helper()
	c, _, err := config.Parse("idle.yml", []byte(text))
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

func (b *bench) request(t *testing.T, target, module string) *probe.Request {
	t.Helper()
	req, err := probe.NewRequest(b.prober.Config(), target, module)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func (b *bench) scrape(t *testing.T, target, module string) Answer {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		answer, err := b.meter.Scrape(t.Context(), b.request(t, target, module), "192.0.2.1")
		switch {
		case err == nil:
			return answer
		case !errors.Is(err, shaker.ErrUnsent) || time.Now().After(deadline): // otherwise this host was late
			t.Fatalf("Scrape of %s with %s: error %v, want an answer", target, module, err)
		}
	}
}

// await scrapes a target until n rounds are complete.
func (b *bench) await(t *testing.T, target, module string, n uint64) (answer Answer) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		answer = b.scrape(t, target, module)
		if answer.Idle.Rounds >= n {
			return answer
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s with %s has %d complete rounds after 5 minutes, want %d: %+v",
				target, module, answer.Idle.Rounds, n, answer.Idle)
		}
	}
}

// String describes a finding for messages.
func (f Finding) String() string {
	kind := [...]string{"?", "survived", "lost", "told", "skipped"}[f.Kind]
	return fmt.Sprintf("%v: %s %v %v %d %v", f.Step, kind, f.Idle, f.Outcome, f.Errno, f.Skipped)
}

func (s *Snapshot) String() string {
	var all []string
	for _, f := range s.Findings {
		all = append(all, f.String())
	}
	return fmt.Sprintf("%d rounds, bracket (%v, %v], told %v, consistent %t, control %+v, skipped %v:\n\t%s", s.Rounds,
		s.Survived, s.Lost, s.Told, s.Consistent, s.Control, s.Skipped, strings.Join(all, "\n\t"))
}

// serve accepts connections, and closes each of them after a time, or when the client has closed it, or when the test
// ends. 0 means never.
func serve(t *testing.T, l net.Listener, after time.Duration, linger ...int) string {
	return serveEach(t, l, func(int) time.Duration { return after }, linger...)
}

// serveEach is serve with a time that depends on how many connections were accepted before.
func serveEach(t *testing.T, l net.Listener, after func(n int) time.Duration, linger ...int) string {
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
			serving.Go(func() {
				defer conn.Close()
				defer stop()
				conn.(*net.TCPConn).SetKeepAlive(false) // it would be busy
				if d := after(n); d > 0 {
					conn.SetReadDeadline(time.Now().Add(d))
				}
				for _, seconds := range linger {
					conn.(*net.TCPConn).SetLinger(seconds)
				}
				conn.Read(make([]byte, 1))
			})
		}
	})
	t.Cleanup(func() { l.Close(); cancel(); serving.Wait() })
	return l.Addr().String()
}
