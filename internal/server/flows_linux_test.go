package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// newFlowsProber returns a Prober with a module of reserved ports and one with ports of its own, and what is logged.
func newFlowsProber(t *testing.T, engine *shaker.Config) (*probe.Prober, *slog.Logger, *bytes.Buffer) {
	t.Helper()
	conf, _, err := config.Parse("shaker.yml", []byte(`
modules:
  many: {prober: tcp, tcp: {flows: 40}}
  others: {prober: tcp, tcp: {flows: 4, source_ports: 20000-20003}}
  plain: {prober: tcp}
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := shaker.New(engine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	log := new(bytes.Buffer)
	return probe.New(probe.Options{Shaker: s, Config: conf}), slog.New(slog.NewTextHandler(log, nil)), log
}

// The exporter reserves the ports of flows before the first probe, so that no other program can take them, and logs
// them.
func TestReserveFlowPorts(t *testing.T) {
	lab.Need(t)
	prober, logger, log := newFlowsProber(t, nil)
	reserveFlowPorts(prober, logger)
	module := prober.Config().Modules["many"]
	ports, err := prober.FlowPorts(&module)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("msg=\"Ports of flows\" reserved=\"many %v\"\n", ports)
	if !strings.HasSuffix(log.String(), want) || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("the log is\n%swant one line with %s", log, want)
	}
	for port := ports.First; port <= ports.Last; port++ {
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			l.Close()
			t.Errorf("another program can listen on port %d, want that it is reserved", port)
		}
	}
}

// With the raw engine, the log names the ports of the engine that flows use, and the modules whose flows use sockets
// nevertheless. Ports of the engine as source_ports are a warning: other probes use them, too.
func TestFlowsOfRawEngine(t *testing.T) {
	lab.Need(t)
	for ports, want := range map[shaker.PortRange]string{
		{}: `level=INFO .* because their ports are not those of the engine" modules=others`,
		{First: 20000, Last: 20127}: `level=WARN .*Want ports outside of --probe\.raw-ports" ` +
			`modules="others 20000-20003"`,
	} {
		t.Run(fmt.Sprint(ports), func(t *testing.T) {
			prober, logger, log := newFlowsProber(t, &shaker.Config{Raw: &shaker.Raw{Ports: ports}})
			reserveFlowPorts(prober, logger)
			module := prober.Config().Modules["many"]
			own, err := prober.FlowPorts(&module)
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("^.* msg=\"Ports of flows\" reserved=\"many %v\"\n.*%s\n$", own, want)
			if !regexp.MustCompile(want).MatchString(log.String()) {
				t.Errorf("the log is\n%swant %s", log, want)
			}
		})
	}
}

// A port of flows on which the exporter itself listens is a warning, which names the module.
func TestFlowsFromPortOfExporter(t *testing.T) {
	prober, logger, log := newFlowsProber(t, nil)
	for address, warns := range map[string]bool{
		":20003": true, "127.0.0.1:20000": true, "[::1]:20001": true, ":20004": false, ":10115": false,
		"vsock://:20001": false, "": false,
	} {
		log.Reset()
		warnListening(logger, prober.Config(), []string{address})
		if got := strings.Contains(log.String(), "modules=others\n"); got != warns {
			t.Errorf("listening on %q, the log is %q, want a warning: %t", address, log, warns)
		}
	}
}

// The function is called once, when the server listens on all of its addresses, and before it serves a request.
func TestWhenListening(t *testing.T) {
	called := make(chan string, 10)
	server := newServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called <- "request" }),
		requestLimit, slog.New(slog.DiscardHandler))
	whenListening(server, func() { called <- "listening" })
	defer server.Close()
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go server.Serve(l)
		response, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	for _, want := range []string{"listening", "request", "request"} {
		if got := <-called; got != want {
			t.Errorf("called because of a %s, want %s", got, want)
		}
	}
}
